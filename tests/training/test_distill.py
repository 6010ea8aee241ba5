"""Distillation: its mathematics against closed forms, the loop's resumption, and a student on the shapes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from curation.errors import UserError
from training import objective
from training.bundle import DiffusionModel, load_bundle
from training.data import TrainingSet
from training.distill import (
    Grid,
    consistency_target,
    consistent,
    ddim,
    halving_loss,
    pseudo_huber,
    truncated_snr,
    two_steps,
)
from training.distill_job import DistillJob
from training.distill_loop import Outcome, Teacher, distill
from training.job import TrainJob
from training.learner import Place
from training.loop import train
from training.progress import Point
from training.sampling import SamplingParams, integrate, sample
from training.schedules import CosineSchedule, LinearSchedule, SigmoidSchedule
from training.text import TextEncoder

pytestmark = pytest.mark.slow  # networks are trained, in seconds each

BETAS = [LinearSchedule().betas(), CosineSchedule().betas(), SigmoidSchedule(timesteps=333).betas()]
MEAN, DEVIATION = 0.3, 0.2  # of the Gaussian data


def oracle(grid: Grid) -> Callable[[Tensor, Tensor], Tensor]:
    """E[x0 | xt] of data N(MEAN, DEVIATION^2): what a perfect network answers."""

    def denoise(xt: Tensor, level: Tensor) -> Tensor:
        abar = grid.abar[level].view(-1, *(1,) * (xt.ndim - 1))
        gain = abar.sqrt() * DEVIATION**2 / (abar * DEVIATION**2 + 1 - abar)
        return MEAN + gain * (xt - abar.sqrt() * MEAN)

    return denoise


@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 16])
def test_half_as_many_steps_visit_every_other_level(betas: np.ndarray, steps: int) -> None:
    whole, half = Grid.of(betas, 2 * steps), Grid.of(betas, steps)
    assert torch.equal(whole.timesteps[2::2], half.timesteps[1:])
    assert torch.equal(whole.abar[::2], half.abar)
    assert half.abar[0] == 1
    assert half.timesteps[-1] == len(betas) - 1


@pytest.mark.parametrize("betas", BETAS)
def test_one_step_to_the_target_lands_where_two_of_the_teacher_do(betas: np.ndarray) -> None:
    grid = Grid.of(betas, 8)
    level = torch.tensor([2, 4, 6, 8])
    xt = torch.randn(4, 3, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    teacher = oracle(grid)
    middle = ddim(teacher(xt, level), xt, grid.abar[level], grid.abar[level - 1])
    end = ddim(teacher(middle, level - 1), middle, grid.abar[level - 1], grid.abar[level - 2])
    target = two_steps(teacher, grid, xt, level)
    torch.testing.assert_close(ddim(target, xt, grid.abar[level], grid.abar[level - 2]), end, rtol=1e-12, atol=1e-12)
    # and it is the paper's own expression
    a, s = (grid.abar[level - 2].sqrt()), (1 - grid.abar[level - 2]).sqrt()
    ratio = (s / (1 - grid.abar[level]).sqrt()).view(-1, 1, 1, 1)
    paper = (end - ratio * xt) / (a.view(-1, 1, 1, 1) - ratio * grid.abar[level].sqrt().view(-1, 1, 1, 1))
    torch.testing.assert_close(target, paper, rtol=1e-9, atol=1e-9)


@given(
    first=st.floats(-1, 1), second=st.floats(-1, 1), level=st.integers(1, 16), seed=st.integers(0, 100),
    betas=st.sampled_from(BETAS),
)  # fmt: skip
def test_a_target_of_clipped_answers_is_within_their_range(
    first: float, second: float, level: int, seed: int, betas: np.ndarray
) -> None:
    grid = Grid.of(betas, 32)
    at = torch.tensor([2 * level])
    xt = torch.randn(1, 4, generator=torch.Generator().manual_seed(seed))

    def teacher(z: Tensor, asked: Tensor) -> Tensor:
        return torch.full_like(z, first if int(asked) == 2 * level else second)

    target = two_steps(teacher, grid, xt, at)
    assert min(first, second) - 1e-6 <= float(target.min()) <= float(target.max()) <= max(first, second) + 1e-6
    if level == 1:  # the second step ends in the clean picture, which is the second answer
        torch.testing.assert_close(target, torch.full_like(xt, second))


def test_four_steps_of_linear_students_land_where_the_oracle_does_in_32() -> None:
    """On Gaussian data a teacher's answer is linear in xt at each level, so linear students can be exact: each halving
    fits a gain and an offset per level to its targets, and the last one draws what the first teacher draws."""
    betas = CosineSchedule().betas()
    wide = Grid.of(betas, 32)
    teacher = oracle(wide)
    generator = torch.Generator().manual_seed(0)
    for steps in (16, 8, 4):
        grid = Grid.of(betas, 2 * steps)
        gain, offset = torch.zeros(steps + 1, dtype=torch.float64), torch.zeros(steps + 1, dtype=torch.float64)
        for level in range(1, steps + 1):
            x0 = MEAN + DEVIATION * torch.randn(64, 1, dtype=torch.float64, generator=generator)
            at = torch.full((64,), 2 * level)
            xt = objective.q_sample(x0, torch.randn(64, 1, dtype=torch.float64, generator=generator), grid.abar[at])
            target = two_steps(teacher, grid, xt, at)
            solution = torch.linalg.lstsq(torch.cat([xt, torch.ones_like(xt)], dim=1), target).solution
            gain[level], offset[level] = solution.flatten()

        def student(z: Tensor, level: Tensor, gain: Tensor = gain, offset: Tensor = offset) -> Tensor:
            return gain[level].view(-1, 1) * z + offset[level].view(-1, 1)

        teacher = student

    def drawn(denoise: Callable[[Tensor, Tensor], Tensor], grid: Grid) -> Tensor:
        told = {int(t): level for level, t in enumerate(grid.timesteps.tolist())}

        def predict(z: Tensor, t: int) -> Tensor:
            return denoise(z.double(), torch.full((len(z),), told[t]))

        return integrate(
            predict, range(50), (1,), betas=betas, prediction="sample", sampler="ddim", steps=len(grid), clip=None
        )

    by_teacher, by_student = drawn(oracle(wide), wide), drawn(teacher, Grid.of(betas, 4))
    by_few = drawn(oracle(Grid.of(betas, 4)), Grid.of(betas, 4))
    torch.testing.assert_close(by_student, by_teacher, rtol=0, atol=1e-5)
    assert float((by_few - by_teacher).abs().mean()) > 0.01  # which few steps of the teacher itself do not


def test_weights_and_losses() -> None:
    abar = torch.tensor([0.9, 0.5, 0.1], dtype=torch.float64)
    torch.testing.assert_close(truncated_snr(abar), torch.tensor([9.0, 1.0, 1.0], dtype=torch.float64))
    answer, target = torch.tensor([[1.0], [2.0], [3.0]]), torch.zeros(3, 1)
    assert float(halving_loss(answer, target, abar)) == pytest.approx((9 * 1 + 4 + 9) / 3)
    assert float(pseudo_huber(torch.tensor([3.0]), torch.tensor([0.0]), 4.0)) == pytest.approx(1.0)


def test_the_consistency_function_is_the_picture_itself_where_there_is_no_noise() -> None:
    answer, xt = torch.full((2, 3), 5.0), torch.full((2, 3), 0.5)
    found = consistent(answer, xt, torch.tensor([0, 20]))
    assert torch.equal(found[0], xt[0])
    torch.testing.assert_close(found[1], answer[1], rtol=1e-4, atol=0)


def test_a_consistency_target_follows_the_teacher_one_step() -> None:
    grid = Grid.of(BETAS[1], 10)
    xt = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    level = torch.tensor([1, 5, 10])
    asked: list[Tensor] = []

    def average(z: Tensor, at: Tensor) -> Tensor:
        asked.append(at)
        return -z

    nearer = ddim(oracle(grid)(xt, level), xt, grid.abar[level], grid.abar[level - 1])
    target = consistency_target(oracle(grid), average, grid, xt, level)
    torch.testing.assert_close(target[0], nearer[0])  # the clean picture: no network's opinion matters
    torch.testing.assert_close(target[1:], -nearer[1:], rtol=1e-3, atol=1e-3)
    assert asked[0].tolist() == [1, 4, 9]


# --- the loop ---


def trained(images: int, data: TrainingSet, tower: Path, folder: Path) -> str:
    """The bundle of a model of the shapes."""
    job = TrainJob.model_validate(
        {
            "name": "teacher", "manifest": "-", "output": "-", "patch_size": 1,
            "network": {"block_out_channels": (32, 32), "layers_per_block": 1, "attention_heads": 2},
            "images": images, "batch_size": 16, "precision": "fp32", "checkpoint_every": 100_000,
            "sample": {"steps": 32, "guidance_scale": 2.0},
        }
    )  # fmt: skip
    outcome = train(job, folder=str(folder / "run"), data=data, text=TextEncoder(tower), place=Place())
    assert outcome.bundle is not None
    return outcome.bundle


@pytest.fixture(scope="module")
def teacher(data: TrainingSet, tower: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """One that has hardly learned anything."""
    return trained(160, data, tower, tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def learned(data: TrainingSet, tower: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """One that has learned the shapes, which takes half a minute."""
    return trained(16_000, data, tower, tmp_path_factory.mktemp("learned"))


def make(**changes: Any) -> DistillJob:
    given: dict[str, Any] = {
        "teacher": "-", "output": "-", "precision": "fp32", "batch_size": 8, "steps": 2, "checkpoint_every": 24,
        "method": {"kind": "progressive", "teacher_steps": 8, "images_per_stage": 32},
    }  # fmt: skip
    return DistillJob.model_validate({**given, **changes})


def run(job: DistillJob, folder: Path, teacher: str, data: TrainingSet, **options: Any) -> Outcome:
    wise = Teacher(load_bundle(teacher), "5ha", 2.0)
    return distill(job, folder=str(folder), teacher=wise, data=data, **options)


CONSISTENCY = {"kind": "consistency", "solver_steps": 8, "images": 64}


class _StoppedError(Exception):
    pass


@pytest.mark.parametrize("method", [None, CONSISTENCY], ids=["progressive", "consistency"])
@pytest.mark.parametrize("at", [40, 48], ids=["within a stage", "at a boundary"])
def test_an_interrupted_run_ends_in_the_same_bits(
    method: Any, at: int, teacher: str, data: TrainingSet, tmp_path: Path
) -> None:
    job = make(**({} if method is None else {"method": method}))
    whole = run(job, tmp_path / "whole", teacher, data)
    told: list[int] = []

    def stop(point: Point) -> None:
        told.append(point.images)
        if point.images >= at:
            raise _StoppedError

    with pytest.raises(_StoppedError):
        run(job, tmp_path / "cut", teacher, data, report=stop)
    resumed = run(job, tmp_path / "cut", teacher, data)
    assert 0 < resumed.resumed_from <= at
    assert resumed.state_sha256 == whole.state_sha256
    ours, theirs = load_bundle(resumed.bundle), load_bundle(whole.bundle)
    assert ours.info.self_test == theirs.info.self_test
    assert resumed.images_seen == whole.images_seen == 64


def test_accumulation_gives_the_same_student_but_for_rounding(teacher: str, data: TrainingSet, tmp_path: Path) -> None:
    one = run(make(), tmp_path / "one", teacher, data)
    two = run(make(accumulation=2), tmp_path / "two", teacher, data)
    assert two.metrics["loss"] == pytest.approx(one.metrics["loss"], rel=1e-3)
    other = run(make(seed=1), tmp_path / "other", teacher, data)
    assert other.metrics["loss"] != pytest.approx(one.metrics["loss"], rel=1e-3)


def test_a_checkpoint_of_another_teacher_is_refused(teacher: str, data: TrainingSet, tmp_path: Path) -> None:
    run(make(), tmp_path, teacher, data)
    with pytest.raises(UserError) as caught:
        distill(
            make(), folder=str(tmp_path), teacher=Teacher(load_bundle(teacher), "another", 2.0), data=data,
        )  # fmt: skip
    assert caught.value.field == "teacher"


def test_the_student_is_a_bundle_like_any_other(teacher: str, data: TrainingSet, tmp_path: Path) -> None:
    points: list[Point] = []
    outcome = run(make(), tmp_path, teacher, data, report=points.append)
    student, master = load_bundle(outcome.bundle), load_bundle(teacher)
    assert student.self_test()
    assert student.info.sampling == SamplingParams(steps=2, guidance_scale=1.0, sampler="ddim")
    assert student.info.self_test is not None
    assert student.info.self_test.params == student.info.sampling
    assert student.info.distilled_from == "5ha"
    assert master.info.distilled_from is None
    assert (student.info.prediction, student.image_size) == (master.prediction, master.image_size)
    assert np.array_equal(student.betas, master.betas)
    assert student.text.statistics.keys() == master.text.statistics.keys() != set()
    assert "teacher" in (Path(outcome.bundle) / "README.md").read_text()
    assert [int(p.values["student_steps"]) for p in points if "loss" in p.values] == [4] * 4 + [2] * 4
    assert [p.images for p in points if p.grid is not None] == [32, 64]
    rates = [p.values["lr"] for p in points if "loss" in p.values]
    assert rates[:4] == rates[4:] == sorted(rates[:4], reverse=True)


def test_one_picture_takes_one_evaluation_a_step(teacher: str, data: TrainingSet, tmp_path: Path) -> None:
    outcome = run(make(), tmp_path, teacher, data)
    student, master = load_bundle(outcome.bundle), load_bundle(teacher)
    for model, expected in ((student, 2), (master, 64)):
        rows: list[int] = []
        model.unet.register_forward_pre_hook(lambda _, given, rows=rows: rows.append(len(given[0])))
        sample(model, ["a red circle"], [0], model.info.sampling)
        assert sum(rows) == expected


GUIDANCE = 4.0  # strong, so that the teacher's own few steps are not good enough


def pictures(model: DiffusionModel, steps: int, guidance_scale: float) -> np.ndarray:
    prompts = [f"a {colour} {shape}" for colour in ("red", "green", "blue", "yellow") for shape in ("circle", "square")]
    params = SamplingParams(steps=steps, guidance_scale=guidance_scale)
    drawn = sample(model, prompts * 4, range(32), params, exact=False)
    return drawn.astype(np.float64) / 255


@pytest.mark.slow
@pytest.mark.parametrize(
    ("steps", "method", "margin"),
    [
        (4, {"kind": "progressive", "teacher_steps": 32, "images_per_stage": 3200}, 0.85),  # measured: 0.74
        (1, {"kind": "consistency", "solver_steps": 32, "images": 9600}, 0.8),  # measured: 0.64
    ],
    ids=["progressive", "consistency"],
)
def test_the_student_is_nearer_to_the_teacher_than_its_own_four_steps(
    steps: int, method: dict[str, Any], margin: float, learned: str, data: TrainingSet, tmp_path: Path
) -> None:
    """Mean squared errors against the teacher's 32 steps from the same noise: by the student, one evaluation a step,
    and by the teacher in four steps of two."""
    job = make(method=method, steps=steps, batch_size=16, checkpoint_every=100_000, optimizer={"lr": 1e-3})
    wise = Teacher(load_bundle(learned), "5ha", GUIDANCE)
    student, master = load_bundle(distill(job, folder=str(tmp_path), teacher=wise, data=data).bundle), wise.model
    wanted = pictures(master, 32, GUIDANCE)
    by_student = float(np.square(pictures(student, steps, 1.0) - wanted).mean())
    by_few = float(np.square(pictures(master, 4, GUIDANCE) - wanted).mean())
    assert by_student < margin * by_few, (by_student, by_few)


def test_mistakes_in_the_job() -> None:
    progressive, consistency = {"kind": "progressive", "teacher_steps": 24}, {"kind": "consistency", "solver_steps": 10}
    for changes, said in (
        ({"method": progressive, "steps": 4}, "use 32"),
        ({"method": {**progressive, "teacher_steps": 4}, "steps": 4}, "use 32"),
        ({"method": consistency, "steps": 4}, "use 48"),
        ({"batch_size": 9, "accumulation": 2}, "does not divide"),
    ):
        with pytest.raises(ValueError, match=said):
            make(**changes)
    job = make(method={"kind": "progressive", "teacher_steps": 32, "images_per_stage": 100}, steps=4)
    assert [job.student_steps(stage) for stage in range(job.stages)] == [16, 8, 4]
    assert (job.stage_images, job.budget) == (104, 312)
