"""How the gateway speaks to the sampler's replicas: a Serve handle, with Ray's errors made the API's.

A request whose replica went away is asked of another one. That is the same request, since its seed is fixed before it
is asked for the first time; so nothing is lost with a replica but the steps it had done.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle

from serving.admission import ModelCard
from serving.api import GenerationRequest, RequestError
from serving.call import Call
from serving.generator import Generation
from serving.service import Preview, overloaded
from serving.standing import Vocabulary

ATTEMPTS = 4
"""Replicas that are asked before a request fails because each of them went away."""
GONE = ("sampler_unavailable", "draining")
"""Codes of errors that say nothing about the request, only about who was asked."""

_log = logging.getLogger(__name__)


class SamplerHandle:
    """`serving.http.desk.Backend` on a Serve handle.

    Args:
        asleep: whether no replica runs now and none need before the next request; asked in a thread. None: one always
            does.
        fresh_s: where replicas may sleep, how long a card is shown without asking anew. Who asks a replica keeps it
            from falling asleep, or wakes it: probes must not do that.
    """

    def __init__(
        self, handle: DeploymentHandle[Any], asleep: Callable[[], bool] | None = None, *, fresh_s: float = 30.0
    ) -> None:
        self._handle = handle
        self._streams = handle.options(stream=True)
        self._asleep = asleep
        self._card: ModelCard | None = None
        self._fresh_s = fresh_s
        self._asked_at = -math.inf
        self._vocabulary: tuple[str, Vocabulary] | None = None

    async def describe(self) -> ModelCard:
        """The model's card; while nothing is loaded, as it was when something last was."""
        if self._asleep is not None and self._card is not None:
            fresh = time.monotonic() < self._asked_at + self._fresh_s
            if fresh or await asyncio.to_thread(self._asleep):
                return self._card
        with _our_errors():
            card: ModelCard = await self._handle.describe.remote()
        self._card, self._asked_at = card, time.monotonic()
        return card

    async def vocabulary(self) -> Vocabulary:
        """Asked of a replica once for each version."""
        version = (await self.describe()).version
        if self._vocabulary is None or self._vocabulary[0] != version:
            with _our_errors():
                self._vocabulary = version, await self._handle.vocabulary.remote()
        return self._vocabulary[1]

    async def generate(self, request: GenerationRequest, call: Call) -> Generation:
        seeded = with_seed(request)
        async for attempt in attempts():
            with attempt, _our_errors():
                generation: Generation = await self._handle.generate.remote(seeded, call)
                return generation
        raise AssertionError("the last attempt raises")

    async def stream(self, request: GenerationRequest, call: Call) -> AsyncGenerator[Preview | Generation, None]:
        """To be closed by whoever does not read it to its end: that takes the request out."""
        seeded, told = with_seed(request), set[tuple[int, int]]()
        async for attempt in attempts():
            with attempt:
                events: Any = self._streams.stream.remote(seeded, call)
                try:
                    with _our_errors():
                        async for event in events:
                            if isinstance(event, Preview):
                                if (event.image, event.done) in told:
                                    continue  # drawn again, by another replica
                                told.add((event.image, event.done))
                                call = replace(call, version=event.version)  # of which the rest is to be, too
                            yield event
                    return
                finally:
                    events.cancel()  # of no effect where it has ended


def with_seed(request: GenerationRequest) -> GenerationRequest:
    """The request with a seed of its own, so that asking again is asking for the same."""
    return request if request.seed is not None else request.model_copy(update={"seed": secrets.randbelow(2**31)})


class Attempt:
    """A context that lets the next attempt follow where a replica went away, unless it is the last."""

    def __init__(self, last: bool) -> None:
        self._last = last

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        return not self._last and isinstance(error, RequestError) and error.code in GONE


async def attempts(pause_s: float = 0.1) -> AsyncIterator[Attempt]:
    """Contexts to try in, one after the other, until one is left without the next being asked for."""
    for number in range(ATTEMPTS):
        yield Attempt(last=number == ATTEMPTS - 1)
        _log.warning("a replica went away; its request is asked of another one")
        await asyncio.sleep(pause_s * 2**number)


@contextmanager
def _our_errors() -> Iterator[None]:
    try:
        yield
    except BackPressureError as error:
        raise overloaded(1.0) from error
    except RayTaskError as error:
        # What the replica raised, without Ray's wrapping: `cause` is the very exception.
        raise error.cause from error
    except (RayActorError, DeploymentUnavailableError, ReplicaUnavailableError) as error:
        raise RequestError(
            "The model's process went away; it is being restarted.",
            status=503,
            code="sampler_unavailable",
            retry_after_s=5.0,
        ) from error
