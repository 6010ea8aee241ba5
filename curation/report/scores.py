"""Score histograms: every measure of the rows in bins, kept and not kept apart, and the thresholds applied to it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation.manifest import Decision, ManifestInfo
from curation.nsfw import CONCEPT as NSFW
from curation.report.tallies import Histogram

KEPT, NOT_KEPT = 0, 1


class Score(NamedTuple):
    """A measure: its kind (`safety`, `quality`, `size`, `caption`, `duplicates`) and its name."""

    kind: str
    name: str


_ASPECT = Score("size", "aspect")
_HASH_BITS = Score("duplicates", "perceptual")


class Threshold(NamedTuple):
    """A line in a histogram: what lies `below` it, `over` it, or `from` it upwards is acted on."""

    value: float
    side: str
    action: str


class Series:
    """One measure's histogram on a linear and, where all numbers are positive, on a logarithmic scale.

    Args:
        score: the measure. Shares of hash bits come in steps of 1/64, and proportions are a matter of ratios.
    """

    def __init__(self, score: Score) -> None:
        self._linear = Histogram(2, finest=-6 if score == _HASH_BITS else -10)
        self._log = Histogram(2, finest=-6)
        self._ratio = score == _ASPECT

    def add(self, values: np.ndarray, kept: np.ndarray) -> None:
        series = np.where(kept, KEPT, NOT_KEPT)
        self._linear.add(values, series)
        positive = np.isfinite(values) & (values > 0)
        self._log.add(np.log2(values[positive].astype(np.float64)), series[positive])

    @property
    def n(self) -> int:
        return self._linear.n

    @property
    def not_finite(self) -> int:
        return self._linear.not_finite

    @property
    def low(self) -> float:
        return self._linear.low

    @property
    def high(self) -> float:
        return self._linear.high

    @property
    def median(self) -> float:
        return 2.0 ** self._log.quantile(0.5) if self.logarithmic else self._linear.quantile(0.5)

    @property
    def logarithmic(self) -> bool:
        """Whether a linear scale would show one bar and a long tail."""
        if self._log.n < self._linear.n or not self._linear.n or self.high < 16 * self.low:
            return self._ratio and self.low > 0
        _, counts = self._linear.table()
        return self._ratio or bool(counts[: max(1, len(counts) // 8)].sum() > 0.6 * self._linear.n)

    def table(self) -> tuple[np.ndarray, np.ndarray]:
        """Edges (B + 1,), of log2 of the numbers where `logarithmic`, and counts (B, 2) of kept and not kept."""
        return (self._log if self.logarithmic else self._linear).table()


# Measures that are read off columns; those of a filter of the job are shown beside the first two.
_SIZES: Mapping[str, tuple[tuple[str, ...], Callable[..., np.ndarray]]] = {
    "shorter_side": (("width", "height"), np.minimum),
    "aspect": (("width", "height"), lambda width, height: np.maximum(width, height) / np.minimum(width, height)),
    "width": (("width",), np.asarray),
    "height": (("height",), np.asarray),
    "pixels": (("width", "height"), np.multiply),
    "bytes": (("bytes",), np.asarray),
}


@dataclass
class Scores:
    """Every measure of the rows."""

    columns: ClassVar[tuple[str, ...]] = (
        *("decision", "rule", "threshold", "bytes", "width", "height", "safety", "scores", "captions", "caption"),
        *("similarity", "duplicate_kind", "nearest_similarity"),
    )
    needed: ClassVar[tuple[str, ...]] = ("decision",)
    sizes: tuple[str, ...] = ("shorter_side", "aspect")
    series: dict[Score, Series] = field(default_factory=dict)
    applied: Counter[tuple[str, float]] = field(default_factory=Counter)  # rows by the rule and threshold they met

    @classmethod
    def of(cls, info: ManifestInfo) -> Scores:
        """With a histogram for every size that the manifest's job filters by."""
        asked = [name for name in sorted(_dict(info.job.get("filters"))) if name in _SIZES and name not in cls.sizes]
        return cls((*cls.sizes, *asked))

    def add(self, batch: pa.RecordBatch) -> None:
        columns = set(batch.schema.names)
        kept = np.asarray(pc.equal(batch["decision"], Decision.KEPT.value).to_numpy(zero_copy_only=False), bool)
        if {"rule", "threshold"} <= columns:
            rules = zip(batch["rule"].to_pylist(), batch["threshold"].to_pylist(), strict=True)
            self.applied.update((rule, at) for rule, at in rules if rule is not None and at is not None)
        for name in self.sizes:
            needed, size = _SIZES[name]
            if set(needed) <= columns:
                given = [_floats(batch[column]) for column in needed]
                known = np.all([values > 0 for values in given], axis=0)
                self._add(Score("size", name), size(*(values[known] for values in given)), kept[known])
        for column, key, kind in (("safety", "concept", "safety"), ("scores", "name", "quality")):
            if column in columns:
                self._add_lists(batch[column], key, kind, kept)
        if "captions" in columns:
            self._add_captions(batch, kept)
        if "nearest_similarity" in columns:
            self._add_known(Score("duplicates", "nearest"), batch["nearest_similarity"], kept)
        if {"similarity", "duplicate_kind"} <= columns:
            for kind in ("perceptual", "semantic"):
                of_kind = pc.fill_null(pc.equal(batch["duplicate_kind"], kind), False)
                values = batch["similarity"].filter(of_kind)
                self._add_known(Score("duplicates", kind), values, kept[of_kind.to_numpy(zero_copy_only=False)])

    def _add(self, score: Score, values: np.ndarray, kept: np.ndarray) -> None:
        if len(values):
            self.series.setdefault(score, Series(score)).add(values, kept)

    def _add_known(self, score: Score, values: pa.Array, kept: np.ndarray) -> None:
        known = values.is_valid().to_numpy(zero_copy_only=False)
        self._add(score, _floats(values)[known], kept[known])

    def _add_lists(self, lists: pa.Array, key: str, kind: str, kept: np.ndarray) -> None:
        parents, entries = pc.list_parent_indices(lists).to_numpy(), lists.flatten()
        names = pc.dictionary_encode(entries.field(key))
        codes, values = pc.fill_null(names.indices, -1).to_numpy(zero_copy_only=False), _floats(entries.field("score"))
        for code, name in enumerate(names.dictionary.to_pylist()):
            own = codes == code
            self._add(Score(kind, name), values[own], kept[parents[own]])

    def _add_captions(self, batch: pa.RecordBatch, kept: np.ndarray) -> None:
        """The image-text score of the caption that was chosen."""
        values, of = [], []
        for row, (chosen, entries) in enumerate(
            zip(batch["caption"].to_pylist(), batch["captions"].to_pylist(), strict=True)
        ):
            found = next((e["score"] for e in entries or () if e["text"] == chosen and e["score"] is not None), None)
            if found is not None:
                values.append(found)
                of.append(row)
        self._add(Score("caption", "image_text"), np.array(values, np.float64), kept[of] if of else np.zeros(0, bool))


def _floats(values: pa.Array) -> np.ndarray:
    return np.asarray(pc.cast(values, pa.float64()).to_numpy(zero_copy_only=False), np.float64)


def safety_limits(info: ManifestInfo, applied: Mapping[tuple[str, float], int]) -> dict[str, tuple[float, str]]:
    """Every safety concept's threshold and action: as rows met it, else as the job states it or its model has it."""
    safety = _dict(info.job.get("safety"))
    action = str(safety.get("action") or "drop")
    stated = {rule.removeprefix(_CONCEPT): at for rule, at in sorted(applied) if rule.startswith(_CONCEPT)}
    for name, at in (_dict(safety.get("concepts")) | _resolved(info.job)).items():
        stated.setdefault(name, at)
    found = {name: (float(at), action) for name, at in stated.items() if isinstance(at, int | float)}
    nsfw = _dict(safety.get("nsfw"))
    if isinstance(nsfw.get("threshold"), int | float):
        found[NSFW] = (float(nsfw["threshold"]), str(nsfw.get("action") or "drop"))
    return found


_CONCEPT = "safety.concepts."


def _resolved(job: dict[str, Any]) -> dict[str, float]:
    """Thresholds that the job leaves to its model; none where the job or the model is not this version's."""
    from pydantic import ValidationError

    from curation.clip import ClipConfig
    from curation.errors import UserError
    from curation.safety import SafetyConfig

    try:
        concepts = _dict(_dict(job.get("safety")).get("concepts"))
        return SafetyConfig(concepts=concepts).resolve(ClipConfig.model_validate(job.get("clip")))
    except (ValidationError, UserError, OSError, ValueError, KeyError):
        return {}


def thresholds(info: ManifestInfo, applied: Mapping[tuple[str, float], int]) -> dict[Score, list[Threshold]]:
    """The thresholds to draw, by measure: those of the job, and those that rows met under a rule's name."""
    job, found = info.job, dict[Score, list[Threshold]]()

    def put(score: Score, value: Any, side: str, action: str) -> None:
        lines = found.setdefault(score, [])
        if isinstance(value, int | float) and math.isfinite(value) and all(line.value != value for line in lines):
            lines.append(Threshold(float(value), side, action))

    for name, (at, action) in safety_limits(info, applied).items():
        put(Score("safety", name), at, "from", action)
    put(Score("size", "shorter_side"), _dict(job.get("images")).get("min_side"), "below", "drop")
    for name, limits in _dict(job.get("filters")).items():
        score = Score("size" if name in _SIZES else "caption" if name == "words" else "quality", name)
        limits = _dict(limits)
        for bound, side in (("min", "below"), ("max", "over")):
            put(score, limits.get(bound), side, str(limits.get("action") or "drop"))
    captions = _dict(job.get("caption_policy"))
    put(Score("caption", "image_text"), captions.get("min_score"), "below", str(captions.get("low") or "keep"))
    duplicates = _dict(job.get("duplicates"))
    radius = _dict(duplicates.get("perceptual")).get("radius")
    if isinstance(radius, int):
        put(_HASH_BITS, 1 - radius / 64, "from", "drop")
    semantic = _dict(duplicates.get("semantic")).get("threshold")
    for name in ("nearest", "semantic"):
        put(Score("duplicates", name), semantic, "from", "drop")
    return {score: sorted(lines) for score, lines in found.items() if lines}


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
