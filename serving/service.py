"""A generator whose requests share forward passes: what a replica runs.

Sampling has a thread (the engine's), and everything before and after it another: reading prompts, decoding, the guard,
encoding. So one request's PNG is made while the next one's steps go on, and the event loop answers all the time.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import time
from collections.abc import AsyncGenerator, Callable, Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from torch import Tensor

from serving.admission import Plan
from serving.api import GenerationRequest, RequestError
from serving.engine import DrainingError, QueueFullError, Run, StepEngine
from serving.generator import Generation, Generator
from serving.submission import Finished
from serving.trajectory import PictureTrajectory

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Preview:
    """One of a request's images as it looks so far; `data` is None where the guard would withhold it."""

    image: int
    done: int
    steps: int
    data: bytes | None
    version: str
    """Of the model that draws it."""


async def last(events: AsyncGenerator[Preview | Generation, None]) -> Generation:
    """The generation that a stream ends with, without its previews."""
    async with aclosing(events):
        async for event in events:
            if isinstance(event, Generation):
                return event
    raise AssertionError("a stream ends with its generation")


class Service:
    """Belongs to one event loop.

    Args:
        max_row_steps: rows times steps that may be outstanding.
        clock, run: the engine's.
    """

    def __init__(
        self,
        generator: Generator,
        *,
        max_row_steps: int = 16_384,
        clock: Callable[[], float] = time.monotonic,
        run: Run | None = None,
    ) -> None:
        self.generator = generator
        backend = generator.backend
        self.engine = StepEngine(
            backend.denoiser, max_rows=backend.together, max_row_steps=max_row_steps, clock=clock, run=run
        )
        self._clock = clock
        self._side = ThreadPoolExecutor(1, thread_name_prefix="pictures")

    async def generate(self, request: GenerationRequest, *, flow: Hashable = None) -> Generation:
        """A request's pictures.

        Args:
            flow: who shares the engine fairly with others, a key for instance; None: this request by itself.

        Raises:
            RequestError: 429 when too much is outstanding, 503 when the service is being shut down, else as
                `Generator.generate`.
        """
        return await last(self.stream(request, flow=flow))

    async def stream(
        self,
        request: GenerationRequest,
        *,
        flow: Hashable = None,
        previews: int = 0,
        ids: tuple[str, ...] | None = None,
        seconds: float | None = None,
    ) -> AsyncGenerator[Preview | Generation, None]:
        """Previews of a request's images while they are drawn, and in the end the generation.

        To be closed by whoever does not read it to its end (`contextlib.aclosing`): that takes the request out.

        Args:
            previews: of each image at most, evenly over its steps.
            ids: the images', where they are drawn again.
            seconds: until nobody waits any more; what would take longer is not begun.

        Raises:
            RequestError: as `generate`.
        """
        plan = self.generator.admit(request, ids)
        if seconds is not None and (until := self.engine.seconds_until(plan.row_steps, flow)) > seconds:
            raise too_late(until, seconds)
        arrived = self._clock()
        plan, pictures = await self._aside(self._begun, plan)
        steps = pictures[0].steps
        wanted = {k * steps // (previews + 1) for k in range(1, previews + 1)} - {0, steps}
        clean: dict[int, Tensor] = {}
        first_step = first_preview = None
        with _refusals():
            async with self.engine.submit(pictures, flow=flow, previews=wanted) as submission:
                async for event in submission:
                    first_step = first_step or self._clock()
                    if isinstance(event, Finished):
                        clean[event.picture] = event.clean
                    elif event.clean is not None:
                        data = await self._aside(self.generator.preview, plan, event.clean, event.picture)
                        first_preview = first_preview or self._clock()
                        yield Preview(event.picture, event.done, event.steps, data, self.generator.card.version)
                started = submission.started or arrived
        sampled = self._clock() - started
        seen = await self._aside(self.generator.look, plan, [clean[k] for k in range(len(pictures))])
        while (redraw := self.generator.again(plan, seen)) is not None:
            begun = self._clock()
            again = await self._drawn(redraw.plan, flow)
            sampled += self._clock() - begun
            seen = redraw.into(seen, await self._aside(self.generator.look, redraw.plan, again))
        queued = started - arrived
        yield await self._aside(
            self.generator.complete,
            plan,
            seen,
            queue_s=queued,
            sample_s=sampled,
            first_step_s=None if first_step is None else first_step - arrived,
            first_preview_s=None if first_preview is None else first_preview - arrived,
        )

    def _begun(self, plan: Plan) -> tuple[Plan, list[PictureTrajectory]]:
        # Judging a long prompt takes the rules milliseconds, and CLIP a quarter of a second: not on the loop.
        plan = self.generator.judged(plan)
        return plan, self.generator.begin(plan)

    async def _drawn(self, plan: Plan, flow: Hashable) -> list[Tensor]:
        """A plan's pictures in the model's space."""
        pictures = await self._aside(self.generator.begin, plan)
        clean: dict[int, Tensor] = {}
        with _refusals():
            async with self.engine.submit(pictures, flow=flow) as submission:
                async for event in submission:
                    if isinstance(event, Finished):
                        clean[event.picture] = event.clean
        return [clean[k] for k in range(len(pictures))]

    async def drain(self) -> None:
        """Takes nothing new and returns when the last request has been drawn."""
        await self.engine.drain()

    async def _aside(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        # With the context, so that what is logged on the way says whose request it was.
        bound = functools.partial(contextvars.copy_context().run, work, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._side, bound)


def too_late(until_s: float, seconds: float) -> RequestError:
    """The answer to a request that would be done when nobody waits any more."""
    return RequestError(
        f"The pictures would take {until_s:.0f} s; the request is given up after {seconds:g} s.",
        status=503,
        code="deadline_unreachable",
        retry_after_s=max(1.0, until_s - seconds),
    )


@contextmanager
def _refusals() -> Iterator[None]:
    """What the engine refuses, as the API says it."""
    try:
        yield
    except QueueFullError as full:
        raise overloaded(full.retry_after_s) from full
    except DrainingError as draining:
        raise RequestError(
            "This process of the server is being shut down.", status=503, code="draining", retry_after_s=1.0
        ) from draining


def overloaded(retry_after_s: float) -> RequestError:
    """The answer to one request too many; `retry_after_s` is when the ones before it should be done."""
    return RequestError(
        "The server has as many requests waiting as it accepts.",
        status=429,
        code="overloaded",
        retry_after_s=max(1.0, retry_after_s),
    )
