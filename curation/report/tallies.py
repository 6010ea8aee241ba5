"""Counting in bounded memory: values by name, and numbers in bins, whatever the number of rows and their order."""

from __future__ import annotations

import math

import numpy as np


class Tally:
    """How often values occur, in how many ways each.

    Exact up to `capacity` different values. Beyond, the rarest are forgotten, and no count is short by more than
    `error` (lossy counting, Manku & Motwani 2002), which the page then states.
    """

    def __init__(self, ways: int = 1, capacity: int = 200_000) -> None:
        self._ways = ways
        self._capacity = capacity
        self._counts: dict[str, list[int]] = {}
        self.error = 0

    def add(self, value: str, *counts: int) -> None:
        """Adds a count in each way; the first one is that by which values are ranked and forgotten."""
        found = self._counts.get(value)
        if found is None:
            self._counts[value] = list(counts)
            if len(self._counts) > self._capacity:
                self._forget()
        else:
            for way, count in enumerate(counts):
                found[way] += count

    def _forget(self) -> None:
        ranked = sorted(counts[0] for counts in self._counts.values())
        least = ranked[len(ranked) // 2]
        self.error += least
        self._counts = {value: counts for value, counts in self._counts.items() if counts[0] > least}

    def __len__(self) -> int:
        """Different values that are remembered: all of them while `error` is 0."""
        return len(self._counts)

    def top(self, n: int) -> list[tuple[str, list[int]]]:
        """The n most frequent values, equals in order of their names."""
        return sorted(self._counts.items(), key=lambda item: (-item[1][0], item[0]))[:n]


class Histogram:
    """Numbers in at most `bins` equal bins, counted apart by series.

    A bin is `[i, i + 1) * 2**exponent`. Where a number falls outside of what the bins can hold, neighbours are merged
    two by two, so one pass is enough and the result depends on the numbers alone, not on their order.

    Args:
        series: how many series are counted apart.
        bins: the largest number of bins.
        finest: the smallest exponent; 0 for whole numbers.
    """

    def __init__(self, series: int, bins: int = 64, finest: int = -14) -> None:
        self._bins = bins
        self._series = series
        self._counts: dict[int, np.ndarray] = {}
        self.exponent = finest
        self.low, self.high = math.inf, -math.inf
        self.not_finite = 0

    @property
    def n(self) -> int:
        return int(sum(int(counts.sum()) for counts in self._counts.values()))

    def add(self, values: np.ndarray, series: np.ndarray) -> None:
        """Counts (N,) numbers, each into the series of the same place; what is not finite is counted apart."""
        values = values.astype(np.float64)
        finite = np.isfinite(values)
        self.not_finite += int((~finite).sum())
        values, series = values[finite], series[finite]
        if not len(values):
            return
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))
        while self._span() > self._bins:
            self.exponent += 1
            merged: dict[int, np.ndarray] = {}
            for index, counts in self._counts.items():
                merged[index >> 1] = merged.get(index >> 1, 0) + counts
            self._counts = merged
        keys = np.floor(np.ldexp(values, -self.exponent)).astype(np.int64) * self._series + series
        for key, count in zip(*np.unique(keys, return_counts=True), strict=True):
            index, which = divmod(int(key), self._series)
            self._counts.setdefault(index, np.zeros(self._series, np.int64))[which] += count

    def _span(self) -> int:
        return math.floor(math.ldexp(self.high, -self.exponent)) - math.floor(math.ldexp(self.low, -self.exponent)) + 1

    def table(self) -> tuple[np.ndarray, np.ndarray]:
        """Edges (B + 1,) and counts (B, series) of all bins from the lowest number to the highest."""
        if not self._counts:
            return np.zeros(1), np.zeros((0, self._series), np.int64)
        first, last = min(self._counts), max(self._counts)
        counts = np.zeros((last - first + 1, self._series), np.int64)
        for index, found in self._counts.items():
            counts[index - first] = found
        return np.ldexp(np.arange(first, last + 2, dtype=np.float64), self.exponent), counts

    def quantile(self, share: float) -> float:
        """About where `share` of the numbers lie below: within a bin, numbers are taken to lie evenly."""
        edges, counts = self.table()
        if not len(counts):
            return math.nan
        below = np.concatenate([[0], np.cumsum(counts.sum(axis=1))])
        return float(np.clip(np.interp(share * below[-1], below, edges), self.low, self.high))
