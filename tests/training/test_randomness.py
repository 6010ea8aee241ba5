"""Draws are functions of (seed, purpose, index): any split of the indices gives the same ones."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from training import randomness
from training.randomness import Purpose

indices = st.lists(st.integers(0, 2**40), min_size=1, max_size=20)


@given(index=indices, seed=st.integers(0, 2**63 - 1), cut=st.integers(0, 20), width=st.integers(1, 50))
def test_any_split_draws_the_same(index: list[int], seed: int, cut: int, width: int) -> None:
    whole = torch.tensor(index)
    for draw in (
        lambda i: randomness.normal(seed, Purpose.NOISE, i, (width, 3)),
        lambda i: randomness.uniform(seed, Purpose.FLIP, i),
        lambda i: randomness.timesteps(seed, i, 1000),
        lambda i: randomness.rows(seed, i, 77),
    ):
        parts = torch.cat([draw(whole[:cut]), draw(whole[cut:])])
        assert torch.equal(draw(whole), parts)
        assert torch.equal(draw(whole)[-1:], draw(whole[-1:]))


@given(count=st.integers(1, 3000), seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 10**6))
def test_every_epoch_sees_every_row_once(count: int, seed: int, epoch: int) -> None:
    rows = randomness.rows(seed, torch.arange(epoch * count, (epoch + 1) * count), count)
    assert torch.equal(rows.sort().values, torch.arange(count))


def test_epochs_and_seeds_differ() -> None:
    index = torch.arange(1000)
    first = randomness.rows(0, index, 1000)
    assert (first == randomness.rows(0, index + 1000, 1000)).float().mean() < 0.02
    assert (first == randomness.rows(1, index, 1000)).float().mean() < 0.02
    assert (first == index).float().mean() < 0.02


def test_noise_is_standard_normal_and_uncorrelated() -> None:
    noise = randomness.normal(3, Purpose.NOISE, torch.arange(2000), (4, 16)).flatten(1).double()
    assert abs(float(noise.mean())) < 0.01
    assert abs(float(noise.var()) - 1) < 0.01
    assert abs(float((noise**4).mean()) - 3) < 0.08
    correlation = torch.corrcoef(noise.T) - torch.eye(64)
    assert float(correlation.abs().max()) < 0.12
    neighbours = (noise[1:] * noise[:-1]).mean(dim=1)
    assert abs(float(neighbours.mean())) < 0.01


def test_purposes_steps_and_timesteps() -> None:
    index = torch.arange(50_000)
    a, b = (randomness.uniform(0, purpose, index) for purpose in (Purpose.FLIP, Purpose.CAPTION_DROPOUT))
    assert abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1])) < 0.02
    assert 0 <= float(a.min()) < float(a.max()) < 1
    t = randomness.timesteps(0, index, 10)
    counts = torch.bincount(t, minlength=10)
    assert len(counts) == 10
    assert float((counts - 5000).abs().max()) < 350
    first, second = (randomness.normal(0, Purpose.SAMPLE_STEP, index[:2], (4,), step=s) for s in (0, 1))
    assert not torch.equal(first, second)
