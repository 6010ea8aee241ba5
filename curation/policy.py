"""The job's policy and one measured row: what is decided about it by itself, as if it had no copies.

The order is: opted out, failed, rights that could not be asked or read, rights nobody states, licence, size, filters,
safety, captions; then, among all
rows (`decide`), near-copy of something opted out, and duplicate. The first that applies is the row's reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from curation.captions import Caption, Choice, choose
from curation.filters import Filters
from curation.job import CurateJob
from curation.manifest import Decision, Reason, Verdict, texts
from curation.rights import embedded
from curation.rights.licences import Licences
from curation.rights.lists import LISTED, REQUESTED, OptOuts
from curation.rights.verdict import Observation, of_row, verdict
from curation.safety import Limits

MEASURED = (
    *("uri", "final_uri", "redirects", "source_url", "id", "host", "creator", "licence", "licence_url"),
    *("failed_stage", "failed_reason", "bytes", "width", "height", "pixel_hash", "phash", "phash_turned"),
    *("colour_layout", "embedded", "scores", "safety", "sightings"),
)
"""What of a measured unit the policy reads: everything but pictures and embeddings. A job with frames has more."""
MEASURED_OF_FRAMES = ("frames", "frame_files", "frame_phashes", "frame_layouts")


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

    def with_rights(self, rights: tuple[Observation, ...]) -> Ruling:
        return replace(self, rights=rights)


@dataclass(frozen=True)
class Policy:
    """The job's policy with its lists read and its thresholds resolved."""

    job: CurateJob
    optouts: OptOuts
    limits: Limits  # of safety scores
    licences: Licences = field(init=False)
    filters: Filters = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "licences", Licences(self.job.licences))
        object.__setattr__(self, "filters", Filters(self.job.filters))

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of a measured unit that are read: `MEASURED`, and those of frames where the job has them."""
        return (*MEASURED, *(MEASURED_OF_FRAMES if self.job.frames is not None else ()))

    def rule(self, row: Mapping[str, Any]) -> tuple[Ruling, Choice]:
        """Decides a measured row by itself, as if it had no copies, and chooses its captions.

        Args:
            row: the policy's `columns`, with the lists `scores` and `safety` of all stages, and `captions`.
        """
        choice = choose([Caption(**c) for c in row["captions"] or ()], self.job.caption_policy)
        listed = self.optouts.observe(row)
        licence = self.licences.observe(row)
        inside = embedded.observe(texts(row["embedded"])) if "plus" in self.job.rights.signals else []
        seen = (*map(of_row, row["sightings"] or ()), *inside)
        rights = (*listed, *seen, licence)
        deciding = self.deciding(seen)
        if row["failed_reason"] in _NOWHERE:
            deciding = [o for o in deciding if o.signal != "robots"]
        denied = next((o for o in (*listed, *deciding) if o.verdict == Verdict.DENY), None)
        if row["failed_reason"] in _UNREACHABLE:
            ruling = Ruling(Decision.FAILED, "rights", row["failed_reason"], "rights.robots", rights=rights)
            return ruling, choice
        if denied is not None:
            return Ruling(Decision.DROPPED, "rights", Reason.OPTED_OUT, rule_of(denied), rights=rights), choice
        if row["failed_stage"] is not None:
            reason = row["failed_reason"]
            return Ruling(
                Decision.FAILED, row["failed_stage"], reason, _FAILED_RULES.get(reason), rights=rights
            ), choice
        ruling = (
            self.unreadable(deciding)
            or self.unstated([*deciding, licence])
            or self._licence(licence)
            or self._size(row)
            or self._filters(row, choice)
            or self._safety(row)
            or self._caption(choice)
            or _PASSED
        )
        return ruling.with_rights(rights), choice

    def deciding(self, seen: Iterable[Observation]) -> list[Observation]:
        """Observations without those that only advise; what is said to others counts as said to us, if at all."""
        heard = [o for o in seen if o.signal not in self.job.rights.advisory]
        return [o._replace(verdict=Verdict.DENY) if o.signal == "robots_ai_agents" else o for o in heard]

    def unreadable(self, seen: Sequence[Observation]) -> Ruling | None:
        """A rights statement that cannot be had or read may be a refusal."""
        failed = next((o for o in seen if o.verdict == Verdict.ERROR), None)
        if failed is None or self.job.rights.error == "keep":
            return None
        return Ruling(_ACTIONS[self.job.rights.error], "rights", Reason.RIGHTS_ERROR, f"rights.{failed.signal}")

    def unstated(self, seen: Sequence[Observation]) -> Ruling | None:
        """Whether nobody said anything, where the job minds that."""
        if self.job.rights.unknown == "keep" or verdict(seen) != Verdict.UNKNOWN:
            return None
        return Ruling(_ACTIONS[self.job.rights.unknown], "rights", Reason.RIGHTS_UNKNOWN, "rights.unknown")

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
        if side < least:
            return Ruling(Decision.DROPPED, "size", Reason.TOO_SMALL, "images.min_side", side, least)
        if self.job.frames is not None and row["frames"] < self.job.frames:
            return Ruling(Decision.DROPPED, "size", Reason.TOO_FEW_FRAMES, "frames", row["frames"], self.job.frames)
        buckets = self.job.buckets
        if buckets is not None and (lost := buckets.place(row["width"], row["height"]).lost) > buckets.max_crop:
            return Ruling(Decision.DROPPED, "size", Reason.ODD_SHAPE, "buckets.max_crop", lost, buckets.max_crop)
        return None

    def _filters(self, row: Mapping[str, Any], choice: Choice) -> Ruling | None:
        caption = None if choice.caption is None else choice.caption.text
        found = self.filters.rule({**row, "caption": caption})
        if found is None:
            return None
        decision = Decision.HELD if found.action == "hold" else Decision.DROPPED
        reason = Reason.NOT_MEASURED if found.value is None else Reason.FILTERED
        return Ruling(decision, "filters", reason, found.rule, found.value, found.bound)

    def _safety(self, row: Mapping[str, Any]) -> Ruling | None:
        found = self.limits.exceeded(row["safety"] or ())
        if found is None:
            return None
        decision = Decision.HELD if found.limit.action == "hold" else Decision.DROPPED
        reason = Reason.NOT_MEASURED if found.score is None else Reason.UNSAFE
        return Ruling(decision, "safety", reason, found.limit.rule, found.score, found.limit.threshold)

    def _caption(self, choice: Choice) -> Ruling | None:
        if choice.action == "keep":
            return None
        decision = Decision.HELD if choice.action == "hold" else Decision.DROPPED
        if choice.caption is None and not choice.found:
            return Ruling(decision, "captions", Reason.CAPTION_MISSING, "caption_policy.missing")
        return Ruling(decision, "captions", Reason.CAPTION_POOR, "caption_policy.low")


def rule_of(denied: Observation) -> str:
    """What of a job a refusal stands under."""
    return {LISTED: f"optout: {denied.where}", REQUESTED: denied.where}.get(denied.signal, f"rights.{denied.signal}")


_ACTIONS = {"hold": Decision.HELD, "drop": Decision.DROPPED}
# Not asked for, since its site could not be asked whether it may be.
_UNREACHABLE = frozenset({Reason.SITE_UNREACHABLE})
# There is no site that could refuse: a host that is gone has opted out of nothing.
_NOWHERE = frozenset({Reason.DNS, Reason.REFUSED_ADDRESS})
_FAILED_RULES = {Reason.TOO_LARGE: "fetch.max_bytes", Reason.TOO_MANY_PIXELS: "images.max_pixels"}
_PASSED = Ruling(Decision.KEPT, "decide", Reason.PASSED)
