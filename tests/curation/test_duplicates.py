"""Duplicates: the choice of the plain walk, no chains, one survivor, opt-outs that reach the copies."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from curation.duplicates import (
    Copies,
    CopyInputs,
    DuplicatesConfig,
    Edges,
    PerceptualConfig,
    SemanticConfig,
    find,
    near_pairs,
    preference,
)
from curation.duplicates.copies import turned_layouts
from curation.duplicates.edges import TURNED

Bound = tuple[int, int, float]  # row, kind, similarity


@st.composite
def pictures(draw: st.DrawFn, most: int = 40) -> CopyInputs:
    """Rows that are copies of some pictures, many of which resemble each other in one way or another."""
    n = draw(st.integers(1, most))
    chance = np.random.default_rng(draw(st.integers(0, 2**32)))
    hashes = [int(h) for h in chance.integers(0, 2**64, n, dtype=np.uint64)]

    def near(value: int) -> int:
        for bit in chance.integers(0, 64, chance.integers(0, 5)):
            value ^= 1 << int(bit)
        return value

    for i in range(1, n):
        if chance.random() < 0.6:
            hashes[i] = near(hashes[chance.integers(0, i)])
    turned = chance.integers(1, 2**64, (n, 7), dtype=np.uint64)
    for i in np.flatnonzero(chance.random(n) < 0.4):
        turned[i, chance.integers(0, 7)] = near(hashes[chance.integers(0, n)])
    turned[chance.random(n) < 0.2] = 0
    colours = chance.choice([0, 10, 20, 30], (n, 1)).astype(np.uint8) + np.zeros((1, 48), np.uint8)
    colours[:, 0] += chance.integers(0, 3, n, dtype=np.uint8)
    angles = chance.choice(np.linspace(0, 3, 30), n)
    embeddings = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float16)
    embeddings[chance.random(n) < 0.2] = 0
    rows = chance.integers(0, n, draw(st.integers(1, 2 * most)))
    file = chance.integers(0, 2, len(rows))
    return CopyInputs(
        np.array([f"{r}-{f}" for r, f in zip(rows, file, strict=True)]),
        np.array([str(r) for r in rows]),
        np.array(hashes, np.uint64)[rows],
        colours[rows],
        turned[rows],
        embeddings[rows],
    )


configs = st.builds(
    DuplicatesConfig,
    exact=st.booleans(),
    pixel=st.booleans(),
    perceptual=st.none() | st.builds(PerceptualConfig, radius=st.integers(0, 6), turned=st.booleans()),
    semantic=st.none() | st.builds(SemanticConfig, threshold=st.sampled_from([None, 0.95, 0.999])),
)


def copies(rows: CopyInputs, config: DuplicatesConfig, edges: Edges | None = None) -> Copies:
    return Copies(
        rows.ids,
        rows.pixel_hashes,
        rows.phashes,
        rows.colours,
        config,
        turned=rows.turned,
        embeddings=rows.embeddings,
        edges=edges,
    )


def compare(rows: CopyInputs, i: int, j: int, config: DuplicatesConfig) -> list[Bound]:
    """By the definitions, one pair at a time: all that makes j a copy of i, the strongest kind first."""
    found: list[Bound] = []
    same = rows.pixel_hashes[i] == rows.pixel_hashes[j]
    if same and config.exact and rows.ids[i] == rows.ids[j]:
        found.append((j, 0, 1.0))
    if same and config.pixel:
        found.append((j, 1, 1.0))
    if config.perceptual is not None:
        assert rows.turned is not None
        radius, colour = config.perceptual.radius, config.perceptual.colour
        apart = np.abs(rows.colours[j].astype(int) - rows.colours[i]).mean() / 255
        distance = int(rows.phashes[i] ^ rows.phashes[j]).bit_count()
        if distance <= radius and apart <= colour:
            found.append((j, 2, 1 - distance / 64))
        distances = [int(t ^ rows.phashes[b]).bit_count() for a, b in ((i, j), (j, i)) for t in rows.turned[a] if t]
        apart = min(
            np.abs(layout.astype(int) - rows.colours[j]).mean() / 255 for layout in turned_layouts(rows.colours[i])
        )
        if config.turned and distances and min(distances) <= radius and apart <= colour:
            found.append((j, 2, 1 - min(distances) / 64))
    if config.semantic is not None and config.semantic.threshold is not None:
        assert rows.embeddings is not None
        cosine = np.float32(min(1.0, float(rows.embeddings[i].astype(float) @ rows.embeddings[j].astype(float))))
        if same or cosine >= np.float32(config.semantic.threshold):
            found.append((j, 3, 1.0 if same else float(cosine)))
    return found


@settings(max_examples=300, deadline=None)
@given(rows=pictures(), config=configs, seed=st.integers(0, 2**32))
def test_the_plain_walk_chooses_the_same(rows: CopyInputs, config: DuplicatesConfig, seed: int) -> None:
    chance = np.random.default_rng(seed)
    candidates = chance.random(len(rows)) < 0.8
    order = chance.permutation(len(rows))
    expected: dict[int, Bound] = {}
    free = candidates.copy()
    for row in order:
        if not free[row]:
            continue
        free[row] = False
        for other in np.flatnonzero(free):
            for _, kind, similarity in compare(rows, row, other, config)[:1]:
                free[other] = False
                expected[int(other)] = (int(row), kind, similarity)
    bound = copies(rows, config).elect(candidates, order)
    assert {
        int(i): (int(bound.of[i]), int(bound.kind[i]), float(bound.similarity[i]))
        for i in np.flatnonzero(bound.of >= 0)
    } == expected
    clusters = bound.clusters()
    for row in range(len(rows)):
        stays_for_others = any(to == row for to, _, _ in expected.values())
        assert clusters[row] == (expected[row][0] if row in expected else row if stays_for_others else -1)


@settings(max_examples=200, deadline=None)
@given(rows=pictures(), config=configs, seed=st.integers(0, 2**32))
def test_an_optout_reaches_all_its_copies_and_nothing_else(
    rows: CopyInputs, config: DuplicatesConfig, seed: int
) -> None:
    marked = np.random.default_rng(seed).random(len(rows)) < 0.3
    bound = copies(rows, config).spread(marked)
    for row in range(len(rows)):
        found = [
            (kind, -similarity)
            for m in np.flatnonzero(marked)
            for _, kind, similarity in compare(rows, m, row, config)
            if kind < 3
        ]
        if marked[row] or not found:
            assert bound.of[row] == -1
        else:
            assert marked[bound.of[row]]
            assert (bound.kind[row], -bound.similarity[row]) == min(found)
            assert min(found) in [(k, -s) for _, k, s in compare(rows, bound.of[row], row, config)]


@settings(max_examples=100, deadline=None)
@given(rows=pictures(), config=configs, seed=st.integers(0, 2**32))
def test_thresholds_move_without_another_search(rows: CopyInputs, config: DuplicatesConfig, seed: int) -> None:
    wide = DuplicatesConfig(perceptual=PerceptualConfig(radius=6, turned=True), semantic=SemanticConfig())
    edges = find(rows, wide)
    assert edges.covers(config)
    order = np.random.default_rng(seed).permutation(len(rows))
    everyone = np.ones(len(rows), bool)
    kept, anew = (copies(rows, config, e).elect(everyone, order) for e in (edges, None))
    for one, other in zip((kept.of, kept.kind, kept.similarity), (anew.of, anew.kind, anew.similarity), strict=True):
        assert np.array_equal(one, other)


def rows_of(phashes: list[int], ids: list[str] | None = None) -> CopyInputs:
    pixels = [str(h) for h in phashes]  # as in life: equal pixels have equal perceptual hashes
    colours = np.zeros((len(phashes), 48), np.uint8)
    return CopyInputs(np.array(ids or pixels), np.array(pixels), np.array(phashes, np.uint64), colours)


@settings(max_examples=100, deadline=None)
@given(rows=pictures(), seed=st.integers(0, 2**32))
def test_what_stays_is_apart(rows: CopyInputs, seed: int) -> None:
    rows = replace(rows, colours=np.zeros_like(rows.colours))
    bound = copies(rows, DuplicatesConfig()).elect(
        np.ones(len(rows), bool), np.random.default_rng(seed).permutation(len(rows))
    )
    a, _ = near_pairs(rows.phashes[bound.of < 0], 3)
    assert len(a) == 0


def test_the_preferred_copy_stays_and_the_kind_is_told() -> None:
    rows = rows_of([0, 0, 0, 0b111, 2**40 - 1], ["a", "a", "b", "c", "d"])
    bound = copies(rows, DuplicatesConfig()).elect(np.ones(5, bool), np.array([2, 0, 1, 3, 4]))
    assert bound.of.tolist() == [2, 2, -1, 2, -1]
    assert [bound.kind[i] for i in (0, 1, 3)] == [1, 1, 2]
    assert bound.similarity[3] == np.float32(1 - 3 / 64)
    exact = copies(rows, DuplicatesConfig(pixel=False, perceptual=None))
    assert exact.elect(np.ones(5, bool), np.arange(5)).of.tolist() == [-1, 0, -1, -1, -1]
    assert exact.of(0) == [(1, 0, 1.0)]


def test_a_mirrored_copy_is_one_only_when_asked_for() -> None:
    chance = np.random.default_rng(0)
    hashes, layout = chance.integers(1, 2**64, 8, dtype=np.uint64), chance.integers(0, 256, 48, dtype=np.uint8)
    turned = np.stack([hashes[1:], np.roll(hashes, -1)[:-1]])
    mirrored = layout.reshape(4, 4, 3)[:, ::-1].reshape(48)
    names = np.array(["a", "b"])
    plain, asked = (DuplicatesConfig(perceptual=PerceptualConfig(turned=t)) for t in (False, True))
    rows = CopyInputs(
        names, names, np.array([hashes[0], hashes[3] ^ np.uint64(4)]), np.stack([layout, mirrored]), turned
    )
    assert copies(rows, plain).of(0) == []
    assert copies(rows, asked).of(0) == [(1, 2, 1 - 1 / 64)]
    assert copies(rows, asked).of(1) == [(0, 2, 1 - 1 / 64)]
    # A symmetric picture looks the same from several sides: one edge, of the nearest.
    symmetric = np.stack([np.full(7, hashes[3]), np.zeros(7, np.uint64)])
    symmetric[0, 4] ^= np.uint64(3)
    found = find(replace(rows, turned=symmetric), asked).of(TURNED)
    assert [column.tolist() for column in found] == [[0], [1], [1 - 1 / 64]]
    # The same hashes, but no turn of one has the colours of the other.
    assert copies(replace(rows, colours=np.stack([layout, 255 - layout])), asked).of(0) == []


@pytest.mark.parametrize("alike", [False, True])
def test_a_hundred_thousand_blank_pictures_cost_nothing_quadratic(alike: bool) -> None:
    """The same bytes, or every one of other pixels with the same hash."""
    n = 100_000
    pixels = np.zeros(n, np.int64) if alike else np.arange(n)
    names = np.array([f"{p:064x}" for p in pixels], "S64")
    begun = time.process_time()
    found = Copies(names, names, np.zeros(n, np.uint64), np.zeros((n, 48), np.uint8), DuplicatesConfig())
    assert (found.elect(np.ones(n, bool), np.arange(n)).of >= 0).sum() == n - 1
    assert (found.spread(np.arange(n) == 7).of >= 0).sum() == n - 1
    assert time.process_time() - begun < 10


def test_colours_tell_shapes_apart() -> None:
    rows = rows_of([0, 1])
    for shift, expected in ((60, []), (10, [(1, 2, 1 - 1 / 64)])):
        colours = np.zeros((2, 48), np.uint8)
        colours[1] = shift
        assert copies(replace(rows, colours=colours), DuplicatesConfig()).of(0) == expected


def test_semantic_neighbours_do_not_spread_optouts() -> None:
    rows = replace(rows_of([0, 2**64 - 1]), embeddings=np.array([[1, 0], [1, 0]], np.float16))
    config = DuplicatesConfig(semantic=SemanticConfig(threshold=0.95))
    found = copies(rows, config)
    assert found.of(0) == [(1, 3, 1.0)]
    assert found.elect(np.ones(2, bool), np.arange(2)).of.tolist() == [-1, 0]
    assert found.spread(np.array([True, False])).of.tolist() == [-1, -1]
    kept = copies(rows, DuplicatesConfig(semantic=SemanticConfig()))
    assert kept.of(0) == [], "without a threshold neighbours are only stored"


def test_the_nearest_has_other_pixels() -> None:
    embeddings = np.array([[1, 0], [1, 0], [0.8, 0.6], [0.6, 0.8], [0, 0]], np.float16)
    rows = replace(rows_of([0, 0, 2**20 - 1, 2**40 - 1, 2**60 - 1]), embeddings=embeddings)
    nearest, cosine = find(rows, DuplicatesConfig(semantic=SemanticConfig(floor=0.5))).nearest()
    assert nearest.tolist() == [2, 2, 3, 2, -1]
    assert cosine == pytest.approx([0.8, 0.8, 0.96, 0.96, 0], abs=1e-3)


def test_edges_are_stored_and_know_what_they_cover(tmp_path: Path) -> None:
    rows = replace(rows_of([0, 1, 3, 3]), embeddings=np.array([[1, 0], [1, 0], [0, 1], [0, 1]], np.float16))
    config = DuplicatesConfig(semantic=SemanticConfig())
    uri = str(tmp_path / "edges")
    assert Edges.read(uri) is None
    edges = find(rows, config)
    edges.write(uri)
    again = Edges.read(uri)
    assert again is not None
    for name in ("same_bytes", "same_pixels", "same_hash", "a", "b", "kind", "similarity"):
        assert np.array_equal(getattr(again, name), getattr(edges, name))
        assert getattr(again, name).dtype == getattr(edges, name).dtype
    assert again.covers(config)
    assert again.covers(DuplicatesConfig(perceptual=PerceptualConfig(radius=1, colour=1)))
    assert again.covers(DuplicatesConfig(perceptual=None, semantic=SemanticConfig(threshold=0.95)))
    wider = DuplicatesConfig(perceptual=PerceptualConfig(radius=4))
    for more in (wider, DuplicatesConfig(perceptual=PerceptualConfig(turned=True)), {"floor": 0.5}):
        if isinstance(more, dict):
            more = DuplicatesConfig(semantic=SemanticConfig.model_validate(more))
        assert not again.covers(more)
    with pytest.raises(ValueError, match="narrower"):
        copies(rows, wider, again)


def test_the_key_says_what_was_searched() -> None:
    rows = rows_of([0, 1, 3, 3])
    key = rows.key()
    assert rows_of([0, 1, 3, 3]).key() == key
    assert replace(rows, colours=rows.colours + np.uint8(1)).key() == key, "colours are compared afterwards"
    others = [rows_of([0, 1, 3, 2]), rows_of([0, 1, 3, 3], ["a", "b", "b", "d"])]
    others += [replace(rows, turned=np.ones((4, 7), np.uint64)), replace(rows, embeddings=np.ones((4, 2), np.float16))]
    assert len({key, *(other.key() for other in others)}) == 5


def test_preference_is_lexicographic_and_ends_with_the_order() -> None:
    ranks = {"licence": np.array([1, 0, 0, 1]), "resolution": np.array([-9, -1, -1, -9])}
    assert preference(("resolution", "order"), ranks).tolist() == [0, 3, 1, 2]
    assert preference(("licence", "resolution"), ranks).tolist() == [1, 2, 0, 3]
    assert preference(("order", "licence"), ranks).tolist() == [0, 1, 2, 3]
    assert preference((), ranks).tolist() == [0, 1, 2, 3]
    assert preference(("licence",), ranks, first=np.array([1, 1, 1, 0])).tolist() == [3, 1, 2, 0]


def test_a_threshold_below_the_floor_is_refused() -> None:
    with pytest.raises(ValidationError, match="floor"):
        DuplicatesConfig.model_validate({"semantic": {"threshold": 0.8, "floor": 0.9}})


def test_no_rows_at_all() -> None:
    none = CopyInputs(np.array([], "S64"), np.array([], "S64"), np.zeros(0, np.uint64), np.zeros((0, 48), np.uint8))
    found = copies(none, DuplicatesConfig(semantic=SemanticConfig(threshold=0.9)))
    assert len(found.elect(np.zeros(0, bool), np.zeros(0, np.int64)).of) == 0
    assert len(found.spread(np.zeros(0, bool)).of) == 0
