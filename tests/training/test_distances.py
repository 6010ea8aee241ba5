"""Distances of sets of features, by closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from training.distances import (
    Mmd,
    distances,
    frechet,
    frechet_interval,
    gaussian,
    inside,
    interval,
    mean_interval,
    mmd_interval,
    polynomial,
)


def exact(mean: np.ndarray, covariance: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Points whose sample mean and unbiased sample covariance are exactly the given ones."""
    points = np.random.default_rng(seed).normal(size=(count, len(mean)))
    points -= points.mean(axis=0)
    white = points @ np.linalg.inv(np.linalg.cholesky(np.cov(points.T))).T
    return white @ np.linalg.cholesky(covariance).T + mean


def test_frechet_between_two_gaussians() -> None:
    """Of covariances that commute it is |m1 - m2|² + Σ (σ1 - σ2)²."""
    one, two = np.array([1.0, 2.0, 0.5]), np.array([2.0, 1.0, 0.5])
    shift = np.array([1.0, -2.0, 0.0])
    a, b = exact(np.zeros(3), np.diag(one**2), 500, 1), exact(shift, np.diag(two**2), 400, 2)
    assert frechet(a, b) == pytest.approx(5 + ((one - two) ** 2).sum(), rel=1e-9)
    assert frechet(b, a) == pytest.approx(frechet(a, b))
    assert frechet(a, a[::-1]) == pytest.approx(0, abs=1e-9)


def test_frechet_of_covariances_that_do_not_commute() -> None:
    from scipy.linalg import sqrtm

    rng = np.random.default_rng(0)
    roots = rng.normal(size=(2, 4, 4))
    first, second = roots[0] @ roots[0].T, roots[1] @ roots[1].T
    a, b = exact(np.zeros(4), first, 50, 1), exact(np.ones(4), second, 60, 2)
    expected = 4 + np.trace(first + second - 2 * np.real(sqrtm(first @ second)))
    assert frechet(a, b) == pytest.approx(expected, rel=1e-6)


def test_frechet_with_fewer_pictures_than_dimensions() -> None:
    """The covariances of three points in ten dimensions are singular; the distance is the one in their own plane."""
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=(3, 2)), rng.normal(size=(3, 2))
    wide = np.zeros((2, 10))
    wide[0, 3] = wide[1, 7] = 1
    assert frechet(a @ wide, b @ wide) == pytest.approx(frechet(a, b), rel=1e-9)
    with pytest.raises(ValueError, match="covariance"):
        frechet(a[:1], b)


def test_the_kernel_distance_is_unbiased() -> None:
    """Over many small draws of one distribution its mean is zero, where that of the biased one is far from it."""
    rng = np.random.default_rng(4)
    unbiased, biased = [], []
    for _ in range(600):
        a, b = rng.normal(size=(8, 4)), rng.normal(size=(8, 4))
        unbiased.append(Mmd(a, b).value())
        biased.append(polynomial(a, a).mean() + polynomial(b, b).mean() - 2 * polynomial(a, b).mean())
    error = np.std(unbiased) / np.sqrt(len(unbiased))
    assert abs(np.mean(unbiased)) < 3 * error
    assert np.mean(biased) > 20 * error


def test_the_kernel_distance_by_its_definition() -> None:
    rng = np.random.default_rng(5)
    a, b = rng.normal(size=(4, 3)), rng.normal(size=(3, 3)) + 1
    for kernel in (polynomial, gaussian):
        told = sum(kernel(a[[i]], a[[j]])[0, 0] for i in range(4) for j in range(4) if i != j) / 12
        told += sum(kernel(b[[i]], b[[j]])[0, 0] for i in range(3) for j in range(3) if i != j) / 6
        told -= 2 * sum(kernel(a[[i]], b[[j]])[0, 0] for i in range(4) for j in range(3)) / 12
        assert Mmd(a, b, kernel).value() == pytest.approx(told, rel=1e-5)
    assert polynomial(np.array([[1.0, 2]]), np.array([[3.0, 4]]))[0, 0] == pytest.approx((11 / 2 + 1) ** 3)


def test_replicates_of_the_kernel_distance_are_not_biased_by_repeats() -> None:
    rng = np.random.default_rng(6)
    a, b = rng.normal(size=(20, 3)), rng.normal(size=(20, 3))
    mmd = Mmd(a, b)
    replicates = np.array([mmd.replicate(rng) for _ in range(2000)])
    # pairs of a picture with itself would add about k(x, x) / 20, some ten standard errors
    assert abs(replicates.mean() - mmd.value()) < 4 * replicates.std() / np.sqrt(len(replicates)) + 0.02


def test_precision_and_recall_of_separable_sets() -> None:
    rng = np.random.default_rng(7)
    left, right = rng.normal(size=(100, 2)), rng.normal(size=(100, 2)) + 100
    assert not inside(left, right).any()
    assert inside(left, left).all()
    # half of the samples are real ones, half lie elsewhere; of what is real they show one mode of two
    real = np.concatenate([left, right])
    samples = np.concatenate([left[:50], rng.normal(size=(50, 2)) - 100])
    assert inside(real, samples).mean() == 0.5
    assert not inside(samples, real[100:]).any()
    assert inside(samples, real[:50]).all()
    with pytest.raises(ValueError, match="neighbours"):
        inside(left[:3], right, k=3)


def test_distances_agree_with_the_definition() -> None:
    rng = np.random.default_rng(8)
    a, b = rng.normal(size=(5, 7)), rng.normal(size=(6, 7))
    assert distances(a, b) == pytest.approx(np.linalg.norm(a[:, None] - b[None], axis=2), abs=1e-5)


def test_the_interval_of_a_mean_covers_it_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(9)
    covered = 0
    for trial in range(300):
        low, high = mean_interval(rng.exponential(size=60), 200, trial)
        covered += low <= 1 <= high
    assert 0.88 <= covered / 300 <= 0.98


def test_intervals_of_distances_contain_the_truth_and_shrink() -> None:
    rng = np.random.default_rng(10)
    shift = np.array([2.0, 0, 0])
    widths = []
    for count in (50, 800):
        a, b = rng.normal(size=(count, 3)), rng.normal(size=(count, 3)) + shift
        low, high = frechet_interval(a, b)
        assert low < frechet(a, b) < high
        assert low < 4 < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 2
    within = Mmd(rng.normal(size=(60, 3)), rng.normal(size=(60, 3)) + 3)
    low, high = mmd_interval(within)
    assert 0 < low < within.value() < high


def test_an_interval_does_not_take_over_the_bias_of_its_replicates() -> None:
    assert interval(5.0, np.linspace(9, 11, 101)) == pytest.approx((4.05, 5.95))
