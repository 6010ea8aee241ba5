"""What keys may use, on a clock that stands still until it is moved."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.api import RequestError
from serving.keys import Key
from serving.quotas import Quotas

DAY = 86_400


class Clock:
    def __init__(self, now: float = 10.25 * DAY) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def key(*, minute: int | None = None, day: int | None = None, name: str = "00000001") -> Key:
    return Key(
        id=name,
        name="a",
        sha256="",
        scopes=("generate",),
        created=0,
        row_steps_per_minute=minute,
        row_steps_per_day=day,
    )


def refused(quotas: Quotas, asked: Key, cost: int) -> RequestError:
    with pytest.raises(RequestError) as caught:
        quotas.charge(asked, cost)
    return caught.value


def test_a_minutes_worth_fills_all_the_time(tmp_path: Path) -> None:
    clock = Clock()
    quotas = Quotas(str(tmp_path), clock)
    quotas.charge(key(minute=60), 50)
    error = refused(quotas, key(minute=60), 20)
    assert (error.status, error.code, error.retry_after_s) == (429, "rate_limit_exceeded", pytest.approx(10))
    clock.now += 9.9
    refused(quotas, key(minute=60), 20)
    clock.now += 0.2
    quotas.charge(key(minute=60), 20)
    quotas.charge(key(minute=60, name="00000002"), 60)  # somebody else's is untouched


def test_what_costs_more_than_a_minutes_worth_is_paid_off(tmp_path: Path) -> None:
    clock = Clock()
    quotas = Quotas(str(tmp_path), clock)
    quotas.charge(key(minute=60), 180)
    assert refused(quotas, key(minute=60), 1).retry_after_s == pytest.approx(121)
    clock.now += 122
    quotas.charge(key(minute=60), 1)


def test_a_days_use_ends_at_midnight(tmp_path: Path) -> None:
    clock = Clock()
    quotas = Quotas(str(tmp_path), clock)
    quotas.charge(key(day=100), 60)
    error = refused(quotas, key(day=100), 50)
    assert (error.status, error.code, error.retry_after_s) == (429, "quota_exceeded", 0.75 * DAY)
    assert quotas.used_today(key(day=100)) == 60
    clock.now += 0.75 * DAY
    quotas.charge(key(day=100), 50)
    assert refused(quotas, key(day=100), 101).status == 400  # no day is long enough


def test_what_the_server_failed_at_is_given_back(tmp_path: Path) -> None:
    quotas = Quotas(str(tmp_path), Clock())
    quotas.charge(key(minute=60, day=60), 60)
    quotas.refund(key(minute=60, day=60), 60)
    quotas.charge(key(minute=60, day=60), 60)
    refused(quotas, key(minute=60, day=60), 1)


def test_gateways_add_up_and_a_restart_forgets_nothing(tmp_path: Path) -> None:
    clock = Clock()
    first, second = Quotas(str(tmp_path), clock), Quotas(str(tmp_path), clock)
    first.charge(key(day=100), 40)
    second.charge(key(day=100), 50)
    first.sync()
    second.sync()
    first.sync()
    assert first.used_today(key()) == second.used_today(key()) == 90
    again = Quotas(str(tmp_path), clock)
    assert again.stale
    again.sync()
    refused(again, key(day=100), 11)
    clock.now += 2 * DAY
    again.sync()
    assert again.used_today(key()) == 0
    assert list(tmp_path.iterdir()) == []


def test_only_what_counts_for_a_days_limit_is_written(tmp_path: Path) -> None:
    quotas = Quotas(str(tmp_path), Clock())
    for unlimited in (key(), key(minute=60, name="00000002")):
        quotas.charge(unlimited, 40)
        quotas.refund(unlimited, 10)
    quotas.flush()
    quotas.sync()
    assert list(tmp_path.iterdir()) == []
    assert quotas.used_today(key()) == 30
    quotas.charge(key(day=100, name="00000003"), 40)
    assert quotas.unwritten
    quotas.flush()
    assert not quotas.unwritten
    assert [path.parent.name for path in tmp_path.rglob("*.json")] == ["10"]


def test_a_broken_count_stops_nobody(tmp_path: Path) -> None:
    clock = Clock()
    quotas = Quotas(str(tmp_path), clock)
    quotas.charge(key(day=100), 40)
    quotas.sync()
    (tmp_path / "10" / "other.json").write_text("{")
    quotas.sync()
    assert quotas.used_today(key()) == 40


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(1, 60)), max_size=60))
def test_no_more_is_given_than_the_rate_and_one_bucket(asked: list[tuple[float, int]]) -> None:
    """And whoever waits as long as he was told gets it."""
    clock = Clock()
    quotas = Quotas("/nowhere", clock)
    begun, given_out = clock.now, 0
    for wait, cost in asked:
        clock.now += wait
        try:
            quotas.charge(key(minute=60), cost)
        except RequestError as error:
            clock.now += (error.retry_after_s or 0.0) + 1e-3
            quotas.charge(key(minute=60), cost)
        given_out += cost
        assert given_out <= 60 + (clock.now - begun) + 1e-6
