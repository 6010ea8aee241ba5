"""How far two sets of pictures are apart, by their features: pure functions of arrays.

Features are float (N, D), one row a picture. Every interval is a bootstrap over pictures with a fixed seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

_LEVEL = 0.95
_BLOCK = 1024  # rows of a matrix of distances that are held at a time


class Interval(NamedTuple):
    """The ends of a 95 % interval."""

    low: float
    high: float


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """The squared Fréchet distance of the Gaussians with the two sets' means and covariances (Heusel et al. 2017,
    arXiv 1706.08500, equation 6), with unbiased covariances.

    The trace of (C_a C_b)^(1/2) is the nuclear norm of the two centred sets' product, so that no matrix root is taken
    and fewer pictures than dimensions are no special case. As an estimate it is biased upwards, by about the dimensions
    over the pictures: compare equal numbers only.

    Raises:
        ValueError: fewer than two pictures in a set.
    """
    (mean_a, root_a), (mean_b, root_b) = _moments(a), _moments(b)
    spread = float((root_a**2).sum() + (root_b**2).sum())
    cross = float(np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum())
    return max(0.0, float(((mean_a - mean_b) ** 2).sum()) + spread - 2 * cross)


def _moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean (D,), and R (at most D rows, D) with R' R the covariance."""
    if len(features) < 2:
        raise ValueError(f"{len(features)} pictures have no covariance")
    features = features.astype(np.float64)
    mean: np.ndarray = features.mean(axis=0)
    centred = (features - mean) / np.sqrt(len(features) - 1)
    return mean, np.asarray(np.linalg.qr(centred, mode="r")) if len(centred) > centred.shape[1] else centred


Kernel = Callable[[np.ndarray, np.ndarray], np.ndarray]


def polynomial(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(x·y / D + 1)³, of the kernel inception distance (Bińkowski et al. 2018, arXiv 1801.01401, section 4)."""
    cubes: np.ndarray = (a.astype(np.float64) @ b.astype(np.float64).T / a.shape[1] + 1) ** 3
    return cubes


def gaussian(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """1000 exp(-|x - y|² / 2 10²), of CMMD on CLIP's vectors (Jayasumana et al. 2023, arXiv 2401.09603), with its
    factor of 1000.
    """
    return 1000 * np.exp(-(distances(a, b).astype(np.float64) ** 2) / 200)


class Mmd:
    """The squared maximum mean discrepancy of two sets, unbiased (Gretton et al. 2012, lemma 6): it may be negative.

    A bootstrap replicate leaves out the pairs of a picture with itself, whatever its weight, so that drawing some
    pictures twice adds no bias.
    """

    def __init__(self, a: np.ndarray, b: np.ndarray, kernel: Kernel = polynomial) -> None:
        if len(a) < 2 or len(b) < 2:
            raise ValueError(f"{len(a)} and {len(b)} pictures have no discrepancy")
        self._aa, self._bb, self._ab = kernel(a, a), kernel(b, b), kernel(a, b)
        np.fill_diagonal(self._aa, 0)
        np.fill_diagonal(self._bb, 0)

    def value(self) -> float:
        """The estimate."""
        return self._of(np.ones(len(self._aa)), np.ones(len(self._bb)))

    def replicate(self, rng: np.random.Generator) -> float:
        """The estimate on a resampled pair of sets."""
        return self._of(_weights(rng, len(self._aa)), _weights(rng, len(self._bb)))

    def _of(self, a: np.ndarray, b: np.ndarray) -> float:
        within = sum(float(w @ k @ w) / float(w.sum() ** 2 - (w**2).sum()) for w, k in ((a, self._aa), (b, self._bb)))
        return within - 2 * float(a @ self._ab @ b) / float(a.sum() * b.sum())


def _weights(rng: np.random.Generator, count: int) -> np.ndarray:
    """How often each of `count` pictures is drawn in a resampling of them; never all one and the same."""
    while True:
        weights = np.bincount(rng.integers(0, count, count), minlength=count).astype(np.float64)
        if (weights > 0).sum() > 1:
            return weights


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Euclidean distances, float32 (N, M)."""
    a, b = a.astype(np.float32), b.astype(np.float32)
    squared = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * (a @ b.T)
    result: np.ndarray = np.sqrt(squared.clip(min=0))
    return result


def inside(of: np.ndarray, points: np.ndarray, k: int = 3) -> np.ndarray:
    """Which of `points` (M, D) lie within the manifold of a set (N, D): bool (M,).

    The manifold is the union of the balls around each of its pictures that reach to its k-th neighbour (Kynkäänniemi et
    al. 2019, arXiv 1904.06991, equation 1). Precision is the share of samples inside that of real pictures, recall the
    share of real pictures inside that of samples.

    Raises:
        ValueError: not more than k pictures.
    """
    if len(of) <= k:
        raise ValueError(f"{len(of)} pictures have no {k}-th neighbours")
    # the picture itself is its own first neighbour; the slack takes up rounding of equal pictures
    radii = np.concatenate([np.partition(distances(part, of), k, axis=1)[:, k] for part in _blocks(of)])
    return np.concatenate([(distances(part, of) <= radii * (1 + 1e-5)).any(axis=1) for part in _blocks(points)])


def _blocks(rows: np.ndarray) -> Iterable[np.ndarray]:
    return (rows[start : start + _BLOCK] for start in range(0, max(len(rows), 1), _BLOCK))


def mean_interval(values: np.ndarray, replicates: int = 200, seed: int = 0) -> Interval:
    """A percentile bootstrap's interval for the mean of values (N,)."""
    rng = np.random.default_rng(seed)
    means = [values[rng.integers(0, len(values), len(values))].mean() for _ in range(replicates)]
    return Interval(*_ends(np.asarray(means)))


def interval(value: float, replicates: np.ndarray) -> Interval:
    """An interval around an estimate from replicates (R,) of it that may be biased, as those of `frechet` are.

    Their spread around their own median is put around the estimate.
    """
    low, high = _ends(replicates) + (value - np.median(replicates))
    return Interval(float(low), float(high))


def _ends(replicates: np.ndarray) -> np.ndarray:
    ends: np.ndarray = np.quantile(replicates, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return ends


def frechet_interval(a: np.ndarray, b: np.ndarray, replicates: int = 50, seed: int = 0) -> Interval:
    """`interval` of `frechet`."""
    rng = np.random.default_rng(seed)
    drawn = [frechet(_resampled(rng, a), _resampled(rng, b)) for _ in range(replicates)]
    return interval(frechet(a, b), np.asarray(drawn))


def _resampled(rng: np.random.Generator, features: np.ndarray) -> np.ndarray:
    chosen: np.ndarray = features[rng.integers(0, len(features), len(features))]
    return chosen


def mmd_interval(mmd: Mmd, replicates: int = 200, seed: int = 0) -> Interval:
    """`interval` of an `Mmd`."""
    rng = np.random.default_rng(seed)
    return interval(mmd.value(), np.asarray([mmd.replicate(rng) for _ in range(replicates)]))
