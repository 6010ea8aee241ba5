"""What an autoencoder job comes to before anything runs, and the driver's side of its run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from curation import storage
from curation.errors import UserError
from curation.manifest import Manifest
from training.autoencoder_job import AutoencoderJob
from training.follow import Follower, Mailbox, OnProgress, start_run
from training.progress import Report
from training.ray_workers import mailbox_here
from training.roster import FILE as ROSTER_FILE
from training.roster import Roster
from training.run_record import RESULT_FILE, stored_result

if TYPE_CHECKING:
    from training.consent import Consent


class AutoencoderResult(BaseModel):
    """What a finished run came to; `bundle` is the autoencoder's folder."""

    model_config = ConfigDict(frozen=True)
    run_id: str
    bundle: str
    images_seen: int
    state_sha256: str
    metrics: dict[str, float]
    resumed_from: int
    training_set_digest: str
    excluded: dict[str, int] = {}


@dataclass(frozen=True)
class Prepared:
    """What a job comes to: the exact set, and the run's folder, which is named after it."""

    manifest: Manifest
    consent: Consent
    roster: Roster
    folder: str


def prepare(job: AutoencoderJob) -> Prepared:
    """Opens the manifest and asks the takedown ledger which of its rows may be trained on now.

    Raises:
        UserError: no such manifest, a ledger that cannot be read, nothing left to train on, or evidence older than the
            job takes it (unless the run is finished).
    """
    from training import consent

    manifest = Manifest.open(job.manifest)
    asked = consent.ask(manifest, job.ledger)
    roster = asked.roster(manifest)
    told = json.dumps([job.config_sha256(manifest.id), roster.info.digest])
    folder = storage.join(job.output, f"{job.name}-{hashlib.sha256(told.encode()).hexdigest()[:8]}")
    if finished(storage.absolute(folder)) is None:
        consent.check_age(manifest, job.consent_max_age_days)
    return Prepared(manifest, asked, roster, folder)


def finished(folder: str) -> AutoencoderResult | None:
    """The result of a run that came to its end in a folder; None where none did."""
    return stored_result(folder, AutoencoderResult)


def plan(job: AutoencoderJob, prepared: Prepared | None = None) -> dict[str, Any]:
    """What the job will ask for and do; opens the manifest and its first picture, and reads the takedown ledger.

    Raises:
        UserError: what `prepare` refuses, or pictures of a size that does not fit.
    """
    import torch

    from training.autoencoder_loop import build
    from training.data import picture_size

    prepared = prepared or prepare(job)
    size = picture_size(prepared.manifest)
    if size % job.factor:
        raise UserError(
            f"pictures of {size} pixels do not divide by {job.factor}",
            field="preset",
            remedy="use another preset, or curate at another image_size",
        )
    with torch.device("meta"):
        model = build(job, size)
    side = size // job.factor
    return {
        "workers": job.workers,
        "cpus": 1,
        "gpus": job.workers * job.gpus_per_worker,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "image_size": size,
        "latents": [job.latent_channels, side, side],
        "training_rows": len(prepared.roster),
        "images": job.steps * job.batch_size,
        "manifest": prepared.manifest.id,
        "training_set_digest": prepared.roster.info.digest,
        "ledger": prepared.consent.ledger_uri,
        "ledger_version": prepared.consent.ledger_version,
        "left_out": prepared.roster.info.excluded_rows,
        "left_out_by": prepared.consent.by_entry,
        "run_folder": prepared.folder,
    }


def launch(
    job: AutoencoderJob, *, on_progress: OnProgress | None = None, prepared: Prepared | None = None
) -> AutoencoderResult:
    """Trains to the job's end, from where an earlier attempt was interrupted; a finished run is not repeated.

    Args:
        on_progress: called in a thread of this process, about once a second while there is news.
        prepared: what `prepare` found for the job.

    Ray must be connected already, unless `workers` is 0: then the loop runs in this process, without Ray.

    Raises:
        UserError: the manifest, the ledger or an older checkpoint do not fit the job.
    """
    prepared = prepared or prepare(job)
    folder = storage.absolute(prepared.folder)
    done = finished(folder)
    if done is not None:
        return done
    plan(job, prepared)
    storage.write_bytes(storage.join(folder, ROSTER_FILE), prepared.roster.to_parquet())
    run = start_run(
        job,
        folder,
        prepared.manifest,
        prepared.roster,
        config_sha256=job.config_sha256(prepared.manifest.id),
        images=job.steps * job.batch_size,
        tags={"kind": "autoencoder"},
    )
    follower = Follower(run, job.steps * job.batch_size, on_progress)
    task = (job, folder, storage.absolute(prepared.manifest.uri), run.run_id)
    try:
        if job.workers == 0:
            mailbox = Mailbox()
            with follower.following(mailbox.drain):
                outcome = _train_at(*task, mailbox.put)
        else:
            outcome = _train_on_ray(*task, follower)
    except BaseException:
        run.finish("FAILED")
        raise
    run.finish("FINISHED", {key: str(outcome[key]) for key in ("state_sha256", "bundle", "images_seen")})
    result = AutoencoderResult(
        run_id=run.run_id,
        training_set_digest=prepared.roster.info.digest,
        excluded=prepared.consent.by_entry,
        **outcome,
    )
    storage.write_bytes(storage.join(folder, RESULT_FILE), result.model_dump_json(indent=1).encode())
    return result


def _train_at(job: AutoencoderJob, folder: str, manifest: str, run_id: str, report: Report) -> dict[str, Any]:
    import torch

    from training.autoencoder_loop import train
    from training.data import load

    where = storage.join(folder, ROSTER_FILE)
    roster = Roster.from_parquet(storage.read_bytes(where), where)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    data = load(Manifest.open(manifest), roster=roster)
    return dataclasses.asdict(train(job, folder=folder, data=data, device=device, report=report, run_id=run_id))


def _train_on_ray(job: AutoencoderJob, folder: str, manifest: str, run_id: str, follower: Follower) -> dict[str, Any]:
    """A task, which Ray starts again where its process died; it goes on from its own checkpoints."""
    import ray

    mailbox = mailbox_here()
    task: Any = ray.remote(_task).options(
        num_cpus=1, num_gpus=job.gpus_per_worker, max_retries=job.max_failures, retry_exceptions=False
    )
    with follower.following(lambda: ray.get(mailbox.drain.remote())):
        outcome: dict[str, Any] = ray.get(task.remote(job.model_dump(mode="json"), folder, manifest, run_id, mailbox))
    return outcome


def _task(job: dict[str, Any], folder: str, manifest: str, run_id: str, mailbox: Any) -> dict[str, Any]:
    """What the Ray task does. Must stay importable by name: it is shipped by reference."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for deterministic matrix products on a GPU
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    return _train_at(
        AutoencoderJob.model_validate(job), folder, manifest, run_id, lambda point: mailbox.put.remote(point)
    )
