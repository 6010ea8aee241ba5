"""Who takes requests, for every endpoint that draws: checks them, has them drawn, and gives up in time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Protocol

from serving.admission import ModelCard, Plan, admit, unsupported
from serving.api import GenerationRequest, RequestError
from serving.call import Call
from serving.generator import Generation
from serving.job import ServeJob
from serving.service import Preview

READY_TIMEOUT_S = 5.0
"""How long a replica's event loop may take to describe itself before the server calls itself not ready."""


class Backend(Protocol):
    """What makes the pictures."""

    async def describe(self) -> ModelCard:
        """The model that answers now. Raises RequestError (503) when there is none."""

    async def generate(self, request: GenerationRequest, call: Call) -> Generation:
        """The request's pictures. Raises RequestError."""

    def stream(self, request: GenerationRequest, call: Call) -> AsyncGenerator[Preview | Generation, None]:
        """Previews, and in the end the generation; closing it takes the request out. Raises RequestError."""


class Desk:
    """In front of a backend, with a job's limits."""

    def __init__(self, backend: Backend, job: ServeJob) -> None:
        self._backend = backend
        self._job = job
        self._card: ModelCard | None = None

    async def describe(self) -> ModelCard:
        """The model that answers now. Raises RequestError (503) when none does, or not soon enough."""
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                return await self._backend.describe()
        except TimeoutError:
            raise RequestError(
                f"The model's process did not answer within {READY_TIMEOUT_S:g} s.",
                status=503,
                code="not_ready",
                retry_after_s=READY_TIMEOUT_S,
            ) from None

    async def check(self, request: GenerationRequest) -> tuple[Plan, ModelCard]:
        """Refuses what cannot be served before it takes a place in the queue.

        Raises RequestError. A good request costs no call to the backend, which checks it again anyway.
        """
        if request.response_format == "url":
            raise unsupported("response_format", "pictures come in the answer: use 'b64_json'")
        if self._card is not None:
            try:
                return admit(request, self._card, self._job.limits), self._card
            except RequestError:
                # The model may be another one by now: only its own card may refuse.
                pass
        self._card = await self.describe()
        return admit(request, self._card, self._job.limits), self._card

    async def draw(self, request: GenerationRequest, call: Call) -> Generation:
        """The request's pictures. Raises RequestError."""
        try:
            async with asyncio.timeout(self._seconds(call)):
                await self.check(request)
                return await self._backend.generate(request, call)
        except TimeoutError:
            raise self._late(call) from None

    async def stream(self, request: GenerationRequest, call: Call) -> AsyncGenerator[Preview | Generation, None]:
        """Previews, and in the end the generation. To be read by one task and closed by it. Raises RequestError."""
        try:
            async with asyncio.timeout(self._seconds(call)):
                await self.check(request)
                async with aclosing(self._backend.stream(request, call)) as events:
                    async for event in events:
                        yield event
        except TimeoutError:
            raise self._late(call) from None

    def _seconds(self, call: Call) -> float:
        most = self._job.request_timeout_s
        return most if call.seconds is None else min(most, call.seconds)

    def _late(self, call: Call) -> RequestError:
        return RequestError(
            f"The pictures were not ready within {self._seconds(call):g} s.", status=504, code="timeout"
        )
