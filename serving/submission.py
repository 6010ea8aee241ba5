"""A request in the engine: its pictures' places in the queue, and what is told of them on the way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Hashable, Sequence
from dataclasses import dataclass

from torch import Tensor

from serving.trajectory import Trajectory


@dataclass(frozen=True)
class Stepped:
    """A picture of the request has a solver step behind it; `clean` is there where a preview was asked for."""

    picture: int
    done: int
    steps: int
    clean: Tensor | None = None


@dataclass(frozen=True)
class Finished:
    """A picture is done: float32 (1, C, h, w) in the model's space."""

    picture: int
    clean: Tensor


Event = Stepped | Finished


class Submission:
    """The pictures of a request under way. Iterate over its events until all are finished.

    Attributes:
        started: by the engine's clock, when the first pass with one of them began; None before.
        submitted: when they came.
    """

    def __init__(self, flow: Hashable, pictures: Sequence[Trajectory], previews: Collection[int], now: float) -> None:
        self.flow = flow
        self.pictures = list(pictures)
        self.previews = frozenset(previews)
        self.submitted = now
        self.started: float | None = None
        self.left = set(range(len(pictures)))
        self.asked = [0] * len(pictures)
        self.events: asyncio.Queue[Event | Exception] = asyncio.Queue()

    def row_steps(self, picture: int) -> int:
        """What one of its pictures still costs."""
        trajectory = self.pictures[picture]
        return trajectory.rows * (trajectory.evaluations - self.asked[picture])

    async def __aiter__(self) -> AsyncIterator[Event]:
        """Raises what a pass with one of the pictures raised; the others are given up then."""
        unfinished = len(self.pictures)
        while unfinished:
            event = await self.events.get()
            if isinstance(event, Exception):
                raise event
            unfinished -= isinstance(event, Finished)
            yield event


@dataclass(frozen=True)
class Place:
    """A picture's place in the queue."""

    submission: Submission
    picture: int

    @property
    def rows(self) -> int:
        return self.submission.pictures[self.picture].rows

    @property
    def bucket(self) -> Hashable:
        return self.submission.pictures[self.picture].bucket
