"""The sampler's Ray Serve deployment, and the handle by which the gateway speaks to it.

A replica's requests share its forward passes (`serving.engine`), which run in a thread of their own, so that its event
loop always answers health checks and `describe`. Requests that wait are counted here and not in Serve's queue: the
replica knows how long its passes take, and so can say when to come again.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from typing import Any

from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle

from serving import registered
from serving.admission import ModelCard
from serving.api import GenerationRequest, RequestError
from serving.call import Call
from serving.engine import Status, together
from serving.generator import Generation
from serving.job import ServeJob
from serving.service import Preview, overloaded


class Sampler:
    """Holds the versions of a model (`serving.versions`) and makes pictures with them.

    Raises:
        UserError: from the constructor, when the model or the guard cannot be loaded; Serve reports it as the reason
            why the application did not start.
    """

    def __init__(self, job: ServeJob) -> None:
        import torch

        torch.set_num_threads(job.cpu_threads)
        self._versions = registered.opened(job)
        self._queue_limit = job.max_queued_requests
        self._patience_s = job.request_timeout_s
        self._admitted = 0

    async def describe(self) -> ModelCard:
        """The model that answers; also the gateway's proof that this replica lives."""
        self._versions.watch()
        return self._versions.describe()

    async def status(self) -> Status:
        """How its engines stand, together."""
        return together([service.engine.status() for service in self._versions.services()])

    async def generate(self, request: GenerationRequest, call: Call) -> Generation:
        """A request's pictures, as `stream` without its previews."""
        async with aclosing(self.stream(request, call)) as events:
            async for event in events:
                if isinstance(event, Generation):
                    return event
        raise AssertionError("a stream ends with its generation")

    async def stream(self, request: GenerationRequest, call: Call) -> AsyncGenerator[Preview | Generation, None]:
        """Makes a request's pictures, all by the version that answers when it comes.

        When the client has gone, its rows are in no pass after the one under way.

        Raises:
            RequestError: 409 when the version that was asked for is not here, 429 when too many wait already, 503 when
                no version may answer, else as `Generator.generate`.
        """
        with self._versions.serving(request, version=call.version) as service:
            if self._admitted > self._queue_limit:
                raise overloaded(service.engine.seconds_left())
            self._admitted += 1
            try:
                drawn = service.stream(request, flow=call.flow, previews=call.previews, ids=call.ids)
                async with aclosing(drawn) as events:
                    async for event in events:
                        yield event
            finally:
                self._admitted -= 1

    async def check_health(self) -> None:
        """Raises when pictures are under way and no pass has ended for as long as a whole request may take."""
        self._versions.watch()
        silent_s = (await self.status()).silent_s
        if silent_s > self._patience_s:
            raise RuntimeError(f"no denoising step has ended for {silent_s:.0f} s")


class SamplerHandle:
    """`serving.http.desk.Backend` on a Serve handle: Ray's errors become the API's."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle = handle
        self._streams = handle.options(stream=True)

    async def describe(self) -> ModelCard:
        with _our_errors():
            card: ModelCard = await self._handle.describe.remote()
        return card

    async def generate(self, request: GenerationRequest, call: Call) -> Generation:
        with _our_errors():
            generation: Generation = await self._handle.generate.remote(request, call)
        return generation

    async def stream(self, request: GenerationRequest, call: Call) -> AsyncGenerator[Preview | Generation, None]:
        """To be closed by whoever does not read it to its end: that takes the request out."""
        events: Any = self._streams.stream.remote(request, call)
        try:
            with _our_errors():
                async for event in events:
                    yield event
        finally:
            events.cancel()  # of no effect where it has ended


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
