"""Duplicates: which rows are copies of which, and which one of them stays.

Finding and choosing are apart. `Copies` knows every row's copies, by measurement alone; `elect` walks the rows in order
of preference and lets each one that nothing better speaks for stay instead of its copies. So every duplicate is within
the radius of the picture that was kept (no chains), and a changed policy finds nothing anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from curation.manifest import Reason

EXACT, PIXEL, PERCEPTUAL = 0, 1, 2
KINDS = ("exact", "pixel", "perceptual")
REASONS = (Reason.DUPLICATE_EXACT, Reason.DUPLICATE_PIXEL, Reason.DUPLICATE_PERCEPTUAL)
RULES = ("duplicates.exact", "duplicates.pixel", "duplicates.perceptual.radius")


class PerceptualConfig(BaseModel):
    """Two pictures are perceptual duplicates when hash and colours both agree."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    radius: int = Field(3, ge=0, le=15, description="largest Hamming distance between the 64-bit hashes")
    colour: float = Field(
        0.06, ge=0, le=1, description="largest mean difference of the 4x4 colour layouts, as a share of full scale"
    )


class DuplicatesConfig(BaseModel):
    """Which copies count. `null` for `perceptual` turns that search off."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    exact: bool = Field(True, description="the same bytes")
    pixel: bool = Field(True, description="the same pixels in another file")
    perceptual: PerceptualConfig | None = PerceptualConfig()


@dataclass(frozen=True)
class Bindings:
    """For each row the row it is a copy of: `of[i] == -1` where row i is bound to none."""

    of: np.ndarray  # (N,) int64 row numbers
    kind: np.ndarray  # (N,) int8: EXACT, PIXEL or PERCEPTUAL; meaningful where of >= 0
    similarity: np.ndarray  # (N,) float32: share of the 64 hash bits that agree; 1 for the exact kinds


class Copies:
    """Who is a copy of whom.

    Rows with equal pixels form a class, and near pictures are looked for among classes: a picture that came 10,000
    times costs one class, not 50 million pairs.

    Args:
        ids: (N,) str, sha256 of the bytes.
        pixel_hashes: (N,) str, sha256 of the pixels.
        phashes: (N,) uint64.
        colours: (N, 48) uint8 colour layouts.
        config: the kinds that count.
    """

    def __init__(
        self,
        ids: np.ndarray,
        pixel_hashes: np.ndarray,
        phashes: np.ndarray,
        colours: np.ndarray,
        config: DuplicatesConfig,
    ) -> None:
        self._config = config
        self._ids = ids
        _, first, self._classes = np.unique(pixel_hashes, return_index=True, return_inverse=True)
        self._members = _Groups(self._classes, np.arange(len(ids)), len(first))
        if config.perceptual is None:
            a = b = np.zeros(0, np.int64)
        else:
            a, b = near_pairs(phashes[first], config.perceptual.radius)
            apart = np.abs(colours[first[a]].astype(np.int16) - colours[first[b]].astype(np.int16)).mean(axis=1) / 255
            a, b = a[apart <= config.perceptual.colour], b[apart <= config.perceptual.colour]
        self._near = _Groups(np.concatenate([a, b]), np.concatenate([b, a]), len(first))
        self._phashes = phashes[first]

    def of(self, row: int) -> Iterator[tuple[int, int, float]]:
        """The copies of a row, itself left out: (row, kind, similarity), the same order every time."""
        own = self._classes[row]
        for other in self._members[own]:
            if other == row:
                continue
            if self._config.exact and self._ids[other] == self._ids[row]:
                yield int(other), EXACT, 1.0
            elif self._config.pixel:
                yield int(other), PIXEL, 1.0
            elif self._config.perceptual is not None:
                yield int(other), PERCEPTUAL, 1.0
        for near in self._near[own]:
            likeness = 1 - int(np.bitwise_count(self._phashes[own] ^ self._phashes[near])) / 64
            for other in self._members[near]:
                yield int(other), PERCEPTUAL, likeness

    def elect(self, candidates: np.ndarray, preference: np.ndarray) -> Bindings:
        """Chooses who stays.

        Args:
            candidates: (N,) bool: rows that the rest of the policy would keep; only these stay or are duplicates.
            preference: (N,) a permutation of the rows, the most wanted first.

        Returns:
            Bindings in which every duplicate is a copy of a row that stays.
        """
        bindings = _unbound(len(candidates))
        free = candidates.copy()
        for row in preference:
            if not free[row]:
                continue
            free[row] = False
            for other, kind, likeness in self.of(int(row)):
                if free[other]:
                    free[other] = False
                    bindings.of[other], bindings.kind[other], bindings.similarity[other] = row, kind, likeness
        return bindings

    def spread(self, marked: np.ndarray) -> Bindings:
        """Binds every unmarked row to a marked one that it is a copy of.

        This is how an opt-out reaches near-copies: what is marked is denied, and so is what is bound to it.
        """
        bindings = _unbound(len(marked))
        seen: set[tuple[int, str]] = set()
        for row in np.flatnonzero(marked):
            key = (int(self._classes[row]), str(self._ids[row]))
            if key in seen:
                continue  # the same bytes have the same copies
            seen.add(key)
            for other, kind, likeness in self.of(int(row)):
                stronger = (kind, -likeness) < (bindings.kind[other], -bindings.similarity[other])
                if not marked[other] and (bindings.of[other] < 0 or stronger):
                    bindings.of[other], bindings.kind[other], bindings.similarity[other] = row, kind, likeness
        return bindings


def near_pairs(hashes: np.ndarray, radius: int) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of 64-bit hashes within a Hamming radius, (a, b) with a < b, each once.

    The bits are cut into radius + 1 bands: two hashes that differ in at most `radius` bits agree in at least one whole
    band (pigeonhole), so comparing within equal bands misses none.
    """
    found: list[np.ndarray] = []
    bounds = np.linspace(0, 64, radius + 2).astype(int)
    for low, high in pairwise(bounds):
        mask = np.uint64((1 << int(high - low)) - 1 if high - low < 64 else 0xFFFFFFFFFFFFFFFF)
        band = (hashes >> np.uint64(low)) & mask
        order = np.argsort(band, kind="stable")
        band, sorted_hashes = band[order], hashes[order]
        step = 1
        while step < len(band):
            # Rows `step` apart in sorted order share the band only while their group is longer than `step`.
            same = np.flatnonzero(band[step:] == band[:-step])
            if not len(same):
                break
            hit = same[np.bitwise_count(sorted_hashes[same] ^ sorted_hashes[same + step]) <= radius]
            i, j = order[hit], order[hit + step]
            found.append(np.stack([np.minimum(i, j), np.maximum(i, j)], axis=1))
            step += 1
    if not found:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    pairs = np.unique(np.concatenate(found), axis=0)
    return pairs[:, 0], pairs[:, 1]


def _unbound(n: int) -> Bindings:
    return Bindings(np.full(n, -1, np.int64), np.zeros(n, np.int8), np.zeros(n, np.float32))


class _Groups:
    """Values by key, in key order: `groups[k]` is the array of values whose key is k."""

    def __init__(self, keys: np.ndarray, values: np.ndarray, size: int) -> None:
        order = np.lexsort((values, keys))
        self._values = values[order]
        self._starts = np.searchsorted(keys[order], np.arange(size + 1))

    def __getitem__(self, key: int) -> np.ndarray:
        return self._values[self._starts[key] : self._starts[key + 1]]
