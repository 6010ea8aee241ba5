"""Who is answered by a challenger, and when it goes back: closed forms and laws."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from serving.canary import Outcome, Tally, place
from serving.rollout import CanaryConfig

CONFIG = CanaryConfig(min_requests=20, window=50, max_more_errors=0.1, max_more_blocks=0.2, max_slowdown=1.5)
FINE = Outcome(pictures=1, seconds=0.01)


def tally(champion: list[Outcome], challenger: list[Outcome], config: CanaryConfig = CONFIG) -> Tally:
    told = Tally(config)
    for version, outcomes in (("1", champion), ("2", challenger)):
        for outcome in outcomes:
            told.add(version, version == "2", outcome)
    return told


def mixed(many: int, of: Outcome, rest: int, other: Outcome = FINE) -> list[Outcome]:
    return [of] * many + [other] * rest


@given(st.text())
def test_a_place_is_a_place_for_ever(caller: str) -> None:
    assert 0 <= place(caller) < 1
    assert place(caller) == place(caller)


def test_places_are_spread_evenly() -> None:
    places = sorted(place(f"key-{k}") for k in range(4_000))
    # Kolmogorov-Smirnov at one in a million, of a fixed sample
    assert max(abs(p - k / 4_000) for k, p in enumerate(places)) < 2.7 / 4_000**0.5


def test_a_place_is_known() -> None:
    """Another release must not move callers to another version: sha256("a") begins with ca978112ca1bb."""
    assert place("a") == 0xCA978112CA1BB / 16**13


@given(st.floats(0.01, 0.99), st.floats(0.01, 0.99))
def test_a_larger_share_keeps_whom_a_smaller_one_had(one: float, other: float) -> None:
    less, more = sorted((one, other))
    callers = [f"key-{k}" for k in range(200)]
    assert {c for c in callers if place(c) < less} <= {c for c in callers if place(c) < more}


def test_more_failures_send_it_back() -> None:
    failed = Outcome(failed=True)
    assert tally([FINE] * 20, mixed(2, failed, 18)).returned() is None
    returned = tally([FINE] * 20, mixed(3, failed, 17)).returned()
    assert returned == ("2", "15.0% of its requests failed, of version 1's 0.0%")
    assert tally(mixed(2, failed, 18), mixed(4, failed, 16)).returned() is None


def test_more_withheld_pictures_send_it_back() -> None:
    withheld = Outcome(pictures=4, withheld=4, seconds=0.01)
    good = Outcome(pictures=4, seconds=0.01)
    assert tally([good] * 20, mixed(4, withheld, 16, good)).returned() is None
    returned = tally([good] * 20, mixed(5, withheld, 15, good)).returned()
    assert returned == ("2", "25.0% of its pictures were withheld, of version 1's 0.0%")


def test_slower_steps_send_it_back() -> None:
    for seconds, back in ((0.014, False), (0.016, True)):
        slow = Outcome(pictures=1, seconds=seconds)
        assert (tally([FINE] * 20, [slow] * 20).returned() is not None) == back
    assert tally([FINE] * 20, mixed(9, Outcome(pictures=1, seconds=9.0), 11)).returned() is None  # a few slow ones


def test_nothing_is_decided_on_a_few_requests() -> None:
    failed = Outcome(failed=True)
    assert tally([FINE] * 20, [failed] * 19).returned() is None
    assert tally([FINE] * 19, [failed] * 50).returned() is None
    assert tally([FINE] * 20, [failed] * 20).returned() is not None


def test_another_version_begins_anew() -> None:
    told = tally([FINE] * 20, [Outcome(failed=True)] * 20)
    told.add("3", True, FINE)
    assert told.returned() is None
    for _ in range(19):
        told.add("3", True, Outcome(failed=True))
    assert told.returned() == ("3", "95.0% of its requests failed, of version 1's 0.0%")


def test_only_the_newest_count() -> None:
    told = tally([FINE] * 50, [Outcome(failed=True)] * 50)
    for _ in range(50):
        told.add("2", True, FINE)
    assert told.returned() is None


OUTCOMES = st.lists(
    st.builds(
        Outcome,
        failed=st.booleans(),
        pictures=st.just(4),
        withheld=st.integers(0, 4),
        seconds=st.floats(0.001, 1.0),
    ),
    min_size=20,
    max_size=50,
)


@given(OUTCOMES)
def test_what_does_as_the_champion_does_stays(outcomes: list[Outcome]) -> None:
    assert tally(outcomes, outcomes).returned() is None


@given(OUTCOMES, st.randoms())
def test_the_order_of_requests_does_not_matter(outcomes: list[Outcome], random: st.DataObject) -> None:
    shuffled = list(outcomes)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert tally([FINE] * 20, outcomes).returned() == tally([FINE] * 20, shuffled).returned()
