"""What a distillation's networks are told: encoded once, into shards where it does not fit into memory."""

from __future__ import annotations

from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from curation import storage
from curation.manifest import Manifest
from training import text_shards
from training.bundle import BundleInfo
from training.distill_job import DistillJob
from training.job import TrainJob
from training.roster import Roster
from training.text_states import StoredStates

if TYPE_CHECKING:
    from training.shard_job import OnStage


def make(
    job: DistillJob,
    teacher: BundleInfo,
    manifest: Manifest,
    roster: Roster,
    *,
    folder: str,
    bundle: Path,
    on_stage: OnStage | None = None,
) -> str | None:
    """Makes what is missing of the text states, and says where they lie.

    Args:
        folder: the run's, with the teacher's bundle in `teacher`.
        bundle: the teacher's, on this machine.

    Returns:
        None where they fit into memory, where no captions are read, or where the run goes on from a time when each
        batch encoded its own.

    Raises:
        UserError: what `text_shards.make` and `refuse_small_cache` refuse.
    """
    reading = _reading(job, teacher, manifest.uri)
    if not reading.conditioning.reads_captions:
        return None
    planned = text_shards.plan_of(reading, manifest, roster, bundle / "text_encoder")
    if planned is None or text_shards.encodes_batch_by_batch(folder):
        return None
    tower = storage.join(folder, "teacher", "text_encoder")
    info = text_shards.make(
        planned, manifest, roster, tower, workers=job.workers, gpus=job.gpus_per_worker, on_stage=on_stage
    )
    text_shards.refuse_small_cache(reading, info)
    return planned.uri


def opened(
    uri: str | None, job: DistillJob, teacher: BundleInfo, manifest: str, roster: Roster
) -> AbstractContextManager[StoredStates | None]:
    """The states that `make` has made, for as long as they are read; None where it made none."""
    if uri is None:
        return nullcontext()
    return closing(StoredStates.of(uri, _reading(job, teacher, manifest), roster))


def _reading(job: DistillJob, teacher: BundleInfo, manifest: str) -> TrainJob:
    """A training that reads its captions as the teacher's did, and keeps its files where the distillation does."""
    told = {name: teacher.job[name] for name in ("caption_mix", "conditioning") if name in teacher.job}
    return TrainJob.model_validate({"manifest": manifest, "output": job.output, **told})
