"""The report's statistics: intervals in closed form, tallies that forget little, histograms that forget their order."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation.report.representation import ANY, Z95, Counts, Fate, group_sets, risk_ratio, wilson
from curation.report.tallies import Histogram, Tally


def test_wilson_in_closed_form() -> None:
    z2 = Z95**2
    assert wilson(0, 0) == (0, 1)
    assert wilson(0, 10) == pytest.approx((0, z2 / (10 + z2)))
    assert wilson(10, 10) == pytest.approx((10 / (10 + z2), 1))
    # At one half the interval is symmetric, of half-width z / 2 / sqrt(n + z^2).
    half = Z95 / 2 / math.sqrt(100 + z2)
    assert wilson(50, 100) == pytest.approx((0.5 - half, 0.5 + half))


@given(st.integers(1, 10_000), st.data())
def test_wilson_solves_its_own_equation(n: int, data: st.DataObject) -> None:
    """Its bounds are the shares p that the observed one lies z standard errors from: (h - p)^2 = z^2 p(1-p)/n."""
    hits = data.draw(st.integers(0, n))
    found = wilson(hits, n)
    assert 0 <= found.low <= hits / n <= found.high <= 1
    for p in found:
        assert (hits / n - p) ** 2 == pytest.approx(Z95**2 * p * (1 - p) / n, abs=1e-12)


def test_risk_ratio_in_closed_form() -> None:
    found = risk_ratio(10, 100, 5, 100)
    assert found is not None
    error = math.sqrt(1 / 10 - 1 / 100 + 1 / 5 - 1 / 100)
    assert found == pytest.approx((2, 2 * math.exp(-Z95 * error), 2 * math.exp(Z95 * error)))


def test_risk_ratio_where_cells_are_empty() -> None:
    assert risk_ratio(0, 10, 0, 10) is None
    assert risk_ratio(1, 1, 0, 0) is None
    none_here, none_there = risk_ratio(0, 50, 10, 50), risk_ratio(10, 50, 0, 50)
    assert none_here is not None
    assert none_there is not None
    error = math.sqrt(1 / 0.5 - 1 / 51 + 1 / 10.5 - 1 / 51)
    assert none_here == pytest.approx((0, 0, 0.5 / 10.5 * math.exp(Z95 * error)))
    assert none_there == pytest.approx((math.inf, 10.5 / 0.5 * math.exp(-Z95 * error), math.inf))
    everything = risk_ratio(20, 20, 30, 30)
    assert everything is not None
    assert everything.low < everything.ratio == 1 < everything.high


sizes = st.integers(1, 300)


@given(sizes, sizes, st.data())
def test_risk_ratio_turned_round_is_its_inverse(n: int, m: int, data: st.DataObject) -> None:
    a, b = data.draw(st.integers(0, n)), data.draw(st.integers(0, m))
    one, other = risk_ratio(a, n, b, m), risk_ratio(b, m, a, n)
    assert (one is None) == (other is None) == (a == b == 0)
    if one is not None and other is not None:
        assert one.low <= one.ratio <= one.high
        for x, y in ((one.ratio, other.ratio), (one.low, other.high), (one.high, other.low)):
            assert x * y == pytest.approx(1) or (x, y) in ((0, math.inf), (math.inf, 0))


def fates(group: str, **counts: int) -> Counts:
    found: Counts = Counter()
    for name, n in counts.items():
        step = {"rights": 3, "blur": 4, "safety": 5, "kept": 9}[name]
        found["place", group, Fate(step, name == "kept", name)] += n
    return found


def test_a_filter_is_measured_on_the_rows_that_reached_it() -> None:
    counts = fates("indoors", rights=10, blur=30, kept=60) + fates("outdoors", blur=10, safety=20, kept=170)
    (found,) = group_sets(counts)
    assert (found.name, found.before, found.after) == ("place", 300, 230)
    assert [(s.group, s.before, s.after) for s in found.shares] == [("outdoors", 200, 170), ("indoors", 100, 60)]
    assert found.shares[1].interval_before == wilson(100, 300)
    assert found.shares[1].interval_after == wilson(60, 230)
    removals = {(r.filter, r.group): r for r in found.removals}
    blur = removals["blur", "indoors"]
    assert (blur.removed, blur.reached, blur.rest_removed, blur.rest_reached) == (30, 90, 10, 200)
    assert blur.ratio == risk_ratio(30, 90, 10, 200)
    safety = removals["safety", "outdoors"]
    assert (safety.reached, safety.rest_reached) == (190, 60)
    everything = removals[ANY, "indoors"]
    assert (everything.removed, everything.reached, everything.rest_removed) == (40, 100, 30)
    assert found.removals[0] in found.warnings
    assert {(w.filter, w.group) for w in found.warnings} == {
        ("blur", "indoors"),
        ("rights", "indoors"),
        (ANY, "indoors"),
    }
    assert safety.flag == "possible"


@pytest.mark.parametrize(
    ("removed", "rest", "flag"),
    [
        ((30, 100), (10, 100), "warning"),
        ((20, 100), (10, 100), ""),  # twice is not more than twice
        ((4, 10), (10, 100), "warning"),
        ((3, 10), (10, 100), "possible"),  # the interval holds 1
        ((2, 2), (1, 1000), "possible"),  # an interval above 1, out of two rows
        ((0, 100), (10, 100), ""),
    ],
)
def test_when_a_warning_is_given(removed: tuple[int, int], rest: tuple[int, int], flag: str) -> None:
    (a, n), (b, m) = removed, rest
    (found,) = group_sets(fates("one", blur=a, kept=n - a) + fates("other", blur=b, kept=m - b))
    (own,) = [r for r in found.removals if r.group == "one"]
    assert own.flag == flag


def test_one_group_alone_is_compared_with_nothing() -> None:
    (found,) = group_sets(fates("all", blur=5, kept=5))
    assert found.removals == ()


@given(st.lists(st.sampled_from("abcdefgh"), max_size=60), st.integers(1, 8))
def test_a_tally_is_short_by_no_more_than_it_says(values: list[str], capacity: int) -> None:
    tally = Tally(capacity=capacity)
    for value in values:
        tally.add(value, 1)
    exact = Counter(values)
    assert len(tally) <= capacity
    counted = {value: counts[0] for value, counts in tally.top(100)}
    for value, n in exact.items():
        assert n - tally.error <= counted.get(value, 0) <= n
    if len(exact) <= capacity:
        assert (tally.error, counted) == (0, exact)


numbers = st.lists(st.floats(-1e6, 1e6, allow_subnormal=False), min_size=1, max_size=40)


@given(numbers, st.randoms(use_true_random=False), st.integers(1, 40))
def test_a_histogram_does_not_know_the_order_of_its_numbers(values: list[float], random, cut: int) -> None:  # type: ignore[no-untyped-def]
    shuffled = list(values)
    random.shuffle(shuffled)
    whole, parts = Histogram(2, bins=16), Histogram(2, bins=16)
    whole.add(np.array(values), np.zeros(len(values), np.int64))
    for piece in (shuffled[:cut], shuffled[cut:]):
        parts.add(np.array(piece), np.zeros(len(piece), np.int64))
    edges, counts = whole.table()
    assert np.array_equal(edges, parts.table()[0])
    assert np.array_equal(counts, parts.table()[1])
    assert counts.sum() == len(values)
    assert len(counts) <= 16
    inside = [sum(low <= v < high for v in values) for low, high in pairwise(edges)]
    assert inside == counts[:, 0].tolist()


def test_numbers_that_are_none_are_counted_apart() -> None:
    found = Histogram(2)
    found.add(np.array([1.0, math.nan, math.inf, 2.0]), np.array([0, 0, 1, 1]))
    assert (found.n, found.not_finite, found.low, found.high) == (2, 2, 1.0, 2.0)
    assert found.table()[1].sum(axis=0).tolist() == [1, 1]
    assert found.quantile(0.0) == 1.0
    assert math.isnan(Histogram(1).quantile(0.5))
