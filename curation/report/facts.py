"""What the rows of a manifest say, counted in one pass over their light columns.

Each tally names the columns it reads and is given the rows batch by batch. A manifest that lacks a column a tally needs
gets a section that says so (`Facts.missing`), never a failure: older manifests have fewer columns.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation.manifest import Decision, Manifest
from curation.report.funnel import Outcome
from curation.report.representation import Counts, Fate
from curation.report.scores import Scores
from curation.report.tallies import Histogram, Tally

_OUTCOME = ("decision", "stage", "reason", "rule")


def counted(batch: pa.RecordBatch, columns: Mapping[str, pa.Array]) -> Iterator[tuple[Any, ...]]:
    """The different rows of some columns of a batch, each with its count as the last element."""
    if batch.num_rows == 0:
        return
    table = pa.table(dict(columns))
    found = table.group_by(list(columns)).aggregate([([], "count_all")])
    yield from zip(*(found[name].to_pylist() for name in (*columns, "count_all")), strict=True)


def is_kept(batch: pa.RecordBatch) -> np.ndarray:
    """(N,) bool."""
    return np.asarray(pc.equal(batch["decision"], Decision.KEPT.value).to_numpy(zero_copy_only=False), bool)


class Counting(Protocol):
    """A tally of rows: the columns it reads, and what it does with a batch of them."""

    columns: ClassVar[tuple[str, ...]]

    def add(self, batch: pa.RecordBatch) -> None: ...


@dataclass
class Outcomes:
    """Rows by what became of them."""

    columns: ClassVar[tuple[str, ...]] = (*_OUTCOME, "bytes")
    counts: Counter[Outcome] = field(default_factory=Counter)

    def add(self, batch: pa.RecordBatch) -> None:
        columns = {name: batch[name] for name in _OUTCOME} | {"fetched": batch["bytes"].is_valid()}
        for decision, stage, reason, rule, fetched, n in counted(batch, columns):
            self.counts[Outcome(str(decision), stage or "", reason or "unstated", rule, fetched)] += n

    def decisions(self) -> dict[str, int]:
        found: Counter[str] = Counter()
        for outcome, n in self.counts.items():
            found[outcome.decision] += n
        return dict(found)


@dataclass
class Rights:
    """Rows by the verdict on their rights, and single observations by signal and verdict."""

    columns: ClassVar[tuple[str, ...]] = ("decision", "rights_verdict", "rights")
    verdicts: Counter[tuple[str, str]] = field(default_factory=Counter)  # by verdict and decision
    signals: Counter[tuple[str, str, bool]] = field(default_factory=Counter)  # by signal, verdict and whether kept

    def add(self, batch: pa.RecordBatch) -> None:
        for verdict, decision, n in counted(batch, {"v": batch["rights_verdict"], "d": batch["decision"]}):
            self.verdicts[verdict or "none stated", decision] += n
        parents, seen = exploded(batch["rights"])
        columns = {
            "signal": seen.field("signal"),
            "verdict": seen.field("verdict"),
            "k": pa.array(is_kept(batch)[parents]),
        }
        for signal, verdict, kept, n in counted(pa.RecordBatch.from_pydict(columns), columns):
            self.signals[signal or "unnamed", verdict or "unknown", kept] += n


@dataclass
class Sources:
    """Where the rows came from: all of them and those that were kept, by domain, creator, licence and so on."""

    columns: ClassVar[tuple[str, ...]] = ("decision", "domain", "creator", "licence", "dataset", "format")
    names: ClassVar[dict[str, str]] = {
        "domain": "no domain (local files)",
        "creator": "no creator stated",
        "licence": "no licence stated",
        "dataset": "no data set named",
        "format": "not decoded",
    }
    tallies: dict[str, Tally] = field(default_factory=lambda: {name: Tally() for name in Sources.names})

    def add(self, batch: pa.RecordBatch) -> None:
        kept = pa.array(is_kept(batch))
        for name, tally in self.tallies.items():
            for value, k, n in counted(batch, {"value": batch[name], "kept": kept}):
                tally.add(value if value and value.strip() else self.names[name], n, n if k else 0)


# Words that say nothing about what is in a picture; English mostly, and the commonest of five neighbours.
_STOP = frozenset(
    re.findall(
        r"\w+",
        """a an and are as at be by for from has he her his in is it its of on or our she that the their them they this
        to was were with you your image photo picture der die das und ein eine mit von le la les de des du et un une
        avec el los las en con il lo di che per een het van met op""",
    )
)
_WORD = re.compile(r"[^\W\d_]{2,}")


@dataclass
class Captions:
    """The captions of kept rows: how long, in which words, by which captioner."""

    columns: ClassVar[tuple[str, ...]] = ("decision", "caption", "caption_source", "captions")
    needed: ClassVar[tuple[str, ...]] = ("decision", "caption", "caption_source")
    lengths: Histogram = field(default_factory=lambda: Histogram(1, finest=0))
    words: Tally = field(default_factory=Tally)
    chosen: Counter[str] = field(default_factory=Counter)  # by captioner, of the caption that is trained on
    stored: Counter[tuple[str, str]] = field(default_factory=Counter)  # all captions, by captioner and language
    per_row: Counter[int] = field(default_factory=Counter)

    def add(self, batch: pa.RecordBatch) -> None:
        kept = pa.array(is_kept(batch))
        batch = batch.filter(kept)
        for source, n in counted(batch, {"source": batch["caption_source"]}):
            self.chosen[source or "no caption"] += n
        texts = [text for text in batch["caption"].to_pylist() if text]
        lengths = np.array([len(text.split()) for text in texts], np.int64)
        self.lengths.add(lengths, np.zeros(len(lengths), np.int64))
        for text in texts:
            for word in set(_WORD.findall(text.casefold())) - _STOP:
                self.words.add(word, 1)
        if "captions" in batch.schema.names:
            _, entries = exploded(batch["captions"])
            columns = {"source": entries.field("source"), "language": entries.field("language")}
            for source, language, n in counted(pa.RecordBatch.from_pydict(columns), columns):
                self.stored[source or "unnamed", language or "unknown"] += n
            for length, n in counted(batch, {"n": pc.fill_null(pc.list_value_length(batch["captions"]), 0)}):
                self.per_row[length] += n


@dataclass
class Groups:
    """Rows with a picture by set, zero-shot group and fate. The group of a row is the one that scores highest."""

    columns: ClassVar[tuple[str, ...]] = (*Outcomes.columns, "groups")
    counts: Counts = field(default_factory=Counter)

    def add(self, batch: pa.RecordBatch) -> None:
        parents, entries = exploded(batch["groups"])
        if not len(parents):
            return
        sets, groups = entries.field("set"), entries.field("group")
        scores = pc.fill_null(entries.field("score"), -np.inf).to_numpy(zero_copy_only=False)
        set_names, set_codes = np.unique(np.array(sets.to_pylist(), object).astype(str), return_inverse=True)
        names, codes = np.unique(np.array(groups.to_pylist(), object).astype(str), return_inverse=True)
        order = np.lexsort((codes, -np.nan_to_num(scores, nan=-np.inf), set_codes, parents))
        keys = np.stack([parents[order], set_codes[order]], axis=1)
        first = np.concatenate([[True], (keys[1:] != keys[:-1]).any(axis=1)])
        best = order[first]
        fates = {name: batch[name].take(pa.array(parents[best])) for name in _OUTCOME}
        fates["fetched"] = batch["bytes"].is_valid().take(pa.array(parents[best]))
        columns = {"set": pa.array(set_codes[best]), "group": pa.array(codes[best]), **fates}
        for of, group, decision, stage, reason, rule, fetched, n in counted(batch, columns):
            outcome = Outcome(str(decision), stage or "", reason or "unstated", rule, fetched)
            fate = Fate(outcome.step, decision == Decision.KEPT, outcome.filter)
            self.counts[str(set_names[of]), str(names[group]), fate] += n


def exploded(lists: pa.Array) -> tuple[np.ndarray, pa.StructArray]:
    """The elements of a list column, each with the number of its row."""
    return pc.list_parent_indices(lists).to_numpy(), lists.flatten()


@dataclass
class Facts:
    """All that was counted."""

    rows: int = 0
    outcomes: Outcomes = field(default_factory=Outcomes)
    rights: Rights = field(default_factory=Rights)
    sources: Sources = field(default_factory=Sources)
    captions: Captions = field(default_factory=Captions)
    groups: Groups = field(default_factory=Groups)
    scores: Scores = field(default_factory=Scores)
    missing: dict[str, list[str]] = field(default_factory=dict)  # by tally, the columns the manifest has not


_TALLIES = ("outcomes", "rights", "sources", "captions", "groups", "scores")


def gather(manifest: Manifest, *more: Counting) -> Facts:
    """Counts the rows of a manifest, in its order; `more` tallies are given the same batches."""
    facts, there = Facts(scores=Scores.of(manifest.info)), set(manifest.schema.names)
    counting: list[Counting] = list(more)
    for name in _TALLIES:
        tally = getattr(facts, name)
        facts.missing[name] = [column for column in getattr(tally, "needed", tally.columns) if column not in there]
        if not facts.missing[name]:
            counting.append(tally)
    wanted = [name for name in manifest.schema.names if any(name in tally.columns for tally in counting)]
    for batch in manifest.batches(wanted):
        facts.rows += batch.num_rows
        for tally in counting:
            tally.add(batch)
    return facts
