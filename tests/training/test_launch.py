"""Launching: in this process without Ray, and on two Ray Train workers whose driver is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import mlflow
import pytest

from curation import storage
from curation.errors import UserError
from curation.manifest import Manifest
from curation.takedowns import Ledger
from tests.bench import elastic
from tests.curation.seaweed import seaweed
from tests.training.conftest import many, opt_out, row_id, write_manifest
from training import checkpoint, merkle, randomness
from training.bundle import load_bundle
from training.data import load
from training.folders import upload
from training.job import TrainJob
from training.launch import _scaling, launch
from training.learner import Place
from training.loop import train
from training.notice import Terminated
from training.prepare import TrainResult, plan, prepare, run_folder
from training.progress import Point, Progress
from training.retraining import earliest
from training.roster import Roster
from training.text import TextEncoder
from training.tracking import register, resolve, runs_of, training_set

MakeJob = Callable[..., TrainJob]
ROOT = Path(__file__).parents[2]


def test_a_plan_says_what_will_be_asked_for(make_job: MakeJob, manifest: Manifest) -> None:
    job = make_job(workers=2, accumulation=2)
    planned = plan(job)
    assert (planned["workers"], planned["cpus"], planned["gpus"]) == (2, 2, 0)
    assert (planned["steps"], planned["images"], planned["micro_batch"]) == (8, 64, 2)
    assert (planned["training_rows"], planned["image_size"], planned["epochs"]) == (8, 8, 8.0)
    assert planned["run_folder"] == run_folder(job, manifest.id, planned["training_set_digest"])
    assert planned["parameters"] > 100_000


def test_what_ray_train_is_asked_for(make_job: MakeJob) -> None:
    fixed = _scaling(make_job(workers=2, gpus_per_worker=1, labels={"zone": "a"}))
    assert fixed == {
        "num_workers": 2, "use_gpu": True, "resources_per_worker": {"CPU": 1, "GPU": 1}, "label_selector": {"zone": "a"}
    }  # fmt: skip
    changing = _scaling(make_job(workers={"max": 4, "check_seconds": 9}))
    assert (changing["num_workers"], changing["elastic_resize_monitor_interval_s"]) == ((1, 4), 9)
    assert (changing["resources_per_worker"], changing["label_selector"]) == ({"CPU": 1}, None)
    planned = plan(make_job(workers={"max": 4}))
    assert (planned["workers"], planned["cpus"], planned["micro_batch"]) == (4, 4, 2)


def test_mistakes_are_found_before_anything_starts(make_job: MakeJob, tmp_path: Path) -> None:
    for change, field in (
        ({"manifest": str(tmp_path / "absent")}, "manifest"),
        ({"image_size": 16}, "image_size"),
        ({"patch_size": 8}, "patch_size"),
        ({"network": {"block_out_channels": (33,)}}, "network.block_out_channels"),
    ):
        with pytest.raises(UserError) as caught:
            plan(make_job(**change))
        assert caught.value.field == field


def test_a_run_in_this_process(
    make_job: MakeJob, manifest: Manifest, tower: Path, tracking_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(workers=0, tracking={"uri": tracking_uri, "experiment": "launch"})
    monkeypatch.setattr("training.follow._POLL_SECONDS", 0.05)
    seen: list[Progress] = []
    result = launch(job, text_encoder=str(tower), on_progress=seen.append)
    assert (result.images_seen, result.resumed_from) == (64, 0)
    assert seen[-1].images_seen == seen[-1].images_total == 64
    assert load_bundle(result.bundle).info.manifest_id == manifest.id
    client = mlflow.MlflowClient(tracking_uri)
    run = client.get_run(result.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["network.preset"] == "tiny"
    assert run.data.tags["cleanplate.state_sha256"] == result.state_sha256
    assert run.inputs.dataset_inputs[0].dataset.digest == manifest.id[:36]
    assert [point.step for point in client.get_metric_history(result.run_id, "loss")] == list(range(8, 65, 8))
    assert [item.path for item in client.list_artifacts(result.run_id, "samples")] == ["samples/000000000064.png"]

    again: list[Progress] = []
    assert launch(job, text_encoder=str(tower), on_progress=again.append) == result
    assert not [progress for progress in again if progress.images_seen < 64], "nothing is trained a second time"


def test_a_ledger_makes_another_run_of_the_same_job(
    make_job: MakeJob, tower: Path, tracking_uri: str, tmp_path: Path
) -> None:
    made = write_manifest(tmp_path / "manifests", many(9))
    ledger = tmp_path / "ledger"
    job = make_job(
        workers=0, manifest=made.uri, ledger=str(ledger), tracking={"uri": tracking_uri, "experiment": "ledger"}
    )
    whole = launch(job, text_encoder=str(tower))
    gone = row_id(many(9)[4][1])
    entry = opt_out(ledger, gone)
    planned = plan(job)
    assert (planned["training_rows"], planned["left_out"], planned["left_out_by"]) == (8, 1, {entry[:12]: 1})
    assert planned["ledger"] == str(ledger)
    rest = launch(job, text_encoder=str(tower))
    assert rest.run_id != whole.run_id
    assert rest.state_sha256 != whole.state_sha256
    assert (whole.excluded, rest.excluded) == ({}, {entry[:12]: 1})
    assert launch(job, text_encoder=str(tower)) == rest  # finished, and found again
    Ledger.open(str(ledger)).withdraw(entry, by="Jane", why="changed her mind")
    assert launch(job, text_encoder=str(tower)) == whole

    info = load_bundle(rest.bundle).info
    folder = Path(rest.bundle).parent
    kept = Roster.from_parquet((folder / "training_set.parquet").read_bytes(), str(folder))
    assert (info.training_rows, info.excluded_rows, info.base_rows) == (8, 1, 9)
    assert (info.ledger_uri, info.manifest_uri) == (str(ledger), made.uri)
    assert info.training_set_digest == rest.training_set_digest == merkle.digest(kept.ids)
    assert gone not in kept.ids
    assert info.takedown_ledger_version == kept.info.ledger_version != "none"
    (version_rows, run_rows) = (
        training_set(of, tracking_uri=tracking_uri)
        for of in (
            register(rest.bundle, "left-out", alias=None, tracking_uri=tracking_uri, run_id=rest.run_id),
            rest.run_id,
        )
    )
    assert version_rows.ids == run_rows.ids == kept.ids
    tags = {run.run_id: run.tags for run in runs_of([made.id], tracking_uri=tracking_uri)}
    assert set(tags) == {whole.run_id, rest.run_id}
    assert tags[rest.run_id]["excluded_rows"] == "1"
    assert (tags[rest.run_id]["seed"], tags[rest.run_id]["images_seen"]) == ("0", "64")


def test_old_evidence_is_refused_before_anything_starts(make_job: MakeJob, tower: Path, tmp_path: Path) -> None:
    old = {"evidence_from": datetime.now(UTC) - timedelta(days=40)}
    made = write_manifest(tmp_path / "manifests", many(8), said=old)
    job = make_job(workers=0, manifest=made.uri)
    for act in (plan, prepare, lambda job: launch(job, text_encoder=str(tower))):
        with pytest.raises(UserError, match="cleanplate recheck") as caught:
            act(job)
        assert caught.value.field == "consent_max_age_days"
    assert not Path(job.output).exists()
    assert plan(make_job(manifest=made.uri, consent_max_age_days=None))["training_rows"] == 8


def test_a_plan_refuses_a_checkpoint_that_cannot_be_taken_up(make_job: MakeJob, text: TextEncoder) -> None:
    job = make_job(milestones=32)
    train(job, folder=job.output, data=load(Manifest.open(job.manifest)), text=text, place=Place())
    path = f"{job.output}/checkpoints/images-000000000032"
    assert plan(make_job(resume_from=path))["images"] == 64
    for change, field in (({"seed": 3}, "seed"), ({"resume_from": "/nowhere"}, "resume_from")):
        with pytest.raises(UserError) as caught:
            plan(make_job(**{"resume_from": path, **change}))
        assert caught.value.field == field


def test_a_missing_tower_is_named_and_the_run_marked_failed(
    make_job: MakeJob, tmp_path: Path, tracking_uri: str
) -> None:
    job = make_job(workers=0, tracking={"uri": tracking_uri, "experiment": "launch"})
    with pytest.raises(UserError, match="no text tower"):
        launch(job, text_encoder=str(tmp_path / "absent"))
    folder = Path(prepare(job).folder)
    run_id = json.loads((folder / "run.json").read_text())["run_id"]
    assert mlflow.MlflowClient(tracking_uri).get_run(run_id).info.status == "FAILED"


def test_sigterm_saves_the_state_and_ends_the_process(
    make_job: MakeJob, tower: Path, tracking_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.follow._POLL_SECONDS", 0.01)
    settings: dict[str, Any] = {
        "workers": 0, "images": 1600, "checkpoint_every": 10_000, "tracking": {"uri": tracking_uri, "experiment": "ray"}
    }  # fmt: skip
    before = signal.getsignal(signal.SIGTERM)
    job = make_job(**settings)
    with pytest.raises(Terminated):
        launch(job, text_encoder=str(tower), on_progress=lambda progress: os.kill(os.getpid(), signal.SIGTERM))
    assert signal.getsignal(signal.SIGTERM) == before
    resumed = launch(job, text_encoder=str(tower))
    assert 0 < resumed.resumed_from < 1600
    straight = launch(make_job(**settings, output=str(tmp_path / "straight")), text_encoder=str(tower))
    assert (straight.resumed_from, straight.state_sha256) == (0, resumed.state_sha256)


@pytest.mark.slow
def test_a_run_on_s3_is_interrupted_resumed_and_registered(
    make_job: MakeJob, tower: Path, tracking_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "s3").mkdir()
    with seaweed(tmp_path / "s3") as server:
        for name, value in {**server.environment, "XDG_CACHE_HOME": str(tmp_path / "cache")}.items():
            monkeypatch.setenv(name, value)
        storage._s3.cache_clear()
        server.put("runs", "keep", b"")
        job = make_job(workers=0, output="s3://runs/training", tracking={"uri": tracking_uri, "experiment": "s3"})
        folder = prepare(job).folder
        upload(tower, f"{folder}/text_encoder", last="open_clip_text.json")

        def stop(point: Point) -> None:
            if point.images == 40:
                raise KeyboardInterrupt

        data = load(Manifest.open(job.manifest))
        with pytest.raises(KeyboardInterrupt):
            train(job, folder=folder, data=data, text=TextEncoder(tower), place=Place(), report=stop)
        result = launch(job, text_encoder=f"{folder}/text_encoder")
        assert (result.resumed_from, result.images_seen) == (32, 64)
        assert result.bundle == f"{folder}/bundle"
        straight = train(job, folder=str(tmp_path / "local"), data=data, text=TextEncoder(tower), place=Place())
        assert straight.state_sha256 == result.state_sha256
        assert load_bundle(result.bundle).info.state_sha256 == result.state_sha256
        assert resolve(result.bundle).name == "local"
        version = register(result.bundle, "from-s3", alias=None, tracking_uri=tracking_uri, run_id=result.run_id)
        assert version.tags["state_sha256"] == result.state_sha256
        kept = {key.split("/")[3] for key in server.keys("runs") if "/checkpoints/images-" in key}
        assert kept == {"images-000000000048", "images-000000000064"}
    storage._s3.cache_clear()


# The driver is a process of its own, so that it can be killed. It says "at N" whenever there is news.
DRIVER = """
import json, sys
from pipelines.cluster import connect
from training.job import TrainJob
from training.launch import launch
with connect(cpus=2):
    result = launch(
        TrainJob.model_validate(json.loads(sys.argv[1])),
        text_encoder=sys.argv[2],
        on_progress=lambda progress: print("at", progress.images_seen, flush=True),
    )
print("result", result.model_dump_json(), flush=True)
"""


def drive(
    job: TrainJob, tower: Path, *, kill_at: int | None = None, signal_: signal.Signals = signal.SIGKILL
) -> TrainResult | tuple[int, str]:
    """Runs a driver to its end, or ends it by a signal once it has seen `kill_at` images.

    Returns:
        Its result, or its exit code and what it said to standard error.
    """
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, job.model_dump_json(), str(tower)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line)
        word, _, value = line.partition(" ")
        if word == "at" and kill_at is not None and int(value) >= kill_at:
            os.kill(process.pid, signal_)
            break
        if word == "result":
            process.stdout.read()
            process.wait()
            return TrainResult.model_validate_json(value)
    said = process.stderr.read()
    code = process.wait()
    assert kill_at is not None, "".join(lines) + said
    return code, said


@pytest.mark.ray
@pytest.mark.slow
def test_two_workers_retrain_to_the_same_bits(
    ray_cluster: None, make_job: MakeJob, tower: Path, tracking_uri: str, tmp_path: Path
) -> None:
    made = write_manifest(tmp_path / "manifests", many(56))
    settings: dict[str, Any] = {
        "workers": 2, "manifest": made.uri, "ledger": str(tmp_path / "ledger"), "milestones": 16,
        "conditioning_images": 8, "tracking": {"uri": tracking_uri, "experiment": "ray"},
    }  # fmt: skip
    job = make_job(**settings)
    whole = launch(job, text_encoder=str(tower))
    roster = training_set(whole.run_id, tracking_uri=tracking_uri)
    first = randomness.first_seen(job.seed, 64, 56).tolist()
    gone = roster.ids[first.index(45)]
    point = earliest(str(Path(whole.bundle).parent), roster, {gone}, job)
    assert point is not None
    assert (point.images_seen, point.first_seen) == (32, 45)
    assert point.claim.startswith("bit for bit")
    opt_out(tmp_path / "ledger", gone)
    scratch = launch(make_job(**settings, output=str(tmp_path / "scratch")), text_encoder=str(tower))
    again = launch(make_job(**settings, resume_from=point.checkpoint), text_encoder=str(tower))
    assert (scratch.resumed_from, again.resumed_from) == (0, 32)
    assert again.state_sha256 == scratch.state_sha256 != whole.state_sha256


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_driver_resumes_to_the_same_bits(
    ray_cluster: None, make_job: MakeJob, tower: Path, tracking_uri: str, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {
        "workers": 2,
        "images": 640,
        "checkpoint_every": 32,
        "tracking": {"uri": tracking_uri, "experiment": "ray"},
    }
    straight = launch(make_job(**settings, output=str(tmp_path / "straight")), text_encoder=str(tower))
    job = make_job(**settings, output=str(tmp_path / "killed"))
    assert drive(job, tower, kill_at=64) == (-signal.SIGKILL, "")
    resumed = drive(job, tower)
    assert isinstance(resumed, TrainResult)
    assert 0 < resumed.resumed_from < 640
    assert resumed.resumed_from % 32 == 0
    assert resumed.state_sha256 == straight.state_sha256
    history = mlflow.MlflowClient(tracking_uri).get_metric_history(resumed.run_id, "loss")
    assert [point.step for point in history] == list(range(8, 641, 8))


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_sigterm_to_the_driver_of_a_cluster_saves_the_state(
    make_job: MakeJob, tower: Path, tracking_uri: str, tmp_path: Path
) -> None:
    """As without Ray: the state between two steps is saved by the workers, and the exit code says why it ended."""
    tracking = {"uri": tracking_uri, "experiment": "ray"}
    job = make_job(workers=2, images=80_000, checkpoint_every=10**7, tracking=tracking)
    code, said = drive(job, tower, kill_at=64, signal_=signal.SIGTERM)
    assert code == 128 + signal.SIGTERM
    folder = Path(prepare(job).folder)
    (saved,) = (folder / "checkpoints").iterdir()
    images = int(saved.name.removeprefix("images-"))
    assert images >= 64
    assert f"interrupted: the state after {images} images is saved" in said
    assert checkpoint.problem(str(saved)) is None
    run_id = json.loads((folder / "run.json").read_text())["run_id"]
    assert mlflow.MlflowClient(tracking_uri).get_run(run_id).info.status == "FAILED"


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_goes_on_with_more_workers_and_with_fewer(
    make_job: MakeJob, tower: Path, tracking_uri: str, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {
        "images": 32 * 60, "batch_size": 32, "checkpoint_every": 32 * 4, "max_failures": 5,
        "tracking": {"uri": tracking_uri, "experiment": "elastic"},
    }  # fmt: skip
    job = make_job(**settings, workers={"min": 1, "max": 2, "check_seconds": 2})
    changed = elastic.drive(job, str(tower))
    assert [leg.topology["workers"] for leg in changed.legs] == [1, 2, 1]
    assert [leg.topology["accumulation"] for leg in changed.legs] == [2, 1, 2]
    # `drive` takes the node only once a state was saved for that; a step or two may have followed it.
    assert changed.legs[2].images > changed.legs[1].images
    straight = launch(make_job(**settings, workers=0, output=str(tmp_path / "one")), text_encoder=str(tower))
    client = mlflow.MlflowClient(tracking_uri)
    ours, theirs = (client.get_metric_history(run.run_id, "loss") for run in (changed, straight))
    assert [point.step for point in ours] == [point.step for point in theirs] == list(range(32, 32 * 60 + 1, 32))
    assert [point.value for point in ours] == pytest.approx([point.value for point in theirs], rel=1e-5)
