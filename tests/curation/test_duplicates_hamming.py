"""Pairs within a Hamming radius: none missed, none invented, at no quadratic cost."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.duplicates.classes import digests, first_equal
from curation.duplicates.groups import Groups
from curation.duplicates.hamming import between, choose_blocks, near_pairs, near_values, pairs_in_table, plan


@st.composite
def clustered(draw: st.DrawFn) -> np.ndarray:
    """Hashes of which many are equal to another or lie a few bits from it, and of which some bits may never vary."""
    mask = draw(st.sampled_from([2**64 - 1, 2**20 - 1, 0xFF00FF00FF00FF00]))
    values = [v & mask for v in draw(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=40))]
    for _ in range(draw(st.integers(0, 40))):
        bits = draw(st.sets(st.integers(0, 63), max_size=6))
        values.append(values[draw(st.integers(0, len(values) - 1))] ^ (sum(1 << b for b in bits) & mask))
    return np.array(values, np.uint64)


def random_hashes(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**64, n, dtype=np.uint64)


def distances(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return np.bitwise_count(left[:, None] ^ right[None, :])


@settings(max_examples=200, deadline=None)
@given(values=clustered(), radius=st.integers(0, 15))
def test_every_pair_and_only_those_in_order(values: np.ndarray, radius: int) -> None:
    expected = np.nonzero(np.triu(distances(values, values) <= radius, 1))
    assert np.array_equal(near_pairs(values, radius), expected)


@settings(max_examples=100, deadline=None)
@given(left=clustered(), right=clustered(), radius=st.integers(0, 8))
def test_pairs_between_two_arrays(left: np.ndarray, right: np.ndarray, radius: int) -> None:
    right = np.append(right, left[:3])
    assert np.array_equal(between(left, right, radius), np.nonzero(distances(left, right) <= radius))


@pytest.mark.parametrize("radius", range(6))
def test_tables_find_what_comparing_all_with_all_finds(radius: int) -> None:
    chance = np.random.default_rng(radius)
    values = random_hashes(6000)
    for _ in range(6):  # half of them lie 0 to 6 bits from the other half
        values[3000:] = np.where(chance.random(3000) < 0.6, values[3000:], values[:3000])
        values[3000:] ^= np.uint64(1) << chance.integers(0, 64, 3000, dtype=np.uint64)
    tables = plan(np.unique(values), radius)
    assert all(table.key_bits > 0 for table in tables), "or this test shows nothing"
    expected = np.nonzero(np.triu(distances(values, values) <= radius, 1))
    assert np.array_equal(near_pairs(values, radius), expected)


@settings(max_examples=100, deadline=None)
@given(values=clustered(), radius=st.integers(0, 5))
def test_tables_for_many_find_the_pairs_of_a_few_that_share_keys(values: np.ndarray, radius: int) -> None:
    values = np.unique(values)
    tables = plan(random_hashes(6000), radius)
    found = [pairs_in_table(table.move(values, values.copy()), tables, i, radius) for i, table in enumerate(tables)]
    x, y = (np.concatenate(column) for column in zip(*found, strict=True))
    pairs = zip(np.searchsorted(values, np.minimum(x, y)), np.searchsorted(values, np.maximum(x, y)), strict=True)
    expected = zip(*np.nonzero(np.triu(distances(values, values) <= radius, 1)), strict=True)
    assert sorted(pairs) == list(expected)


def test_each_pair_comes_from_one_table_only() -> None:
    values = np.unique(np.append(random_hashes(5000), random_hashes(5000) ^ np.uint64(1 << 40)))
    tables = plan(values, 3)
    found = [pairs_in_table(table.move(values, values.copy()), tables, i, 3) for i, table in enumerate(tables)]
    x, y = (np.concatenate(column) for column in zip(*found, strict=True))
    pairs = set(zip(np.minimum(x, y).tolist(), np.maximum(x, y).tolist(), strict=True))
    assert len(pairs) == len(x) >= 5000


def test_hashes_that_resemble_each_other_are_cut_by_their_other_bits() -> None:
    # All share 44 bits: every key of the plan for random hashes would be one group.
    values = np.unique(np.random.default_rng(1).integers(0, 2**20, 4000).astype(np.uint64) << np.uint64(11))
    values = np.append(values, random_hashes(50_000))
    x, _ = near_values(values, 2)
    alike = values[:-50_000]
    expected = (distances(alike, alike) <= 2).sum() - len(alike)
    assert len(x) == expected // 2


def test_equal_hashes_are_searched_for_once() -> None:
    begun = time.process_time()
    groups = Groups.of(np.repeat(random_hashes(10), 100_000))
    assert groups.sizes.tolist() == [100_000] * 10
    assert len(near_values(groups.values, 3)[0]) == 0
    assert time.process_time() - begun < 5, "10^11 comparisons would take minutes"


def test_more_hashes_get_longer_keys() -> None:
    """Keys grow with the number of hashes, so that the pairs to check stay below some per hash."""
    for n in (10**5, 10**6, 10**7, 10**8):
        blocks = choose_blocks(n, 3, 64)
        assert n / 2 ** (64 * (blocks - 3) // blocks + 1) < 2
    assert choose_blocks(10**5, 3, 64) < choose_blocks(10**7, 3, 64)
    assert choose_blocks(100, 3, 64) == 0


@settings(max_examples=100, deadline=None)
@given(values=clustered())
def test_groups_are_rows_by_value(values: np.ndarray) -> None:
    groups = Groups.of(values)
    assert np.array_equal(groups.values, np.unique(values))
    assert np.array_equal(groups.rows, np.argsort(values, kind="stable"))
    assert np.array_equal(groups.spread(groups.first), [values.tolist().index(v) for v in values.tolist()])


def test_groups_of_values_that_share_their_high_bits() -> None:
    values = np.random.default_rng(0).integers(0, 50, 5000).astype(np.uint64)
    assert np.array_equal(Groups.of(values).rows, np.argsort(values, kind="stable"))


def test_classes_go_by_all_bits() -> None:
    words = np.zeros((6, 4), np.uint64)
    words[:, 3] = [0, 1, 0, 2, 1, 0]  # the same first word
    assert first_equal(words).tolist() == [0, 1, 0, 3, 1, 0]
    texts = [f"{i % 7:064x}" for i in range(20)]
    assert digests(np.array(texts))[:7, 3].tolist() == list(range(7))
    for form in (np.array(texts), np.array(texts, "S64"), np.array([f"name {i % 7}" for i in range(20)])):
        assert first_equal(digests(form)).tolist() == [i % 7 for i in range(20)]
    assert len(digests(np.array([], "S64"))) == len(digests(np.array([], "U64"))) == 0
    # What is not lower-case hexadecimal is not decoded, so that no two strings become one.
    assert first_equal(digests(np.array(["a" * 64, "A" * 64, "a" * 64]))).tolist() == [0, 1, 0]
