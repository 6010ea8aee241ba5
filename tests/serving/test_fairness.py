"""Turns: shares are equal over rows, nobody is served twice in a pass, and nobody starves."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from serving.fairness import DeficitRoundRobin


@dataclass(frozen=True)
class Picture:
    flow: str
    request: int
    number: int
    rows: int = 2
    bucket: str = "16x16"


def queue_of(*pictures: Picture) -> DeficitRoundRobin[Picture]:
    queue: DeficitRoundRobin[Picture] = DeficitRoundRobin()
    for picture in pictures:
        queue.add(picture.flow, picture.request, picture)
    return queue


def passes(queue: DeficitRoundRobin[Picture], capacity: int, count: int) -> list[list[Picture]]:
    return [queue.select(capacity) for _ in range(count)]


def test_a_flow_with_many_pictures_gets_no_more_than_one_with_few() -> None:
    greedy = [Picture("greedy", request, number) for request in range(5) for number in range(10)]
    queue = queue_of(*greedy, Picture("modest", 0, 0), Picture("modest", 1, 0))
    rows = Counter(picture.flow for share in passes(queue, 4, 50) for picture in share)
    assert rows == {"greedy": 50, "modest": 50}


def test_rows_are_shared_not_pictures() -> None:
    guided = [Picture("guided", 0, number, rows=2) for number in range(8)]
    plain = [Picture("plain", 0, number, rows=1) for number in range(8)]
    shares = passes(queue_of(*guided, *plain), 6, 60)
    rows = Counter[str]()
    for picture in (picture for share in shares for picture in share):
        rows[picture.flow] += picture.rows
    assert abs(rows["guided"] - rows["plain"]) <= 4


def test_what_others_leave_is_used() -> None:
    queue = queue_of(*(Picture("many", 0, number) for number in range(8)), Picture("one", 0, 0))
    shares = passes(queue, 8, 10)
    assert all(len(share) == 4 for share in shares)
    assert all(any(picture.flow == "one" for picture in share) for share in shares)


def test_within_a_flow_requests_take_turns_and_within_those_pictures() -> None:
    queue = queue_of(*(Picture("key", 0, number) for number in range(4)), Picture("key", 1, 0))
    order = [picture for share in passes(queue, 2, 8) for picture in share]
    assert [picture.request for picture in order] == [0, 1] * 4
    assert [picture.number for picture in order if picture.request == 0] == [0, 1, 2, 3]


def test_buckets_take_turns() -> None:
    small = [Picture(f"s{n}", 0, 0, bucket="small") for n in range(4)]
    large = [Picture(f"l{n}", 0, 0, bucket="large") for n in range(2)]
    shares = passes(queue_of(*small, *large), 16, 10)
    assert all(len({picture.bucket for picture in share}) == 1 for share in shares)
    assert Counter(share[0].bucket for share in shares) == {"small": 5, "large": 5}


def test_a_flow_of_two_buckets_does_not_keep_its_turn() -> None:
    two = [Picture("two", 0, 0, rows=1, bucket="small"), Picture("two", 0, 1, bucket="large")]
    shares = passes(queue_of(*two, Picture("one", 0, 0, bucket="large")), 2, 12)
    assert sum(picture.flow == "one" for share in shares for picture in share) >= 4


def test_a_pass_has_a_picture_even_where_one_is_too_large_for_it() -> None:
    assert len(queue_of(Picture("a", 0, 0, rows=2)).select(1)) == 1


MOVES = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 3), st.integers(0, 2), st.sampled_from([1, 2]), st.sampled_from("ab")),
        st.tuples(st.just("pass"), st.integers(1, 9)),
        st.tuples(st.just("remove"), st.integers(0, 10)),
    ),
    max_size=60,
)


@given(moves=MOVES)
def test_any_mix_is_served_once_a_pass_within_the_rows_and_without_starving(moves: list[tuple[object, ...]]) -> None:
    queue = queue_of()
    there: list[Picture] = []
    waited: Counter[Picture] = Counter()
    for number, (kind, *told) in enumerate(moves):
        if kind == "add":
            flow, request, rows, bucket = told
            there.append(Picture(str(flow), int(str(request)), number, int(str(rows)), str(bucket)))
            queue.add(there[-1].flow, there[-1].request, there[-1])
        elif kind == "remove" and there:
            gone = there.pop(int(str(told[0])) % len(there))
            queue.remove(gone.flow, gone.request, gone)
            del waited[gone]
        elif kind == "pass":
            share = queue.select(int(str(told[0])))
            assert len(set(share)) == len(share)
            assert set(share) <= set(there)
            assert bool(share) == bool(there)
            assert len(share) <= 1 or sum(picture.rows for picture in share) <= int(str(told[0]))
            assert len({picture.bucket for picture in share}) <= 1
            waited.update(there)
            for picture in share:
                waited[picture] = 0
    for _ in range(2 * len(there) * 3 + 1):
        for picture in queue.select(2):
            waited[picture] = 0
        waited.update(there)
    assert all(count <= 6 * len(there) + 1 for picture, count in waited.items() if picture in there)
