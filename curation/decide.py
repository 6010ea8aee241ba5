"""Deciding: the one place where the job's policy meets what was measured.

`Policy.rule` looks at one row alone; `settle` adds what only the whole set can tell, opt-outs spreading to near-copies
and the choice among duplicates. Neither runs a model or reads a picture: another policy decides the same measurements
anew in seconds.

The order is: opted out, failed, licence, size, safety, near-copy of something opted out, duplicate. The first that
applies is the row's reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from curation.captions import caption
from curation.duplicates import KINDS as DUPLICATE_KINDS
from curation.duplicates import REASONS, RULES, Bindings, Copies, DuplicatesConfig, PerceptualConfig
from curation.job import CurateJob
from curation.manifest import Decision, Reason, Verdict, schema
from curation.rights.licences import Licences
from curation.rights.lists import OptOuts
from curation.rights.verdict import Observation, combine

# What of a measured unit the policy reads: everything but pictures and embeddings.
COLUMNS = (
    *("uri", "final_uri", "id", "host", "creator", "licence", "licence_url", "failed_stage", "failed_reason"),
    *("width", "height", "pixel_hash", "phash", "colour_layout", "safety"),
)


@dataclass(frozen=True)
class Ruling:
    """What was decided about a row, by which rule, on what measure."""

    decision: Decision
    stage: str
    reason: str
    rule: str | None = None
    score: float | None = None
    threshold: float | None = None
    rights: tuple[Observation, ...] = ()
    duplicate_of: str | None = None
    duplicate_kind: str | None = None
    similarity: float | None = None

    def row(self) -> dict[str, Any]:
        """As columns of the manifest."""
        columns: dict[str, Any] = {name: getattr(self, name) for name in _RULING_COLUMNS}
        columns["decision"] = self.decision.value
        columns["rights"] = [observation.row() for observation in self.rights]
        columns["rights_verdict"] = combine(observation.verdict for observation in self.rights).value
        return columns


_RULING_COLUMNS = (
    *("stage", "reason", "rule", "score", "threshold"),
    *("duplicate_of", "duplicate_kind", "similarity"),
)
_FAILED_RULES = {Reason.TOO_LARGE: "fetch.max_bytes", Reason.TOO_MANY_PIXELS: "images.max_pixels"}


@dataclass(frozen=True)
class Policy:
    """The job's policy with its lists read and its thresholds resolved."""

    job: CurateJob
    optouts: OptOuts
    thresholds: Mapping[str, float]  # by safety concept
    licences: Licences = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "licences", Licences(self.job.licences))

    def rule(self, row: Mapping[str, Any]) -> Ruling:
        """Decides a measured row by itself, as if it had no copies."""
        listed = self.optouts.observe(row)
        licence = self.licences.observe(row)
        rights = (*listed, licence)
        if listed:
            return Ruling(Decision.DROPPED, "rights", Reason.OPTED_OUT, f"optout: {listed[0].where}", rights=rights)
        if row["failed_stage"] is not None:
            reason = row["failed_reason"]
            return Ruling(Decision.FAILED, row["failed_stage"], reason, _FAILED_RULES.get(reason), rights=rights)
        return replace(self._licence(licence) or self._size(row) or self._safety(row) or _PASSED, rights=rights)

    def _licence(self, observed: Observation) -> Ruling | None:
        if observed.verdict == Verdict.DENY:
            return Ruling(Decision.DROPPED, "licence", Reason.LICENCE_NOT_ALLOWED, "licences.allow")
        unstated = self.job.licences.unstated
        if observed.verdict == Verdict.UNKNOWN and unstated != "keep":
            decision = Decision.HELD if unstated == "hold" else Decision.DROPPED
            return Ruling(decision, "licence", Reason.LICENCE_UNSTATED, "licences.unstated")
        return None

    def _size(self, row: Mapping[str, Any]) -> Ruling | None:
        side, least = min(row["width"], row["height"]), self.job.images.min_side
        if side >= least:
            return None
        return Ruling(Decision.DROPPED, "size", Reason.TOO_SMALL, "images.min_side", side, least)

    def _safety(self, row: Mapping[str, Any]) -> Ruling | None:
        action = self.job.safety.action
        if action == "flag":
            return None
        for entry in row["safety"] or ():
            threshold = self.thresholds[entry["concept"]]
            if not entry["score"] < threshold:  # a score that is not a number is no acquittal
                decision = Decision.HELD if action == "hold" else Decision.DROPPED
                rule = f"safety.concepts.{entry['concept']}"
                return Ruling(decision, "safety", Reason.UNSAFE, rule, entry["score"], threshold)
        return None


_PASSED = Ruling(Decision.KEPT, "decide", Reason.PASSED)


def settle(policy: Policy, measured: pa.Table) -> list[Ruling]:
    """Decides all rows of a job together.

    Args:
        policy: what to decide by.
        measured: the columns `COLUMNS` of every unit, in manifest order.

    Returns:
        A ruling for every row. Of copies the one with most pixels stays, and among equals the one listed first.
    """
    rulings = [policy.rule(row) for row in measured.drop_columns(["colour_layout"]).to_pylist()]
    pictured = np.flatnonzero(measured["pixel_hash"].combine_chunks().is_valid().to_numpy(zero_copy_only=False))
    if not len(pictured):
        return rulings
    rows = measured.take(pa.array(pictured))
    ids = np.array(rows["id"].to_pylist())
    measures = (
        ids,
        np.array(rows["pixel_hash"].to_pylist()),
        rows["phash"].to_numpy(),
        np.frombuffer(b"".join(rows["colour_layout"].to_pylist()), np.uint8).reshape(len(rows), -1),
    )
    duplicates = policy.job.duplicates
    copies = Copies(*measures, duplicates)
    # Whether the job wants duplicates dropped is its own affair; an opt-out reaches its copies all the same.
    bound = DuplicatesConfig(perceptual=duplicates.perceptual or PerceptualConfig())
    near = copies if bound == duplicates else Copies(*measures, bound)
    own = [rulings[i] for i in pictured]
    optouts = np.array([r.reason == Reason.OPTED_OUT for r in own])
    own = _bind(own, near.spread(optouts), ids, _denied_copy)
    area = rows["width"].to_numpy().astype(np.int64) * rows["height"].to_numpy()
    preference = np.lexsort((np.arange(len(area)), -area))
    own = _bind(own, copies.elect(np.array([r.decision == Decision.KEPT for r in own]), preference), ids, _duplicate)
    for i, ruling in zip(pictured, own, strict=True):
        rulings[i] = ruling
    return rulings


def _bind(rulings: list[Ruling], bindings: Bindings, ids: np.ndarray, ruled: Callable[..., Ruling]) -> list[Ruling]:
    """The rulings, those of bound rows replaced by `ruled(ruling, original, kind)` and told what binds them."""
    bound = list(rulings)
    for i in np.flatnonzero(bindings.of >= 0):
        original, kind, likeness = str(ids[bindings.of[i]]), int(bindings.kind[i]), float(bindings.similarity[i])
        bound[i] = replace(
            ruled(rulings[i], original, kind),
            rule=RULES[kind],
            score=likeness,
            duplicate_of=original,
            duplicate_kind=DUPLICATE_KINDS[kind],
            similarity=likeness,
        )
    return bound


def _denied_copy(ruling: Ruling, original: str, kind: int) -> Ruling:
    value = f"{DUPLICATE_KINDS[kind]} copy of {original}"
    rights = (*ruling.rights, Observation("optout_near_copy", value, "manifest", Verdict.DENY))
    return Ruling(Decision.DROPPED, "rights", Reason.OPTED_OUT_NEAR_COPY, rights=rights)


def _duplicate(ruling: Ruling, original: str, kind: int) -> Ruling:
    return Ruling(Decision.DROPPED, "duplicates", REASONS[kind], rights=ruling.rights)


def manifest_rows(job: CurateJob, measured: pa.Table, rulings: Sequence[Mapping[str, Any]], dim: int) -> pa.Table:
    """A measured unit and its rulings (as `Ruling.row`) as rows of the manifest; only kept rows keep their picture."""
    rows = []
    for row, ruling in zip(measured.to_pylist(), rulings, strict=True):
        stated = {name: row[name] for name in ("title", "creator", "licence", "licence_url") if row[name]}
        row["caption"], row["caption_source"] = caption(job.captions, {**dict(row["metadata"] or ()), **stated})
        row |= ruling
        if row["decision"] != Decision.KEPT:
            row["image"] = None
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=schema(dim))
