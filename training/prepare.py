"""What a train job comes to before anything runs: the exact set of rows, the run's folder, what it will ask for."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from curation import storage
from curation.errors import UserError
from curation.manifest import Decision, Manifest
from curation.standing import Spent
from training.data_config import ShardsData
from training.job import TrainJob
from training.latents import local_autoencoder, settled
from training.progress import Leg
from training.roster import Roster
from training.run_record import Best, stored_result
from training.video import VideoUnetConfig

if TYPE_CHECKING:
    from training.consent import Consent
    from training.data_shards import ShardsPlan

FEWEST = 8  # pictures that a distance is taken of


class TrainResult(BaseModel):
    """What a finished run came to."""

    model_config = ConfigDict(frozen=True)
    run_id: str
    bundle: str
    images_seen: int
    state_sha256: str
    metrics: dict[str, float]
    resumed_from: int
    training_set_digest: str = ""
    legs: tuple[Leg, ...] = ()  # the topologies that it was trained at
    excluded: dict[str, int] = {}  # rows that were left out, by the takedown entry that revokes them
    held_out_rows: int = 0  # rows of the manifest that were not trained on, to measure by
    best: Best | None = None  # of the checkpoints, where the best are kept
    spent: Spent | None = None  # by the attempt that ended it


@dataclass(frozen=True)
class Prepared:
    """What a job comes to before anything is trained: the exact set, and the run's folder, which is named after it.

    Attributes:
        held_out: pictures that are not trained on, to measure by; None where the job asks for none.
    """

    job: TrainJob
    manifest: Manifest
    consent: Consent
    roster: Roster
    folder: str
    held_out: Roster | None = None


def prepare(job: TrainJob) -> Prepared:
    """Opens the manifest and asks the takedown ledger which of its rows may be trained on now.

    Raises:
        UserError: no such manifest, a ledger that cannot be read, nothing left to train on, too little to measure by,
            or evidence older than the job takes it (unless the run is finished: then nothing is trained).
    """
    from training import consent

    manifest = Manifest.open(job.manifest)
    if job.autoencoder is not None:
        job = job.model_copy(update={"autoencoder": settled(job.autoencoder)})
    asked = consent.ask(manifest, job.ledger)
    roster = asked.roster(manifest, held_out_share=job.held_out_share, seed=job.seed)
    roster = roster.ordered(job.data.order(job.batch_size if roster.shapes is not None else None))
    folder = run_folder(job, manifest.id, roster.info.digest)
    if finished(storage.absolute(folder)) is not None:
        return Prepared(job, manifest, asked, roster, folder)
    consent.check_age(manifest, job.consent_max_age_days)
    return Prepared(job, manifest, asked, roster, folder, _held_out(job, manifest, asked, roster))


def _held_out(job: TrainJob, manifest: Manifest, asked: Consent, roster: Roster) -> Roster | None:
    """What is not trained on and may be used: of the manifest, or of another one, whose ledgers are asked, too."""
    from training import consent

    wanted = None if job.evaluation is None else job.evaluation.holdout
    if wanted is None:
        return None
    source, revoked = manifest, set(asked.revoked)
    if isinstance(wanted, str):
        source = Manifest.open(wanted)
        revoked |= set(consent.ask(source, job.ledger).revoked)
    without = revoked | set(roster.ids)
    left = set(source.table(["id"], decision=Decision.KEPT)["id"].to_pylist()) - without
    if len(left) < FEWEST:
        raise UserError(
            f"{len(left)} held-out pictures are too few to measure by",
            field="evaluation.holdout",
            remedy=f"hold out {FEWEST} at least, or leave it out: then there are no floors and no validation loss",
        )
    return Roster.of_manifest(source, without)


def run_folder(job: TrainJob, manifest_id: str, training_set_digest: str) -> str:
    """The run's own folder: the same job on the same rows of the same manifest comes back to it, and no other does."""
    told = json.dumps([job.config_sha256(manifest_id), training_set_digest])
    return storage.join(job.output, f"{job.name}-{hashlib.sha256(told.encode()).hexdigest()[:8]}")


def finished(folder: str) -> TrainResult | None:
    """The result of a run that came to its end in a folder; None where none did."""
    result = stored_result(folder, TrainResult)
    if result is None or result.best is None:
        return result
    return result.model_copy(update={"best": result.best.moved_to(folder)})


def plan(job: TrainJob, prepared: Prepared | None = None, *, memory: bool = False) -> dict[str, Any]:
    """What the job will ask for and do; opens the manifest and its first picture, and reads the takedown ledger.

    Args:
        prepared: what `prepare` found for the job.
        memory: tell what a worker's device will hold, in MiB; takes a second or two.

    Raises:
        UserError: what `prepare` refuses, sizes that do not fit together, or a checkpoint that the job cannot start
            from.
    """
    import torch

    from training import network
    from training.data import check_mix, classes_of, frames_of, picture_size
    from training.sources import base_side
    from training.space import geometry

    prepared = prepared or prepare(job)
    job = prepared.job
    manifest, roster, consent = prepared.manifest, prepared.roster, prepared.consent
    if job.conditioning.reads_captions and manifest.info.clip is None:
        raise UserError(
            "the manifest was made without CLIP, whose text tower captions are read with",
            field="manifest",
            remedy="curate again with `clip` set, or train with `conditioning: {kind: class}` or none",
        )
    size = picture_size(manifest) if roster.shapes is None else base_side(roster.shapes.sizes)
    frames = frames_of(manifest)
    _check_films(job, frames)
    check_mix(manifest, job.caption_mix)
    _check_resume_from(job, roster)
    if job.image_size not in (None, size):
        raise UserError(
            f"the manifest's pictures are {size} x {size} pixels, the job says {job.image_size}",
            field="image_size",
            remedy="leave image_size out, or curate at the size you want",
        )
    # the width of the caption's states is only known when the tower is there; CLIP's own is close enough to count
    width = manifest.info.clip.dim if job.conditioning.reads_captions and manifest.info.clip is not None else 0
    classes = classes_of(manifest, job.conditioning.classes) if job.conditioning.reads_classes else ()
    width = max(width + len(classes), 1)
    autoencoder = None if job.autoencoder is None else local_autoencoder(job.autoencoder.path)
    channels, factor = geometry(job.patch_size, autoencoder)
    sides = {size} if roster.shapes is None else {side for shape in roster.shapes.sizes for side in shape}
    odd = sorted(side for side in sides if side % factor)
    if odd:
        raise UserError(
            f"pictures of {odd[0]} pixels do not divide by {factor}, the pixels that a position stands for",
            field="patch_size",
            remedy="choose a patch_size that divides the manifest's image_size",
        )
    with torch.device("meta"):
        model = network.build(job.network, channels=channels, side=size // factor, width=width)
    planned = {
        "workers": job.most_workers if job.workers else 0,
        "cpus": job.most_workers + (0 if job.evaluation is None else job.evaluation.cpus),
        "gpus": job.most_workers * job.gpus_per_worker if job.workers else 0,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "image_size": size,
        **({"frames": frames} if frames else {}),
        "training_rows": len(roster),
        "held_out_rows": 0 if prepared.held_out is None else len(prepared.held_out),
        **({"classes": len(classes)} if classes else {}),
        **({} if roster.shapes is None else {"shapes": _by_shape(roster)}),
        "steps": job.steps,
        "images": job.steps * job.batch_size,
        "epochs": round(job.steps * job.batch_size / len(roster), 2),
        "micro_batch": job.micro_batch,
        "strategy": job.strategy,
        "manifest": manifest.id,
        "training_set_digest": roster.info.digest,
        "ledger": consent.ledger_uri,
        "ledger_version": consent.ledger_version,
        "left_out": roster.info.excluded_rows,
        "left_out_by": consent.by_entry,
        "run_folder": prepared.folder,
        **_told_of_shards(prepared),
    }
    return planned | {"memory_mib": _memory(job, channels, size // factor, width, frames)} if memory else planned


def _check_films(job: TrainJob, frames: int | None) -> None:
    """Films want a network that looks along time, and pictures one that does not."""
    if (frames is None) == isinstance(job.network, VideoUnetConfig):
        raise UserError(
            "the manifest keeps pictures, the network draws films"
            if frames is None
            else f"the manifest keeps films of {frames} frames, the network draws pictures",
            field="network.kind",
            remedy="use `network: {kind: unet}`, or curate with `frames`"
            if frames is None
            else "use `network: {kind: video_unet}`",
        )
    if frames is not None and job.evaluation is not None:
        raise UserError("films cannot be evaluated yet", field="evaluation", remedy="leave it out")
    if frames is not None and isinstance(job.data, ShardsData):
        raise UserError("films are not kept in shards", field="data.kind", remedy="use `data: {kind: memory}`")


def shards(prepared: Prepared) -> ShardsPlan | None:
    """What a job's pictures are kept in; None where they are read into memory.

    Raises:
        UserError: a cache that is too small.
    """
    from training import data_shards
    from training.data import picture_size
    from training.space import geometry

    job, roster = prepared.job, prepared.roster
    if not isinstance(job.data, ShardsData):
        return None
    size = picture_size(prepared.manifest) if roster.shapes is None else 0
    autoencoder = None if job.autoencoder is None else local_autoencoder(job.autoencoder.path)
    channels, factor = geometry(job.patch_size, autoencoder)
    return data_shards.plan_of(job, roster, size=size, channels=channels, factor=factor)


def _told_of_shards(prepared: Prepared) -> dict[str, Any]:
    from training import data_shards

    planned = shards(prepared)
    if planned is None:
        return {}
    made = data_shards.stored(planned.uri)
    return {
        "shards": planned.uri,
        "shards_bytes": planned.bytes if made is None else sum(part.bytes for part in made.parts),
        "shards_rows": sum(planned.counts),
        "shards_made": made is not None and not data_shards.missing(planned.uri, made.parts),
    }


def _by_shape(roster: Roster) -> dict[str, int]:
    """Rows by width and height of their pictures."""
    assert roster.shapes is not None
    counts = np.bincount(roster.shapes.of[roster.slots], minlength=len(roster.shapes.sizes)).tolist()
    return {f"{w}x{h}": rows for (w, h), rows in zip(roster.shapes.sizes, counts, strict=True)}


def _memory(job: TrainJob, channels: int, side: int, width: int, frames: int | None) -> dict[str, float]:
    """What a worker's device holds while training, in MiB."""
    from training.memory import estimate

    told = estimate(job, channels=channels, side=side, width=width, frames=frames)
    return {name: round(value / 2**20, 1) for name, value in (dataclasses.asdict(told) | {"total": told.total}).items()}


def _check_resume_from(job: TrainJob, roster: Roster) -> None:
    """What can be told of a checkpoint before pictures are read; `retraining.take_up` checks the rest."""
    from training import checkpoint, retraining

    if job.resume_from is not None:
        info = checkpoint.read_info(job.resume_from)
        checkpoint.refuse_other_ways(job.resume_from, info.identity, job.identity())
        retraining.refuse_other_base(job.resume_from, info, roster)
