"""Orders: every slot once an epoch, blocks together, shapes in proportion, and removals that move no other sample."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training import randomness
from training.order import Order, Windowed
from training.randomness import Purpose, keys, permuted, unpermuted
from training.roster import OrderInfo, Shapes

seeds = st.integers(0, 2**63 - 1)


def order(info: OrderInfo, seed: int, removed: list[bool], shapes: list[int] | None = None) -> Order:
    """An order of as many slots as `removed` is long; shape number i is of 8 (i + 1) x 8 pixels."""
    known = None
    if shapes is not None:
        sizes = tuple((8 * (i + 1), 8) for i in range(max(shapes) + 1))
        known = Shapes(sizes, np.array(shapes, np.int16))
    return Order(info, seed, len(removed), np.array(removed), known)


@st.composite
def windows(draw: st.DrawFn) -> tuple[OrderInfo, int, list[bool]]:
    """A window of some blocks, a seed, and which of some slots are removed, not all."""
    block = draw(st.integers(1, 9))
    count = draw(st.integers(1, 80))
    gone = draw(st.lists(st.booleans(), min_size=count, max_size=count))
    gone[draw(st.integers(0, count - 1))] = False
    return OrderInfo(window=block * draw(st.integers(1, 6)), block=block), draw(seeds), gone


@given(seeds, st.integers(1, 500), st.integers(0, 10**6))
def test_a_permutation_and_back(seed: int, count: int, epoch: int) -> None:
    key = keys(seed, Purpose.ORDER, torch.tensor([epoch])).expand(count)
    place = permuted(key, torch.arange(count), count)
    assert torch.equal(place.sort().values, torch.arange(count))
    assert torch.equal(unpermuted(key, place, count), torch.arange(count))


def test_without_a_window_it_is_the_order_that_runs_were_begun_with() -> None:
    gone = [slot in (2, 6) for slot in range(7)]
    whole = order(OrderInfo(), 5, gone)
    index = torch.arange(30)
    assert torch.equal(whole.slots(index), randomness.rows(5, index, 7, torch.tensor(gone)))
    assert torch.equal(whole.times_seen(30), randomness.times_seen(5, 30, 7, torch.tensor(gone)))
    assert torch.equal(whole.first_seen(30), randomness.first_seen(5, 30, 7, torch.tensor(gone)))


@given(windows(), st.integers(0, 10**6))
def test_every_epoch_of_windows_shows_every_slot_once(case: tuple[OrderInfo, int, list[bool]], epoch: int) -> None:
    info, seed, gone = case
    count = len(gone)
    index = torch.arange(epoch * count, (epoch + 1) * count)
    shown = order(info, seed, [False] * count).slots(index)
    assert torch.equal(shown.sort().values, torch.arange(count))


@settings(max_examples=15)
@given(windows(), st.integers(0, 1000))
def test_a_window_stays_in_its_blocks(case: tuple[OrderInfo, int, list[bool]], epoch: int) -> None:
    info, seed, gone = case
    count = len(gone)
    assert info.window is not None
    assert info.block is not None
    index = torch.arange(epoch * count, (epoch + 1) * count)
    windowed = Windowed(seed, count, None, window=info.window, block=info.block)
    removed = torch.tensor(gone)
    thinned = Windowed(seed, count, removed, window=info.window, block=info.block)
    shown, left = windowed.places(index), thinned.places(index)
    blocks = [windowed.blocks(epoch, number) for number in range(windowed.windows)]
    assert sorted(block for window in blocks for block in window) == list(range(-(-count // info.block)))
    assert max(map(len, blocks)) <= info.window // info.block
    for i, place in zip(index.tolist(), shown.tolist(), strict=True):
        of, window = windowed.window_of(i)
        assert of == epoch
        assert place // info.block in blocks[window]
    for i, place in zip(index.tolist(), left.tolist(), strict=True):
        mine = blocks[windowed.window_of(i)[1]]
        members = [p for p in range(count) if p // info.block in mine and not gone[p]]
        assert place in members or len(members) < 4  # where next to nothing is left, a walk may leave


@settings(max_examples=15)
@given(windows(), st.integers(0, 10**6), st.data())
def test_removals_move_no_other_sample_of_a_window(
    case: tuple[OrderInfo, int, list[bool]], epoch: int, data: st.DataObject
) -> None:
    info, seed, gone = case
    count = len(gone)
    index = torch.arange(epoch * count, (epoch + 2) * count)
    some = data.draw(st.lists(st.booleans(), min_size=count, max_size=count))
    removed = torch.tensor(gone)
    earlier = removed & torch.tensor(some)
    shown = [order(info, seed, now.tolist()).slots(index) for now in (torch.zeros_like(removed), earlier, removed)]
    for before, after in pairwise(shown):
        assert torch.equal(before[~removed[before]], after[~removed[before]])
    assert not removed[shown[2]].any()
    half = index[count // 2 :]
    assert torch.equal(order(info, seed, gone).slots(half), shown[2][count // 2 :])


@settings(max_examples=15)
@given(windows(), st.integers(0, 1500))
def test_counts_and_first_times_are_those_of_the_samples(case: tuple[OrderInfo, int, list[bool]], images: int) -> None:
    info, seed, gone = case
    check_counts(order(info, seed, gone), len(gone), images)


def check_counts(of: Order, count: int, images: int) -> None:
    shown = of.slots(torch.arange(images))
    assert torch.equal(of.times_seen(images), torch.bincount(shown, minlength=count))
    first = [shown.tolist().index(slot) if slot in shown else images for slot in range(count)]
    assert of.first_seen(images).tolist() == first


# --- shapes ---


@st.composite
def shapes(draw: st.DrawFn) -> tuple[OrderInfo, int, list[bool], list[int]]:
    """A batch size, a seed, and some slots of up to four shapes, some of which are removed, not all."""
    of = draw(st.lists(st.integers(0, 3), min_size=1, max_size=60))
    gone = draw(st.lists(st.booleans(), min_size=len(of), max_size=len(of)))
    gone[draw(st.integers(0, len(of) - 1))] = False
    blocks: dict[str, int] = draw(st.sampled_from([{}, {"window": 12, "block": 4}]))
    return OrderInfo(batch_size=draw(st.integers(1, 9)), **blocks), draw(seeds), gone, of


@given(shapes(), st.integers(1, 400))
def test_shapes_have_their_shares_and_batches_one_shape(
    case: tuple[OrderInfo, int, list[bool], list[int]], steps: int
) -> None:
    info, seed, _, of = case
    assert info.batch_size is not None
    shown = order(info, seed, [False] * len(of), of).slots(torch.arange(steps * info.batch_size))
    batches = torch.tensor(of)[shown].view(steps, info.batch_size)
    assert bool((batches == batches[:, :1]).all())
    share = torch.bincount(torch.tensor(of), minlength=4) / len(of)
    # each shape's count of due batches is within one of its share of time, and so are all of them together
    found = torch.bincount(batches[:, 0], minlength=4)
    assert bool(((found - share * steps).abs() <= 2 + 1e-6).all())
    for number in set(of):
        mine = shown[torch.tensor(of)[shown] == number]
        members = [slot for slot, shape in enumerate(of) if shape == number]
        whole = mine[: len(mine) // len(members) * len(members)].view(-1, len(members))
        assert bool((whole.sort(dim=1).values == torch.tensor(members)).all())


@settings(max_examples=15)
@given(shapes(), st.data())
def test_removals_move_no_other_sample_of_any_shape(
    case: tuple[OrderInfo, int, list[bool], list[int]], data: st.DataObject
) -> None:
    info, seed, gone, of = case
    index = torch.arange(200)
    removed = torch.tensor(gone)
    earlier = removed & torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(of), max_size=len(of))))
    shown = [order(info, seed, now.tolist(), of).slots(index) for now in (torch.zeros_like(removed), earlier, removed)]
    for before, after in pairwise(shown):
        assert torch.equal(before[~removed[before]], after[~removed[before]])
    assert not removed[shown[2]].any()
    assert info.batch_size is not None
    for batch in torch.tensor(of)[shown[2]].split(info.batch_size):
        assert bool((batch == batch[0]).all())  # also where others stand in for a shape of which nothing is left
    assert torch.equal(order(info, seed, gone, of).slots(index[77:]), shown[2][77:])
    check_counts(order(info, seed, gone, of), len(of), data.draw(st.integers(0, 300)))


def test_steps_far_into_a_run_are_found_without_those_before() -> None:
    of = [0] * 700 + [1] * 299 + [2]
    far = order(OrderInfo(batch_size=4), 1, [False] * 1000, of)
    steps = 20_000
    whole = far.slots(torch.arange(4 * steps))
    again = order(OrderInfo(batch_size=4), 1, [False] * 1000, of)
    assert torch.equal(again.slots(torch.arange(4 * 19_990, 4 * steps)), whole[4 * 19_990 :])
    assert torch.bincount(torch.tensor(of)[whole]).tolist() == pytest.approx([56_000, 23_920, 80], abs=8)


def test_nothing_left_is_an_error() -> None:
    for info, of in ((OrderInfo(window=2, block=2), None), (OrderInfo(batch_size=2), [0, 0, 1])):
        with pytest.raises(ValueError, match="every slot"):
            order(info, 0, [True] * 3, of).slots(torch.arange(2))
