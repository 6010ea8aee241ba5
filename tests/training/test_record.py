"""What a training's driver records: checkpoints, where it went on from, how many train, and what that took."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import generate_latest

from curation import events, standing
from curation.events import (
    Begun,
    CheckpointRefused,
    CheckpointWritten,
    Ended,
    Published,
    Resized,
    Resumed,
    UnitHeld,
    WorkerLost,
)
from curation.running import Recorder
from pipelines.train import plan as dry_run
from training.follow import Follower, Told
from training.job import TrainJob
from training.launch import launch
from training.metrics import TrainingMetrics
from training.progress import Point, Timing
from training.ray_notice import _why
from training.record import Record, like

MakeJob = Callable[..., TrainJob]


def told(folder: str, kind: type[Any]) -> list[Any]:
    return [entry.event for entry in events.read(folder) if isinstance(entry.event, kind)]


def test_a_run_tells_what_happens_to_it(make_job: MakeJob, tower: Path, tracking_uri: str) -> None:
    job = make_job(workers=0, checkpoint_every=32, tracking={"uri": tracking_uri, "experiment": "record"})
    result = launch(job, text_encoder=str(tower))
    folder = str(Path(result.bundle).parent)
    kinds = [type(entry.event) for entry in events.read(folder)]
    assert kinds[:2] == [Begun, Resumed]
    assert kinds[-2:] == [Published, Ended]
    assert told(folder, Resumed) == [Resumed(0, 1)]
    written = told(folder, CheckpointWritten)
    assert [event.images for event in written] == [32, 64]
    assert all(0 <= event.stalled <= event.seconds for event in written)
    assert told(folder, Published) == [Published(result.bundle, result.state_sha256, {})]
    (ended,) = told(folder, Ended)
    assert (ended.how, ended.done["train"]) == ("finished", 64)
    found = standing.read(folder)
    assert found is not None
    assert (found.stages["train"].done, found.stages["train"].total, found.workers) == (64, 64, 1)
    assert found.values["loss"] == result.metrics["loss"]
    assert result.spent is not None
    assert result.spent.worker_s.keys() == {"cpu_node"}

    left = dry_run(job)["estimate"]
    assert (left["todo"], left["basis"]) == (0, "nothing is left to do")
    left = dry_run(make_job(workers=0, images=128, tracking={"uri": tracking_uri}))["estimate"]
    assert left["todo"] == 128
    assert left["basis"].startswith("measured")
    assert left["wall_hours"] == left["worker_hours"] == left["node_hours"]["cpu_node"]

    newest = Path(written[-1].path)
    (newest / "weights.safetensors").write_bytes(b"damaged")
    (Path(folder) / "result.json").unlink()
    launch(job, text_encoder=str(tower))
    assert told(folder, Resumed)[-1] == Resumed(32, 1, written[0].path)
    (refused,) = told(folder, CheckpointRefused)
    assert refused.path == str(newest)
    assert refused.why == "weights.safetensors is not what was written"
    assert [event.attempt for event in told(folder, Begun)] == [1, 2]
    assert told(folder, Ended)[-1].done["train"] == 32


def recorded(folder: Path) -> tuple[Record, TrainingMetrics]:
    metrics = TrainingMetrics()
    return Record(Recorder(str(folder), observers=(metrics,)), 100, metrics, apart=True), metrics


def point(images: int, loss: float) -> Point:
    return Point(images=images, time=1.0, values={"loss": loss, "grad_norm": 2.0, "lr": 0.5, "images_per_second": 4.0})


def test_metrics_follow_a_run_through_the_loss_of_a_worker(tmp_path: Path) -> None:
    record, metrics = recorded(tmp_path)
    begun = Begun("train", "m", 1, "images", 100, 0, {}, 2, "here", 1)
    with record.recorder.running(begun):
        for message in (
            Resumed(0, 2),
            point(20, 0.9),
            Timing(step_seconds=2.0, data_share=0.25, cpu_seconds=3.0, workers=2),
            CheckpointWritten(20, "c", 1.5, 0.02),
            point(30, 0.8),
            WorkerLost(1, "SystemError: killed"),
            Resumed(20, 1, "c"),
            point(20, 0.9),
            point(30, 0.8),
            point(40, 0.7),
            Timing(step_seconds=4.0, data_share=0.5, cpu_seconds=5.0, workers=1),
        ):
            record.take(message)
        assert record.recorder.spent().cpu_s >= 3.0 * 2 + 5.0, "of the workers before, too"
    lines = generate_latest(metrics.registry).decode().splitlines()
    for line in (
        "cleanplate_training_images_seen 40.0",
        "cleanplate_training_images 100.0",
        "cleanplate_training_loss 0.7",
        "cleanplate_training_gradient_norm 2.0",
        "cleanplate_training_learning_rate 0.5",
        "cleanplate_training_images_per_second 4.0",
        "cleanplate_training_step_seconds 4.0",
        "cleanplate_training_data_wait_ratio 0.5",
        "cleanplate_training_checkpoint_seconds_sum 1.5",
        "cleanplate_training_checkpoint_stall_seconds_sum 0.02",
        "cleanplate_training_workers 1.0",
        "cleanplate_training_restarts_total 1.0",
        "cleanplate_training_resizes_total 1.0",
        "cleanplate_training_workers_lost_total 1.0",
    ):
        assert line in lines
    assert told(str(tmp_path), Resized) == [Resized(20, 2, 1)]
    (ended,) = told(str(tmp_path), Ended)
    assert ended.done == {"train": 40}


def test_why_a_worker_was_lost_is_its_own_words() -> None:
    class WrappedError(Exception):
        cause = ValueError("out of memory\nwith a long tail")

    assert _why(WrappedError("worker failed")) == "ValueError: out of memory"
    assert _why(RuntimeError("")) == "RuntimeError: "


def test_how_it_is_watched_trains_no_other_model(make_job: MakeJob) -> None:
    plain, watched = make_job(), make_job(observability={"metrics_port": 9, "prices": {"gpu_node": 2.5}})
    assert watched.identity() == plain.identity()
    assert watched.public() == plain.public()
    assert like(watched) == like(plain) != like(make_job(precision="fp32" if plain.precision == "bf16" else "bf16"))


def test_a_path_s_autoencoder_is_known_again_before_it_was_looked_at(make_job: MakeJob) -> None:
    planned, prepared = (make_job(autoencoder={"path": "/vae", "sha256": known}) for known in (None, "0" * 64))
    assert like(planned) == like(prepared) != like(make_job(autoencoder={"path": "/other"})) != like(make_job())


def test_points_are_logged_though_they_cannot_be_recorded() -> None:
    logged: list[Point] = []

    class Run:
        def log(self, points: list[Point]) -> None:
            logged.extend(points)

    def fails(told: Told) -> None:
        raise ZeroDivisionError

    run: Any = Run()
    told = iter([[point(8, 0.5)], []])
    follower = Follower(run, 100, None, record=fails)
    with pytest.raises(ZeroDivisionError):
        follower._take(next(told))
    follower._take(next(told))
    assert logged == [point(8, 0.5)]


def test_what_is_no_training_event_is_told_all_the_same(tmp_path: Path) -> None:
    record, _ = recorded(tmp_path)
    record.take(UnitHeld("u", {"dns": 1}))
    assert told(str(tmp_path), UnitHeld) == [UnitHeld("u", {"dns": 1})]
