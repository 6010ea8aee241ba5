"""The training pictures near to what was drawn: which they are, and whether it is a copy of one.

Works on the pixels as they would leave. A picture is looked at by itself, so that the same picture gets the same answer
in any company.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from curation.clip import ClipConfig
from curation.errors import UserError
from curation.takedowns.ledger import VARIABLE
from serving.api import MAX_SEED, Attributed, NearCopy
from serving.credit import CreditLog, Named
from serving.job import ServeJob
from serving.nearness import AttributionConfig, NearCopiesConfig, NearCopyAction
from serving.revoked import Revoked
from training.neighbours.index import Found, Index, Neighbour, load
from training.neighbours.spaces import SPACES, Space
from training.tracking import ModelVersion, neighbours_of

Embed = Callable[[np.ndarray], np.ndarray]
"""uint8 (H, W, 3), of any size, to a unit vector (D,)."""


@dataclass(frozen=True)
class Near:
    """What is near to a picture.

    Attributes:
        attribution: the training pictures that are named for it; None while it is not known which may be.
        copy: what it is a near copy of, and what the policy says; None where it is none.
    """

    attribution: tuple[Attributed, ...] | None
    copy: NearCopy | None

    @property
    def withheld(self) -> bool:
        return self.copy is not None and self.copy.action != "flag"


class Neighbours:
    """Looks at finished pictures. Not for two threads at once.

    Args:
        embed: of the index's CLIP, one picture at a time.
        revoked: what may not be named.
        credit: is told what was served; None: nobody is.
    """

    def __init__(
        self,
        index: Index,
        embed: Embed,
        revoked: Revoked,
        attribution: AttributionConfig,
        near_copies: NearCopiesConfig,
        credit: CreditLog | None = None,
    ) -> None:
        self._index = index
        self._embed = embed
        self._revoked = revoked
        self._attribution = attribution
        self.names = attribution.enabled
        """Whether training pictures are named at all."""
        self.policy = near_copies
        self._credit = credit
        fixed = near_copies.ratio
        calibrated = index.info.calibration.thresholds(near_copies.false_positives, most=near_copies.max_ratio)
        self.thresholds: dict[Space, float] = calibrated.ratio if fixed is None else {"pixel": fixed, "clip": fixed}

    def look(self, pixels: np.ndarray) -> Near:
        """What is near to uint8 (H, W, 3), or to a film (F, H, W, 3): to any of its frames."""
        found, attribution = self._search(pixels), None
        if self.names and self._revoked.known:
            best = found.best(self._attribution.neighbours, self._revoked.mask)
            attribution = tuple(self._attributed(neighbour) for neighbour in best)
        return Near(attribution, None if self.policy.action == "off" else self._copy(found, self.policy.action))

    def withholds(self, pixels: np.ndarray) -> bool:
        """Whether a picture would not leave, as `look` says; nothing is searched for where that cannot be."""
        action = self.policy.action
        if action == "off" or (action == "flag" and self.policy.revoked != "block"):
            return False
        return Near(None, self._copy(self._search(pixels), action)).withheld

    def served(self, near: Near) -> None:
        """Is told of a picture that leaves."""
        if self._credit is not None:
            named = [Named(a.sha256, a.creator, a.licence, a.uri, a.similarity) for a in near.attribution or ()]
            self._credit.add(named, None if near.copy is None else near.copy.sha256)

    def _search(self, pixels: np.ndarray) -> Found:
        self._revoked.look()
        frames = list(pixels) if pixels.ndim == 4 else [pixels]
        return self._index.search(frames, np.stack([self._embed(frame) for frame in frames]))

    def _copy(self, found: Found, action: NearCopyAction) -> NearCopy | None:
        gone = self._revoked.mask
        for revoked, among in ((True, gone), (False, ~gone)):
            neighbour = self._nearest(found, among)
            if neighbour is not None:
                never = revoked and self.policy.revoked == "block" and action == "flag"
                return NearCopy(
                    sha256=None if revoked else self._index.ids[neighbour.place],
                    similarity=round(neighbour.similarity, 4),
                    action="block" if never else action,
                    revoked=revoked,
                )
        return None

    def _nearest(self, found: Found, among: np.ndarray) -> Neighbour | None:
        """The nearest of some pictures, in the space in which it is the clearer copy; None where it is no copy."""
        if not among.any():
            return None
        near = [(found.nearest(space, among), space) for space in SPACES]
        copies = [(n.ratio / self.thresholds[space], n) for n, space in near if n.ratio < self.thresholds[space]]
        return min(copies, key=lambda copy: copy[0])[1] if copies else None

    def _attributed(self, neighbour: Neighbour) -> Attributed:
        told = self._index.picture(neighbour.place)
        shown = told.thumbnail if self._attribution.thumbnails else None
        return Attributed(
            sha256=told.id,
            similarity=round(neighbour.similarity, 4),
            creator=told.creator,
            licence=told.licence,
            uri=told.uri,
            thumbnail=None if shown is None else f"data:image/webp;base64,{base64.b64encode(shown).decode()}",
        )


def reseeded(seed: int, attempt: int) -> int:
    """The seed of a picture's further attempts, which follow from its first: so equal requests stay equal."""
    digest = hashlib.sha256(f"near copy {seed} {attempt}".encode()).digest()
    return int.from_bytes(digest[:8], "little") % (MAX_SEED + 1)


def build(job: ServeJob, version: ModelVersion) -> Neighbours | None:
    """The neighbours of a job; None where the version has no index and the job asks for nothing that needs one.

    Raises:
        UserError: no index where one is needed, one of another model, or by another CLIP than the job's.
    """
    policy = job.near_copies
    if not job.attribution.enabled and policy is not None and policy.action == "off":
        return None
    folder = job.attribution.index and Path(job.attribution.index)
    folder = folder or neighbours_of(version, tracking_uri=job.tracking_uri)
    if folder is None:
        wanted = {"near_copies": policy is not None and policy.action != "off", "attribution.log": job.attribution.log}
        for field, asked in wanted.items():
            if asked:
                raise UserError(
                    f"{version.name} version {version.version} has no index of its training pictures",
                    field=field,
                    remedy=f"make one (`cleanplate index {job.model}`), or leave {field} out",
                )
        return None
    index = load(folder)
    _refuse_other(index, version, job.clip)
    ledgers = [job.ledger] if job.ledger else [*index.info.ledgers, *filter(None, [os.environ.get(VARIABLE)])]
    revoked = Revoked(index, Path(folder), list(dict.fromkeys(ledgers)), every_s=job.attribution.ledger_every_s)
    # One picture at a time: what is near to it must not depend on its neighbours in the request.
    clip = job.clip.model_copy(update={"batch_size": 1}).build()
    credit = None
    if job.attribution.log is not None:
        credit = CreditLog(
            job.attribution.log,
            model=version.name,
            version=version.version,
            index=index.sha256,
            ledgers=ledgers,
            every_s=job.attribution.log_every_s,
        )

    def embed(picture: np.ndarray) -> np.ndarray:
        vector: np.ndarray = clip.embed_images(clip.prepare(np.ascontiguousarray(picture))[None])[0]
        return vector

    return Neighbours(index, embed, revoked, job.attribution, policy or NearCopiesConfig(), credit)


def _refuse_other(index: Index, version: ModelVersion, clip: ClipConfig) -> None:
    if index.info.bundle_sha256 != version.tags.get("bundle_sha256"):
        raise UserError(
            "the index is of another model's training pictures",
            field="attribution.index",
            remedy="leave it out: the version's own is found by itself",
        )
    if index.info.clip != clip.name():
        raise UserError(
            f"the index was made with {index.info.clip}, and this job's CLIP is {clip.name()}",
            field="clip",
            remedy="name that one, or make the index again with this one (`cleanplate index --set clip.model=…`)",
        )
