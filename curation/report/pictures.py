"""Which rows are shown, and their small pictures.

A sample is the rows with the smallest hashes of (seed, id): the same for the same manifest, in any order. Kept rows
carry their picture in the manifest. Pictures of the others may still lie in the work folder of the run; they are taken
from there where it exists, but never those of rows that must not be used, and unsafe ones only when asked for.
"""

from __future__ import annotations

import base64
import hashlib
import heapq
import io
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, ClassVar, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curation import storage
from curation.manifest import Decision, Manifest, Reason, refuse_extensions
from curation.moving import in_rows
from curation.report.funnel import Outcome

SIDE = 128  # pixels of a thumbnail's longer side
SEED = b"cleanplate report"
# Rows whose pictures are nobody's business any more: they were opted out, or rights stood in their way.
_WITHHELD = {Reason.OPTED_OUT, Reason.OPTED_OUT_NEAR_COPY, Reason.NOT_ASKED}


def rank(text: str) -> int:
    """The place of an id in the order that samples are taken in."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8, key=SEED).digest(), "big")


class Key(NamedTuple):
    """A gallery: rows of one decision that have one reason."""

    decision: str
    filter: str


@dataclass
class Sample:
    """For every decision and reason the row numbers of a few rows, chosen by the hashes of their ids."""

    columns: ClassVar[tuple[str, ...]] = ("id", "decision", "stage", "reason", "rule")
    size: int = 8
    kept: int = 24
    chosen: dict[Key, list[tuple[int, int]]] = field(default_factory=dict)  # heaps of (-rank, -row)
    totals: Counter[Key] = field(default_factory=Counter)
    _row: int = 0

    def add(self, batch: pa.RecordBatch) -> None:
        columns = (batch[name].to_pylist() for name in self.columns)
        for row, (identity, decision, stage, reason, rule) in enumerate(zip(*columns, strict=True), self._row):
            key = Key(decision, Outcome(decision, stage or "", reason or "unstated", rule, True).filter)
            self.totals[key] += 1
            heap, item = self.chosen.setdefault(key, []), (-rank(identity or ""), -row)
            if len(heap) < (self.kept if decision == Decision.KEPT else self.size):
                heapq.heappush(heap, item)
            elif item > heap[0]:
                heapq.heapreplace(heap, item)
        self._row += batch.num_rows

    def rows(self, key: Key) -> list[int]:
        """Row numbers, in the order of the hashes."""
        return [-row for _, row in sorted(self.chosen.get(key, ()), reverse=True)]


@dataclass
class Clusters:
    """How many rows are duplicates of which: clusters are told apart by the hash of what they are copies of."""

    columns: ClassVar[tuple[str, ...]] = ("reason", "duplicate_of", "duplicate_cluster")
    needed: ClassVar[tuple[str, ...]] = ("reason", "duplicate_of")
    sizes: Counter[int] = field(default_factory=Counter)  # copies by rank of the representative's id

    def add(self, batch: pa.RecordBatch) -> None:
        for name in representatives(batch).drop_null().to_pylist():
            self.sizes[rank(name)] += 1

    def choose(self, largest: int, sampled: int) -> set[int]:
        """The largest clusters, and a sample of the others."""
        by_size = sorted(self.sizes, key=lambda key: (-self.sizes[key], key))
        return {*by_size[:largest], *sorted(by_size[largest:])[:sampled]}


def representatives(batch: pa.RecordBatch) -> pa.Array:
    """For every row the id of the picture that stays instead of it; null where it is no duplicate."""
    of = batch["duplicate_of"]
    if "duplicate_cluster" in batch.schema.names:
        of = pc.coalesce(batch["duplicate_cluster"], of)
    duplicate = pc.and_(
        pc.starts_with(pc.fill_null(batch["reason"], ""), "duplicate_"), batch["duplicate_of"].is_valid()
    )
    return pc.if_else(duplicate, of, None)


@dataclass(frozen=True)
class Cluster:
    """Row numbers of a representative (None where this manifest does not hold it) and of some of its copies."""

    of: str
    copies: int
    representative: int | None
    members: tuple[int, ...]


def clusters(manifest: Manifest, found: Clusters, *, largest: int, sampled: int, members: int) -> list[Cluster]:
    """The chosen clusters with their rows, the largest first; reads the columns of ids once more."""
    wanted = found.choose(largest, sampled)
    if not wanted:
        return []
    names: dict[int, str] = {}
    copies: dict[int, list[int]] = {key: [] for key in wanted}
    kept: dict[int, int] = {}
    columns = [name for name in manifest.schema.names if name in (*Clusters.columns, "id")]
    row = 0
    for batch in manifest.batches([*columns, "decision"]):
        rows = zip(*(c.to_pylist() for c in (batch["id"], batch["decision"], representatives(batch))), strict=True)
        for number, (identity, decision, of) in enumerate(rows, row):
            key = rank(of if of is not None else identity or "")
            if key not in wanted:
                continue
            if of is None:  # an exact copy has the same id as what it is a copy of; the one that is none is the one
                if decision == Decision.KEPT or key not in kept:
                    kept[key] = number
            else:
                names[key] = of
                if len(copies[key]) < members:
                    copies[key].append(number)
        row += batch.num_rows
    order = sorted(wanted, key=lambda key: (-found.sizes[key], key))
    return [Cluster(names[key], found.sizes[key], kept.get(key), tuple(copies[key])) for key in order]


def rows_at(manifest: Manifest, numbers: Collection[int], columns: Sequence[str]) -> dict[int, dict[str, Any]]:
    """Some columns of some rows, by row number; reads the row groups that hold them and no others."""
    found: dict[int, dict[str, Any]] = {}
    for part, start, own in _by_part(manifest, numbers):
        uri = storage.join(manifest.uri, manifest.info.files[part].name)
        found |= {start + row: values for row, values in _read(uri, own, columns)}
    return found


def _by_part(manifest: Manifest, numbers: Collection[int]) -> Iterator[tuple[int, int, list[int]]]:
    """The parts that hold some rows: number of the part, of its first row, and of the rows inside it."""
    ends = list(accumulate(part.rows for part in manifest.info.files))
    ordered = sorted(set(numbers))
    for part, end in enumerate(ends):
        start = end - manifest.info.files[part].rows
        own = [row - start for row in ordered if start <= row < end]
        if own:
            yield part, start, own


def _read(uri: str, rows: Sequence[int], columns: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of one Parquet file, a few at a time: a row group of pictures is not held whole."""
    system, path = storage.filesystem(uri)
    wanted = set(rows)
    with pq.ParquetFile(path, filesystem=system) as file:
        refuse_extensions(file.schema_arrow)
        there = [name for name in file.schema_arrow.names if name in columns]
        start = 0
        for group in range(file.num_row_groups):
            size = file.metadata.row_group(group).num_rows
            here = sorted(row for row in wanted if start <= row < start + size)
            if here:
                at = start
                for batch in file.iter_batches(batch_size=64, row_groups=[group], columns=there):
                    own = [row for row in here if at <= row < at + batch.num_rows]
                    if own:
                        yield from zip(own, batch.take(pa.array([row - at for row in own])).to_pylist(), strict=True)
                    at += batch.num_rows
                    if at > here[-1]:
                        break
            start += size


class Tile(NamedTuple):
    """What stands where a row's picture would: a data URI, or None and the words for why there is none."""

    uri: str | None
    instead: str


@dataclass(frozen=True)
class Album:
    """The small pictures of chosen rows."""

    manifest: Manifest
    thresholds: Mapping[str, float]  # of safety concepts
    show_unsafe: bool = False
    revoked: Collection[str] = frozenset()  # ids of rows that were kept, and are taken down by now

    columns: ClassVar[tuple[str, ...]] = ("id", "decision", "stage", "reason", "safety", "frames", "image")

    def tiles(self, numbers: Collection[int]) -> dict[int, Tile]:
        """A tile for every row number."""
        rows = rows_at(self.manifest, numbers, self.columns)
        tiles = {number: why for number, row in rows.items() if (why := self._refusal(row)) is not None}
        stored = self._from_work({n: row for n, row in rows.items() if n not in tiles and not _bytes(row)})
        for number, row in rows.items():
            if number not in tiles:
                tiles[number] = thumbnail(_bytes(row) or stored.get(number), row.get("frames") or 1)
        return tiles

    def _refusal(self, row: Mapping[str, Any]) -> Tile | None:
        kept = row["decision"] == Decision.KEPT
        withheld = row["reason"] in _WITHHELD or row["id"] in self.revoked
        if withheld or (not kept and row.get("stage") == "rights"):
            return Tile(None, "withheld: opted out, or its rights are not clear")
        if row["decision"] == Decision.FAILED:
            return Tile(None, "no picture came")
        over = [
            entry["concept"]
            for entry in row.get("safety") or ()
            if (at := self.thresholds.get(entry["concept"])) is not None
            and (entry["score"] is None or not entry["score"] < at)  # a score that is missing is no acquittal
        ]
        if not self.show_unsafe and (over or row["reason"] == Reason.UNSAFE):
            return Tile(None, f"veiled: {', '.join(over) or 'unsafe'}")
        return None

    def _from_work(self, rows: Mapping[int, Mapping[str, Any]]) -> dict[int, bytes]:
        """Pictures out of the run's measured units, as long as those are there and are of the same inputs."""
        work, found = self.manifest.work, dict[int, bytes]()
        if work is None or len(work.units) != len(self.manifest.info.files):
            return found
        for part, start, own in _by_part(self.manifest, rows):
            try:
                uri = storage.join(work.folder, f"unit-{work.units[part]}.parquet")
                for row, values in _read(uri, own, ("id", "image")):
                    if values.get("id") == rows[start + row]["id"] and (data := _bytes(values)):
                        found[start + row] = data
            except (OSError, ValueError, pa.ArrowException):
                continue  # cleared away, or not readable from here: the tile says that there is no picture any more
        return found


def _bytes(row: Mapping[str, Any]) -> bytes | None:
    image = row.get("image")
    return image["bytes"] if image and image["bytes"] else None


def thumbnail(data: bytes | None, frames: int = 1) -> Tile:
    """A WebP of at most `SIDE` pixels a side as a data URI; of a film strip, its frames in rows."""
    from PIL import Image

    if data is None:
        return Tile(None, "the picture is no longer stored")
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.draft("RGB", (SIDE, SIDE * frames))
            small = in_rows(image.convert("RGB"), frames)
            small.thumbnail((SIDE, SIDE))
            buffer = io.BytesIO()
            small.save(buffer, "WEBP", quality=72, method=4)
    except Exception:  # Pillow raises what it likes; one picture that cannot be read is not to cost the page
        return Tile(None, "the stored picture cannot be read")
    return Tile("data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode(), "")
