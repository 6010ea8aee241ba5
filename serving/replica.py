"""The sampler's Ray Serve deployment, and the handle by which the gateway speaks to it.

A replica samples one request at a time, in a thread of its own, so that its event loop always answers health checks and
`describe`. Requests that wait are counted here and not in Serve's queue: the replica knows how long its requests take,
and so can say when to come again.
"""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle

from serving.admission import ModelCard
from serving.api import GenerationRequest, RequestError
from serving.generator import Generation, Generator, load
from serving.job import ServeJob


class Sampler:
    """Holds one model and makes pictures with it.

    Raises:
        UserError: from the constructor, when the model or the guard cannot be loaded; Serve reports it as the reason
            why the application did not start.
    """

    def __init__(self, job: ServeJob) -> None:
        import torch

        torch.set_num_threads(job.cpu_threads)
        self._generator: Generator = load(job)
        self._queue_limit = job.max_queued_requests
        self._patience_s = job.request_timeout_s
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sampler")
        self._admitted = 0
        self._seconds_per_request = 1.0
        self._last_sign_of_life = time.monotonic()

    async def describe(self) -> ModelCard:
        """The model that answers; also the gateway's proof that this replica lives."""
        return self._generator.card

    async def generate(self, request: GenerationRequest) -> Generation:
        """Makes a request's pictures.

        Raises:
            RequestError: 429 when too many wait already, else as `Generator.generate`.
        """
        if self._admitted > self._queue_limit:
            raise overloaded(self._admitted * self._seconds_per_request)
        self._admitted += 1
        left = threading.Event()
        arrived = time.monotonic()
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._thread, self._run, request, arrived, left)
        finally:
            # Also when the client has gone: the thread stops at its next step, and nobody waits for its result.
            left.set()
            self._admitted -= 1

    def _run(self, request: GenerationRequest, arrived: float, left: threading.Event) -> Generation:
        def step() -> bool:
            self._last_sign_of_life = time.monotonic()
            return left.is_set()

        started = time.monotonic()
        step()
        generation = self._generator.generate(request, stop=step)
        self._seconds_per_request += 0.2 * (time.monotonic() - started - self._seconds_per_request)
        return generation.queued(started - arrived)

    async def check_health(self) -> None:
        """Raises when a request is being sampled and no step has ended for as long as a whole request may take."""
        silent_s = time.monotonic() - self._last_sign_of_life
        if self._admitted and silent_s > self._patience_s:
            raise RuntimeError(f"no denoising step has ended for {silent_s:.0f} s")


class SamplerHandle:
    """`serving.gateway.Backend` on a Serve handle: Ray's errors become the API's."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle = handle

    async def describe(self) -> ModelCard:
        card: ModelCard = await self._call("describe")
        return card

    async def generate(self, request: GenerationRequest) -> Generation:
        generation: Generation = await self._call("generate", request)
        return generation

    async def _call(self, method: str, *args: Any) -> Any:
        try:
            return await getattr(self._handle, method).remote(*args)
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


def overloaded(retry_after_s: float) -> RequestError:
    """The answer to one request too many; `retry_after_s` is when the ones before it should be done."""
    return RequestError(
        "The server has as many requests waiting as it accepts.",
        status=429,
        code="overloaded",
        retry_after_s=max(1.0, retry_after_s),
    )
