"""Every random choice as a pure function of (seed, purpose, sample index).

Counter-based: nothing is drawn in sequence and nothing is stored, so any worker computes the draws of any sample, a
restart needs no generator state, and the batch is the same at any number of workers. The bits come from splitmix64's
finaliser (Steele, Lea & Flood 2014), applied to a key and to a counter. Integers are int64 tensors that wrap around
like unsigned ones; the only floating-point steps are the conversions at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import IntEnum

import torch
from torch import Tensor


class Purpose(IntEnum):
    """What a draw is for. The numbers are part of every stored result: never change one."""

    ORDER = 1
    TIMESTEP = 2
    NOISE = 3
    CAPTION_DROPOUT = 4
    FLIP = 5
    SAMPLE_NOISE = 6
    SAMPLE_STEP = 7
    CAPTION = 8
    POSTERIOR = 9
    ORDER_BLOCKS = 20
    ORDER_WINDOW = 21
    ORDER_SHORT = 22
    SHAPE = 23
    SHAPE_DUE = 24
    SHAPE_INSTEAD = 25


_CHUNK = 1 << 20  # samples whose slots are computed at once
_ROUNDS = 6


def _signed(value: int) -> int:
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >= 1 << 63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_M1 = _signed(0xBF58476D1CE4E5B9)
_M2 = _signed(0x94D049BB133111EB)


def _shift(z: Tensor, bits: int) -> Tensor:
    return (z >> bits) & ((1 << (64 - bits)) - 1)  # >> on int64 copies the sign: mask it off


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shift(z, 30)) * _M1
    z = (z ^ _shift(z, 27)) * _M2
    return z ^ _shift(z, 31)


def keys(seed: int, purpose: Purpose, index: Tensor, step: int = 0) -> Tensor:
    """One 64-bit key per sample: int64 (N,) of the global sample indices (N,) and, where there is one, a step."""
    base = torch.tensor([_signed(seed), int(purpose), step], dtype=torch.int64)
    state = torch.zeros((), dtype=torch.int64)
    for part in base:
        state = _mix(state + _GOLDEN + _mix(part + _GOLDEN))
    return _mix(_mix(index.to(torch.int64) + _GOLDEN) ^ state.to(index.device))


def uniform(seed: int, purpose: Purpose, index: Tensor) -> Tensor:
    """Float64 (N,) in [0, 1), 53 bits each."""
    return _shift(keys(seed, purpose, index), 11).to(torch.float64) * 2.0**-53


def normal(seed: int, purpose: Purpose, index: Tensor, shape: tuple[int, ...], step: int = 0) -> Tensor:
    """Standard normal float32 (N, *shape): Box & Muller's transform of two 32-bit uniforms per pair."""
    return normal_of_keys(keys(seed, purpose, index, step), shape)


def normal_of_keys(key: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Standard normal float32 (N, *shape), each row a function of its key (N,) alone."""
    count = math.prod(shape)
    pairs = (count + 1) // 2
    counter = _mix(torch.arange(1, pairs + 1, dtype=torch.int64, device=key.device) * _GOLDEN)
    bits = _mix(key[:, None] ^ counter[None, :])
    # the half keeps the first uniform off zero, where the logarithm ends
    u1 = (_shift(bits, 32).to(torch.float32) + 0.5) * 2.0**-32
    u2 = (bits & 0xFFFFFFFF).to(torch.float32) * 2.0**-32
    radius = (-2 * u1.log()).sqrt()
    angle = u2 * (2 * math.pi)
    return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :count].reshape(-1, *shape)


def timesteps(seed: int, index: Tensor, count: int) -> Tensor:
    """int64 (N,), uniform over the `count` noise levels."""
    return (uniform(seed, Purpose.TIMESTEP, index) * count).to(torch.int64)


def rows(seed: int, index: Tensor, count: int, removed: Tensor | None = None) -> Tensor:
    """Which of `count` slots each global sample index (N,) shows: int64 (N,).

    Every epoch of `count` samples is its own permutation: a balanced Feistel network of six rounds over the next power
    of four, walked along its cycles until it lands inside (Black & Rogaway 2002). Random access, nothing stored.

    A sample whose slot was removed walks on, from slot to slot, until it lands on one that is still there. So a removal
    changes no other sample, and what was removed at once or one by one makes no difference. Each step of that walk has
    a permutation of its own: the cycles of a single one may hold nothing but removed slots.

    Args:
        removed: bool (count,), True for the slots that are no longer there.

    Raises:
        ValueError: when no slot is left.
    """
    index = index.to(torch.int64)
    epoch = index // count
    slot = permuted(keys(seed, Purpose.ORDER, epoch), index % count, count)
    return slot if removed is None else still_there(seed, epoch, slot, removed)


def permuted(key: Tensor, position: Tensor, count: int | Tensor) -> Tensor:
    """The places (N,) of positions (N,) in permutations of `count` places, one for each key (N,); see `rows`.

    Args:
        count: of all, or (N,) of each; few different ones.
    """
    return _each(_walked, key, position, count)


def unpermuted(key: Tensor, place: Tensor, count: int | Tensor) -> Tensor:
    """The inverse of `permuted`: the positions (N,) of places (N,)."""
    return _each(_walked_back, key, place, count)


def _each(walk: Callable[[Tensor, Tensor, int], Tensor], key: Tensor, position: Tensor, count: int | Tensor) -> Tensor:
    if isinstance(count, int):
        return walk(key, position, count)
    found = torch.empty_like(position)
    for size in count.unique().tolist():
        mine = count == size
        found[mine] = walk(key[mine], position[mine], size)
    return found


def _walked(key: Tensor, position: Tensor, count: int) -> Tensor:
    if count == 1:
        return torch.zeros_like(position)
    half = ((count - 1).bit_length() + 1) // 2
    mask = (1 << half) - 1
    place = torch.empty_like(position)
    walking = torch.arange(len(position), device=position.device)
    while len(walking):
        left, right = _shift(position, half) & mask, position & mask
        for number in range(_ROUNDS):
            left, right = right, left ^ (_mix(right + key + _signed(number * _GOLDEN)) & mask)
        position = (left << half) | right
        outside = position >= count
        place[walking[~outside]] = position[~outside]
        walking, position, key = walking[outside], position[outside], key[outside]
    return place


def _walked_back(key: Tensor, place: Tensor, count: int) -> Tensor:
    if count == 1:
        return torch.zeros_like(place)
    half = ((count - 1).bit_length() + 1) // 2
    mask = (1 << half) - 1
    position = torch.empty_like(place)
    walking = torch.arange(len(place), device=place.device)
    while len(walking):
        left, right = _shift(place, half) & mask, place & mask
        for number in reversed(range(_ROUNDS)):
            left, right = right ^ (_mix(left + key + _signed(number * _GOLDEN)) & mask), left
        place = (left << half) | right
        outside = place >= count
        position[walking[~outside]] = place[~outside]
        walking, place, key = walking[outside], place[outside], key[outside]
    return position


def still_there(seed: int, epoch: Tensor, slot: Tensor, removed: Tensor) -> Tensor:
    """The slots (N,) where samples of these epochs (N,) end that began at `slot` (N,).

    Raises:
        ValueError: when no slot is left.
    """
    slot = slot.clone()
    lost = removed[slot].nonzero().flatten()
    if len(lost) and bool(removed.all()):
        raise ValueError("every slot was removed")
    step = 0
    while len(lost):
        step += 1
        slot[lost] = permuted(keys(seed, Purpose.ORDER, epoch[lost], step), slot[lost], len(removed))
        lost = lost[removed[slot[lost]]]
    return slot


def times_seen(seed: int, images: int, count: int, removed: Tensor | None = None) -> Tensor:
    """How often the first `images` samples show each of `count` slots: int64 (count,)."""
    epochs, rest = divmod(images, count)
    seen = torch.full((count,), epochs, dtype=torch.int64)
    if removed is not None and epochs:
        # a whole epoch shows every slot once; one that was removed is replaced by where the walk from it ends
        seen[removed] = 0
        gone = removed.nonzero().flatten()
        block = max(1, _CHUNK // max(len(gone), 1))
        for first in range(0, epochs, block):
            epoch = torch.arange(first, min(first + block, epochs)).repeat_interleave(len(gone))
            instead = still_there(seed, epoch, gone.repeat(len(epoch) // max(len(gone), 1)), removed)
            seen += torch.bincount(instead, minlength=count)
    for part in torch.arange(images - rest, images).split(_CHUNK):
        seen += torch.bincount(rows(seed, part, count, removed), minlength=count)
    return seen


def first_seen(seed: int, images: int, count: int, removed: Tensor | None = None) -> Tensor:
    """The first of `images` samples that shows each of `count` slots: int64 (count,), `images` where none does."""
    first = torch.full((count,), images, dtype=torch.int64)
    for part in torch.arange(min(images, count)).split(_CHUNK):  # an epoch shows all that are there
        first.scatter_reduce_(0, rows(seed, part, count, removed), part, "amin")
    return first
