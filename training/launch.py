"""The driver's side of a training: what its workers need, their run, its end, and what is left of it.

The driver owns the MLflow run and is the only one that writes to it. The loop is in this process, or in Ray Train's
workers (`training.ray_workers`), and sends its points to the driver.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curation import storage
from curation.events import Published
from curation.manifest import Manifest
from training import dependencies, latents, ray_workers
from training.data_config import ShardsData
from training.folders import download
from training.follow import Follower, Mailbox, OnProgress, start_run
from training.job import ElasticWorkers, TrainJob
from training.latents import AutoencoderConfig
from training.notice import Notice, on_sigterm
from training.prepare import Prepared, TrainResult, finished, plan, prepare, shards
from training.progress import Report, Tell
from training.record import Record, recording
from training.roster import FILE as ROSTER_FILE
from training.roster import Roster
from training.run_record import RESULT_FILE

if TYPE_CHECKING:
    from training.checkpoint_evaluation import Evaluator
    from training.learner import Place
    from training.shard_job import OnStage
    from training.tracking import Run


def launch(
    job: TrainJob,
    *,
    text_encoder: str | None,
    evaluator: Evaluator | None = None,
    on_progress: OnProgress | None = None,
    on_stage: OnStage | None = None,
    prepared: Prepared | None = None,
) -> TrainResult:
    """Trains a job to its end, from where an earlier attempt was interrupted; a finished run is not repeated.

    Args:
        text_encoder: the text tower's folder (`training.text`), reachable by all workers; None where captions are not
            read.
        evaluator: evaluates checkpoints where the job asks for that, in a process of its own.
        on_progress: called in a thread of this process, about once a second while there is news.
        on_stage: called while shards are made, which comes before training.
        prepared: what `prepare` found for the job.

    Ray must be connected already, unless `workers` is 0: then the loop runs in this process, without Ray.

    Raises:
        UserError: the manifest, the ledger, the tower, the sizes or an older checkpoint do not fit the job.
        Terminated: after SIGTERM, when the state is saved.
    """
    prepared = prepared or prepare(job)
    job = prepared.job
    folder = storage.absolute(prepared.folder)
    done = finished(folder)
    if done is not None:
        return done if job.bundle == "last" else _with_best(job, folder, done)
    images = int(plan(job, prepared)["images"])
    # absolute, because a worker's working directory is not the driver's
    places: dict[str, Any] = {"manifest": storage.absolute(prepared.manifest.uri)}
    if isinstance(job.data, ShardsData):
        where = storage.absolute(job.data.folder or storage.join(job.output, "shards"))
        places["data"] = job.data.model_copy(update={"folder": where})
    if job.resume_from is not None:
        places["resume_from"] = storage.absolute(job.resume_from)
    job = job.model_copy(update=places)
    placed = dataclasses.replace(prepared, job=job)
    with recording(job, folder, images) as record:
        return _launch(placed, folder, text_encoder, evaluator, on_progress, on_stage, images, record)


def _launch(
    prepared: Prepared,
    folder: str,
    text_encoder: str | None,
    evaluator: Evaluator | None,
    on_progress: OnProgress | None,
    on_stage: OnStage | None,
    images: int,
    record: Record,
) -> TrainResult:
    """The same, of a job whose places are absolute."""
    from training import kept
    from training.watch import watch_of, watching

    job, on_stage = prepared.job, record.stage(on_stage)
    storage.write_bytes(storage.join(folder, ROSTER_FILE), prepared.roster.to_parquet())  # what the workers load
    run = _start_run(job, prepared, folder)
    if job.autoencoder is not None:
        run.dependencies(_keep_autoencoder(job.autoencoder, folder))
    watch = watch_of(job, folder, run, prepared.held_out, evaluator)
    follower = Follower(run, images, on_progress, None if watch is None else watch.step, record.take)
    try:
        _make_shards(prepared, folder, on_stage)
        tower = None if text_encoder is None else storage.absolute(text_encoder)
        told = {"folder": folder, "text_encoder": tower, "states": _make_text_states(prepared, folder, tower, on_stage)}
        with watching(watch):
            outcome = (_train_on_ray if job.workers else _train_here)(job, told, follower)
            if watch is not None:
                watch.finish()
        best = kept.settle(job, folder)
    except BaseException:
        run.finish("FAILED")
        raise
    ends = {key: str(outcome[key]) for key in ("state_sha256", "bundle", "images_seen")}
    run.finish("FINISHED", ends | ({} if best is None else best.tags()))
    result = TrainResult(
        run_id=run.run_id,
        training_set_digest=prepared.roster.info.digest,
        excluded=prepared.consent.by_entry,
        held_out_rows=prepared.roster.info.held_out_rows,
        best=best,
        spent=record.recorder.spent(),
        **outcome,
    )
    record.recorder.tell(Published(result.bundle, result.state_sha256, {}))
    storage.write_bytes(storage.join(folder, RESULT_FILE), result.model_dump_json(indent=1).encode())
    return result


def _with_best(job: TrainJob, folder: str, done: TrainResult) -> TrainResult:
    """A finished run's result, with the bundle of its best checkpoint, which it may have been finished without."""
    from training import kept

    best = done.best or kept.best_of(folder, job.best_by)
    if best is None or best.bundle is not None:
        return done
    result = done.model_copy(update={"best": kept.with_bundle(folder, best)})
    storage.write_bytes(storage.join(folder, RESULT_FILE), result.model_dump_json(indent=1).encode())
    return result


def _make_shards(prepared: Prepared, folder: str, on_stage: OnStage | None) -> None:
    """What is missing of the files that the job's pictures are read from, where it asks for such."""
    from training import shard_job

    job, planned = prepared.job, shards(prepared)
    if planned is not None:
        shard_job.make(
            planned,
            prepared.manifest,
            prepared.roster,
            autoencoder=None if job.autoencoder is None else storage.join(folder, latents.FOLDER),
            workers=job.fewest_workers,
            gpus=job.gpus_per_worker,
            on_stage=on_stage,
        )


def _make_text_states(prepared: Prepared, folder: str, tower: str | None, on_stage: OnStage | None) -> str | None:
    """Where the captions' states lie that do not fit into memory; None where they do."""
    from training import text_shards

    job = prepared.job
    with _local(tower) as here:
        planned = None if here is None else text_shards.plan_of(job, prepared.manifest, prepared.roster, here)
    if tower is None or planned is None or text_shards.encodes_batch_by_batch(folder, job.resume_from):
        return None
    manifest, workers, gpus = prepared.manifest, job.fewest_workers, job.gpus_per_worker
    info = text_shards.make(planned, manifest, prepared.roster, tower, workers=workers, gpus=gpus, on_stage=on_stage)
    text_shards.refuse_small_cache(job, info)
    return planned.uri


def _start_run(job: TrainJob, prepared: Prepared, folder: str) -> Run:
    """The MLflow run of this folder."""
    tags = {}
    if job.autoencoder is not None:
        folder_of_it = latents.local_autoencoder(job.autoencoder.path)
        made_from = latents.dependency(folder_of_it, job.autoencoder.statement)
        tags[dependencies.TAG] = dependencies.to_tag([made_from])
    if job.resume_from is not None:
        tags["resume_from"] = job.resume_from
    return start_run(
        job,
        folder,
        prepared.manifest,
        prepared.roster,
        config_sha256=job.config_sha256(prepared.manifest.id),
        images=job.steps * job.batch_size,
        tags=tags,
    )


def _keep_autoencoder(config: AutoencoderConfig, folder: str) -> dict[str, Roster]:
    """Copies the autoencoder into the run's folder, where all workers reach it; its training set, where it has one."""
    found = latents.local_autoencoder(config.path)
    for name in latents.FILES:
        if (found / name).is_file():
            storage.write_bytes(storage.join(folder, latents.FOLDER, name), (found / name).read_bytes())
    rosters = latents.rosters_of(found)
    dependencies.keep(folder, rosters)
    return rosters


def _train_here(job: TrainJob, told: dict[str, Any], follower: Follower) -> dict[str, Any]:
    from training.learner import Place

    mailbox = Mailbox()
    with follower.following(mailbox.drain), on_sigterm() as notice:
        return _train_at(job, told, Place(), mailbox.put, notice, mailbox.put)


def _train_at(
    job: TrainJob, told: dict[str, Any], place: Place, report: Report, notice: Notice, tell: Tell
) -> dict[str, Any]:
    """Trains as one worker.

    Args:
        told: `folder`, the run's; `text_encoder`, the tower's; and `states`, that of the captions'. Either of the
            latter two may be None.
    """
    from training import conditioning, space
    from training.data import load
    from training.loop import train
    from training.shard_reader import Shards
    from training.text_states import StoredStates

    folder = told["folder"]
    where = storage.join(folder, ROSTER_FILE)
    roster = Roster.from_parquet(storage.read_bytes(where), where)
    source = Shards.of(job, roster)
    states = None if told["states"] is None else StoredStates.of(told["states"], job, roster)
    data = load(Manifest.open(job.manifest), job.image_size, job.caption_mix, roster, job.conditioning, source, states)
    autoencoder = None if job.autoencoder is None else storage.join(folder, latents.FOLDER)
    with contextlib.ExitStack() as reading:
        for reader in (source, states):
            if reader is not None:
                reading.callback(reader.close)
        tower, vae = (reading.enter_context(_local(at)) for at in (told["text_encoder"], autoencoder))
        outcome = train(
            job,
            folder=folder,
            data=data,
            text=conditioning.encoder(job.conditioning, tower, data.classes, place.device),
            place=place,
            space=space.build(job.patch_size, vae, place.device, frames=data.frames),
            report=report,
            notice=notice,
            tell=tell,
        )
    return dataclasses.asdict(outcome)


@contextlib.contextmanager
def _local(folder: str | None) -> Iterator[Path | None]:
    """A folder on this machine's disk, for as long as it is needed."""
    if folder is None:
        yield None
        return
    if not storage.is_remote(folder):
        yield Path(storage.filesystem(folder)[1])
        return
    with tempfile.TemporaryDirectory() as scratch:
        download(folder, Path(scratch))
        yield Path(scratch)


def _train_on_ray(job: TrainJob, told: dict[str, Any], follower: Follower) -> dict[str, Any]:
    ray_workers.check_resources(job.fewest_workers, job.gpus_per_worker)
    return ray_workers.fit(
        _worker,
        {"job": job.model_dump(mode="json"), **told},
        folder=told["folder"],
        scaling=_scaling(job),
        max_failures=job.max_failures,
        follower=follower,
    )


def _scaling(job: TrainJob) -> dict[str, Any]:
    """What Ray Train is asked for: a fixed number of workers, or as many as there is room for."""
    asked = ray_workers.fixed(job.most_workers, job.gpus_per_worker) | {"label_selector": dict(job.labels) or None}
    if isinstance(job.workers, ElasticWorkers):
        asked["num_workers"] = (job.workers.min, job.workers.max)
        asked["elastic_resize_monitor_interval_s"] = job.workers.check_seconds
    return asked


def _worker(config: dict[str, Any]) -> None:
    """One Ray Train worker. Must stay importable by name: it is shipped by reference."""
    job, mailbox = TrainJob.model_validate(config["job"]), config["mailbox"]
    ray_workers.work(
        mailbox,
        lambda place, report, notice: _train_at(job, config, place, report, notice, mailbox.put.remote),
    )
