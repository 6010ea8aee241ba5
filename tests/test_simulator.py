"""The simulator of `tests.bench`: closed forms, and the bounds that every schedule keeps."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.bench.simulator import Rates, simulate

PLAIN = Rates(row_s=0.5, unit_s=0.25, others_s=0.0, decide_s=0.0, publish_start_s=0.0, publish_s=0.0)
ALL = Rates(row_s=0.5, unit_s=0.25, others_s=0.0, decide_s=0.125, publish_start_s=3.0, publish_s=0.25)


def test_one_worker_does_one_unit_after_another() -> None:
    assert simulate([4, 2, 6], 1, 2, ALL) == pytest.approx(12 * 0.5 + 3 * 0.25 + 12 * 0.125 + 3 + 12 * 0.25)


def test_two_workers_share_all_but_the_drivers_part() -> None:
    assert simulate([4] * 10, 2, 2, ALL) == pytest.approx(5 * 2.25 + 40 * 0.125 + 3 + 5 * 1.0)


def test_what_the_driver_does_beside_them_slows_workers_that_have_no_core_to_spare() -> None:
    busy = Rates(row_s=0.5, unit_s=0.0, others_s=0.4, decide_s=0.0, publish_start_s=0.0, publish_s=0.0)
    assert simulate([4] * 10, 2, 3, busy) == pytest.approx(10)
    assert simulate([4] * 10, 2, 2, busy) == pytest.approx(10 * 1.2)  # 0.4 of 2 CPU seconds of a unit come on top


@given(st.lists(st.integers(1, 500), min_size=1, max_size=60), st.integers(1, 8))
def test_no_schedule_beats_an_even_one_or_the_longest_unit(units: list[int], workers: int) -> None:
    took = [n * PLAIN.row_s + PLAIN.unit_s for n in units]
    found = simulate(units, workers, workers, PLAIN)
    assert found >= max(sum(took) / workers, max(took)) - 1e-9
    assert found <= sum(took) / workers + max(took) + 1e-9  # Graham's bound of list scheduling
