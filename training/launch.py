"""Ray Train around the loop: workers, restarts, and the driver's side of a run.

The driver owns the MLflow run and is the only one that writes to it. The first worker sends its points to a mailbox (an
actor without a CPU of its own), and a thread of the driver empties it. `ray.train.report` is not used: it is a barrier
paced by the controller's poll, and the loop keeps its own checkpoints, which it also finds again after a restart.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from curation import storage
from curation.errors import UserError
from curation.manifest import Manifest
from training.folders import download
from training.follow import Follower, Mailbox, OnProgress
from training.job import TrainJob
from training.progress import Report

if TYPE_CHECKING:
    from training.learner import Place
    from training.tracking import Run

RESULT_FILE = "result.json"
_RUN_FILE = "run.json"


class TrainResult(BaseModel):
    """What a finished run came to."""

    model_config = ConfigDict(frozen=True)
    run_id: str
    bundle: str
    images_seen: int
    state_sha256: str
    metrics: dict[str, float]
    resumed_from: int


def run_folder(job: TrainJob, manifest: Manifest) -> str:
    """The run's own folder: the same job on the same manifest comes back to it, and any other does not."""
    return storage.join(job.output, f"{job.name}-{job.config_sha256(manifest.id)[:8]}")


def plan(job: TrainJob) -> dict[str, Any]:
    """What the job will ask for and do; opens the manifest and its first picture.

    Raises:
        UserError: no such manifest, nothing kept in it, or sizes that do not fit together.
    """
    import torch

    from training.data import check_mix, picture_size
    from training.unet import build_unet

    manifest = Manifest.open(job.manifest)
    if manifest.info.clip is None:
        raise UserError(
            "the manifest was made without CLIP, whose text tower captions are read with",
            field="manifest",
            remedy="curate again with `clip` set",
        )
    size = picture_size(manifest)
    check_mix(manifest, job.caption_mix)
    if job.image_size not in (None, size):
        raise UserError(
            f"the manifest's pictures are {size} x {size} pixels, the job says {job.image_size}",
            field="image_size",
            remedy="leave image_size out, or curate at the size you want",
        )
    with torch.device("meta"):
        # the width of the caption's states is only known when the tower is there; CLIP's own is close enough to count
        unet = build_unet(job.unet, image_size=size, patch_size=job.patch_size, text_width=manifest.info.clip.dim)
    kept = manifest.info.counts.get("kept", 0)
    return {
        "workers": job.workers,
        "cpus": max(job.workers, 1),
        "gpus": job.workers * job.gpus_per_worker,
        "parameters": sum(parameter.numel() for parameter in unet.parameters()),
        "image_size": size,
        "training_rows": kept,
        "steps": job.steps,
        "images": job.steps * job.batch_size,
        "epochs": round(job.steps * job.batch_size / max(kept, 1), 2),
        "micro_batch": job.batch_size // (max(job.workers, 1) * job.accumulation),
        "manifest": manifest.id,
        "run_folder": run_folder(job, manifest),
    }


def launch(job: TrainJob, *, text_encoder: str, on_progress: OnProgress | None = None) -> TrainResult:
    """Trains a job to its end, from where an earlier attempt was interrupted; a finished run is not repeated.

    Args:
        text_encoder: the text tower's folder (`training.text`), reachable by all workers.
        on_progress: called in a thread of this process, about once a second while there is news.

    Ray must be connected already, unless `workers` is 0: then the loop runs in this process, without Ray.

    Raises:
        UserError: the manifest, the tower, the sizes or an older checkpoint do not fit the job.
    """
    manifest = Manifest.open(job.manifest)
    folder = _absolute(run_folder(job, manifest))
    finished = _finished(folder)
    if finished is not None:
        return finished
    images = int(plan(job)["images"])
    # absolute, because a worker's working directory is not the driver's
    job = job.model_copy(update={"manifest": _absolute(manifest.uri)})
    run = _start_run(job, manifest, folder)
    follower = Follower(run, images, on_progress)
    try:
        if job.workers == 0:
            outcome = _train_here(job, folder, text_encoder, follower)
        else:
            outcome = _train_on_ray(job, folder, _absolute(text_encoder), follower)
    except BaseException:
        run.finish("FAILED")
        raise
    run.finish("FINISHED", {"state_sha256": outcome["state_sha256"], "bundle": outcome["bundle"]})
    result = TrainResult(run_id=run.run_id, **outcome)
    storage.write_bytes(storage.join(folder, RESULT_FILE), result.model_dump_json(indent=1).encode())
    return result


def _absolute(uri: str) -> str:
    return uri if storage.is_remote(uri) else storage.filesystem(uri)[1]


def _finished(folder: str) -> TrainResult | None:
    from training.bundle import INFO_FILE

    try:
        result = TrainResult.model_validate_json(storage.read_bytes(storage.join(folder, RESULT_FILE)))
    except (FileNotFoundError, ValidationError):
        return None
    bundle = storage.join(folder, "bundle")  # the folder may have been moved since
    return result.model_copy(update={"bundle": bundle}) if storage.exists(storage.join(bundle, INFO_FILE)) else None


def _start_run(job: TrainJob, manifest: Manifest, folder: str) -> Run:
    """The MLflow run of this folder: the one an earlier attempt began, or a new one."""
    from training.tracking import Run

    record = storage.join(folder, _RUN_FILE)
    try:
        known = str(json.loads(storage.read_bytes(record))["run_id"])
    except (FileNotFoundError, ValueError, KeyError):
        known = None
    tags = {"manifest_id": manifest.id, "config_sha256": job.config_sha256(manifest.id), "run_folder": folder}
    run = Run.start(job.name, uri=job.tracking.uri, experiment=job.tracking.experiment, known_run_id=known, tags=tags)
    storage.write_bytes(record, json.dumps({"run_id": run.run_id}).encode())
    run.params(job.public())
    run.dataset(name=manifest.info.name, uri=manifest.uri, digest=manifest.id)
    return run


def _train_here(job: TrainJob, folder: str, text_encoder: str, follower: Follower) -> dict[str, Any]:
    from training.learner import Place

    mailbox = Mailbox()
    with follower.following(mailbox.drain):
        return _train_at(job, folder, text_encoder, Place(), mailbox.put)


def _train_at(job: TrainJob, folder: str, text_encoder: str, place: Place, report: Report) -> dict[str, Any]:
    from training.data import load
    from training.loop import train
    from training.text import TextEncoder

    with _local(text_encoder) as tower:
        outcome = train(
            job,
            folder=folder,
            data=load(Manifest.open(job.manifest), job.image_size, job.caption_mix),
            text=TextEncoder(tower, place.device),
            place=place,
            report=report,
        )
    return dataclasses.asdict(outcome)


@contextlib.contextmanager
def _local(folder: str) -> Iterator[Path]:
    """A folder on this machine's disk, for as long as it is needed."""
    if not storage.is_remote(folder):
        yield Path(storage.filesystem(folder)[1])
        return
    with tempfile.TemporaryDirectory() as scratch:
        download(folder, Path(scratch))
        yield Path(scratch)


def _train_on_ray(job: TrainJob, folder: str, text_encoder: str, follower: Follower) -> dict[str, Any]:
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # how soon the end or a failure is noticed
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    _check_resources(job)
    mailbox: Any = ray.remote(Mailbox).options(num_cpus=0).remote()
    system, path = storage.filesystem(folder)
    trainer = TorchTrainer(
        _worker,
        train_loop_config={
            "job": job.model_dump(mode="json"),
            "folder": folder,
            "text_encoder": text_encoder,
            "mailbox": mailbox,
        },
        scaling_config=ScalingConfig(
            num_workers=job.workers,
            use_gpu=job.gpus_per_worker > 0,
            resources_per_worker={"CPU": 1, "GPU": job.gpus_per_worker} if job.gpus_per_worker else {"CPU": 1},
        ),
        run_config=RunConfig(
            name="ray",
            storage_path=path,
            storage_filesystem=system if storage.is_remote(folder) else None,
            failure_config=FailureConfig(max_failures=job.max_failures),
        ),
    )
    with follower.following(lambda: ray.get(mailbox.drain.remote())):
        try:
            trainer.fit()
        except TrainingFailedError as error:
            mistake = _user_error(error)
            if mistake is not None:
                raise mistake from None
            raise
    outcome: dict[str, Any] | None = ray.get(mailbox.outcome.remote())
    if outcome is None:
        raise RuntimeError("the workers ended without an outcome")
    return outcome


def _check_resources(job: TrainJob) -> None:
    """A cluster of our own on this machine cannot grow, so waiting for what it lacks would never end."""
    import ray

    if "RAY_ADDRESS" in os.environ:
        return
    have = ray.cluster_resources()
    for kind, needed, field in (
        ("CPU", job.workers, "workers"),
        ("GPU", job.workers * job.gpus_per_worker, "gpus_per_worker"),
    ):
        if needed > have.get(kind, 0):
            raise UserError(
                f"{job.workers} workers need {needed} {kind}s, this machine offers {have.get(kind, 0):g}",
                field=field,
                remedy="ask for less, or submit the job to a cluster",
            )


def _user_error(error: BaseException) -> UserError | None:
    """The user's mistake that made a worker fail, if it was one."""
    for failure in getattr(error, "worker_failures", {}).values():
        cause: BaseException | None = failure
        while cause is not None:
            if isinstance(cause, UserError):
                return cause
            cause = getattr(cause, "cause", None) or getattr(cause, "_base_exc", None) or cause.__cause__
    return None


def _worker(config: dict[str, Any]) -> None:
    """One Ray Train worker. Must stay importable by name: it is shipped by reference."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for deterministic matrix products on a GPU
    import ray
    import ray.train.torch
    import torch

    from training.learner import Place

    context = ray.train.get_context()
    # two workers with two threads each on two cores run six times slower than with one each
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(max(1, cores // context.get_local_world_size()))
    place = Place(
        rank=context.get_world_rank(), world_size=context.get_world_size(), device=ray.train.torch.get_device()
    )
    mailbox = config["mailbox"]
    job = TrainJob.model_validate(config["job"])
    outcome = _train_at(job, config["folder"], config["text_encoder"], place, lambda point: mailbox.put.remote(point))
    if place.rank == 0:
        ray.get(mailbox.finish.remote(outcome))
