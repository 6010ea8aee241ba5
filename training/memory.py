"""What training a job takes of a device's memory, told before a device is rented.

Parameters, gradients, optimizer states and the average are counted; with `strategy: fsdp` a worker's share of each, at
the fewest workers that the job runs with, and what is gathered of the others' while a block computes. Activations are
found by running a forward and a backward pass with tensors that have sizes and no contents: what each operation
allocates, and when it is freed, is followed to the peak, so that autocast's copies and recomputation (gradient
checkpointing) are in it. Not in it: the caption tower, resident captions and pictures, the allocator's gaps and the
CUDA context (some 0.5 to 1 GiB).
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from training import network, sharding
from training.text import Conditioning

if TYPE_CHECKING:
    from training.job import TrainJob

_CAPTION_POSITIONS = 77  # CLIP's; a batch whose captions are shorter takes less


@dataclass(frozen=True)
class Memory:
    """Bytes on each device, at the job's precision and micro-batch.

    Attributes:
        parameters: the network's weights, in fp32.
        gradients: as many; all of them also with fsdp, when a worker's share of a batch is computed in parts.
        optimizer: AdamW's two moments, in fp32.
        average: the moving average of the weights, and those of the job's `ema.profiles`.
        gathered: with fsdp the most that is whole at once: the parameters outside of blocks, those of two blocks in a
            row, one that computes and one that is fetched, and the largest block's gradients before they are split.
        activations: the most that a forward and a backward pass hold besides.
    """

    parameters: int
    gradients: int
    optimizer: int
    average: int
    gathered: int
    activations: int

    @property
    def total(self) -> int:
        return self.parameters + self.gradients + self.optimizer + self.average + self.gathered + self.activations


def estimate(job: TrainJob, *, channels: int, side: int, width: int, frames: int | None = None) -> Memory:
    """The memory of a worker's device while it trains.

    Args:
        channels, side: of what the network denoises (`training.space`).
        width: of the states that the network is conditioned on.
        frames: of films; None for pictures.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        model = network.build(job.network, channels=channels, side=side, width=width)
        model.train()
        if job.gradient_checkpointing:
            model.enable_gradient_checkpointing()
        workers = max(job.fewest_workers, 1) if job.strategy == "fsdp" else 1
        weights, buffers = _share(model.parameters(), workers), _bytes(model.buffers())
        in_parts = job.batch_size > workers * job.micro_batch
        return Memory(
            parameters=weights + buffers,
            gradients=_bytes(model.parameters()) if in_parts else weights,
            optimizer=2 * weights,
            # power averages are of the parameters alone (`ema.PowerEma`)
            average=weights + buffers + len(job.ema.profiles) * weights,
            gathered=_gathered(model, bf16=job.precision == "bf16") if workers > 1 else 0,
            activations=peak(
                model, *example(job.micro_batch, channels, side, width, frames), bf16=job.precision == "bf16"
            ),
        )


def example(
    count: int, channels: int, side: int, width: int, frames: int | None = None
) -> tuple[Tensor, Tensor, Conditioning]:
    """What the network is asked with for one micro-batch: noisy pictures, noise levels and what it is told."""
    if frames is None:
        xt = torch.zeros(count, channels, side, side).contiguous(memory_format=torch.channels_last)
    else:
        xt = torch.zeros(count, channels, frames, side, side)
    told = Conditioning(
        states=torch.zeros(count, _CAPTION_POSITIONS, width),
        mask=torch.ones(count, _CAPTION_POSITIONS, dtype=torch.bool),
        pooled=torch.zeros(count, width),
    )
    return xt, torch.zeros(count, dtype=torch.int64), told


def peak(model: Any, xt: Tensor, t: Tensor, told: Conditioning, *, bf16: bool) -> int:
    """The most bytes that a forward and a backward pass hold, without parameters and their gradients."""
    inputs = [xt, t, told.states, told.mask, told.pooled]
    # gradients are counted apart: here each goes as soon as it is there
    hooks = [p.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None)) for p in model.parameters()]
    try:
        with _Allocations([*model.parameters(), *model.buffers(), *inputs]) as allocations:
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                output = network.predict(model, xt, t, told)
            torch.nn.functional.mse_loss(output.float(), xt).backward()
            del output
    finally:
        for hook in hooks:
            hook.remove()
    there: int = allocations.peak
    return there + _bytes(inputs)


class _Allocations(TorchDispatchMode):
    """Follows the storages that operations allocate, until each is freed.

    Attributes:
        peak: the most bytes that there were at once.
    """

    def __init__(self, given: Iterable[Tensor]) -> None:
        super().__init__()
        self.peak = 0
        self._now = 0
        self._known = weakref.WeakSet(tensor.untyped_storage() for tensor in given)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage()) not in self._known:
                self._known.add(storage)
                self._now += storage.nbytes()
                weakref.finalize(storage, self._freed, storage.nbytes())
        self.peak = max(self.peak, self._now)
        return result

    def _freed(self, size: int) -> None:
        self._now -= size


def _share(tensors: Iterable[Tensor], workers: int) -> int:
    """The bytes of the first of several workers, who has the most: each has some rows of every tensor."""
    return sum(-(-len(tensor) // workers) * tensor[0].numel() * tensor.element_size() for tensor in tensors)


def _gathered(model: Any, *, bf16: bool) -> int:
    blocks = [_bytes(block.parameters()) for block in sharding.blocks(model)]
    outside = _bytes(model.parameters()) - sum(blocks)
    in_a_row = max(map(sum, itertools.pairwise([0, *blocks])), default=0)
    largest = max(blocks, default=0)
    # gradients are as wide as what computes, and are summed in fp32
    return (outside + in_a_row + largest) // (2 if bf16 else 1) + (largest if bf16 else 0)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
