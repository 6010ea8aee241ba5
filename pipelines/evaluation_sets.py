"""The pictures that a model is evaluated on: those it was trained on, others, and what it is asked to draw."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from curation.errors import UserError
from curation.manifest import Decision, Manifest
from training import consent, data, tracking
from training.evaluate import Pictures, choose
from training.memorization import Training
from training.prepare import FEWEST
from training.roster import Roster

if TYPE_CHECKING:
    from pipelines.evaluate import EvaluateJob
    from training.bundle import BundleInfo
    from training.tracking import ModelVersion


@dataclass(frozen=True)
class Sets:
    """What a model is evaluated on.

    Attributes:
        trained: all that it was trained on and that still is to be had.
        revoked: ids of those of them that may no longer be used: looked at for copies, never shown.
        reference: some of the others, which samples are compared with.
        held_out: pictures that it was not trained on; None where there are not enough.
        prompts: what samples are drawn of.
        probes: captions of the pictures that were shown most often, its copies counted with it.
    """

    trained: Training
    revoked: frozenset[str]
    reference: Pictures
    held_out: Pictures | None
    holdout_id: str | None
    prompts: list[str]
    probes: list[str]
    notes: list[str]


def gather(job: EvaluateJob, version: ModelVersion, info: BundleInfo, manifest: Manifest) -> Sets:
    """Reads the pictures, asking the takedown ledger which of them may be shown.

    Raises:
        UserError: too few pictures, or pictures of another size than the model's.
    """
    notes: list[str] = []
    roster = _on_record(job, version, notes)
    kept = _kept(manifest)
    known = kept if roster is None else set(roster.ids)
    revoked = frozenset(consent.ask(manifest, job.ledger).revoked)
    trained = _load(manifest, kept - known, info.image_size)
    seen = _times_seen(roster, info, trained.roster.ids, notes)
    usable = [i for i, id_ in enumerate(trained.roster.ids) if id_ not in revoked]
    if len(usable) < FEWEST:
        raise UserError(
            f"of what the model was trained on {manifest.uri} still has {len(usable)} pictures to compare with",
            field="manifest",
            remedy="name the manifest that it was trained on, and evaluate models of more pictures",
        )
    pictures = Pictures.of_set(trained)
    ids = [pictures.ids[i] for i in usable]
    reference = pictures.take([usable[i] for i in choose(ids, job.pictures, job.seed)])
    held_out, holdout_id = _held_out(job, manifest, known, info.image_size, notes)
    prompts = list(job.prompts or [reference.captions[i] for i in choose(reference.ids, job.samples, job.seed + 1)])
    wanted = 0 if job.memorization is None else job.memorization.probes
    return Sets(
        trained=Training(pictures.ids, pictures.pixels, seen),
        revoked=revoked,
        reference=reference,
        held_out=held_out,
        holdout_id=holdout_id,
        prompts=prompts,
        probes=probes(pictures.take(usable), seen[usable], wanted),
        notes=notes,
    )


def probes(pictures: Pictures, seen: np.ndarray, count: int) -> list[str]:
    """Captions of the pictures that were shown most often, pictures with equal pixels as one; as often as it takes."""
    times: Counter[str] = Counter()
    captions: dict[str, str] = {}
    for picture, caption, shown in zip(pictures.pixels, pictures.captions, seen.tolist(), strict=True):
        digest = hashlib.sha256(picture.tobytes()).hexdigest()
        times[digest] += shown
        captions.setdefault(digest, caption)
    most = sorted(times, key=lambda digest: (-times[digest], digest))[:count]
    return [captions[most[i % len(most)]] for i in range(count)]


def _on_record(job: EvaluateJob, version: ModelVersion, notes: list[str]) -> Roster | None:
    try:
        return tracking.training_set(version, tracking_uri=job.tracking_uri)
    except UserError as error:
        notes.append(f"{error.message}; all that the manifest keeps is taken for it, as shown equally often")
        return None


def _kept(manifest: Manifest) -> set[str]:
    return set(manifest.table(["id"], decision=Decision.KEPT)["id"].to_pylist())


def _load(manifest: Manifest, without: Iterable[str], size: int) -> data.TrainingSet:
    return data.load(manifest, size, None, Roster.of_manifest(manifest, set(without)))


def _times_seen(roster: Roster | None, info: BundleInfo, ids: Collection[str], notes: list[str]) -> np.ndarray:
    """int64 (N,): how often the training showed each of some ids."""
    from training.order import Order

    seed = info.job.get("seed")
    if roster is None or not isinstance(seed, int):
        return np.ones(len(ids), np.int64)
    times = Order.of(roster, seed).times_seen(info.images_seen).numpy()
    by_id = dict(zip(roster.ids, times[roster.slots].tolist(), strict=True))
    if len(by_id) > len(ids):
        notes.append(f"{len(by_id) - len(ids)} pictures that it was trained on are not in the manifest any more")
    return np.array([by_id[id_] for id_ in ids], np.int64)


def _held_out(
    job: EvaluateJob, manifest: Manifest, known: Collection[str], size: int, notes: list[str]
) -> tuple[Pictures | None, str | None]:
    """Pictures that the model was not trained on and that may be used, and the id of their manifest."""
    source = Manifest.open(job.holdout) if job.holdout is not None else manifest
    kept = _kept(source)
    without = kept & (set(known) | set(consent.ask(source, job.ledger).revoked))
    if len(kept) - len(without) < FEWEST:
        notes.append(
            f"{len(kept) - len(without)} held-out pictures are too few: floors and false positives are not known"
        )
        return None, None
    loaded = Pictures.of_set(_load(source, without, size))
    return loaded.take(choose(loaded.ids, max(job.samples, job.loss_pictures), job.seed)), source.id
