"""Duplicates: full recall, no chains, one survivor, opt-outs that reach the copies."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.duplicates import Copies, DuplicatesConfig, PerceptualConfig, near_pairs

hashes = st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=40)


@st.composite
def clustered(draw: st.DrawFn) -> np.ndarray:
    """Hashes of which many lie a few bits from another."""
    values = draw(hashes)
    for _ in range(draw(st.integers(0, 40))):
        bits = draw(st.sets(st.integers(0, 63), max_size=6))
        values.append(values[draw(st.integers(0, len(values) - 1))] ^ sum(1 << b for b in bits))
    return np.array(values, np.uint64)


def copies_of(phashes: np.ndarray, names: list[str] | None = None, **config: object) -> Copies:
    names = names or [str(i) for i in range(len(phashes))]
    pixels = np.array([str(h) for h in phashes])  # as in life: equal pixels have equal perceptual hashes
    colours = np.zeros((len(phashes), 48), np.uint8)
    return Copies(np.array(names), pixels, phashes, colours, DuplicatesConfig.model_validate(config))


@settings(max_examples=200, deadline=None)
@given(values=clustered(), radius=st.integers(0, 8))
def test_banding_finds_every_pair_and_only_those(values: np.ndarray, radius: int) -> None:
    distance = np.bitwise_count(values[:, None] ^ values[None, :])
    expected = set(zip(*np.nonzero(np.triu(distance <= radius, 1)), strict=True))
    assert set(zip(*near_pairs(values, radius), strict=True)) == expected


@settings(max_examples=200, deadline=None)
@given(values=clustered(), seed=st.integers(0, 2**32))
def test_every_duplicate_is_near_one_that_stays_and_those_are_apart(values: np.ndarray, seed: int) -> None:
    chance = np.random.default_rng(seed)
    candidates = chance.random(len(values)) < 0.8
    preference = chance.permutation(len(values))
    bound = copies_of(values, perceptual=PerceptualConfig(radius=3)).elect(candidates, preference)
    stays = candidates & (bound.of < 0)
    for row in np.flatnonzero(bound.of >= 0):
        assert candidates[row]
        assert stays[bound.of[row]]
        assert int(values[row] ^ values[bound.of[row]]).bit_count() <= 3
    a, b = near_pairs(values[stays], 3)
    assert len(a) == len(b) == 0


@settings(max_examples=100, deadline=None)
@given(values=clustered(), seed=st.integers(0, 2**32))
def test_an_optout_reaches_all_its_copies_and_nothing_else(values: np.ndarray, seed: int) -> None:
    marked = np.random.default_rng(seed).random(len(values)) < 0.3
    bound = copies_of(values).spread(marked)
    distance = np.bitwise_count(values[:, None] ^ values[None, :])
    expected = (distance[:, marked] <= 3).any(axis=1) & ~marked if marked.any() else np.zeros(len(values), bool)
    assert ((bound.of >= 0) == expected).all()
    assert marked[bound.of[bound.of >= 0]].all()


def test_the_preferred_copy_stays_and_the_kind_is_told() -> None:
    values = np.array([0, 0, 0, 0b111, 2**40 - 1], np.uint64)
    found = copies_of(values, ["a", "a", "b", "c", "d"])
    bound = found.elect(np.ones(5, bool), np.array([2, 0, 1, 3, 4]))
    assert bound.of.tolist() == [2, 2, -1, 2, -1]
    assert [bound.kind[i] for i in (0, 1, 3)] == [1, 1, 2]
    assert bound.similarity[3] == np.float32(1 - 3 / 64)
    exact = copies_of(values, ["a", "a", "b", "c", "d"], pixel=False, perceptual=None)
    assert exact.elect(np.ones(5, bool), np.arange(5)).of.tolist() == [-1, 0, -1, -1, -1]


def test_ten_thousand_copies_are_one_class() -> None:
    values = np.zeros(10_000, np.uint64)
    found = copies_of(values)
    assert (found.elect(np.ones(len(values), bool), np.arange(len(values))).of >= 0).sum() == 9_999
    assert (found.spread(np.arange(len(values)) == 7).of >= 0).sum() == 9_999


def test_colours_tell_shapes_apart() -> None:
    colours = np.zeros((2, 48), np.uint8)
    colours[1] = 60
    config = DuplicatesConfig()
    found = Copies(np.array(["a", "b"]), np.array(["p", "q"]), np.zeros(2, np.uint64), colours, config)
    assert list(found.of(0)) == []
    colours[1] = 10
    found = Copies(np.array(["a", "b"]), np.array(["p", "q"]), np.zeros(2, np.uint64), colours, config)
    assert [other for other, _, _ in found.of(0)] == [1]
