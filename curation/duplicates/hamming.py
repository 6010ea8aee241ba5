"""All pairs of 64-bit hashes within a Hamming radius: none missed, none invented, near n log n.

Manku, Jain & Das Sarma, "Detecting near-duplicates for web crawling" (WWW 2007): the bits are cut into m blocks. Two
hashes within radius r differ in at most r blocks, so they agree in all of some m - r (pigeonhole). For each choice of
m - r blocks these are moved to the top and the hashes sorted; every wanted pair then shares the top bits in one of the
C(m, r) orders. More blocks mean longer keys, so fewer pairs to check by hand, but more orders to sort; `plan` weighs
the two by the number of hashes. Four 16-bit bands, right for 10^5 hashes, turn quadratic past some 10^6.

Only values are sorted, never row numbers: the moves can be undone, and the few values that make a pair are looked up
afterwards. A group that shares its key against all odds (pictures that resemble each other) is cut by its other bits in
the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations, pairwise
from math import comb, log2

import numpy as np

from curation.duplicates.groups import Groups, product

# Measured on one core, in nanoseconds: moving, sorting and scanning one hash; checking one pair of a short group, and
# one of a long group.
_ROW_NS, _ROW_SORT_NS, _PAIR_NS, _DENSE_PAIR_NS = 4.0, 0.4, 10.0, 1.5
_TABLE_NS = 1e5  # what a table costs however few the hashes
_MOST_TABLES = 5000
_CHUNK = 1 << 15  # hashes handled at a time: what stays in a core's cache
_LARGE_GROUP = 1024  # a group longer than this gets a plan of its own

Wanted = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Table:
    """One order of the bits that vary: where runs of them move, and how many on top are the key."""

    moves: tuple[tuple[int, int, int], ...]  # (lowest bit, number of bits, lowest bit afterwards)
    width: int  # bits that vary; a moved value has no others
    key_bits: int
    key_mask: int  # the key's bits at their original places
    constant: int  # the bits that all values share

    def move(self, values: np.ndarray, out: np.ndarray) -> np.ndarray:
        """The values with their bits moved, in `out`."""
        return _move(values, out, self.moves, 0)

    def undo(self, values: np.ndarray) -> np.ndarray:
        """The values as they were before their bits were moved."""
        back = tuple((target, bits, low) for low, bits, target in self.moves)
        return _move(values, np.empty_like(values), back, self.constant)


def _move(values: np.ndarray, out: np.ndarray, moves: tuple[tuple[int, int, int], ...], constant: int) -> np.ndarray:
    run = np.empty(min(_CHUNK, len(values)), np.uint64)
    for start in range(0, len(values), _CHUNK):
        block, made = values[start : start + _CHUNK], out[start : start + _CHUNK]
        moved = run[: len(block)]
        made[:] = np.uint64(constant)
        for low, bits, target in moves:
            np.bitwise_and(block, np.uint64(((1 << bits) - 1) << low), out=moved)
            if target > low:
                np.left_shift(moved, np.uint64(target - low), out=moved)
            elif target < low:
                np.right_shift(moved, np.uint64(low - target), out=moved)
            np.bitwise_or(made, moved, out=made)
    return out


def plan(values: np.ndarray, radius: int) -> tuple[Table, ...]:
    """The tables that find all pairs soonest, by an estimate that takes the bits that vary as random.

    Args:
        values: (U,) uint64, distinct.
        radius: largest Hamming distance.

    Returns:
        The tables; one without a key where comparing all with all is as good.
    """
    if not len(values):
        return ()
    constant = int(np.bitwise_and.reduce(values))
    vary = int(np.bitwise_or.reduce(values)) ^ constant
    bits = tuple(i for i in range(64) if vary >> i & 1)
    best = choose_blocks(len(values), radius, len(bits))
    if best == 0:
        return (_table(bits, len(bits), constant, 0),)
    bounds = [len(bits) * i // best for i in range(best + 1)]
    blocks = [bits[low:high] for low, high in pairwise(bounds)]
    tables = []
    for chosen in combinations(range(best), best - radius):
        order = tuple(bit for block in _arrange(best, chosen) for bit in blocks[block])
        tables.append(_table(order, len(bits), constant, sum(len(blocks[i]) for i in chosen)))
    return tuple(tables)


def choose_blocks(n: int, radius: int, width: int) -> int:
    """Into how many blocks to cut `width` bits for n hashes; 0 to compare all with all."""
    best, cheapest = 0, n * n / 2 * _DENSE_PAIR_NS / 2  # twice as good, for the bits are never quite random
    for blocks in range(radius + 1, width + 1):
        tables = comb(blocks, radius)
        if tables > _MOST_TABLES:
            break
        row = _ROW_NS + _ROW_SORT_NS * log2(max(n, 2))
        pairs = n * n / 2 ** (width * (blocks - radius) // blocks + 1)
        cost = tables * (_TABLE_NS + n * row + pairs * _PAIR_NS)
        if cost < cheapest:
            best, cheapest = blocks, cost
    return best


def _table(order: tuple[int, ...], width: int, constant: int, key_bits: int) -> Table:
    """The table that puts bit order[i] at place i."""
    moves: list[tuple[int, int, int]] = []
    for target, low in enumerate(order):
        if moves and moves[-1][0] + moves[-1][1] == low:  # neighbours move together
            first, bits, place = moves.pop()
            moves.append((first, bits + 1, place))
        else:
            moves.append((low, 1, target))
    return Table(tuple(moves), width, key_bits, sum(1 << bit for bit in order[width - key_bits :]), constant)


def _arrange(blocks: int, chosen: tuple[int, ...]) -> list[int]:
    """All blocks, lowest first, the chosen ones on top, cut into few runs: one chosen block follows its neighbour."""
    rest = [i for i in range(blocks) if i not in chosen]
    for last in reversed(rest):
        if last + 1 in chosen:
            rest.remove(last)
            return [*rest, last, *(i for i in chosen if i > last), *(i for i in chosen if i < last)]
    return [*rest, *chosen]


def near_values(values: np.ndarray, radius: int, wanted: Wanted | None = None) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of distinct hashes within a radius.

    Args:
        values: (U,) uint64, distinct.
        radius: largest Hamming distance.
        wanted: tells of pairs of values which to keep; all when None.

    Returns:
        Two (P,) uint64 arrays of values, each pair once, in no particular order.
    """
    found = []
    buffer = np.empty_like(values)
    tables = plan(values, radius)
    for number, table in enumerate(tables):
        x, y = pairs_in_table(table.move(values, buffer), tables, number, radius)
        if wanted is not None:
            keep = wanted(x, y)
            x, y = x[keep], y[keep]
        found.append((x, y))
    return _joined(found)


def pairs_in_table(
    moved: np.ndarray, tables: tuple[Table, ...], number: int, radius: int
) -> tuple[np.ndarray, np.ndarray]:
    """The pairs of values that this table finds and none before it.

    Args:
        moved: (n,) uint64: distinct values, moved by `tables[number]`; all of them or all that have certain keys. They
            are sorted in place.
        tables: the plan.
        number: which of its tables.
        radius: largest Hamming distance.
    """
    moved.sort()
    table = tables[number]
    x, y = _joined(list(_scan(moved, table, radius)))
    x, y = table.undo(x), table.undo(y)
    differ, new = x ^ y, np.ones(len(x), bool)
    for earlier in tables[:number]:
        new &= (differ & np.uint64(earlier.key_mask)) != 0
    return x[new], y[new]


def _joined(pairs: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    none = np.zeros(0, np.uint64)
    return np.concatenate([none, *(x for x, _ in pairs)]), np.concatenate([none, *(y for _, y in pairs)])


def _scan(ordered: np.ndarray, table: Table, radius: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs within the radius among sorted values that share a key."""
    if table.key_bits == 0:
        yield from _all_with_all(ordered, radius)
        return
    apart = np.uint64((1 << (table.width - table.key_bits)) - 1)  # values further apart than this have another key
    for start, end in _cuts(ordered, apart):
        block = ordered[start:end]
        differ = block[1:] ^ block[:-1]
        joined = differ <= apart  # to the next
        large = _large_groups(joined)
        for low, high in large:
            joined[low : high - 1] = False
            yield near_values(block[low:high], radius)
        hit = np.flatnonzero((np.bitwise_count(differ) <= radius) & joined)
        yield block[hit], block[hit + 1]
        # `places` are those whose group reaches at least `step` further.
        places, step = np.flatnonzero(joined[1:] & joined[:-1]), 2
        while len(places):
            left, right = block[places], block[places + step]
            hit = np.flatnonzero(np.bitwise_count(left ^ right) <= radius)
            yield left[hit], right[hit]
            reaching = np.flatnonzero(joined[np.minimum(places + step, len(joined) - 1)])
            places = places[reaching]
            step += 1
            places = places[: np.searchsorted(places, len(block) - step)]


def _cuts(ordered: np.ndarray, apart: np.uint64) -> Iterator[tuple[int, int]]:
    """Cuts sorted values into stretches of about `_CHUNK` that end between groups."""
    start = 0
    while start < len(ordered):
        end = min(start + _CHUNK, len(ordered))
        if end < len(ordered):
            end = int(np.searchsorted(ordered, ordered[end - 1] | apart, side="right"))
        yield start, end
        start = end


def _large_groups(joined: np.ndarray) -> list[tuple[int, int]]:
    """(start, end) of the groups longer than `_LARGE_GROUP`; `joined` (n - 1,) bool tells who belongs to the next."""
    stride = _LARGE_GROUP // 2  # a long group has a whole stretch of this length to itself
    if not joined[: len(joined) // stride * stride].reshape(-1, stride).all(axis=1).any():
        return []
    ends = np.flatnonzero(np.diff(np.concatenate([[False], joined, [False]]).astype(np.int8)))
    starts, ends = ends[::2], ends[1::2] + 1
    return [(int(a), int(b)) for a, b in zip(starts, ends, strict=True) if b - a > _LARGE_GROUP]


def _all_with_all(values: np.ndarray, radius: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    rows = max(1, _CHUNK // max(len(values), 1))
    for start in range(0, len(values), rows):
        left, right = values[start : start + rows], values[start:]
        i, j = np.nonzero(np.bitwise_count(left[:, None] ^ right[None, :]) <= radius)
        i, j = i[i < j], j[i < j]
        yield left[i], right[j]


def near_pairs(hashes: np.ndarray, radius: int) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of 64-bit hashes within a Hamming radius.

    Equal hashes are searched for once, but every pair of them is given: where many may be equal, ask for the pairs of
    the distinct ones.

    Args:
        hashes: (N,) uint64.
        radius: largest Hamming distance, 0 to 15.

    Returns:
        Two (P,) int64 arrays of row numbers with a < b, each pair once, in ascending order.
    """
    members = Groups.of(hashes)
    x, y = near_values(members.values, radius)
    a, b = product(members, members.find(x), members, members.find(y))
    several = np.flatnonzero(members.sizes > 1)
    own_a, own_b = product(members, several, members, several)
    a, b = np.concatenate([a, own_a[own_a < own_b]]), np.concatenate([b, own_b[own_a < own_b]])
    a, b = np.minimum(a, b), np.maximum(a, b)
    order = np.lexsort((b, a))
    return a[order], b[order]


def between(
    left: np.ndarray, right: np.ndarray, radius: int, search: Callable[..., tuple[np.ndarray, np.ndarray]] = near_values
) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of a hash of one array and a hash of another within a Hamming radius, equal ones among them.

    Args:
        left: (N,) uint64.
        right: (M,) uint64.
        radius: largest Hamming distance, 0 to 15.
        search: what finds the pairs among distinct values.

    Returns:
        Two (P,) int64 arrays: rows of `left` and rows of `right`, each pair once, in ascending order.
    """
    lefts, rights = Groups.of(left), Groups.of(right)
    x, y = search(np.union1d(lefts.values, rights.values), radius, Crossing(lefts.values, rights.values))
    both = np.intersect1d(lefts.values, rights.values)
    x, y = np.concatenate([x, y, both]), np.concatenate([y, x, both])
    inside = _contains(lefts.values, x) & _contains(rights.values, y)
    a, b = product(lefts, lefts.find(x[inside]), rights, rights.find(y[inside]))
    order = np.lexsort((b, a))
    return a[order], b[order]


@dataclass(frozen=True)
class Crossing:
    """Tells which pairs join a value of one set to a value of the other."""

    left: np.ndarray  # ascending
    right: np.ndarray  # ascending

    def __call__(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        crossing: np.ndarray = _contains(self.left, x) & _contains(self.right, y)
        crossing |= _contains(self.left, y) & _contains(self.right, x)
        return crossing


def _contains(ascending: np.ndarray, values: np.ndarray) -> np.ndarray:
    if not len(ascending):
        return np.zeros(len(values), bool)
    places = np.minimum(np.searchsorted(ascending, values), len(ascending) - 1)
    there: np.ndarray = ascending[places] == values
    return there
