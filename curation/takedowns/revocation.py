"""Which rows are revoked: those that an entry in force selects, and the copies of them.

A revocation reaches copies by the rule by which an opt-out does it in curation (`decide.settle`): exact, pixel and
perceptual ones, within the job's own thresholds or the default ones, whichever reach further; and no copies of copies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import ValidationError

from curation.duplicates import Bindings, Copies, DuplicatesConfig, Motion, other_frames
from curation.duplicates.hamming import between
from curation.manifest import Decision, Manifest
from curation.selectors import Selectors, flat, near
from curation.takedowns.events import Entry

COLUMNS = ("id", "uri", "final_uri", "redirects", "source_url", "host", "creator", "embedded", "frame_files")
PICTURE_COLUMNS = ("pixel_hash", "phash", "phash_turned", "colour_layout", "frame_phashes", "frame_layouts")
_NEEDED = ("pixel_hash", "phash", "colour_layout")  # a row without them has no picture
_FEW = 256  # hashes that all others are compared with one by one, rather than searched for
_COLOURS = 48


class Revoked(NamedTuple):
    """Why a row may no longer be used."""

    entry: str  # id of an entry: of several that select the row, the one recorded first
    kind: Literal["direct", "near_copy"]
    of: str | None = None  # of a near copy: id of the row, or sha256 of the picture, that it is a copy of
    similarity: float | None = None  # of a near copy: 1 for the same bytes or pixels, else the share of equal hash bits


@dataclass(frozen=True)
class Pictures:
    """What is known of N pictures: those that entries are about, or rows of a manifest."""

    ids: np.ndarray  # (N,) S64: sha256 of the bytes
    pixel_hashes: np.ndarray  # (N,) S64
    phashes: np.ndarray  # (N,) uint64
    turned: np.ndarray  # (N, 7) uint64; zeros where they are not known
    colours: np.ndarray  # (N, 48) uint8

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: np.ndarray) -> Pictures:
        return Pictures(*(array[rows] for array in self._arrays()))

    @classmethod
    def join(cls, parts: Sequence[Pictures]) -> Pictures:
        return cls(*(np.concatenate(arrays) for arrays in zip(*(part._arrays() for part in parts), strict=True)))

    def _arrays(self) -> tuple[np.ndarray, ...]:
        return self.ids, self.pixel_hashes, self.phashes, self.turned, self.colours

    @classmethod
    def of_rows(cls, rows: pa.Table, places: np.ndarray) -> Pictures:
        """Of some rows of a table with `id` and `PICTURE_COLUMNS`, all of which have a picture."""
        names = [c for c in ("id", *PICTURE_COLUMNS) if c in rows.column_names]
        return cls.of(rows.select(names).take(pa.array(places, pa.int64())).to_pylist())

    @classmethod
    def with_frames(cls, rows: pa.Table, places: np.ndarray) -> tuple[Pictures, np.ndarray]:
        """`of_rows`, and behind them the other frames of those that move; and for each its place among `places`."""
        own, owners = cls.of_rows(rows, places), np.arange(len(places))
        if not {"frame_phashes", "frame_layouts"} <= set(rows.column_names) or not len(places):
            return own, owners
        told = rows.select(["frame_phashes", "frame_layouts"]).take(pa.array(places, pa.int64())).to_pylist()
        most = max(len(row["frame_phashes"] or ()) for row in told)
        frames = other_frames(own.phashes, Motion.of(told, own.phashes, own.colours, most))
        more = cls(
            own.ids[frames.owners],
            frames.pixel_hashes(own.ids),
            frames.phashes,
            np.zeros((len(frames.owners), 7), np.uint64),
            frames.colours,
        )
        return cls.join([own, more]), np.concatenate([owners, frames.owners])

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]]) -> Pictures:
        """Of rows as dicts; see `of_rows`."""
        turned, colours = np.zeros((len(rows), 7), np.uint64), np.zeros((len(rows), _COLOURS), np.uint8)
        for i, row in enumerate(rows):
            colours[i] = np.frombuffer(row["colour_layout"], np.uint8)
            if row.get("phash_turned"):
                turned[i] = row["phash_turned"]
        return cls(
            np.array([row["id"] for row in rows], "S64"),
            np.array([row["pixel_hash"] for row in rows], "S64"),
            np.array([row["phash"] for row in rows], np.uint64),
            turned,
            colours,
        )


class Revocations:
    """What the entries in force reach.

    Args:
        entries: `LedgerState.in_force`, in the order in which they were recorded.
    """

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.entries = tuple(entries)
        exact = [
            ("sha256" if s.kind == "picture" else s.kind, s.value, entry) for entry in entries for s in entry.selectors
        ]
        self._selectors = Selectors((kind, value) for kind, value, _ in exact)
        self._owners = [entry.id for _, _, entry in exact]
        shown = [(s, entry) for entry in entries for s in entry.selectors if s.kind == "picture"]
        self.pictures = Pictures.of([s.model_dump() | {"id": s.value} for s, _ in shown])
        self.of_pictures = [entry.id for _, entry in shown]

    def __bool__(self) -> bool:
        return bool(self.entries)

    def direct(
        self, rows: pa.Table, *, neighbours: bool = True, config: DuplicatesConfig | None = None
    ) -> list[str | None]:
        """For each row the id of an entry that selects it, or None.

        Args:
            rows: any of `COLUMNS` and `PICTURE_COLUMNS`; what is absent or null selects nothing.
            neighbours: whether an entry's picture also selects what has its pixels or looks like it. Whoever spreads
                what is selected to its copies asks without them, and spreads `pictures` too, as `of_manifest` does: a
                neighbour's neighbour is another picture.
            config: how alike pictures must be, at least; the default when not given.
        """
        if not self.entries:
            return [None] * rows.num_rows
        found = [self._owners[number] if number >= 0 else None for number in self._selectors.first(rows).tolist()]
        if neighbours and len(self.pictures) and {"id", *_NEEDED} <= set(rows.column_names):
            reach = _reach(config or DuplicatesConfig())
            rest = np.flatnonzero(_may_be_copies(rows, self.pictures, reach))
            shown, owners = Pictures.with_frames(rows, rest)
            bindings = _spread(self.pictures, shown, reach)
            for row, of in zip(rest[owners].tolist(), bindings.of.tolist(), strict=True):
                if of >= 0 and found[row] is None:
                    found[row] = self.of_pictures[of]
        return found

    def of_manifest(self, manifest: Manifest) -> dict[str, Revoked]:
        """The rows that a manifest kept and that are revoked by now, by id.

        Rows that it did not keep count too, where an entry selects them: a copy of theirs may be what was kept instead.
        Its rows are streamed, those that may be copies are held; neither pictures nor embeddings are read.
        """
        if not self.entries:
            return {}
        found, selected, pictures, owners = self._selected(manifest)
        config = _reach(_own_config(manifest))
        marked = Pictures.join([*pictures, self.pictures])
        owners = [*owners, *self.of_pictures]
        if not selected and not len(marked):
            return found
        copies_of, names = [], [c for c in ("id", *PICTURE_COLUMNS) if c in manifest.schema.names]
        known, settled = pa.array(list(selected), pa.string()), pa.array(list(found), pa.string())
        for batch in manifest.batches(names, decision=Decision.KEPT):
            rows = pa.Table.from_batches([batch])
            rows = rows.filter(pc.invert(pc.is_in(rows["id"], settled)))
            for id_ in rows["id"].filter(pc.is_in(rows["id"], known)).to_pylist():  # also where no picture is known
                found[id_] = Revoked(selected[id_], "near_copy", id_, 1.0)
            copies_of.append(Pictures.with_frames(rows, np.flatnonzero(_may_be_copies(rows, marked, config)))[0])
        copies = Pictures.join([self.pictures.take(np.zeros(0, np.int64)), *copies_of])
        bindings = _spread(marked, copies, config)
        for i in np.flatnonzero(bindings.of >= 0):
            of, likeness = int(bindings.of[i]), float(bindings.similarity[i])
            reason = Revoked(owners[of], "near_copy", marked.ids[of].decode(), likeness)
            found.setdefault(copies.ids[i].decode(), reason)
        return found

    def _selected(self, manifest: Manifest) -> tuple[dict[str, Revoked], dict[str, str], list[Pictures], list[str]]:
        """What entries select by itself.

        Returns:
            The kept rows; the entry of every row's id, kept or not; the pictures of these rows; their entries.
        """
        found: dict[str, Revoked] = {}
        selected: dict[str, str] = {}
        pictures, owners = [], []
        names = [c for c in (*COLUMNS, *PICTURE_COLUMNS, "decision") if c in manifest.schema.names]
        for batch in manifest.batches(names):
            rows = pa.Table.from_batches([batch])
            entries = self.direct(rows, neighbours=False)
            here = np.array([i for i, entry in enumerate(entries) if entry is not None], np.int64)
            few = rows.take(here)
            for i, id_, decision in zip(here, few["id"].to_pylist(), few["decision"].to_pylist(), strict=True):
                entry = entries[i]
                assert entry is not None
                selected.setdefault(id_, entry)
                if decision == Decision.KEPT:
                    found.setdefault(id_, Revoked(entry, "direct"))
            pictured = here[_pictured(few)]
            shown, of = Pictures.with_frames(rows, pictured)
            pictures.append(shown)
            owners += [entry for i in pictured[of] if (entry := entries[i]) is not None]
        return found, selected, pictures, owners


def _own_config(manifest: Manifest) -> DuplicatesConfig:
    """What counted as a copy in the job that made the manifest; the default where that cannot be told."""
    try:
        return DuplicatesConfig.model_validate(manifest.info.job.get("duplicates", {}))
    except ValidationError:
        return DuplicatesConfig()


def _reach(config: DuplicatesConfig) -> DuplicatesConfig:
    """The copies that a revocation reaches. Semantic neighbours are other pictures, and are not looked for."""
    return config.binding().model_copy(update={"semantic": None})


def _spread(marked: Pictures, others: Pictures, config: DuplicatesConfig) -> Bindings:
    """Binds each of the others to a marked picture that it is a copy of: `of` are places among the marked."""
    together = Pictures.join([marked, others])
    copies = Copies(
        together.ids,
        together.pixel_hashes,
        together.phashes,
        together.colours,
        config,
        turned=together.turned if config.turned else None,
    )
    bindings = copies.spread(np.arange(len(together)) < len(marked))
    rest = slice(len(marked), None)
    return Bindings(bindings.of[rest], bindings.kind[rest], bindings.similarity[rest])


def _pictured(rows: pa.Table) -> np.ndarray:
    """(N,) bool: the rows that all is known of that tells copies."""
    there = np.ones(rows.num_rows, bool)
    for name in _NEEDED:
        there &= _numpy(pc.is_valid(rows[name])) if name in rows.column_names else False
    return there


def _may_be_copies(rows: pa.Table, marked: Pictures, config: DuplicatesConfig) -> np.ndarray:
    """(N,) bool: a superset of the copies of what is marked, so that only these need be compared with each other.

    Args:
        rows: `id` and `PICTURE_COLUMNS`.
    """
    there = _pictured(rows)
    if not there.any() or not len(marked):
        return np.zeros(rows.num_rows, bool)
    assert config.perceptual is not None
    radius = config.perceptual.radius
    found = np.zeros(rows.num_rows, bool)
    for name, known in (("id", marked.ids), ("pixel_hash", marked.pixel_hashes)):
        found |= _numpy(pc.is_in(rows[name], pa.array(np.unique(known).astype(str).tolist(), pa.string())))
    hashes = _numpy(pc.fill_null(rows["phash"], 0)).astype(np.uint64)
    theirs = np.unique(marked.phashes)
    found[_near(hashes, theirs, radius)[0]] = True
    if "frame_phashes" in rows.column_names:
        of, frames = flat(rows["frame_phashes"])
        found[of[_near(frames, theirs, radius)[0]]] = True
    if config.turned:
        found[_near(hashes, np.unique(marked.turned), radius)[0]] = True
        if "phash_turned" in rows.column_names:
            turns = rows["phash_turned"].to_pylist()
            several = np.array([(turned or [0] * 7) for turned in turns], np.uint64)
            found[_near(several.ravel(), theirs, radius)[0] // 7] = True
    found &= there
    return found


def _near(left: np.ndarray, right: np.ndarray, radius: int) -> tuple[np.ndarray, np.ndarray]:
    few = min(len(left), len(right)) <= _FEW
    return near(left, right, radius) if few else between(left, right, radius)


def _numpy(column: pa.ChunkedArray) -> np.ndarray:
    found: np.ndarray = column.to_numpy()
    return found
