"""The exponential moving average of the weights, which is the model that is kept."""

from __future__ import annotations

import copy
from typing import Any

import torch


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
        return min(self._decay, (1 + step) / (10 + step)) if self._warmup else self._decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Moves the average towards the network's weights after the given step, counted from 1."""
        torch._foreach_lerp_(self._average, self._current, 1 - self.decay(step))
