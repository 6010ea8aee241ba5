"""Evaluations beside a training: processes and Ray tasks that the driver starts, and what they leave with the run."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest

from tests.training import evaluators
from tests.training.conftest import many, write_manifest
from training import checkpoint_evaluation as evaluations
from training.bundle import load_bundle
from training.checkpoint_evaluation import EvaluationTask
from training.job import TrainJob
from training.launch import launch
from training.notice import Terminated
from training.prepare import TrainResult, prepare
from training.progress import Progress
from training.watch import Watch

MakeJob = Callable[..., TrainJob]
EVALUATION = {"every": 32, "samples": 8, "holdout": 0.3, "loss_buckets": 1, "loss_pictures": 8}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_manifest(tmp_path_factory.mktemp("manifests"), many(60)).uri


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.follow._POLL_SECONDS", 0.05)


def steps(uri: str, run_id: str, name: str) -> list[int]:
    return [point.step for point in mlflow.MlflowClient(uri).get_metric_history(run_id, f"validation/{name}")]


@pytest.mark.slow
def test_evaluations_run_beside_a_training_and_reach_its_run_once(
    make_job: MakeJob, pictures: str, tower: Path, tracking_uri: str
) -> None:
    job = make_job(
        workers=0, manifest=pictures, evaluation=EVALUATION | {"every": None}, keep_best_checkpoints=1, bundle="best",
        best_by="loss_held_out", tracking={"uri": tracking_uri, "experiment": "watch"},
    )  # fmt: skip
    result = launch(job, text_encoder=str(tower), evaluator=evaluators.evaluate)
    folder = Path(result.bundle).parent
    assert 64 in evaluations.done(str(folder)), "the last is waited for"
    assert steps(tracking_uri, result.run_id, "loss_held_out") == evaluations.done(str(folder))
    assert result.held_out_rows == prepare(job).roster.info.held_out_rows > 8
    assert result.best is not None
    assert result.best.bundle == f"{folder}/bundle_best"
    assert load_bundle(result.best.bundle).info.images_seen == result.best.images_seen
    client = mlflow.MlflowClient(tracking_uri)
    files = {Path(file.path).name for file in client.list_artifacts(result.run_id, "validation")}
    assert {"images-000000000064.json", "images-000000000064.png"} <= files
    assert client.get_run(result.run_id).data.tags["cleanplate.best_images_seen"] == str(result.best.images_seen)

    # the driver is killed after the evaluations, before it wrote the result: all is found again, nothing told twice
    (folder / "result.json").unlink()
    again = launch(job, text_encoder=str(tower), evaluator=evaluators.fail)
    assert (again.run_id, again.best, again.resumed_from) == (result.run_id, result.best, 64)
    assert launch(job, text_encoder=str(tower)) == again
    assert steps(tracking_uri, result.run_id, "loss_held_out") == evaluations.done(str(folder))
    losses = client.get_metric_history(result.run_id, "loss")
    assert [point.step for point in losses] == list(range(8, 65, 8))


@pytest.mark.slow
def test_an_evaluation_that_fails_costs_a_warning(
    make_job: MakeJob, pictures: str, tower: Path, tracking_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    job = make_job(
        workers=0, manifest=pictures, evaluation=EVALUATION, keep_best_checkpoints=1, best_by="clip_score",
        tracking={"uri": tracking_uri, "experiment": "watch"},
    )  # fmt: skip
    with caplog.at_level(logging.WARNING):
        result = launch(job, text_encoder=str(tower), evaluator=evaluators.fail)
    assert result.images_seen == 64
    assert result.best is None
    assert "this judge is ill" in caplog.text


@pytest.mark.slow
def test_a_training_that_is_ended_takes_its_evaluation_with_it(
    make_job: MakeJob, pictures: str, tower: Path, tracking_uri: str
) -> None:
    job = make_job(
        workers=0, manifest=pictures, evaluation=EVALUATION, images=10**7, checkpoint_every=10**7,
        tracking={"uri": tracking_uri, "experiment": "watch"},
    )  # fmt: skip
    folder = prepare(job).folder
    children: list[int] = []

    def stop(progress: Progress) -> None:
        if evaluations.busy(folder) is not None and not children:
            children.extend(processes_of(folder))
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Terminated):
        launch(job, text_encoder=str(tower), evaluator=evaluators.never, on_progress=stop)
    assert evaluations.busy(folder) is None
    assert len(children) == 1
    assert not Path(f"/proc/{children[0]}").exists()


def processes_of(folder: str) -> list[int]:
    """Evaluations that this process started."""
    own = f"/proc/{os.getpid()}/task"
    found = [int(pid) for task in os.listdir(own) for pid in Path(f"{own}/{task}/children").read_text().split()]
    return [pid for pid in found if b"training.evaluation_child" in Path(f"/proc/{pid}/cmdline").read_bytes()]


class Sleeper:
    """An evaluation that ends when it is told to."""

    def __init__(self) -> None:
        self.result: str | None = None

    def failure(self) -> str | None:
        return self.result

    def cancel(self) -> None:
        self.result = "cancelled"


def test_one_goes_on_at_a_time_and_a_failed_one_is_not_tried_again(make_job: MakeJob, tmp_path: Path) -> None:
    task = EvaluationTask(job=make_job(evaluation={"every": 16}), folder=str(tmp_path))
    started: list[tuple[tuple[int, ...], Sleeper]] = []

    def start(task: EvaluationTask) -> Sleeper:
        started.append((task.skip, Sleeper()))
        evaluations.set_busy(str(tmp_path), evaluations.due(task)[-1])
        return started[-1][1]

    watch = Watch(task, start, lambda found, files: None)
    watch.step()
    assert started == []
    for images in (16, 24, 32):  # 24 is not due
        (tmp_path / "checkpoints" / f"images-{images:012d}").mkdir(parents=True)
        (tmp_path / "checkpoints" / f"images-{images:012d}" / "checkpoint.json").write_text("{}")
    watch.step()
    watch.step()
    assert [skip for skip, _ in started] == [()]
    assert evaluations.busy(str(tmp_path)) == 32
    started[0][1].result = "out of memory"
    watch.step()
    assert [skip for skip, _ in started] == [(), (32,)]
    assert evaluations.busy(str(tmp_path)) == 16
    watch.cancel()
    assert started[1][1].result == "cancelled"
    assert evaluations.busy(str(tmp_path)) is None


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_on_ray_an_evaluation_is_a_task_of_its_own(
    ray_cluster: None, make_job: MakeJob, pictures: str, tower: Path, tracking_uri: str
) -> None:
    job = make_job(
        workers=1, manifest=pictures, evaluation=EVALUATION | {"every": None},
        tracking={"uri": tracking_uri, "experiment": "watch"},
    )  # fmt: skip
    result: TrainResult = launch(job, text_encoder=str(tower), evaluator=evaluators.evaluate)
    folder = str(Path(result.bundle).parent)
    assert 64 in evaluations.done(folder)
    assert steps(tracking_uri, result.run_id, "clip_score") == evaluations.done(folder)
