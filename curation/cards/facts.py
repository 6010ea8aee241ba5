"""What a manifest's rows say, counted in one pass that never reads pictures or embeddings.

Amounts are of kept rows, by every name they can be told apart by; what a row leaves unstated is counted under its own
name, so that each tally sums to the kept rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation.cards.domains import Amount
from curation.cards.provider import UNNAMED
from curation.errors import UserError
from curation.manifest import Decision, Manifest, schema
from curation.report.facts import Outcomes, counted, exploded, is_kept
from curation.report.funnel import Outcome
from curation.report.tallies import Tally

COLUMNS = (
    *("decision", "stage", "reason", "rule", "dataset", "domain", "source_url", "fetched_at", "bytes", "format"),
    *("width", "height", "creator", "licence", "licence_url", "rights", "rights_verdict"),
    *("caption", "caption_source", "captions"),
)
UNSTATED = "unstated"


@dataclass
class Place:
    """Kept rows of one dataset and domain, and when the first and the last of them were fetched."""

    amount: Amount = field(default_factory=Amount)
    first: datetime | None = None
    last: datetime | None = None

    @property
    def span(self) -> str:
        """The days of the first and the last."""
        if self.first is None or self.last is None:
            return "not in the data"
        return f"{self.first.date().isoformat()} to {self.last.date().isoformat()}"

    def add(self, other: Place) -> None:
        self.amount.add(other.amount)
        firsts, lasts = (self.first, other.first), (self.last, other.last)
        self.first = min((at for at in firsts if at), default=None)
        self.last = max((at for at in lasts if at), default=None)


@dataclass
class Facts:
    """All that was counted."""

    rows: int = 0
    outcomes: Outcomes = field(default_factory=Outcomes)
    places: dict[tuple[str, str | None], Place] = field(default_factory=dict)  # by dataset and domain
    licences: dict[str, Amount] = field(default_factory=dict)
    formats: dict[str, Amount] = field(default_factory=dict)
    creators: Tally = field(default_factory=lambda: Tally(ways=2))  # rows and bytes
    verdicts: Counter[str] = field(default_factory=Counter)
    signals: Counter[tuple[str, str, str]] = field(default_factory=Counter)  # rows by signal, verdict and decision
    captioners: Counter[str] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)
    characters: int = 0  # of the captions of kept rows
    source_urls: int = 0  # kept rows of containers that name the address of their picture
    widths: tuple[int, int] | None = None  # least and largest, of kept rows
    heights: tuple[int, int] | None = None
    missing: list[str] = field(default_factory=list)  # columns that an older manifest has not

    @property
    def decisions(self) -> dict[str, int]:
        return self.outcomes.decisions()

    @property
    def kept(self) -> Amount:
        found = Amount()
        for place in self.places.values():
            found.add(place.amount)
        return found

    def datasets(self) -> dict[str, Place]:
        """Kept rows by dataset."""
        found: dict[str, Place] = {}
        for (dataset, _), place in self.places.items():
            found.setdefault(dataset, Place()).add(place)
        return dict(sorted(found.items()))

    def outcomes_of(self, *stages: str) -> dict[Outcome, int]:
        """Rows that were not kept, by outcome, where one of these stages decided."""
        return {
            outcome: n
            for outcome, n in self.outcomes.counts.items()
            if outcome.stage in stages and outcome.decision != Decision.KEPT
        }


def gather(manifest: Manifest) -> Facts:
    """Counts the rows of a manifest.

    Raises:
        UserError: when the rows are not those that `manifest.json` counts: nothing may be declared on that ground.
    """
    there = set(manifest.schema.names)
    facts = Facts(missing=[name for name in COLUMNS if name not in there])
    types = schema(None)
    for batch in manifest.batches([name for name in COLUMNS if name in there]):
        absent = {name: pa.nulls(batch.num_rows, types.field(name).type) for name in facts.missing}
        _add(facts, pa.RecordBatch.from_pydict({name: batch[name] for name in batch.schema.names} | absent))
    promised = {decision: n for decision, n in manifest.info.counts.items() if n}
    if facts.decisions != promised or facts.rows != manifest.info.rows:
        raise UserError(
            f"the rows of {manifest.uri} do not reconcile with its manifest.json: {facts.decisions} against {promised}",
            field="manifest",
            remedy="restore the folder or curate again; nothing can be declared from it as it is",
        )
    return facts


def _add(facts: Facts, batch: pa.RecordBatch) -> None:
    facts.rows += batch.num_rows
    facts.outcomes.add(batch)
    _add_signals(facts, batch)
    kept = batch.filter(pa.array(is_kept(batch)))
    if kept.num_rows == 0:
        return
    _add_places(facts, kept)
    licence = pc.coalesce(_named(kept["licence"]), _named(kept["licence_url"]), pa.scalar(UNSTATED))
    for name, amount in _amounts(kept, licence):
        facts.licences.setdefault(name, Amount()).add(amount)
    for name, amount in _amounts(kept, pc.fill_null(_named(kept["format"]), UNSTATED)):
        facts.formats.setdefault(name, Amount()).add(amount)
    for name, amount in _amounts(kept, pc.fill_null(_named(kept["creator"]), UNSTATED)):
        facts.creators.add(name, amount.rows, amount.bytes)
    for verdict, n in counted(kept, {"verdict": kept["rights_verdict"]}):
        facts.verdicts[verdict or UNSTATED] += n
    _add_captions(facts, kept)
    facts.source_urls += kept.num_rows - kept["source_url"].null_count
    facts.widths, facts.heights = _span(facts.widths, kept["width"]), _span(facts.heights, kept["height"])


def _named(column: pa.Array) -> pa.Array:
    """The column with null for what is blank."""
    trimmed = pc.utf8_trim_whitespace(column)
    return pc.if_else(pc.equal(trimmed, ""), pa.scalar(None, pa.string()), trimmed)


def _amounts(rows: pa.RecordBatch, names: pa.Array) -> Iterator[tuple[str, Amount]]:
    """Rows and bytes by name."""
    for (name,), amount, *_ in _grouped(rows, {"name": names}):
        yield name, amount


def _grouped(
    rows: pa.RecordBatch, keys: dict[str, pa.Array], *times: str
) -> Iterator[tuple[tuple[Any, ...], Amount, *tuple[Any, ...]]]:
    """Rows by the values of some columns: how much they are, and the least and the largest of each of `times`."""
    table = pa.table({**keys, "bytes": rows["bytes"], **{name: rows[name] for name in times}})
    spans = [(name, what) for name in times for what in ("min", "max")]
    found = table.group_by(list(keys)).aggregate([([], "count_all"), ("bytes", "sum"), ("bytes", "count"), *spans])
    counts = zip(*(found[name].to_pylist() for name in ("count_all", "bytes_sum", "bytes_count")), strict=True)
    ends = zip(*(found[f"{name}_{what}"].to_pylist() for name, what in spans), strict=True) if spans else None
    for key in zip(*(found[name].to_pylist() for name in keys), strict=True):
        n, size, sized = next(counts)
        yield key, Amount(n, size or 0, n - sized), *(next(ends) if ends else ())


def _add_places(facts: Facts, kept: pa.RecordBatch) -> None:
    # What came in a container was not fetched from where it says it is from.
    fetched = pc.if_else(pc.is_valid(kept["source_url"]), pa.scalar(None, pa.string()), _named(kept["domain"]))
    keys = {"dataset": pc.fill_null(_named(kept["dataset"]), UNNAMED), "domain": fetched}
    for (dataset, domain), amount, first, last in _grouped(kept, keys, "fetched_at"):
        facts.places.setdefault((dataset, domain), Place()).add(Place(amount, first, last))


def _add_signals(facts: Facts, batch: pa.RecordBatch) -> None:
    """Each row counts once for a signal and verdict, however often it was observed."""
    parents, seen = exploded(batch["rights"])
    if not len(parents):
        return
    columns = {"row": pa.array(parents), "signal": seen.field("signal"), "verdict": seen.field("verdict")}
    each = pa.table(columns).group_by(["row", "signal", "verdict"]).aggregate([])
    decided = batch["decision"].take(each["row"].combine_chunks())
    found = pa.RecordBatch.from_pydict(
        {"s": each["signal"].combine_chunks(), "v": each["verdict"].combine_chunks(), "d": decided}
    )
    for signal, verdict, decision, n in counted(found, {name: found[name] for name in "svd"}):
        facts.signals[signal or "unnamed", verdict or "unknown", str(decision)] += n


def _add_captions(facts: Facts, kept: pa.RecordBatch) -> None:
    has = kept.filter(pc.greater(pc.fill_null(pc.utf8_length(kept["caption"]), 0), 0))
    facts.captioners["no caption"] += kept.num_rows - has.num_rows
    for source, n in counted(has, {"source": has["caption_source"]}):
        facts.captioners[source or UNSTATED] += n
    facts.characters += pc.sum(pc.utf8_length(has["caption"])).as_py() or 0
    parents, entries = exploded(has["captions"])
    of_row = has["caption"].take(pa.array(parents, pa.int64()))
    same = pc.fill_null(pc.equal(entries.field("text"), of_row), False).to_numpy(zero_copy_only=False)
    places = np.flatnonzero(np.asarray(same, bool))
    _, first = np.unique(parents[places], return_index=True)  # the caption may stand there twice
    languages = entries.field("language").take(pa.array(places[first], pa.int64()))
    for language in languages.to_pylist():
        facts.languages[language or "unknown"] += 1
    facts.languages["unknown"] += has.num_rows - len(first)


def _span(known: tuple[int, int] | None, column: pa.Array) -> tuple[int, int] | None:
    found = pc.min_max(column).as_py()
    if found["min"] is None:
        return known
    low, high = known or (found["min"], found["max"])
    return min(low, found["min"]), max(high, found["max"])
