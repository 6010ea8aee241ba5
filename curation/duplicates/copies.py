"""Choosing: which of the copies stays, and what an opt-out reaches.

`elect` walks the rows in order of preference and lets each one that nothing better speaks for stay instead of its
copies. So every duplicate is within the radius of the picture that was kept (no chains). Only rows that have copies are
walked, and only those that stay are asked for them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from curation.duplicates.edges import (
    EXACT,
    PERCEPTUAL,
    PIXEL,
    SEMANTIC,
    TURNED,
    CopyInputs,
    DuplicatesConfig,
    Edges,
    find,
)
from curation.duplicates.motion import Motion
from curation.manifest import Reason

KINDS = ("exact", "pixel", "perceptual", "semantic")
REASONS = (
    Reason.DUPLICATE_EXACT,
    Reason.DUPLICATE_PIXEL,
    Reason.DUPLICATE_PERCEPTUAL,
    Reason.DUPLICATE_SEMANTIC,
)
RULES = (
    "duplicates.exact",
    "duplicates.pixel",
    "duplicates.perceptual.radius",
    "duplicates.semantic.threshold",
)


@dataclass(frozen=True)
class Bindings:
    """For each row the row it is a copy of: `of[i] == -1` where row i is bound to none."""

    of: np.ndarray  # (N,) int64 row numbers
    kind: np.ndarray  # (N,) int8: EXACT, PIXEL, PERCEPTUAL or SEMANTIC; meaningful where of >= 0
    similarity: np.ndarray  # (N,) float32: share of the 64 hash bits that agree, or the cosine; 1 for the exact kinds

    def clusters(self) -> np.ndarray:
        """(N,) int64: the row that represents each row's cluster, itself where it stays for others; -1 for singles."""
        found = self.of.copy()
        stays = np.unique(self.of[self.of >= 0])
        found[stays] = stays
        return found


def preference(prefer: Sequence[str], ranks: Mapping[str, np.ndarray], first: np.ndarray | None = None) -> np.ndarray:
    """The rows, the most wanted first.

    Args:
        prefer: what counts, the most important first; what follows `order` can decide nothing.
        ranks: by name of `prefer`, (N,) numbers of which smaller is better: place in the list of licences, minus
            pixels. `order` needs none.
        first: (N,) numbers that count before all else, such as 0 for the winners of an older manifest and 1 for others.

    Returns:
        (N,) int64, a permutation.
    """
    names = list(prefer[: prefer.index("order")] if "order" in prefer else prefer)
    n = len(first) if first is not None else len(next(iter(ranks.values())))
    keys = [np.arange(n), *(ranks[name] for name in reversed(names))]
    return np.lexsort(keys if first is None else [*keys, first])


class Copies:
    """Who is a copy of whom, as a policy has it.

    Args:
        ids: (N,) str, sha256 of the bytes.
        pixel_hashes: (N,) str, sha256 of the pixels.
        phashes: (N,) uint64.
        colours: (N, 48) uint8 colour layouts, 4x4 RGB.
        config: the kinds that count.
        turned: (N, 7) uint64, hashes of the other orientations.
        embeddings: (N, D) float16, L2-normalised; zeros where there is none.
        edges: what `find` gave for these rows and a config whose search covers this one; found anew when None.
        motion: frames of the pictures, that must be alike one by one where two are to be copies; None: stills.
    """

    def __init__(
        self,
        ids: np.ndarray | pa.Array,
        pixel_hashes: np.ndarray | pa.Array,
        phashes: np.ndarray,
        colours: np.ndarray,
        config: DuplicatesConfig,
        *,
        turned: np.ndarray | None = None,
        embeddings: np.ndarray | None = None,
        edges: Edges | None = None,
        motion: Motion | None = None,
    ) -> None:
        if edges is None:
            edges = find(CopyInputs(ids, pixel_hashes, phashes, colours, turned, embeddings), config)
        elif not edges.covers(config):
            raise ValueError("the edges were found by a narrower search than this config needs")
        self._config, self._colours, self._motion = config, colours, motion
        self._bytes, self._pixels, self._hash = edges.same_bytes, edges.same_pixels, edges.same_hash
        self._by_pixels = _Lists(edges.same_pixels, np.arange(len(phashes)))
        perceptual, semantic = config.perceptual, config.semantic
        self._busy = self._by_pixels.sizes[self._pixels] > 1
        if perceptual is not None:
            least = 1 - perceptual.radius / 64
            self._by_hash = _Lists(self._hash, np.arange(len(phashes)))
            self._near = _Lists.both(*edges.of(PERCEPTUAL, least), len(phashes))
            self._busy |= (self._by_hash.sizes[self._hash] > 1) | (self._near.sizes[self._hash] > 0)
            if perceptual.turned:
                a, b, likeness = edges.of(TURNED, least)
                self._turns_to = _Lists(a, b, likeness, len(phashes))
                self._turned_from = _Lists(b, a, likeness, len(phashes))
                self._busy |= (self._turns_to.sizes[self._pixels] > 0) | (self._turned_from.sizes[self._hash] > 0)
        if semantic is not None and semantic.threshold is not None:
            self._alike = _Lists.both(*edges.of(SEMANTIC, semantic.threshold), len(phashes))
            self._busy |= self._alike.sizes[self._pixels] > 0

    def of(self, row: int) -> list[tuple[int, int, float]]:
        """The copies of a row, itself left out: (row, kind, similarity), each once and as its strongest kind."""
        wanted = np.ones(len(self._pixels), bool)
        wanted[row] = False
        copies = []
        for others, kind, similarity in self._around(row, wanted):
            wanted[others] = False
            copies += [(int(o), kind, float(s)) for o, s in zip(others, similarity, strict=True)]
        return copies

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
        for row in preference[(self._busy & candidates)[preference]].tolist():
            if not free[row]:
                continue
            free[row] = False
            for others, kind, similarity in self._around(row, free):
                free[others] = False
                bindings.of[others], bindings.kind[others], bindings.similarity[others] = row, kind, similarity
        return bindings

    def spread(self, marked: np.ndarray) -> Bindings:
        """Binds every unmarked row to a marked one that it is a copy of, to the most alike by the strongest kind.

        This is how an opt-out reaches near-copies: what is marked is denied, and so is what is bound to it. Semantic
        neighbours are other pictures, and are not reached.
        """
        bindings = _unbound(len(marked))
        unmarked = ~marked
        rows = np.flatnonzero(marked & self._busy)
        _, first = np.unique(self._pixels[rows] * len(marked) + self._bytes[rows], return_index=True)
        for row in rows[np.sort(first)].tolist():  # the same bytes have the same copies
            for others, kind, similarity in self._around(row, unmarked):
                if kind == SEMANTIC:
                    continue
                held = bindings.kind[others]
                better = (bindings.of[others] < 0) | (kind < held)
                better |= (kind == held) & (similarity > bindings.similarity[others])
                others = others[better]
                bindings.of[others], bindings.kind[others], bindings.similarity[others] = row, kind, similarity[better]
        return bindings

    def _around(self, row: int, wanted: np.ndarray) -> Iterator[tuple[np.ndarray, int, np.ndarray]]:
        """The copies of a row among the wanted ones, (rows, kind, similarities), the strongest kinds first.

        A row may come again as a weaker kind, unless the caller takes it from `wanted` in between.
        """
        members = self._by_pixels[self._pixels[row]]
        if len(members) > 1:
            members = members[wanted[members]]
            equal = self._bytes[members] == self._bytes[row]
            if self._config.exact:
                yield members[equal], EXACT, np.ones(np.count_nonzero(equal), np.float32)
                members = members[~equal]
            if self._config.pixel:
                if self._motion is not None:
                    members = members[self._motion.alike(row, members, 0, 0)]
                yield members, PIXEL, np.ones(len(members), np.float32)
        if self._config.perceptual is not None:
            yield from self._perceptual(row, wanted, self._config.perceptual.colour)
        if self._config.semantic is not None and self._config.semantic.threshold is not None:
            own = self._pixels[row]
            alike, cosine = np.append(own, self._alike[own]), np.append(np.float32(1), self._alike.weight(own))
            others, similarity = self._by_pixels.gather(alike, cosine)
            kept = wanted[others]
            yield others[kept], SEMANTIC, similarity[kept]

    def _perceptual(self, row: int, wanted: np.ndarray, colour: float) -> Iterator[tuple[np.ndarray, int, np.ndarray]]:
        own, layout = self._hash[row], self._colours[row].astype(np.int16)
        others, near = self._by_hash[own], self._near[own]
        likeness = np.ones(len(others), np.float32)
        if len(near):
            more, less = self._by_hash.gather(near, self._near.weight(own))
            others, likeness = np.concatenate([others, more]), np.concatenate([likeness, less])
        yield self._coloured(row, [layout], others, likeness, wanted, colour)
        if not self._config.turned:
            return
        picture = self._pixels[row]
        to, back = self._turns_to[picture], self._turned_from[own]
        if len(to) or len(back):
            others, likeness = self._by_hash.gather(to, self._turns_to.weight(picture))
            more, less = self._by_pixels.gather(back, self._turned_from.weight(own))
            others, likeness = np.concatenate([others, more]), np.concatenate([likeness, less])
            order = np.lexsort((-likeness, others))  # found from both sides: the nearer counts
            others, likeness = others[order], likeness[order]
            new = np.append(True, others[1:] != others[:-1])
            yield self._coloured(row, turned_layouts(layout), others[new], likeness[new], wanted, colour)

    def _coloured(
        self,
        row: int,
        layouts: Iterable[np.ndarray],
        others: np.ndarray,
        likeness: np.ndarray,
        wanted: np.ndarray,
        colour: float,
    ) -> tuple[np.ndarray, int, np.ndarray]:
        kept = wanted[others]
        others, likeness = others[kept], likeness[kept]
        if len(others):
            theirs = self._colours[others]
            agree = np.zeros(len(others), bool)
            for layout in layouts:
                agree |= np.add.reduce(np.abs(theirs - layout), axis=1) / layout.size / 255 <= colour
            if self._motion is not None and self._config.perceptual is not None:
                agree &= self._motion.alike(row, others, self._config.perceptual.radius, colour)
            others, likeness = others[agree], likeness[agree]
        return others, PERCEPTUAL, likeness


def turned_layouts(layout: np.ndarray) -> np.ndarray:
    """(7, 48): a (48,) colour layout as its picture mirrored, turned by quarters, and both would have it."""
    square = layout.reshape(4, 4, 3)
    turns = [np.rot90(flipped, k) for flipped in (square, square[:, ::-1]) for k in range(4)]
    return np.stack(turns[1:]).reshape(7, 48)


def _unbound(n: int) -> Bindings:
    return Bindings(np.full(n, -1, np.int64), np.zeros(n, np.int8), np.zeros(n, np.float32))


class _Lists:
    """For each row number a list of rows, in ascending order, each with a weight."""

    def __init__(
        self, keys: np.ndarray, values: np.ndarray, weights: np.ndarray | None = None, size: int | None = None
    ) -> None:
        # Values that ascend already stay in order when their keys are sorted stably.
        order = np.argsort(keys, kind="stable") if weights is None else np.lexsort((values, keys))
        self._starts = np.zeros((len(keys) if size is None else size) + 1, np.int64)
        np.cumsum(np.bincount(keys, minlength=len(self._starts) - 1), out=self._starts[1:])
        self._values = values[order]
        self._weights = None if weights is None else weights[order]

    @property
    def sizes(self) -> np.ndarray:
        """(N,) int64: how long each list is."""
        sizes: np.ndarray = np.diff(self._starts)
        return sizes

    @classmethod
    def both(cls, a: np.ndarray, b: np.ndarray, weights: np.ndarray, size: int) -> _Lists:
        """Of undirected edges."""
        return cls(np.append(a, b), np.append(b, a), np.append(weights, weights), size)

    def __getitem__(self, key: int) -> np.ndarray:
        return self._values[self._starts[key] : self._starts[key + 1]]

    def weight(self, key: int) -> np.ndarray:
        assert self._weights is not None
        return self._weights[self._starts[key] : self._starts[key + 1]]

    def gather(self, keys: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The lists of several keys after each other, and the key's weight for each of their rows."""
        lists = [self[key] for key in keys]
        if len(lists) == 1:
            return lists[0], np.full(len(lists[0]), weights[0])
        rows = np.concatenate([self._values[:0], *lists])
        return rows, np.repeat(weights, [len(found) for found in lists])
