"""The rule by which domains have to be named."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation.cards.domains import Amount, largest


def domains(*sizes: int) -> dict[str, Amount]:
    return {f"d{i:05d}.example": Amount(1, size) for i, size in enumerate(sizes)}


def names(found: dict[str, Amount], *, sme: bool = False) -> list[str]:
    return [name for name, _ in largest(found, sme=sme).rows]


QUOTAS = [
    *((0, False, 0), (1, False, 1), (10, False, 1), (11, False, 2), (100, False, 10), (40_000, False, 4000)),
    *((1, True, 1), (20, True, 1), (21, True, 2), (19_999, True, 1000), (40_000, True, 1000)),
]


@pytest.mark.parametrize(("n", "sme", "quota"), QUOTAS)
def test_how_many_are_named(n: int, sme: bool, quota: int) -> None:
    found = largest(domains(*range(1, n + 1)), sme=sme)
    assert (found.quota, len(found.rows), found.others) == (quota, quota, n - quota)


def test_the_largest_are_named_by_size_and_not_by_rows() -> None:
    found = {"many.example": Amount(1000, 10), "large.example": Amount(1, 999)}
    assert names(found) == ["large.example"]


def test_equals_of_the_smallest_one_named_are_named_too() -> None:
    assert names(domains(9, 5, 5, 5, *[1] * 16)) == [
        "d00000.example",
        "d00001.example",
        "d00002.example",
        "d00003.example",
    ]
    assert largest(domains(9, 5, 5, 5, *[1] * 16)).quota == 2
    assert names(domains(9, 9, 5, *[1] * 17), sme=True) == ["d00000.example", "d00001.example"]


@given(st.lists(st.integers(0, 50), max_size=60), st.booleans())
def test_what_is_named_and_the_rest_are_everything(sizes: list[int], sme: bool) -> None:
    found = largest(domains(*sizes), sme=sme)
    assert len(found.rows) + found.others == len(sizes)
    assert sum(a.bytes for _, a in found.rows) + found.rest.bytes == sum(sizes)
    assert len(found.rows) >= found.quota
    named = [a.bytes for _, a in found.rows]
    assert named == sorted(named, reverse=True)
    assert len([s for s in sizes if named and s >= named[-1]]) == len(named)
