"""Draws are functions of (seed, purpose, index): any split of the indices gives the same ones."""

from __future__ import annotations

import time

import pytest
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


# --- slots that are no longer there ---


def test_the_order_is_the_one_that_runs_were_begun_with() -> None:
    assert randomness.rows(0, torch.arange(4), 7).tolist() == [6, 0, 4, 5]
    assert randomness.rows(5, torch.arange(4), 1000).tolist() == [376, 332, 317, 801]
    removed = torch.tensor([slot in (2, 6) for slot in range(7)])
    assert randomness.rows(0, torch.arange(7), 7, removed).tolist() == [1, 0, 4, 5, 3, 1, 4]


@st.composite
def removals(draw: st.DrawFn) -> tuple[int, int, torch.Tensor]:
    """A seed, a number of slots and which of them were removed, not all."""
    count = draw(st.integers(1, 400))
    gone = draw(st.sets(st.integers(0, count - 1), max_size=count - 1))
    removed = torch.zeros(count, dtype=torch.bool)
    removed[list(gone)] = True
    return draw(st.integers(0, 2**63 - 1)), count, removed


@given(removals(), st.integers(0, 10**6))
def test_a_removal_changes_only_the_samples_that_showed_it(case: tuple[int, int, torch.Tensor], epoch: int) -> None:
    seed, count, removed = case
    index = torch.arange(epoch * count, (epoch + 1) * count)
    before, after = randomness.rows(seed, index, count), randomness.rows(seed, index, count, removed)
    there = ~removed[before]
    assert torch.equal(before[there], after[there])
    assert not removed[after].any()
    assert set(after.tolist()) == set((~removed).nonzero().flatten().tolist())
    assert torch.equal(randomness.rows(seed, index, count, torch.zeros_like(removed)), before)
    half = index[count // 2 :]
    assert torch.equal(randomness.rows(seed, half, count, removed), after[count // 2 :])


@given(removals(), st.data())
def test_removing_one_by_one_comes_to_the_same(case: tuple[int, int, torch.Tensor], data: st.DataObject) -> None:
    seed, count, removed = case
    earlier = removed & torch.tensor(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    index = torch.arange(3 * count)
    before, after = (randomness.rows(seed, index, count, gone) for gone in (earlier, removed))
    assert torch.equal(before[~removed[before]], after[~removed[before]])


@given(removals(), st.integers(0, 2000))
def test_counts_and_first_times_are_those_of_the_samples(case: tuple[int, int, torch.Tensor], images: int) -> None:
    seed, count, removed = case
    for gone in (None, removed):
        shown = randomness.rows(seed, torch.arange(images), count, gone)
        assert torch.equal(randomness.times_seen(seed, images, count, gone), torch.bincount(shown, minlength=count))
        first = [shown.tolist().index(slot) if slot in shown else images for slot in range(count)]
        assert randomness.first_seen(seed, images, count, gone).tolist() == first


def test_replacements_are_spread_evenly() -> None:
    removed = torch.zeros(1000, dtype=torch.bool)
    removed[:100] = True
    seen = randomness.times_seen(0, 1_000_000, 1000, removed)[100:].double()
    assert abs(float(seen.mean()) - 1000 / 0.9) < 1e-6
    assert float(seen.std()) < 15  # of a Poisson count of 111: 10.5


def test_ten_million_samples_are_counted_in_seconds() -> None:
    count = 3_000_001
    removed = torch.zeros(count, dtype=torch.bool)
    removed[::1000] = True
    began = time.monotonic()
    seen = randomness.times_seen(0, 10_000_000, count, removed)
    first = randomness.first_seen(0, 10_000_000, count, removed)
    assert time.monotonic() - began < 60  # about five on an idle core
    assert int(seen.sum()) == 10_000_000
    assert bool((first[removed] == 10_000_000).all())
    assert int(first[~removed].max()) < count


def test_nothing_left_is_an_error() -> None:
    for count in (1, 5):
        with pytest.raises(ValueError, match="every slot"):
            randomness.rows(0, torch.arange(3), count, torch.ones(count, dtype=torch.bool))


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
