"""An AdamW's state as a checkpoint has it: named after parameters, not after their places in a list."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

Named = Iterable[tuple[str, Tensor]]
"""A network's parameters, each with its plain name."""


def stored(optimizer: torch.optim.Optimizer, named: Named) -> dict[str, Tensor]:
    """`step`, `exp_avg` and `exp_avg_sq` of each parameter, by `<key>.<parameter's name>`."""
    return {f"{key}.{name}": value for name, parameter in named for key, value in optimizer.state[parameter].items()}


@torch.no_grad()
def restore(optimizer: torch.optim.Optimizer, named: Named, moments: Mapping[str, Tensor]) -> None:
    """The inverse of `stored`."""
    for name, parameter in named:
        # in the layout of the parameter (channels last on a GPU): the fused kernel walks both in order of memory
        optimizer.state[parameter] = {
            "step": moments[f"step.{name}"].to(parameter.device),
            "exp_avg": torch.empty_like(parameter).copy_(moments[f"exp_avg.{name}"]),
            "exp_avg_sq": torch.empty_like(parameter).copy_(moments[f"exp_avg_sq.{name}"]),
        }
