"""Distillation: its mathematics against closed forms, the loop's resumption, and a student on the shapes."""

from __future__ import annotations

import json
import shutil
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
from curation.manifest import Manifest
from training import objective
from training.bundle import DiffusionModel, load_bundle
from training.data import TrainingSet, load
from training.distill import (
    Grid,
    consistency_target,
    consistent,
    halving_loss,
    landed,
    pseudo_huber,
    truncated_snr,
    two_steps,
)
from training.distill_job import DistillJob
from training.distill_loop import Outcome, Teacher, distill
from training.job import TrainJob
from training.learner import Place
from training.loop import train
from training.notice import Notice, Terminated
from training.objective import Prediction
from training.pairs import refuse_teacher
from training.progress import Point
from training.sampling import Sampler, SamplingParams, integrate, sample
from training.schedules import (
    CosineSchedule,
    FlowPath,
    LinearSchedule,
    ScaledLinearSchedule,
    SigmoidSchedule,
    alphas_cumprod,
)
from training.student import Student, shares
from training.text import TextEncoder

pytestmark = pytest.mark.slow  # networks are trained, in seconds each

BETAS = [LinearSchedule().betas(), CosineSchedule().betas(), SigmoidSchedule(timesteps=333).betas()]
FLOW = FlowPath().betas()
PATHS: list[tuple[np.ndarray, Prediction]] = [*((betas, "v_prediction") for betas in BETAS), (FLOW, "flow")]
SAMPLER: dict[Prediction, Sampler] = {"v_prediction": "ddim", "flow": "euler"}
TEACHER = "5a" * 32  # its bundle's digest
MEAN, DEVIATION = 0.3, 0.2  # of the Gaussian data


def oracle(grid: Grid) -> Callable[[Tensor, Tensor], Tensor]:
    """E[x0 | xt] of data N(MEAN, DEVIATION^2): what a perfect network answers."""

    def denoise(xt: Tensor, level: Tensor) -> Tensor:
        a, s = (of[level].view(-1, *(1,) * (xt.ndim - 1)) for of in (grid.signal, grid.noise))
        gain = a * DEVIATION**2 / (a**2 * DEVIATION**2 + s**2)
        return MEAN + gain * (xt - a * MEAN)

    return denoise


@pytest.mark.parametrize(("betas", "prediction"), PATHS)
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 16])
def test_half_as_many_steps_visit_every_other_level(betas: np.ndarray, prediction: Prediction, steps: int) -> None:
    whole, half = (Grid.of(betas, count, prediction=prediction) for count in (2 * steps, steps))
    assert torch.equal(whole.timesteps[2::2], half.timesteps[1:])
    for levels in ("level", "signal", "noise", "thousandths"):
        torch.testing.assert_close(getattr(whole, levels)[::2], getattr(half, levels), rtol=1e-15, atol=0)
    assert (half.signal[0], half.noise[0], half.thousandths[0]) == (1, 0, 0)
    assert half.timesteps[-1] == (len(betas) if prediction == "flow" else len(betas) - 1)


@pytest.mark.parametrize(("betas", "prediction"), PATHS)
def test_a_grid_is_the_path_that_networks_are_trained_on(betas: np.ndarray, prediction: Prediction) -> None:
    """And the one that samplers ask them on."""
    grid = Grid.of(betas, 8, prediction=prediction)
    level = torch.arange(1, 9)
    x0, noise = torch.full((8, 1), 0.5), torch.full((8, 1), 2.0)
    expected = grid.signal[level, None] * x0 + grid.noise[level, None] * noise
    torch.testing.assert_close(objective.q_sample(x0, noise, grid.level[level], prediction), expected.float())
    asked: list[float] = []

    def predict(z: Tensor, t: float) -> Tensor:
        asked.append(t)
        return z

    integrate(
        predict, [0], (1,), betas=betas, prediction=prediction, sampler=SAMPLER[prediction], steps=8
    )  # fmt: skip
    assert asked == pytest.approx(grid.timesteps[1:].flip(0).tolist())


@pytest.mark.parametrize(("betas", "prediction"), PATHS)
def test_one_step_to_the_target_lands_where_two_of_the_teacher_do(betas: np.ndarray, prediction: Prediction) -> None:
    grid = Grid.of(betas, 8, prediction=prediction)
    level = torch.tensor([2, 4, 6, 8])
    xt = torch.randn(4, 3, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    teacher = oracle(grid)
    middle = landed(teacher(xt, level), xt, grid, level, level - 1)
    end = landed(teacher(middle, level - 1), middle, grid, level - 1, level - 2)
    target = two_steps(teacher, grid, xt, level)
    torch.testing.assert_close(landed(target, xt, grid, level, level - 2), end, rtol=1e-12, atol=1e-12)
    # and it is the paper's own expression
    a, s = grid.signal[level - 2].view(-1, 1, 1, 1), grid.noise[level - 2]
    ratio = (s / grid.noise[level]).view(-1, 1, 1, 1)
    paper = (end - ratio * xt) / (a - ratio * grid.signal[level].view(-1, 1, 1, 1))
    torch.testing.assert_close(target, paper, rtol=1e-9, atol=1e-9)


def test_a_step_along_a_line_is_eulers() -> None:
    grid = Grid.of(FLOW, 10, prediction="flow")
    xt, level = torch.randn(3, 4, dtype=torch.float64), torch.tensor([1, 6, 10])
    x0 = oracle(grid)(xt, level)
    time = grid.level[level, None]
    euler = xt - 0.1 * objective.to_v("flow", (xt - x0) / time, xt, grid.level[level])
    torch.testing.assert_close(landed(x0, xt, grid, level, level - 1), euler, rtol=1e-12, atol=1e-12)


@given(
    first=st.floats(-1, 1), second=st.floats(-1, 1), level=st.integers(1, 16), seed=st.integers(0, 100),
    path=st.sampled_from(PATHS),
)  # fmt: skip
def test_a_target_of_clipped_answers_is_within_their_range(
    first: float, second: float, level: int, seed: int, path: tuple[np.ndarray, Prediction]
) -> None:
    grid = Grid.of(path[0], 32, prediction=path[1])
    at = torch.tensor([2 * level])
    xt = torch.randn(1, 4, generator=torch.Generator().manual_seed(seed))

    def teacher(z: Tensor, asked: Tensor) -> Tensor:
        return torch.full_like(z, first if int(asked) == 2 * level else second)

    target = two_steps(teacher, grid, xt, at)
    assert min(first, second) - 1e-6 <= float(target.min()) <= float(target.max()) <= max(first, second) + 1e-6
    if level == 1:  # the second step ends in the clean picture, which is the second answer
        torch.testing.assert_close(target, torch.full_like(xt, second))


@pytest.mark.parametrize(("betas", "prediction"), [PATHS[1], PATHS[3]], ids=["cosine", "flow"])
def test_four_steps_of_linear_students_land_where_the_oracle_does_in_32(
    betas: np.ndarray, prediction: Prediction
) -> None:
    """On Gaussian data a teacher's answer is linear in xt at each level, so linear students can be exact: each halving
    fits a gain and an offset per level to its targets, and the last one draws what the first teacher draws."""

    def grid_of(steps: int) -> Grid:
        return Grid.of(betas, steps, prediction=prediction)

    teacher = oracle(grid_of(32))
    generator = torch.Generator().manual_seed(0)
    for steps in (16, 8, 4):
        grid = grid_of(2 * steps)
        gain, offset = torch.zeros(steps + 1, dtype=torch.float64), torch.zeros(steps + 1, dtype=torch.float64)
        for level in range(1, steps + 1):
            x0 = MEAN + DEVIATION * torch.randn(64, 1, dtype=torch.float64, generator=generator)
            at = torch.full((64,), 2 * level)
            noise = torch.randn(64, 1, dtype=torch.float64, generator=generator)
            xt = objective.q_sample(x0, noise, grid.level[at], prediction)
            target = two_steps(teacher, grid, xt, at)
            solution = torch.linalg.lstsq(torch.cat([xt, torch.ones_like(xt)], dim=1), target).solution
            gain[level], offset[level] = solution.flatten()

        def student(z: Tensor, level: Tensor, gain: Tensor = gain, offset: Tensor = offset) -> Tensor:
            return gain[level].view(-1, 1) * z + offset[level].view(-1, 1)

        teacher = student

    def drawn(denoise: Callable[[Tensor, Tensor], Tensor], grid: Grid) -> Tensor:
        def predict(z: Tensor, t: float) -> Tensor:
            level = torch.full((len(z),), int((grid.timesteps - t).abs().argmin()))
            x0 = denoise(z.double(), level)
            return (z - x0) / grid.level[level, None] if prediction == "flow" else x0

        shown: Prediction = "flow" if prediction == "flow" else "sample"
        return integrate(
            predict, range(50), (1,), betas=betas, prediction=shown, sampler=SAMPLER[prediction], steps=len(grid),
            clip=None,
        )  # fmt: skip

    by_teacher, by_student = drawn(oracle(grid_of(32)), grid_of(32)), drawn(teacher, grid_of(4))
    by_few = drawn(oracle(grid_of(4)), grid_of(4))
    torch.testing.assert_close(by_student, by_teacher, rtol=0, atol=1e-5)
    assert float((by_few - by_teacher).abs().mean()) > 0.01  # which few steps of the teacher itself do not


def test_weights_and_losses() -> None:
    grid = Grid.of(FLOW, 4, prediction="flow")
    level = torch.tensor([1, 2, 4])
    torch.testing.assert_close(truncated_snr(grid, level), torch.tensor([9.0, 1.0, 1.0], dtype=torch.float64))
    abar = torch.from_numpy(alphas_cumprod(BETAS[1]))[Grid.of(BETAS[1], 4).timesteps[level]]
    expected = (abar / (1 - abar)).clamp(min=1)
    torch.testing.assert_close(truncated_snr(Grid.of(BETAS[1], 4), level), expected)
    assert truncated_snr(grid, level, 5.0).tolist() == [5.0, 1.0, 1.0]
    answer, target = torch.tensor([[1.0], [2.0], [3.0]]), torch.zeros(3, 1)
    assert float(halving_loss(answer, target, truncated_snr(grid, level))) == pytest.approx((9 * 1 + 4 + 9) / 3)
    assert float(pseudo_huber(torch.tensor([3.0]), torch.tensor([0.0]), 4.0)) == pytest.approx(1.0)


def test_the_consistency_function_is_the_picture_itself_where_there_is_no_noise() -> None:
    answer, xt = torch.full((2, 3), 5.0), torch.full((2, 3), 0.5)
    found = consistent(answer, xt, torch.tensor([0.0, 20.0], dtype=torch.float64))
    assert torch.equal(found[0], xt[0])
    torch.testing.assert_close(found[1], answer[1], rtol=1e-4, atol=0)


@pytest.mark.parametrize(("betas", "prediction"), [PATHS[1], (FlowPath(timesteps=4).betas(), "flow")])
def test_a_consistency_target_follows_the_teacher_one_step(betas: np.ndarray, prediction: Prediction) -> None:
    grid = Grid.of(betas, 10, prediction=prediction)
    xt = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    level = torch.tensor([1, 5, 10])
    asked: list[Tensor] = []

    def average(z: Tensor, at: Tensor) -> Tensor:
        asked.append(at)
        return -z

    nearer = landed(oracle(grid)(xt, level), xt, grid, level, level - 1)
    target = consistency_target(oracle(grid), average, grid, xt, level)
    torch.testing.assert_close(target[0], nearer[0])  # the clean picture: no network's opinion matters
    torch.testing.assert_close(target[1:], -nearer[1:], rtol=1e-3, atol=1e-3)
    assert asked[0].tolist() == [1, 4, 9]


# --- the loop ---


def trained(images: int, data: TrainingSet, tower: Path, folder: Path, **changes: Any) -> str:
    """The bundle of a model of the shapes."""
    job = TrainJob.model_validate(
        {
            "name": "teacher", "manifest": "-", "output": "-", "patch_size": 1,
            "network": {"block_out_channels": (32, 32), "layers_per_block": 1, "attention_heads": 2},
            "images": images, "batch_size": 16, "precision": "fp32", "checkpoint_every": 100_000,
            "sample": {"steps": 32, "guidance_scale": 2.0}, **changes,
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
    wise = Teacher(load_bundle(teacher), TEACHER, 2.0)
    return distill(job, folder=str(folder), teacher=wise, data=data, **options)


def bundle_of(outcome: Outcome) -> str:
    assert outcome.bundle is not None
    return outcome.bundle


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
    ours, theirs = load_bundle(bundle_of(resumed)), load_bundle(bundle_of(whole))
    assert ours.info.self_test == theirs.info.self_test
    assert resumed.images_seen == whole.images_seen == 64


EPSILON = {"prediction": "epsilon", "schedule": {"kind": "scaled_linear"}}


@pytest.mark.parametrize("taught", [EPSILON, {"prediction": "sample"}, {"prediction": "flow"}])
@pytest.mark.parametrize("method", [None, CONSISTENCY], ids=["progressive", "consistency"])
def test_teachers_of_every_prediction(
    method: Any, taught: dict[str, Any], data: TrainingSet, tower: Path, tmp_path: Path
) -> None:
    sampling = {"steps": 8, "guidance_scale": 2.0} | ({"sampler": "euler"} if taught == {"prediction": "flow"} else {})
    teacher = trained(160, data, tower, tmp_path / "teacher", **taught, sample=sampling)
    outcome = run(make(**({} if method is None else {"method": method})), tmp_path / "student", teacher, data)
    student = load_bundle(bundle_of(outcome))
    assert student.info.prediction == taught["prediction"]
    assert student.info.sampling.sampler == ("euler" if student.info.prediction == "flow" else "ddim")
    assert student.self_test()
    assert 0 < outcome.metrics["loss"] < float("inf")


def test_a_notice_saves_between_steps_and_the_rest_is_the_same(teacher: str, data: TrainingSet, tmp_path: Path) -> None:
    whole = run(make(), tmp_path / "whole", teacher, data)
    notice = Notice(ends=True)

    def report(point: Point) -> None:
        if point.images == 40:  # where no checkpoint is due
            notice.give()

    with pytest.raises(Terminated):
        run(make(), tmp_path / "cut", teacher, data, report=report, notice=notice)
    resumed = run(make(), tmp_path / "cut", teacher, data)
    assert (resumed.resumed_from, resumed.state_sha256) == (40, whole.state_sha256)
    assert resumed.legs == whole.legs


@pytest.mark.parametrize("workers", [1, 2, 3, 5])
def test_any_number_of_workers_shares_the_same_batch(workers: int) -> None:
    job = make(batch_size=30, accumulation=2)
    parts = [shares(job, 60, Place(rank, workers)) for rank in range(workers)]
    assert torch.cat([part for of_one in parts for part in of_one]).tolist() == list(range(60, 90))
    assert {len(of_one) for of_one in parts} == {2}


def _worker(rank: int, workers: int, folder: str, manifest: str, teacher: str, method: Any) -> None:
    """One of several processes that distil together; the first one leaves the curve of its loss."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=workers
    )
    try:
        points: list[Point] = []
        job = make(workers=workers, **({} if method is None else {"method": method}))
        told = {"place": Place(rank, workers), "report": points.append}
        outcome = run(job, Path(folder) / "run", teacher, load(Manifest.open(manifest)), **told)
        assert (outcome.bundle is None) == (rank > 0)
        if rank == 0:
            (Path(folder) / "curve.json").write_text(json.dumps(curve(points)))
    finally:
        torch.distributed.destroy_process_group()


def curve(points: list[Point]) -> list[tuple[int, float]]:
    return [(point.images, point.values["loss"]) for point in points if "loss" in point.values]


@pytest.mark.parametrize("method", [None, CONSISTENCY], ids=["progressive", "consistency"])
def test_two_processes_learn_what_one_does(
    method: Any, teacher: str, data: TrainingSet, manifest: Manifest, tmp_path: Path
) -> None:
    points: list[Point] = []
    job = make(**({} if method is None else {"method": method}))
    run(job, tmp_path / "one", teacher, data, report=points.append)
    torch.multiprocessing.spawn(_worker, (2, str(tmp_path), manifest.uri, teacher, method), nprocs=2)
    images, losses = zip(*json.loads((tmp_path / "curve.json").read_text()), strict=True)
    expected_images, expected = zip(*curve(points), strict=True)
    assert images == expected_images == tuple(range(8, 65, 8))
    assert losses == pytest.approx(expected, rel=1e-5)
    # and one process goes on from what two have saved
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "images-000000000064")
    changed = run(job, tmp_path / "run", teacher, data)
    assert [(leg.images, leg.topology["workers"]) for leg in changed.legs] == [(0, 2), (changed.resumed_from, 1)]
    assert changed.metrics["loss"] == pytest.approx(expected[-1], rel=1e-5)


def test_a_student_that_saves_memory_learns_the_same(teacher: str, data: TrainingSet) -> None:
    wise = load_bundle(teacher)
    plain, other = (
        Student(make(**changes), wise, data, guidance_scale=2.0, place=Place())
        for changes in ({}, {"gradient_checkpointing": True})
    )
    for seen in (0, 8):
        torch.testing.assert_close(other.step(seen), plain.step(seen), rtol=1e-4, atol=0)
    assert other.state()["weights"].keys() == plain.state()["weights"].keys()


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
            make(), folder=str(tmp_path), teacher=Teacher(load_bundle(teacher), "0" * 64, 2.0), data=data,
        )  # fmt: skip
    assert caught.value.field == "teacher"


def test_the_student_is_a_bundle_like_any_other(teacher: str, data: TrainingSet, tmp_path: Path) -> None:
    points: list[Point] = []
    outcome = run(make(), tmp_path, teacher, data, report=points.append)
    student, master = load_bundle(bundle_of(outcome)), load_bundle(teacher)
    assert student.self_test()
    assert student.info.sampling == SamplingParams(steps=2, guidance_scale=1.0, sampler="ddim")
    assert student.info.self_test is not None
    assert student.info.self_test.params == student.info.sampling
    assert student.info.distilled_from == TEACHER
    assert master.info.distilled_from is None
    assert (student.info.prediction, student.image_size) == (master.prediction, master.image_size)
    assert np.array_equal(student.betas, master.betas)
    assert student.text.statistics.keys() == master.text.statistics.keys() != set()
    assert "teacher" in (Path(bundle_of(outcome)) / "README.md").read_text()
    assert [int(p.values["student_steps"]) for p in points if "loss" in p.values] == [4] * 4 + [2] * 4
    assert [p.images for p in points if p.grid is not None] == [32, 64]
    rates = [p.values["lr"] for p in points if "loss" in p.values]
    assert rates[:4] == rates[4:] == sorted(rates[:4], reverse=True)


def test_one_picture_takes_one_evaluation_a_step(teacher: str, data: TrainingSet, tmp_path: Path) -> None:
    outcome = run(make(), tmp_path, teacher, data)
    student, master = load_bundle(bundle_of(outcome)), load_bundle(teacher)
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
    wise = Teacher(load_bundle(learned), TEACHER, GUIDANCE)
    student = load_bundle(bundle_of(distill(job, folder=str(tmp_path), teacher=wise, data=data)))
    master = wise.model
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
        ({"batch_size": 9, "accumulation": 2}, "use batch_size 10"),
        ({"batch_size": 9, "workers": 2, "accumulation": 2}, "use batch_size 12"),
    ):
        with pytest.raises(ValueError, match=said):
            make(**changes)
    job = make(method={"kind": "progressive", "teacher_steps": 32, "images_per_stage": 100}, steps=4)
    assert [job.student_steps(stage) for stage in range(job.stages)] == [16, 8, 4]
    assert (job.stage_images, job.budget) == (104, 312)
    later = {"workers": 2, "compile": True, "gradient_checkpointing": True, "accumulation": 2, "gpus_per_worker": 1}
    assert make(**later).identity(TEACHER) == make().identity(TEACHER)
    method = {"kind": "progressive", "teacher_steps": 8, "images_per_stage": 32}
    assert make().identity(TEACHER)["method"] == method  # as before there was a largest weight
    assert make(method={**method, "most_weight": 5}).identity(TEACHER) != make().identity(TEACHER)


def test_noise_predicted_where_hardly_any_signal_is_left_teaches_nothing() -> None:
    for betas in BETAS:
        with pytest.raises(UserError, match="noise says nothing") as caught:
            refuse_teacher("epsilon", betas)
        assert caught.value.field == "teacher"
        refuse_teacher("v_prediction", betas)
        refuse_teacher("sample", betas)
    refuse_teacher("flow", FLOW)
    refuse_teacher("epsilon", ScaledLinearSchedule().betas())
    with pytest.raises(UserError):
        refuse_teacher("epsilon", ScaledLinearSchedule(zero_terminal_snr=True).betas())
