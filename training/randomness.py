"""Every random choice as a pure function of (seed, purpose, sample index).

Counter-based: nothing is drawn in sequence and nothing is stored, so any worker computes the draws of any sample, a
restart needs no generator state, and the batch is the same at any number of workers. The bits come from splitmix64's
finaliser (Steele, Lea & Flood 2014), applied to a key and to a counter. Integers are int64 tensors that wrap around
like unsigned ones; the only floating-point steps are the conversions at the end.
"""

from __future__ import annotations

import math
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


def rows(seed: int, index: Tensor, count: int) -> Tensor:
    """Which of `count` training rows each global sample index (N,) sees: int64 (N,).

    Every epoch of `count` samples is its own permutation: a balanced Feistel network of six rounds over the next power
    of four, walked along its cycles until it lands inside (Black & Rogaway 2002). Random access, nothing stored.
    """
    index = index.to(torch.int64)
    if count == 1:
        return torch.zeros_like(index)
    half = (max(count - 1, 1).bit_length() + 1) // 2
    mask = (1 << half) - 1
    key = keys(seed, Purpose.ORDER, index // count)
    position = index % count
    outside = torch.ones_like(position, dtype=torch.bool)
    while bool(outside.any()):
        left, right = _shift(position, half) & mask, position & mask
        for number in range(6):
            left, right = right, left ^ (_mix(right + key + _signed(number * _GOLDEN)) & mask)
        position = torch.where(outside, (left << half) | right, position)
        outside = position >= count
    return position
