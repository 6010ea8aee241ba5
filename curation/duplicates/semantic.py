"""Semantic neighbours: pictures whose CLIP embeddings are close, found inside clusters of a sampled k-means.

As SemDeDup does it (Abbas et al. 2023, arXiv 2303.09540), with two differences. A row lies in the clusters of its two
nearest centroids, because a pair that a boundary parts would else be missed. And nothing is dropped here: every pair
above a floor is given with its cosine, so a threshold is policy and moves without another search.

The arithmetic is exact: float16 values are multiples of 2^-24, so sums of their products fit in a float64 without
rounding, in whatever order a BLAS takes them. Results have the same bits on any number of threads.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

_ROUNDS = 10
_BLOCK = 4096  # vectors turned into float64 at a time
_CELLS = 1 << 22  # cosines held at a time

Neighbours = tuple[np.ndarray, np.ndarray, np.ndarray]


class SemanticConfig(BaseModel):
    """Which embeddings count as close, and how they are searched for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    threshold: float | None = Field(
        None, gt=0, le=1, description="cosine from which a picture is a duplicate; null stores neighbours, drops none"
    )
    floor: float = Field(0.9, gt=0, le=1, description="cosine from which neighbours are stored: the least threshold")
    neighbours: int = Field(100, ge=1, description="neighbours stored of a picture, the nearest first")
    clusters: int | None = Field(None, ge=1, description="clusters of the k-means; null: sqrt(N)")
    sample: int = Field(100_000, ge=1, description="embeddings that the k-means is fitted to")
    exact_below: int = Field(20_000, ge=0, description="up to so many embeddings all are compared with all")
    seed: int | None = Field(None, ge=0, description="of which embeddings are sampled; null: the job's")

    @model_validator(mode="after")
    def _floor_is_below(self) -> SemanticConfig:
        if self.threshold is not None and self.threshold < self.floor:
            raise ValueError(f"threshold {self.threshold} lies below the floor {self.floor} of what is stored")
        return self

    def search(self) -> dict[str, Any]:
        """What the stored neighbours depend on: all but the threshold."""
        fields: dict[str, Any] = self.model_dump(exclude={"threshold"})
        return fields


def neighbours(vectors: np.ndarray, config: SemanticConfig) -> Neighbours:
    """Pairs of embeddings whose cosine is at least `config.floor`.

    On 20,000 vectors in groups as tight as near-copies are (cosine 0.9 and above within a group), two centroids find
    more than 0.99 of the pairs of an exact search (tests/curation/test_duplicates_semantic.py).

    Args:
        vectors: (N, D) float16, L2-normalised; rows of zeros have no neighbours.

    Returns:
        a, b: (P,) int64 rows, a < b, in ascending order; (P,) float32 cosine. A pair is kept while it is among the
        `config.neighbours` nearest of either row.
    """
    rows = np.flatnonzero(vectors.any(axis=1))
    centroids = fit(vectors, rows, config)
    if not len(rows):
        return _nothing()
    homes = np.concatenate([assign(vectors[part], centroids) for part in _parts(rows)])
    order = np.argsort(homes, axis=None, kind="stable")
    ends = np.cumsum(np.bincount(homes.ravel(), minlength=len(centroids)))
    found = []
    for members in np.split(rows[order // homes.shape[1]], ends[:-1]):
        found.append(within(members, vectors[members], config))
    return merged(found, config)


def fit(vectors: np.ndarray, rows: np.ndarray, config: SemanticConfig) -> np.ndarray:
    """Spherical k-means on a sample.

    Args:
        vectors: (N, D) float16.
        rows: (M,) the rows that count.

    Returns:
        (K, D) float16 centroids, L2-normalised; a single one where all are to be compared with all.
    """
    clusters = config.clusters or round(len(rows) ** 0.5)
    if len(rows) <= config.exact_below or clusters == 1:
        return np.ones((1, vectors.shape[1]), np.float16)
    chance = np.random.default_rng([config.seed or 0, 0x5E3])
    sample = vectors[np.sort(chance.choice(rows, min(config.sample, len(rows)), replace=False))]
    clusters = min(clusters, len(sample))
    centroids = sample[np.sort(chance.choice(len(sample), clusters, replace=False))]
    for _ in range(_ROUNDS):
        sums = np.zeros((clusters, sample.shape[1]))
        for part in _parts(np.arange(len(sample))):
            nearest = assign(sample[part], centroids)[:, 0]
            order = np.argsort(nearest, kind="stable")
            held, starts = np.unique(nearest[order], return_index=True)
            sums[held] += np.add.reduceat(sample[part[order]].astype(np.float64), starts)
        length = np.sqrt((sums * sums).sum(axis=1, keepdims=True))
        moved = (sums / np.maximum(length, 1e-9)).astype(np.float16)
        moved = np.where(length > 0, moved, centroids)  # an empty cluster stays where it is
        if (moved == centroids).all():
            break
        centroids = moved
    found: np.ndarray = centroids
    return found


def assign(vectors: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """The two nearest centroids of each vector, the nearest first.

    Args:
        vectors: (M, D) float16.
        centroids: (K, D) float16.

    Returns:
        (M, 2) int64; (M, 1) where there is only one centroid.
    """
    if len(centroids) == 1:
        return np.zeros((len(vectors), 1), np.int64)
    cosines = vectors.astype(np.float64) @ centroids.astype(np.float64).T
    nearest = cosines.argmax(axis=1)
    cosines[np.arange(len(vectors)), nearest] = -np.inf
    return np.stack([nearest, cosines.argmax(axis=1)], axis=1)


def within(rows: np.ndarray, vectors: np.ndarray, config: SemanticConfig) -> Neighbours:
    """The neighbours of every row of a cluster inside it.

    Args:
        rows: (M,) int64, ascending.
        vectors: (M, D) float16, theirs.

    Returns:
        (P,) rows, (P,) their neighbours, (P,) float32 cosines: at most `config.neighbours` of a row.
    """
    found = [_nothing()]
    height = min(max(_CELLS // max(len(rows), 1), 64), 1024)
    for start in range(0, len(rows), height):
        block = vectors[start : start + height].astype(np.float64)
        cosines = np.empty((len(block), len(rows)), np.float32)
        for left in range(0, len(rows), _BLOCK):
            cosines[:, left : left + _BLOCK] = block @ vectors[left : left + _BLOCK].astype(np.float64).T
        np.minimum(cosines, 1, out=cosines)
        cosines[np.arange(len(block)), start + np.arange(len(block))] = -1
        near = cosines >= np.float32(config.floor)
        for crowded in np.flatnonzero(np.count_nonzero(near, axis=1) > config.neighbours):
            kept = np.argsort(-cosines[crowded], kind="stable")[: config.neighbours]
            near[crowded] = False
            near[crowded, kept] = True
        i, j = np.nonzero(near)
        found.append((rows[start + i], rows[j], cosines[i, j]))
    a, b, cosine = (np.concatenate(column) for column in zip(*found, strict=True))
    return a, b, cosine


def merged(found: list[Neighbours], config: SemanticConfig) -> Neighbours:
    """The neighbours found in all clusters as pairs, each once; see `neighbours`."""
    row, other, cosine = (np.concatenate(column) for column in zip(_nothing(), *found, strict=True))
    order = np.lexsort((other, -cosine, row))
    row, other, cosine = row[order], other[order], cosine[order]
    new = np.ones(len(row), bool)  # two rows may share two clusters
    new[1:] = (row[1:] != row[:-1]) | (other[1:] != other[:-1])
    row, other, cosine = row[new], other[new], cosine[new]
    rank = np.arange(len(row)) - np.searchsorted(row, row)
    row, other, cosine = (column[rank < config.neighbours] for column in (row, other, cosine))
    a, b = np.minimum(row, other), np.maximum(row, other)
    order = np.lexsort((b, a))
    a, b, cosine = a[order], b[order], cosine[order]
    new = np.ones(len(a), bool)
    new[1:] = (a[1:] != a[:-1]) | (b[1:] != b[:-1])
    return a[new], b[new], cosine[new]


def _nothing() -> Neighbours:
    return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32)


def _parts(rows: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(rows), _BLOCK):
        yield rows[start : start + _BLOCK]
