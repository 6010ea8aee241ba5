"""Moving averages of the weights: the exponential one is the model that is kept.

Averages by a power function (Karras et al. 2024, arXiv 2312.02696, section 3.2) have a length in proportion to the run,
sigma_rel: the standard deviation of their profile, the weight of each step, over the length of the run. Two of them,
stored now and then, are enough to make one of any length afterwards (`training.averages`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from training.sharding import local

PREFIX = "ema_"


class Ema:
    """A second network whose weights follow those of the first: `w <- d w + (1 - d) w_new` after every step.

    With warm-up the decay d is at most (1 + step) / (10 + step), so that the random initial weights are soon forgotten
    (the rule of TensorFlow's ExponentialMovingAverage). Every rank computes the same average; nothing is exchanged.

    Attributes:
        model: the averaged network, in evaluation mode.
    """

    def __init__(self, model: Any, *, decay: float, warmup: bool) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self._decay = decay
        self._warmup = warmup
        self._average = list(self.model.parameters())
        self._current = list(model.parameters())

    def decay(self, step: int) -> float:
        """The decay d of the given step, counted from 1."""
        return decay_at(step, self._decay, warmup=self._warmup)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Moves the average towards the network's weights after the given step, counted from 1."""
        torch._foreach_lerp_(self._average, self._current, 1 - self.decay(step))

    def state(self) -> dict[str, Tensor]:
        """The averaged network's tensors, by name."""
        return dict(self.model.state_dict())


class ShardedEma:
    """The same average of a network that is split over workers: each averages its share; nothing is exchanged.

    Attributes:
        weights: the averaged parameters, split as the network's, and its buffers, by the names of its state.
    """

    def __init__(self, model: Any, *, decay: float, warmup: bool) -> None:
        self.weights: dict[str, Tensor] = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        self._decay = decay
        self._warmup = warmup
        named = dict(model.named_parameters())
        self._average = [local(self.weights[name]) for name in named]
        self._current = [local(parameter) for parameter in named.values()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Moves the average towards the network's weights after the given step, counted from 1."""
        torch._foreach_lerp_(self._average, self._current, 1 - decay_at(step, self._decay, warmup=self._warmup))

    def state(self) -> dict[str, Tensor]:
        """The averaged network's tensors, by name."""
        return self.weights


class PowerEma:
    """The average whose weight of step k after n steps is (k^e - (k - 1)^e) / n^e, e = gamma + 1: that of a power
    function. The initial weights have none. Every rank computes the same average; nothing is exchanged.

    Attributes:
        weights: the averaged parameters, by name.
    """

    def __init__(self, model: Any, sigma_rel: float) -> None:
        self.weights: dict[str, Tensor] = {
            name: parameter.detach().clone() for name, parameter in model.named_parameters()
        }
        self._exponent = exponent(sigma_rel)
        self._average = [local(average) for average in self.weights.values()]
        self._current = [local(parameter) for parameter in model.parameters()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Moves the average towards the network's weights after the given step, counted from 1."""
        torch._foreach_lerp_(self._average, self._current, 1 - (1 - 1 / step) ** self._exponent)

    @torch.no_grad()
    def restore(self, weights: Mapping[str, Tensor]) -> None:
        """Takes the place of the average that `weights`, whole tensors, are of."""
        for name, average in self.weights.items():
            average.copy_(weights[name])


def decay_at(step: int, decay: float, *, warmup: bool) -> float:
    """The decay d of the given step, counted from 1, of an `Ema`."""
    return min(decay, (1 + step) / (10 + step)) if warmup else decay


def part(sigma_rel: float) -> str:
    """The name of a power average in checkpoints and snapshots."""
    return f"{PREFIX}{sigma_rel:g}"


def exponent(sigma_rel: float) -> float:
    """gamma + 1 of the profile of that length (Karras et al. 2024, algorithm 2): the real root of
    (gamma + 2)^2 (gamma + 3) = (gamma + 1) / sigma_rel^2."""
    inverse = sigma_rel**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max()) + 1
