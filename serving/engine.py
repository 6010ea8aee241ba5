"""The step engine: one loop over denoising steps, in which requests share forward passes.

Every pass takes some of the pictures under way one question further: those whose turn it is (`serving.fairness`),
whatever their steps, samplers, guidance or seeds. A picture that comes waits for the pass under way and no longer; one
whose client has left is in no later pass. The queue is bounded by what it costs: rows of passes, outstanding.

Knows neither Ray nor HTTP. The clock and whoever runs a pass come from outside, so that its tests have time in hand.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from serving.fairness import DeficitRoundRobin
from serving.submission import Finished, Place, Stepped, Submission
from serving.trajectory import Trajectory, step
from training.onnx_denoiser import Denoiser

Run = Callable[[Callable[[], Any]], Awaitable[Any]]
"""Runs a pass, by default in a thread of its own, so that the loop always answers."""

_log = logging.getLogger(__name__)


class QueueFullError(Exception):
    """More is outstanding than the engine accepts; `retry_after_s` is when most of it should be done."""

    def __init__(self, row_steps: int, retry_after_s: float) -> None:
        super().__init__(f"{row_steps} row-steps are outstanding")
        self.retry_after_s = retry_after_s


class DrainingError(Exception):
    """The engine finishes what it has and takes nothing new."""


@dataclass(frozen=True)
class Status:
    """How it stands: what health checks, metrics and autoscaling look at.

    Attributes:
        pictures: under way.
        row_steps: rows of passes that those still need.
        passes, rows: forward passes so far, and the rows in them.
        row_steps_per_s: recent pace, 0 before the first pass.
        silent_s: seconds since a pass ended while pictures were under way; 0 without any.
        draining: whether it takes nothing new.
        busy_s: seconds in passes so far.
        max_rows: of a pass at most.
        fill: passes so far that were filled up to one tenth of `max_rows`, to two tenths, and so on.
    """

    pictures: int
    row_steps: int
    passes: int
    rows: int
    row_steps_per_s: float
    silent_s: float
    draining: bool
    busy_s: float = 0.0
    max_rows: int = 1
    fill: tuple[int, ...] = (0,) * 10


def together(statuses: Sequence[Status]) -> Status:
    """Of engines side by side, as of one."""
    return Status(
        pictures=sum(status.pictures for status in statuses),
        row_steps=sum(status.row_steps for status in statuses),
        passes=sum(status.passes for status in statuses),
        rows=sum(status.rows for status in statuses),
        row_steps_per_s=sum(status.row_steps_per_s for status in statuses),
        silent_s=max((status.silent_s for status in statuses), default=0.0),
        draining=all(status.draining for status in statuses),
        busy_s=sum(status.busy_s for status in statuses),
        max_rows=max((status.max_rows for status in statuses), default=1),
        fill=tuple(map(sum, zip((0,) * 10, *(status.fill for status in statuses), strict=True))),
    )


class StepEngine:
    """Takes pictures forward, one pass after the other. Belongs to one event loop.

    Args:
        denoiser: the network.
        max_rows: of a pass at most; 1 gives every picture passes of its own.
        max_row_steps: outstanding at most. A request that costs more by itself is taken when nothing else is there.
        clock: seconds, monotonic.
        run: runs a pass; None: a thread of the engine's own.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        max_rows: int = 16,
        max_row_steps: int = 16_384,
        clock: Callable[[], float] = time.monotonic,
        run: Run | None = None,
    ) -> None:
        self._denoiser = denoiser
        self._max_rows = max_rows
        self._max_row_steps = max_row_steps
        self._clock = clock
        self._run = run or _in_a_thread()
        self._queue: DeficitRoundRobin[Place] = DeficitRoundRobin()
        self._places: dict[tuple[Submission, int], Place] = {}
        self._outstanding = self._passes = self._rows = 0
        self._pace = self._busy_s = 0.0
        self._fill = [0] * 10
        self._last_sign_of_life = clock()
        self._numbers = itertools.count()
        self._open = 0
        self._draining = False
        self._wake = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()
        self._task: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def submit(
        self, pictures: Sequence[Trajectory], *, flow: Hashable = None, previews: Collection[int] = ()
    ) -> AsyncIterator[Submission]:
        """The pictures of a request, for as long as the context is entered: leaving it takes them out.

        Args:
            flow: who shares fairly with others; None: this request by itself.
            previews: numbers of solver steps after which the clean picture is handed out.

        Raises:
            QueueFullError: too much is outstanding.
            DrainingError: after `drain`.
        """
        cost = sum(picture.rows * picture.evaluations for picture in pictures)
        if self._draining:
            raise DrainingError("the engine is draining")
        if self._places and self._outstanding + cost > self._max_row_steps:
            raise QueueFullError(self._outstanding, self.seconds_left())
        number = next(self._numbers)
        submission = Submission(("request", number) if flow is None else flow, pictures, previews, self._clock())
        if not self._places:
            self._last_sign_of_life = self._clock()
        for index in range(len(pictures)):
            place = self._places[submission, index] = Place(submission, index)
            self._queue.add(submission.flow, submission, place)
        self._outstanding += cost
        self._open += 1
        self._empty.clear()
        self._wake.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._loop(), name="step engine")
        try:
            yield submission
        finally:
            for index in list(submission.left):
                self._take_out(submission, index)
            self._open -= 1
            if not self._open:
                self._empty.set()

    def seconds_left(self) -> float:
        """When what is outstanding should be done, at the recent pace; 1 before there is one."""
        return self._outstanding / self._pace if self._pace else 1.0

    def seconds_until(self, row_steps: int, flow: Hashable = None) -> float:
        """When a request of that cost should be done if it came now; 0 where nothing else is there.

        Flows share fairly: it waits for no more of each other one than its own has before it, and for no more than all.
        """
        if not self._places or not self._pace:
            return 0.0
        ahead: Counter[Hashable] = Counter()
        for submission, index in self._places:
            ahead[submission.flow] += submission.row_steps(index)
        own = ahead.pop(flow, 0) + row_steps
        return (own + sum(min(other, own) for other in ahead.values())) / self._pace

    def status(self) -> Status:
        return Status(
            pictures=len(self._places),
            row_steps=self._outstanding,
            passes=self._passes,
            rows=self._rows,
            row_steps_per_s=self._pace,
            silent_s=self._clock() - self._last_sign_of_life if self._places else 0.0,
            draining=self._draining,
            busy_s=self._busy_s,
            max_rows=self._max_rows,
            fill=tuple(self._fill),
        )

    async def drain(self) -> None:
        """Takes nothing new and returns when the last request has gone."""
        self._draining = True
        await self._empty.wait()

    async def close(self) -> None:
        """Ends the loop; requests that are still there fail."""
        self._draining = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for submission in {submission for submission, _ in self._places}:
            submission.events.put_nowait(DrainingError("the engine was closed"))

    async def _loop(self) -> None:
        try:
            await self._passes_for_ever()
        except Exception as error:
            _log.exception("the step engine failed; the next request starts it again")
            for submission in {submission for submission, _ in self._places}:
                submission.events.put_nowait(error)

    async def _passes_for_ever(self) -> None:
        while True:
            if not self._places:
                self._wake.clear()
                await self._wake.wait()
            places = self._queue.select(self._max_rows)
            begun = self._clock()
            for place in places:
                if place.submission.started is None:
                    place.submission.started = begun
            trajectories = [place.submission.pictures[place.picture] for place in places]
            done = [trajectory.done for trajectory in trajectories]
            failures = await self._run(functools.partial(step, self._denoiser, trajectories))
            self._account(sum(place.rows for place in places), begun)
            for place, before, failure in zip(places, done, failures, strict=True):
                self._report(place, before, failure)

    def _account(self, rows: int, begun: float) -> None:
        now = self._clock()
        self._passes += 1
        self._rows += rows
        self._busy_s += now - begun
        # A guided picture has two rows, also where a pass may have one.
        self._fill[min(10, -(-10 * rows // self._max_rows)) - 1] += 1
        self._last_sign_of_life = now
        pace = rows / max(now - begun, 1e-9)
        self._pace += (pace - self._pace) * (0.1 if self._pace else 1.0)

    def _report(self, place: Place, before: int, failure: Exception | None) -> None:
        submission, index = place.submission, place.picture
        if index not in submission.left:
            return  # the client left during the pass
        if failure is not None:
            _log.error("a forward pass failed", exc_info=failure)
            self._take_out(submission, index)
            submission.events.put_nowait(failure)
            return
        submission.asked[index] += 1
        self._outstanding -= place.rows
        trajectory = submission.pictures[index]
        if trajectory.done > before:
            clean = trajectory.clean if trajectory.done in submission.previews else None
            submission.events.put_nowait(Stepped(index, trajectory.done, trajectory.steps, clean))
        if trajectory.finished:
            self._take_out(submission, index)
            submission.events.put_nowait(Finished(index, trajectory.clean))

    def _take_out(self, submission: Submission, index: int) -> None:
        self._outstanding -= submission.row_steps(index)
        submission.left.discard(index)
        self._queue.remove(submission.flow, submission, self._places.pop((submission, index)))


def _in_a_thread() -> Run:
    thread = ThreadPoolExecutor(1, thread_name_prefix="engine")

    async def run(work: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(thread, work)

    return run
