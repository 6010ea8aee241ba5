"""Which shape of pictures each step shows: a function of the seed and the sizes of the shapes; see `training.order`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from training.randomness import Purpose, keys

_TOGETHER = 4096  # batches, about, that are put in order at once


class ShapeSchedule:
    """The steps of a run, each with a shape and the number of the shape's batch.

    Batch k of shape b is due at (k + u_bk) B / n_b epochs. Time is cut into equal spans; how many batches of a shape
    are due before one begins is known without looking at them, so that any step is found without those before it.
    """

    def __init__(self, seed: int, marks: Sequence[int], counts: Sequence[int], batch_size: int) -> None:
        """Args:
        marks: a number for each shape, which its draws depend on.
        counts: slots of each.
        """
        self._seed = seed
        self._marks = marks
        self._every = [batch_size / count if count else 0.0 for count in counts]  # epochs between two batches
        self._span = _TOGETHER * batch_size / sum(counts)
        self._part = lru_cache(maxsize=64)(self._ordered)

    def at(self, step: Tensor) -> tuple[Tensor, Tensor]:
        """The shape and the number of its batch, int64 (N,) each, of steps (N,)."""
        if not len(step):
            return step, step
        first, last = self._span_of(int(step.min())), self._span_of(int(step.max()))
        tables = [self._part(span) for span in range(first, last + 1)]
        begin = self._before(first * self._span)
        shape, batch = (torch.from_numpy(np.concatenate([table[i] for table in tables])) for i in (0, 1))
        return shape[step - sum(begin)], batch[step - sum(begin)]

    def upto(self, steps: int) -> Tensor:
        """The shapes of the first steps: int64 (steps,)."""
        return self.at(torch.arange(steps))[0]

    def _span_of(self, step: int) -> int:
        """The span that a step is in."""
        span = step // _TOGETHER
        while span and sum(self._before(span * self._span)) > step:
            span -= 1
        while sum(self._before((span + 1) * self._span)) <= step:
            span += 1
        return span

    def _due(self, shape: int, batch: np.ndarray) -> np.ndarray:
        """When batches (N,) of a shape are due, in epochs."""
        key = keys(self._seed, Purpose.SHAPE_DUE, torch.from_numpy(batch), self._marks[shape]).numpy()
        uniform = (key.view(np.uint64) >> np.uint64(11)).astype(np.float64) * 2.0**-53
        due: np.ndarray = (batch + uniform) * self._every[shape]
        return due

    def _before(self, time: float) -> list[int]:
        """How many batches of each shape are due before a time."""
        found = []
        for shape, every in enumerate(self._every):
            if not every:
                found.append(0)
                continue
            whole = int(time / every)
            near = np.arange(max(whole - 1, 0), whole + 2)  # the one that may be due, and what rounding may move
            found.append(int(near[0]) + int((self._due(shape, near) < time).sum()))
        return found

    def _ordered(self, span: int) -> tuple[np.ndarray, np.ndarray]:
        """The shapes and the batches of a span, by when they are due."""
        begin, end = self._before(span * self._span), self._before((span + 1) * self._span)
        batches = [np.arange(a, b) for a, b in zip(begin, end, strict=True)]
        shapes = np.concatenate([np.full(len(batch), shape) for shape, batch in enumerate(batches)])
        due = np.concatenate([self._due(shape, batch) for shape, batch in enumerate(batches)])
        order = np.lexsort((shapes, due))
        return shapes[order], np.concatenate(batches)[order]
