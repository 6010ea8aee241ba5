"""How a network lies on the device that it trains on, and what it attends with, so that a step takes the least time.

A GPU's convolutions want channels last. A CPU's do not, and torch's group norm takes twenty times as long there in that
layout as soon as a group is a few channels wide: half of a step of the `tiny` U-Net.
"""

from __future__ import annotations

import ctypes
import math
from typing import Any

import torch
from torch import Tensor

_FEW = 1 << 16  # pairs of positions, whose weights are no trouble to keep
# glibc's mallopt, malloc.h
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


def memory_format(device: torch.device) -> torch.memory_format:
    """The order in which pictures and kernels of convolutions are kept."""
    return torch.contiguous_format if device.type == "cpu" else torch.channels_last


def of_network(network: Any, device: torch.device) -> torch.memory_format:
    """As `memory_format`; convolutions along time, of five dimensions, have no other order than torch's own."""
    films = any(weight.ndim == 5 for weight in network.parameters())
    return torch.contiguous_format if films else memory_format(device)


def laid_out(pictures: Tensor) -> Tensor:
    """The same pictures (N, C, H, W), or films (N, C, F, H, W), in the order of their device."""
    return (
        pictures.contiguous()
        if pictures.ndim == 5
        else pictures.contiguous(memory_format=memory_format(pictures.device))
    )


def hasten(network: Any, device: torch.device) -> None:
    """Readies this process and a network for steps on a CPU; elsewhere it does nothing.

    The weights stay as they are, and so does what is saved; outputs change in their last digits.
    """
    if device.type != "cpu":
        return
    from diffusers.models.attention_processor import Attention, AttnProcessor2_0

    _keep_freed_memory()
    for module in network.modules():
        if isinstance(module, Attention) and isinstance(module.processor, AttnProcessor2_0):
            module.set_processor(ProductsOrFused())


def _keep_freed_memory() -> None:
    """Has malloc reuse what a step has freed. By default it returns large blocks to the kernel, which hands them back
    in the next step, zeroed page by page: thousands of page faults a step. Blocks of 32 MiB and more still go."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's, not everybody's
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, 32 << 20)
        mallopt(_TRIM_THRESHOLD, 1 << 30)


class ProductsOrFused:
    """diffusers' attention in two matrix products where positions are few, and torch's fused one where they are many.

    The fused one saves memory, and takes two to ten times as long on a CPU for the 16 to 256 positions of small
    pictures.
    """

    def __init__(self) -> None:
        from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

        self._products, self._fused = AttnProcessor(), AttnProcessor2_0()

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Any = None, **given: Any) -> Tensor:
        """See diffusers; (N, L, W), or (N, W, H, W') of a layer that is given pictures."""
        asked = math.prod(hidden_states.shape[2:]) if hidden_states.ndim == 4 else hidden_states.shape[1]
        answering = asked if encoder_hidden_states is None else encoder_hidden_states.shape[1]
        chosen = self._products if asked * answering <= _FEW else self._fused
        output: Tensor = chosen(attn, hidden_states, encoder_hidden_states=encoder_hidden_states, **given)
        return output
