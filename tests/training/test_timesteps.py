"""Which noise levels are trained: distributions, strata, and that nothing depends on who computes them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training import randomness
from training.timesteps import LogitNormalTimesteps, UniformTimesteps, levels, times

MANY = torch.arange(40_000)


def test_the_default_draws_what_it_always_drew() -> None:
    assert torch.equal(levels(times(UniformTimesteps(), 7, MANY, 32), 1000), randomness.timesteps(7, MANY, 1000))


@pytest.mark.parametrize("stratified", [False, True])
@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-1.2, 0.5)])
def test_logit_normal_has_its_moments(mean: float, std: float, stratified: bool) -> None:
    drawn = times(LogitNormalTimesteps(mean=mean, std=std, stratified=stratified), 0, MANY, 32)
    logit = torch.logit(drawn)
    assert float(logit.mean()) == pytest.approx(mean, abs=4 * std / math.sqrt(len(MANY)))
    assert float(logit.std()) == pytest.approx(std, rel=0.02)
    # the share below the middle is the normal distribution's, Phi(-mean / std)
    expected = 0.5 * math.erfc(mean / std / math.sqrt(2))
    assert float((drawn < 0.5).double().mean()) == pytest.approx(expected, abs=0.01)


def test_quantiles_stay_in_the_interval_at_both_ends() -> None:
    ends = torch.tensor([0.0, 2.0**-53, 1 - 2.0**-53], dtype=torch.float64)
    drawn = LogitNormalTimesteps(std=10).quantile(ends)
    assert ((drawn >= 0) & (drawn <= 1)).all()
    assert levels(torch.ones(1, dtype=torch.float64), 1000).tolist() == [999]


@given(batch=st.integers(1, 64), seed=st.integers(0, 2**40), number=st.integers(0, 10**9))
def test_a_stratified_batch_has_one_sample_in_every_part(batch: int, seed: int, number: int) -> None:
    index = torch.arange(number * batch, (number + 1) * batch)
    drawn = times(UniformTimesteps(stratified=True), seed, index, batch)
    assert sorted((drawn * batch).long().tolist()) == list(range(batch))


@pytest.mark.parametrize("config", [UniformTimesteps(stratified=True), LogitNormalTimesteps(stratified=True)])
@pytest.mark.parametrize("workers", [2, 4, 32])
def test_any_number_of_workers_draws_the_same(config: UniformTimesteps | LogitNormalTimesteps, workers: int) -> None:
    batch = 32
    whole = times(config, 3, torch.arange(batch * 5, batch * 6), batch)
    parts = [times(config, 3, part, batch) for part in torch.arange(batch * 5, batch * 6).chunk(workers)]
    assert torch.equal(torch.cat(parts), whole)


def test_a_place_in_the_batch_still_sees_all_levels() -> None:
    drawn = times(UniformTimesteps(stratified=True), 0, torch.arange(0, 32 * 4000, 32), 32)
    counts = torch.histc(drawn.double(), bins=10, min=0, max=1)
    assert float((counts - 400).abs().max()) < 5 * math.sqrt(400)  # five standard deviations


def test_stratified_batches_have_steadier_means() -> None:
    def spread(stratified: bool) -> float:
        return float(times(UniformTimesteps(stratified=stratified), 0, MANY, 32).view(-1, 32).mean(1).std())

    assert spread(True) < spread(False) / 5
