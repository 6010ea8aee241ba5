"""The loop in this process: it learns, and however it is interrupted it ends in the same bits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from curation.errors import UserError
from tests.training.conftest import shapes, write_manifest
from training import checkpoint
from training.bundle import load_bundle
from training.data import TrainingSet, load
from training.job import TrainJob
from training.learner import Learner, Place, shares
from training.loop import Outcome, train
from training.notice import Notice, Terminated
from training.prepare import prepare
from training.progress import Point
from training.sampling import SamplingParams, sample
from training.schedules import alphas_cumprod
from training.text import TextEncoder

MakeJob = Callable[..., TrainJob]
FLOW: dict[str, Any] = {
    "prediction": "flow",
    "timestep_sampling": {"kind": "logit_normal", "stratified": True},
    "accumulation": 2,
}
RICH: dict[str, Any] = {"flip": True, "accumulation": 2, "precision": "bf16", "loss": {"min_snr_gamma": 5.0}}


class Killed(BaseException):
    """Stands for a signal: nothing in the loop may handle it."""


def run(job: TrainJob, folder: Path, data: TrainingSet, text: TextEncoder, kill_at: int | None = None) -> Outcome:
    def report(point: Point) -> None:
        if kill_at is not None and point.images == kill_at:
            raise Killed

    return train(job, folder=str(folder), data=data, text=text, place=Place(), report=report)


@pytest.mark.parametrize(
    ("changes", "kill_at"),
    [({}, 8), ({}, 48), (RICH, 40), (FLOW, 40)],
    ids=["first step", "at a checkpoint", "rich", "flow"],
)
def test_an_interrupted_run_ends_in_the_same_bits(
    make_job: MakeJob, data: TrainingSet, text: TextEncoder, tmp_path: Path, changes: dict[str, Any], kill_at: int
) -> None:
    job = make_job(**changes)
    straight = run(job, tmp_path / "straight", data, text)
    with pytest.raises(Killed):
        run(job, tmp_path / "killed", data, text, kill_at=kill_at)
    resumed = run(job, tmp_path / "killed", data, text)
    assert resumed.resumed_from == (kill_at - 1) // 16 * 16
    assert (resumed.state_sha256, resumed.metrics) == (straight.state_sha256, straight.metrics)
    again = run(job, tmp_path / "killed", data, text)
    assert (again.resumed_from, again.state_sha256, again.metrics) == (64, straight.state_sha256, straight.metrics)


def test_an_interrupted_run_that_mixes_captions_ends_in_the_same_bits(
    make_job: MakeJob, text: TextEncoder, tmp_path: Path
) -> None:
    def told(caption: str) -> list[dict[str, Any]]:
        said = {"metadata": caption, "coca": f"some {caption}"}
        return [{"text": t, "source": s, "language": None, "words": 3, "score": None} for s, t in said.items()]

    rich = write_manifest(tmp_path / "manifests", shapes(8), captions=told)

    def mixed(folder: str, mix: dict[str, float] | None, kill_at: int | None = None) -> Outcome:
        return run(make_job(caption_mix=mix), tmp_path / folder, load(rich, caption_mix=mix), text, kill_at)

    both = {"metadata": 0.5, "coca": 0.5}
    straight = mixed("straight", both)
    with pytest.raises(Killed):
        mixed("killed", both, kill_at=40)
    assert mixed("killed", both).state_sha256 == straight.state_sha256
    plain = mixed("plain", None)
    assert plain.state_sha256 != straight.state_sha256
    # the chosen caption is the metadata's: a mix of that alone is no mix
    assert mixed("one", {"metadata": 2.0}).state_sha256 == plain.state_sha256
    assert straight.bundle is not None
    assert "some a blue circle" in load_bundle(straight.bundle).info.captions


def test_points_of_a_resumed_run_are_those_of_a_straight_one(
    make_job: MakeJob, data: TrainingSet, text: TextEncoder, tmp_path: Path
) -> None:
    def curve(points: list[Point]) -> dict[int, float]:
        return {point.images: point.values["loss"] for point in points if "loss" in point.values}

    straight: list[Point] = []
    train(make_job(), folder=str(tmp_path / "a"), data=data, text=text, place=Place(), report=straight.append)
    resumed: list[Point] = []
    with pytest.raises(Killed):
        run(make_job(), tmp_path / "b", data, text, kill_at=40)
    train(make_job(), folder=str(tmp_path / "b"), data=data, text=text, place=Place(), report=resumed.append)
    assert curve(resumed) == curve(straight)  # also what was measured before the kill: the driver may have missed it
    assert [point.grid for point in straight if point.grid] == [f"{tmp_path}/a/samples/000000000064.png"]


def test_another_configuration_is_refused(
    make_job: MakeJob, data: TrainingSet, text: TextEncoder, tmp_path: Path
) -> None:
    run(make_job(), tmp_path, data, text)
    with pytest.raises(UserError) as caught:
        run(make_job(seed=1), tmp_path, data, text)
    assert caught.value.field == "seed"


def test_the_network_is_told_levels_as_samplers_tell_it(
    make_job: MakeJob, data: TrainingSet, text: TextEncoder
) -> None:
    index = torch.arange(32)
    flow = Learner(make_job(**{**FLOW, "schedule": {"kind": "flow", "timesteps": 500}}), data, text, Place())
    told, time = flow._levels(index)
    assert ((time > 0) & (time < 1)).all()
    assert torch.equal(told, (time * 500).float())  # sampling tells t times T
    job = make_job(schedule={"kind": "cosine", "timesteps": 500})
    told, abar = Learner(job, data, text, Place())._levels(index)
    assert told.dtype == torch.int64
    assert torch.equal(abar, torch.from_numpy(alphas_cumprod(job.schedule.betas()))[told])


@pytest.mark.parametrize("changes", [{}, FLOW], ids=["", "flow"])
def test_ranks_see_parts_of_the_same_batch(
    make_job: MakeJob, data: TrainingSet, text: TextEncoder, changes: dict[str, Any]
) -> None:
    """The mean of two half batches' gradients is the whole batch's: world size changes only the last bits."""

    def gradient(accumulation: int) -> torch.Tensor:
        learner = Learner(make_job(**{**changes, "accumulation": accumulation}), data, text, Place())
        learner._gradients(16)
        return torch.cat([parameter.grad.flatten() for parameter in learner.unet.parameters()])

    whole = gradient(1)
    torch.testing.assert_close(gradient(4), whole, rtol=1e-3, atol=1e-5 * float(whole.abs().max()))


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "flow"])
def test_the_loss_falls_and_the_bundle_holds_the_average(
    make_job: MakeJob, data: TrainingSet, text: TextEncoder, tmp_path: Path, prediction: str
) -> None:
    job = make_job(images=480, batch_size=16, checkpoint_every=10_000, prediction=prediction)
    points: list[Point] = []
    outcome = train(job, folder=str(tmp_path), data=data, text=text, place=Place(), report=points.append)
    losses = [point.values["loss"] for point in points if "loss" in point.values]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
    assert outcome.bundle is not None
    model = load_bundle(outcome.bundle)
    assert model.info.state_sha256 == outcome.state_sha256
    assert model.info.images_seen == 480
    assert model.info.captions[0] == "a blue circle"
    assert model.self_test()


def test_a_bundle_says_in_which_shapes_it_was_trained(make_job: MakeJob, text: TextEncoder, tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    rows = [(f"{w} {n}", noise.integers(0, 256, (h, w, 3), np.uint8)) for w, h in ((8, 8), (16, 4)) for n in range(4)]
    several = write_manifest(
        tmp_path / "manifests",
        rows,
        image_width=lambda caption: int(caption.split()[0]),
        image_height=lambda caption: 64 // int(caption.split()[0]),
    )
    job = make_job(manifest=several.uri, images=16, batch_size=4)
    prepared = prepare(job)
    outcome = run(job, tmp_path / "run", load(several, roster=prepared.roster), text)
    assert outcome.bundle is not None
    model = load_bundle(outcome.bundle)
    assert model.info.sizes == ((8, 8), (16, 4))
    assert sample(model, ["a"], [0], SamplingParams(steps=2), size=(16, 4)).shape == (1, 4, 16, 3)


def test_a_diverging_run_stops_with_advice(
    make_job: MakeJob, data: TrainingSet, text: TextEncoder, tmp_path: Path
) -> None:
    job = make_job(images=800, optimizer={"lr": 1.0, "warmup_images": 0, "betas": (0.0, 0.0)}, grad_clip=1e30)
    with pytest.raises(FloatingPointError, match=r"lower optimizer\.lr"):
        run(job, tmp_path, data, text)


@pytest.mark.parametrize("workers", [1, 2, 3, 5])
@pytest.mark.parametrize("batch_size", [10, 30])
def test_any_number_of_workers_shares_the_same_batch(make_job: MakeJob, workers: int, batch_size: int) -> None:
    job = make_job(batch_size=batch_size, workers={"min": 1, "max": 5}, accumulation=2)
    parts = [part for rank in range(workers) for part in shares(job, 20, Place(rank, workers))]
    assert torch.cat(parts).tolist() == list(range(20, 20 + batch_size))
    assert {len(part) for part in parts} <= set(range(1, batch_size // 10 + 1))


def test_a_run_goes_on_with_smaller_parts_and_says_so(
    make_job: MakeJob, data: TrainingSet, text: TextEncoder, tmp_path: Path
) -> None:
    """Other parts stand for other workers: both change the order of the sums and nothing else."""
    straight = run(make_job(), tmp_path / "straight", data, text)
    with pytest.raises(Killed):
        run(make_job(), tmp_path / "changed", data, text, kill_at=40)
    changed = run(make_job(accumulation=4), tmp_path / "changed", data, text)
    assert [(leg.images, leg.topology["accumulation"]) for leg in changed.legs] == [(0, 1), (32, 4)]
    assert changed.metrics["loss"] == pytest.approx(straight.metrics["loss"], rel=1e-5)
    assert [leg.images for leg in straight.legs] == [0]
    again = run(make_job(accumulation=4), tmp_path / "changed", data, text)
    assert again.legs == changed.legs


@pytest.mark.parametrize("at", [0, 24, 32])
def test_a_notice_saves_between_steps_and_the_rest_is_the_same(
    make_job: MakeJob, data: TrainingSet, text: TextEncoder, tmp_path: Path, at: int
) -> None:
    """At 24 no checkpoint was due; at 32 one was written in the same step; at 0 it came before the first."""
    straight = run(make_job(), tmp_path / "straight", data, text)
    notice = Notice(ends=True)
    if at == 0:
        notice.give()

    def report(point: Point) -> None:
        if point.images == at:
            notice.give()

    where: dict[str, Any] = {"folder": str(tmp_path / "cut"), "data": data, "text": text, "place": Place()}
    with pytest.raises(Terminated) as ended:
        train(make_job(), **where, report=report, notice=notice)
    assert ended.value.code == 143
    resumed = train(make_job(), **where)
    assert (resumed.resumed_from, resumed.state_sha256) == (at or 8, straight.state_sha256)


def test_a_notice_of_a_lost_machine_saves_and_goes_on(
    make_job: MakeJob, data: TrainingSet, text: TextEncoder, tmp_path: Path
) -> None:
    straight = run(make_job(), tmp_path / "straight", data, text)
    notice = Notice(ends=False)
    checkpoints: list[str] = []

    def report(point: Point) -> None:
        checkpoints[:] = checkpoint.paths(f"{tmp_path}/warned/checkpoints")
        if point.images == 24:
            notice.give()
        if point.images == 32:
            raise Killed

    where: dict[str, Any] = {"folder": str(tmp_path / "warned"), "data": data, "text": text, "place": Place()}
    with pytest.raises(Killed):
        train(make_job(), **where, report=report, notice=notice)
    assert [path[-2:] for path in checkpoints] == ["16", "24"]
    resumed = train(make_job(), **where)
    assert (resumed.resumed_from, resumed.state_sha256) == (24, straight.state_sha256)


def test_the_best_checkpoints_are_those_of_lowest_loss(
    make_job: MakeJob, data: TrainingSet, text: TextEncoder, tmp_path: Path
) -> None:
    job = make_job(keep_checkpoints=1, keep_best_checkpoints=2, milestones=64, images=160)
    points: list[Point] = []
    train(job, folder=str(tmp_path), data=data, text=text, place=Place(), report=points.append)
    losses = {point.images: point.values["loss"] for point in points if "loss" in point.values}
    passing = [images for images in range(16, 160, 16) if images % 64]
    best = sorted(passing, key=lambda images: losses[images] + losses[images - 8])[:2]
    kept = [int(path[-12:]) for path in checkpoint.paths(f"{tmp_path}/checkpoints")]
    assert kept == sorted({*best, 64, 128, 160})


@pytest.mark.slow
def test_a_compiled_network_learns_the_same_and_is_saved_under_plain_names(
    make_job: MakeJob, data: TrainingSet, text: TextEncoder
) -> None:
    plain, compiled = (Learner(make_job(compile=compile), data, text, Place()) for compile in (False, True))
    for seen in (0, 8, 16):
        torch.testing.assert_close(compiled.step(seen), plain.step(seen), rtol=1e-4, atol=0)
    assert compiled.state()["weights"].keys() == plain.state()["weights"].keys()
