"""Semantic neighbours: the same as all with all for small sets, nearly all of them in clusters for large ones."""

from __future__ import annotations

import numpy as np
import pytest

from curation.duplicates.semantic import Neighbours, SemanticConfig, assign, fit, neighbours


def unit(vectors: np.ndarray) -> np.ndarray:
    lengths: np.ndarray = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / lengths


def clustered(n: int, dim: int = 64, group: int = 3, spread: float = 0.25) -> np.ndarray:
    """Embeddings in topics, and in them in groups of near-copies."""
    chance = np.random.default_rng(n)
    topics = unit(chance.normal(size=(30, dim)))
    groups = unit(topics[chance.integers(0, 30, n // group)] + 0.8 * unit(chance.normal(size=(n // group, dim))))
    rows = np.repeat(groups, group, axis=0) + spread * unit(chance.normal(size=(n // group * group, dim)))
    return unit(chance.permutation(rows)).astype(np.float16)


def pairs(found: Neighbours) -> dict[tuple[int, int], float]:
    return {(int(a), int(b)): float(s) for a, b, s in zip(*found, strict=True)}


def test_a_small_set_is_compared_in_full() -> None:
    vectors = clustered(600)
    vectors[::50] = 0
    exact = np.minimum(vectors.astype(np.float64) @ vectors.T.astype(np.float64), 1).astype(np.float32)
    a, b = np.nonzero(np.triu(exact >= np.float32(0.8), 1))
    found = pairs(neighbours(vectors, SemanticConfig(floor=0.8)))
    assert found == {(i, j): exact[i, j] for i, j in zip(a.tolist(), b.tolist(), strict=True)}
    assert len(found) > 400


@pytest.mark.parametrize("floor", [0.8, 0.9])
def test_clusters_miss_few_pairs_and_invent_none(floor: float) -> None:
    vectors = clustered(9000)
    exact = pairs(neighbours(vectors, SemanticConfig(floor=floor)))
    found = pairs(neighbours(vectors, SemanticConfig(floor=floor, exact_below=0, sample=3000)))
    assert len(exact) > 8000
    assert found.items() <= exact.items(), "with the same cosines to the bit"
    assert len(found) >= 0.98 * len(exact)  # 0.995 when this was written


def test_the_second_centroid_finds_what_a_boundary_parts() -> None:
    vectors = clustered(9000)
    config = SemanticConfig(floor=0.8, exact_below=0, sample=3000)
    homes = assign(vectors, fit(vectors, np.arange(len(vectors)), config))
    a, b, _ = neighbours(vectors, config.model_copy(update={"exact_below": 9000}))
    parted = homes[a, 0] != homes[b, 0]
    found = pairs(neighbours(vectors, config))
    assert parted.sum() > 100
    missed = sum(pair not in found for pair in zip(a[parted].tolist(), b[parted].tolist(), strict=True))
    assert missed < 0.5 * parted.sum()


def test_a_crowd_keeps_the_nearest_of_each() -> None:
    angles = np.arange(40) / 400
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float16)
    found = pairs(neighbours(vectors, SemanticConfig(neighbours=2)))
    twice = SemanticConfig(neighbours=2, exact_below=0, clusters=2)  # all rows lie in both clusters
    assert pairs(neighbours(vectors, twice)) == found
    everything = pairs(neighbours(vectors, SemanticConfig()))
    assert len(everything) == 780
    assert len(found) <= 80
    for row in range(40):
        own = [similarity for pair, similarity in everything.items() if row in pair]
        kept = [similarity for pair, similarity in found.items() if row in pair]
        assert max(own) == max(kept)


def test_rows_without_a_picture_have_no_neighbours() -> None:
    for config in (SemanticConfig(), SemanticConfig(exact_below=0, clusters=3)):
        assert [len(column) for column in neighbours(np.zeros((5, 8), np.float16), config)] == [0, 0, 0]
        assert [len(column) for column in neighbours(np.zeros((0, 8), np.float16), config)] == [0, 0, 0]
        one = np.eye(5, 8, dtype=np.float16)
        one[3] = one[1]
        one[4] = 0
        assert pairs(neighbours(one, config)) == {(1, 3): 1.0}
