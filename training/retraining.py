"""Retraining without some pictures, exactly, from a checkpoint of before any of them was seen.

A state depends on the samples that it was trained with and on those whose captions the conditioning is standardised
over (`TrainJob.conditioning_images`), and on no others: the order, the noise and all other draws are functions of the
seed and of a sample's index, and a removal changes only the samples that showed what was removed. So a state from
before that is the one that training from scratch without the pictures would have come to.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch

from curation import storage
from curation.errors import UserError
from training import checkpoint
from training.checkpoint import CheckpointInfo, Identity, Read, State
from training.data import TrainingSet
from training.data_config import MemoryData
from training.job import ElasticWorkers, TrainJob
from training.order import Order
from training.roster import Roster

_PARTS = ("workers", "accumulation", "gpus", "compiled", "sharded")  # of a topology, as told in words
_CHUNK = 1 << 20  # samples that are hashed at once


class Seen:
    """A hash of the first samples of a run, one after another: all that training read of each. It only goes on."""

    def __init__(self, job: TrainJob, data: TrainingSet) -> None:
        self._seed = job.seed
        self._window = job.conditioning_window
        self._data = data
        self._hash = hashlib.sha256()
        self._hashed = 0

    def upto(self, images: int) -> str:
        """The hash of the samples that the state after `images` images depends on; `images` never falls."""
        last = max(images, self._window)
        for index in torch.arange(self._hashed, last).split(_CHUNK):
            self._hash.update(self._data.contents[self._data.shown(self._seed, index)].numpy().tobytes())
        self._hashed = last
        return self._hash.copy().hexdigest()


def take_up(
    path: str,
    identity: Identity,
    topology: Mapping[str, int],
    data: TrainingSet,
    seen: Seen,
    read: Read = checkpoint.read_state,
) -> tuple[CheckpointInfo, State]:
    """Reads a checkpoint of another run that a retraining may start from. Nothing of it is believed: the samples that
    it has seen must be, one by one, the first ones of the run that asks.

    Raises:
        UserError: another text encoder, configuration or base set, or samples that the run would not show.
    """
    info, state = checkpoint.load_for_retraining(path, identity, read)
    refuse_other_base(path, info, data.roster)
    if info.seen_sha256 != seen.upto(info.images_seen):
        raise _refused(
            f"the samples that the checkpoint {path} depends on are not the first ones of this training set: it has "
            f"seen something that is left out now, or captions or pictures are others"
        )
    for what, name in (("captions", "resident_captions"), ("latents", "kept_latents")):
        if info.topology.get(name) != topology.get(name):
            raise _refused(f"the checkpoint {path} was written when {what} were encoded in another way")
    return info, state


def refuse_other_base(path: str, info: CheckpointInfo, roster: Roster) -> None:
    """Raises UserError for a checkpoint whose run had another base set, and so another order."""
    if info.base_digest != roster.info.order_digest:
        raise _refused(
            f"the checkpoint {path} is of a run with another base set "
            f"({(info.base_digest or 'unknown')[:12]}… instead of {roster.info.order_digest[:12]}…)"
        )


def _refused(message: str) -> UserError:
    return UserError(message, field="resume_from", remedy="name an earlier checkpoint, or leave the field out")


@dataclass(frozen=True)
class RetrainingPoint:
    """Where an exact retraining may start.

    Attributes:
        checkpoint: its folder, for `resume_from`.
        images_seen: images that the retraining need not see again.
        images: images of the whole budget.
        first_seen: the sample that first showed an affected picture; `images` where none did, so that the model is the
            same without them.
        claim: what the retrained model has in common with one that is trained from scratch without the pictures.
    """

    checkpoint: str
    images_seen: int
    images: int
    first_seen: int
    claim: str


def earliest(
    checkpoints: str | Sequence[str], roster: Roster, revoked: Collection[str], job: TrainJob
) -> RetrainingPoint | None:
    """The newest whole checkpoint of a run from before any of its pictures was seen that are revoked now.

    Args:
        checkpoints: the run's folder, or the folders of some of its checkpoints.
        roster: what the run was trained on.
        revoked: ids, also of near-copies; those that were not trained on make no difference.
        job: that of the retraining, which must be the run's own but for paths, workers and the like.

    Returns:
        None where there is none, or nothing that was trained on is revoked.
    """
    affected = roster.slots_of(revoked)
    budget = job.steps * job.batch_size
    if not len(affected):
        return None
    first = int(Order.of(roster, job.seed).first_seen(budget)[affected].min())
    if first < job.conditioning_window:
        return None
    found = checkpoint.paths(storage.join(checkpoints, "checkpoints")) if isinstance(checkpoints, str) else checkpoints
    eligible = [(info.images_seen, path, info) for path in found if (info := _of_run(path, roster, job)) is not None]
    for images, path, info in sorted(eligible, key=lambda known: known[:2], reverse=True):
        if images <= first and checkpoint.problem(path) is None:
            return RetrainingPoint(path, images, budget, first, _claim(info, job))
    return None


def _of_run(path: str, roster: Roster, job: TrainJob) -> CheckpointInfo | None:
    """What a checkpoint of the roster's run says about itself; None for one that a retraining could not take up."""
    try:
        info = checkpoint.read_info(path)
        checkpoint.refuse_other_ways(path, info.identity, job.identity())
        refuse_other_base(path, info, roster)
    except UserError:
        return None
    is_of_the_run = info.identity.training_set_digest == roster.info.digest and info.seen_sha256 is not None
    keeps = job.autoencoder is not None and isinstance(job.data, MemoryData)
    return info if is_of_the_run and info.topology.get("kept_latents", 0) == keeps else None


def _claim(info: CheckpointInfo, job: TrainJob) -> str:
    """In words, no stronger than what the tests show."""
    kept = "if the base set, captions and pictures stay what they were, which the job checks before it starts"
    now = _place(job.most_workers, job.accumulation, job.gpus_per_worker, int(job.compile), int(job.is_sharded))
    legs = [leg.topology for leg in info.legs] or [info.topology]
    then = [_place(*(topology.get(part, 0) for part in _PARTS)) for topology in legs]
    if isinstance(job.workers, ElasticWorkers) or set(then) != {now}:
        return (
            f"the same samples in the same order, with the same draws, {kept}; not the same bits, since the "
            f"checkpoint was written by {', then '.join(then)}, and the job has {now}"
            f"{' or fewer' if isinstance(job.workers, ElasticWorkers) else ''}"
        )
    if job.gpus_per_worker:
        return (
            f"the same samples in the same order, with the same draws, {kept}; the same bits as far as the kernels "
            "of this kind of GPU always give the same sums, which was not measured"
        )
    libraries = ", ".join(f"{name} {version}" for name, version in sorted(info.libraries.items()))
    return (
        f"bit for bit what training from scratch without them gives, at the same topology ({now}, on the same machine "
        f"with as many threads, {libraries}), {kept}"
    )


def _place(workers: int, accumulation: int, gpus: int, compiled: int, sharded: int) -> str:
    kind = f"{'compiled ' if compiled else ''}{'sharded ' if sharded else ''}{'GPU' if gpus else 'CPU'}"
    return f"{workers} {kind} worker(s) with accumulation {accumulation}"
