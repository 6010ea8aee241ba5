"""One network split over the workers (FSDP2): each holds a share of every parameter, gradient, moment and average.

`fully_shard` gathers a block's parameters from the workers while it computes, and scatters the sum of its gradients
afterwards. What is split are DTensors, rows of each tensor to each worker; the functions here take plain tensors, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def blocks(network: Any) -> list[Any]:
    """The parts that are gathered one at a time, in the order of the network; the rest stays gathered while it works.

    They are the members of its lists of blocks, and what a U-Net has between them.
    """
    found = []
    for name, child in network.named_children():
        if isinstance(child, torch.nn.ModuleList):
            found += [member for member in child if any(True for _ in member.parameters())]
        elif name == "mid_block" and child is not None:
            found.append(child)
    return found


def shard(network: Any, device: torch.device, *, bf16: bool, compile: bool = False) -> None:
    """Splits a network over all workers, in place.

    Args:
        network: the same on every worker, on the host.
        device: this worker's.
        bf16: gather and compute in bfloat16; what is held and summed is fp32.
        compile: compile the blocks one by one, as gathering breaks a graph.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    # inputs are left alone: a timestep in bfloat16 has three digits, and autocast knows what to cast
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if bf16 else None,
        reduce_dtype=torch.float32 if bf16 else None,
        cast_forward_inputs=False,
    )
    for block in blocks(network):
        block.to(device)
        if compile:
            block.compile()
        fully_shard(block, mesh=mesh, mp_policy=policy)
    network.to(device)
    fully_shard(network, mesh=mesh, mp_policy=policy)


def is_split(tensor: Any) -> bool:
    """Whether a tensor is a DTensor. By what it can do: a run in one process need not import them."""
    return hasattr(tensor, "to_local")


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor. Of a split one every worker has to ask."""
    split: Any = tensor
    found: Tensor = split.full_tensor() if is_split(tensor) else tensor
    return found


def local(tensor: Tensor) -> Tensor:
    """This worker's share of a tensor, in the same memory; of one that is not split, itself."""
    split: Any = tensor
    found: Tensor = split.to_local() if is_split(tensor) else tensor
    return found


def gather(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """Whole tensors in the memory of the host, by name, where they are kept. Every worker has to call it."""
    found = {}
    for name, tensor in tensors.items():
        all_of_it = whole(tensor.detach())
        if keep:
            found[name] = all_of_it.cpu()
    return found


def begin(optimizer: torch.optim.AdamW) -> None:
    """Gives the optimizer the state of before its first step, so that there is something to load into."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter] = {
                "step": torch.zeros((), device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
