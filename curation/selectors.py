"""Selectors: how somebody says which pictures are meant, and which rows those are.

House lists of opt-outs (`curation.rights.lists`) and the takedown ledger (`curation.takedowns`) share this one matcher,
so that whoever is reached by the one is reached by the other. A leaf: it knows rows, and nothing of how they were made.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation.manifest import texts
from curation.places import host_and_domain, same_url

KINDS = ("uri", "domain", "creator", "sha256", "phash")
RADIUS = 3
"""Bits of 64 that a perceptual hash may differ in and still be that of the same picture."""

EXAMPLES = {
    "uri": "a URL, or a file's path as it stands in the manifest",
    "domain": "a domain such as example.com",
    "creator": "a name",
    "sha256": "64 hexadecimal digits",
    "phash": "16 hexadecimal digits",
}
_FORMS = {
    "domain": re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*"),
    "sha256": re.compile(r"[0-9a-f]{64}"),
    "phash": re.compile(r"[0-9a-f]{16}"),
}
_ANYTHING = re.compile("[^\ud800-\udfff]+")  # rows are UTF-8, which has no surrogates
_CELLS = 1 << 22  # pairs of hashes compared at a time


def normal(kind: str, value: str) -> str:
    """A selector or what it is compared with, as it is compared: equal texts are the same.

    A domain may be given as a URL or with a `*.`, as people write them; creators are compared without regard to case,
    surrounding space and Unicode's compatible forms (NFKC).
    """
    value = value.strip()
    if kind == "uri":
        return same_url(value)
    if kind == "creator":
        # The definition of a compatibility caseless match (Unicode 15, D146), composed; without it one pass is not
        # enough for letters whose folding or whose compatible form needs the other once more.
        folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFD", value).casefold()).casefold()
        return unicodedata.normalize("NFKC", folded).strip()
    return _domain(value) if kind == "domain" else value.casefold()


@lru_cache(1 << 16)  # hosts come again and again
def _domain(value: str) -> str:
    value = value.casefold()
    url = value if "://" in value else f"http://{value.removeprefix('*.')}"
    return (host_and_domain(url)[0] or value).strip()


def well_formed(kind: str, value: str) -> bool:
    """Whether a selector in its normal form could select anything."""
    return _FORMS.get(kind, _ANYTHING).fullmatch(value) is not None


class Match(NamedTuple):
    """A selector that selects a row."""

    kind: str
    value: str  # of the row, as it stands there
    number: int  # of the selector, in the order in which they were given


class Selectors:
    """Selectors ready to be matched with rows.

    Args:
        given: (kind, value in normal form); a selector that was given before is the one that counts.
        radius: Hamming distance up to which a perceptual hash is met.
    """

    def __init__(self, given: Iterable[tuple[str, str]], radius: int = RADIUS) -> None:
        self._numbers: dict[str, dict[str, int]] = {kind: {} for kind in KINDS}
        for number, (kind, value) in enumerate(given):
            self._numbers[kind].setdefault(value, number)
        self._phashes = np.array([int(value, 16) for value in self._numbers["phash"]], np.uint64)
        self._of_phash = np.array(list(self._numbers["phash"].values()), np.int64)
        self._radius = radius

    def __bool__(self) -> bool:
        return any(self._numbers.values())

    def matches(self, row: Mapping[str, Any]) -> list[Match]:
        """The selectors that select a row, each once, in the order of what it says of itself.

        Args:
            row: `id`, `uri`, `final_uri`, `redirects`, `source_url`, `host`, `creator`, `embedded`, `phash`, and of
                moving pictures `frame_files`, `frame_phashes`; whatever is absent or null selects nothing.
        """
        if not self:
            return []
        found: dict[Match, None] = {}
        for kind, value in candidates(row):
            number = self._number(kind, value)
            if number is not None:
                found[Match(kind, value, number)] = None
        phashes = [phash for phash in (row.get("phash"), *(row.get("frame_phashes") or ())) if phash is not None]
        for phash in dict.fromkeys(phashes) if len(self._phashes) else ():
            near = np.bitwise_count(self._phashes ^ np.uint64(phash)) <= self._radius
            found |= {Match("phash", f"{phash:016x}", int(number)): None for number in self._of_phash[near]}
        return list(found)

    def first(self, rows: pa.Table) -> np.ndarray:
        """(N,) int64: of each row the first selector that selects it, by number; -1 where none does.

        Args:
            rows: the columns of `matches`; others are not read, absent ones select nothing.
        """
        none = np.iinfo(np.int64).max
        best = np.full(rows.num_rows, none)
        wanted = [c for c in self._columns() if c in rows.column_names]
        if wanted:
            for i, row in enumerate(rows.select(wanted).to_pylist()):
                for kind, value in candidates(row):
                    number = self._number(kind, value)
                    if number is not None and number < best[i]:
                        best[i] = number
        if len(self._phashes) and "phash" in rows.column_names:
            hashes = rows["phash"].combine_chunks()
            there = np.flatnonzero(hashes.is_valid().to_numpy(zero_copy_only=False))
            values = hashes.drop_null().to_numpy().astype(np.uint64)
            self._nearest(best, there, values)
            if "frame_phashes" in rows.column_names:
                owners, values = flat(rows["frame_phashes"])
                self._nearest(best, owners, values)
        return np.where(best == none, -1, best)

    def _nearest(self, best: np.ndarray, owners: np.ndarray, phashes: np.ndarray) -> None:
        """Takes the first selector that each hash is near to, for the row that owns it."""
        row_numbers, places = near(phashes, self._phashes, self._radius)
        np.minimum.at(best, owners[row_numbers], self._of_phash[places])

    def _number(self, kind: str, value: str) -> int | None:
        known = self._numbers[kind]
        return known.get(normal(kind, value)) if known else None

    def _columns(self) -> list[str]:
        """The columns that a selector of the kinds at hand could be met by."""
        wanted = {kind: _COLUMNS[kind] for kind in _COLUMNS if self._numbers[kind]}
        return list(dict.fromkeys(name for names in wanted.values() for name in names))


_PLACES = ("source_url", "final_uri", "redirects")
_COLUMNS: dict[str, tuple[str, ...]] = {
    "uri": ("uri", *_PLACES, "frame_files"),
    "sha256": ("id", "frame_files"),
    "creator": ("creator", "embedded"),
    "domain": ("host", "uri", *_PLACES),
}


def candidates(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a row may be selected by, perceptual hash apart: (kind, value as it stands there), each once."""
    found = [(kind, row[name]) for kind, name in _OWN if row.get(name)]
    hosts = [row.get("host") or host_and_domain(row.get("uri") or "")[0]]
    # A redirect by way of somebody who opted out leads to a picture of theirs.
    for place in (row.get("source_url"), row.get("final_uri"), *(row.get("redirects") or ())):
        if place:
            found.append(("uri", place))
            hosts.append(host_and_domain(place)[0])
    for frame in row.get("frame_files") or ():  # who refuses a frame refuses what it is a part of
        found += [(kind, frame[kind]) for kind in ("uri", "sha256") if frame[kind]]
    for stated in texts(row.get("embedded")).get("creator", "").split("\n"):
        # Several names may stand in one line, and a single one may be written "Doe, Jane".
        found += [("creator", name) for name in (stated, *re.split(r"[;,]", stated)) if name.strip()]
    for host in filter(None, hosts):
        labels = host.split(".")
        found += [("domain", ".".join(labels[i:])) for i in range(len(labels))]
    return list(dict.fromkeys(found))


def flat(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """The values of a column of lists of hashes, and of each the row that it is of."""
    lists = pa.chunked_array(column).combine_chunks()
    lists = lists.chunk(0) if isinstance(lists, pa.ChunkedArray) else lists
    owners = pc.list_parent_indices(lists).to_numpy(zero_copy_only=False)
    return owners.astype(np.int64), lists.flatten().to_numpy(zero_copy_only=False).astype(np.uint64)


_OWN = (("uri", "uri"), ("sha256", "id"), ("creator", "creator"))


def near(left: np.ndarray, right: np.ndarray, radius: int) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of hashes within a Hamming radius, each of one array with each of the other.

    Args:
        left: (N,) uint64.
        right: (M,) uint64.
        radius: largest Hamming distance.

    Returns:
        Two (P,) int64 arrays: places in `left`, ascending, and in `right`.
    """
    height = max(1, _CELLS // max(len(right), 1))
    found = [(np.zeros(0, np.int64), np.zeros(0, np.int64))]
    for start in range(0, len(left), height):
        i, j = np.nonzero(np.bitwise_count(left[start : start + height, None] ^ right[None, :]) <= radius)
        found.append((start + i, j))
    i, j = (np.concatenate(column) for column in zip(*found, strict=True))
    return i, j
