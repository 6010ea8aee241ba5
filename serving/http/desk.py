"""Who takes requests, for every endpoint that draws: checks them, has them drawn, remembers them, gives up in time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Protocol

from serving.admission import ModelCard, Plan, admit, row_steps, unsupported
from serving.api import GenerationRequest, GenerationResponse, RequestError
from serving.call import Call
from serving.context import hide, note, trace
from serving.generator import Generation
from serving.http.asker import Asker
from serving.job import ServeJob
from serving.logs import facts
from serving.quotas import Quotas
from serving.records import Archive, Record, records_of
from serving.service import Preview
from serving.standing import Guide, Vocabulary

READY_TIMEOUT_S = 5.0
"""How long a replica's event loop may take to describe itself before the server calls itself not ready."""

_log = logging.getLogger(__name__)


class Backend(Protocol):
    """What makes the pictures."""

    async def describe(self) -> ModelCard:
        """The model that answers now. Raises RequestError (503) when there is none."""

    async def vocabulary(self) -> Vocabulary:
        """What it was told in training. Raises RequestError (503) when there is none."""

    async def generate(self, request: GenerationRequest, call: Call) -> Generation:
        """The request's pictures. Raises RequestError."""

    def stream(self, request: GenerationRequest, call: Call) -> AsyncGenerator[Preview | Generation, None]:
        """Previews, and in the end the generation; closing it takes the request out. Raises RequestError."""


class Desk:
    """In front of a backend, with a job's limits.

    Args:
        archive: where pictures are remembered; None: nowhere.
        quotas: what keys are charged to; None: nobody is charged.
    """

    def __init__(
        self, backend: Backend, job: ServeJob, archive: Archive | None = None, quotas: Quotas | None = None
    ) -> None:
        self._backend = backend
        self._job = job
        self._archive = archive
        self._quotas = quotas
        self._card: ModelCard | None = None
        self._counting = asyncio.Lock()
        self._sweeping: asyncio.Future[None] | None = None

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

    async def guide(self) -> Guide:
        """What may be asked for. Raises RequestError as `describe`."""
        card, limits = await self.describe(), self._job.limits
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                vocabulary = await self._backend.vocabulary()
        except TimeoutError:
            vocabulary = Vocabulary()
        return Guide(
            model=card.entry(),
            samplers=card.samplers,
            frames=card.frames,
            max_steps=min(limits.max_steps, card.noise_levels),
            max_images=limits.max_images,
            max_guidance_scale=limits.max_guidance_scale,
            max_prompt_chars=limits.max_prompt_chars,
            records=self._archive is not None,
            attribution=card.attribution,
            vocabulary=vocabulary,
        )

    async def check(self, request: GenerationRequest) -> tuple[Plan, ModelCard]:
        """Refuses what cannot be served before it takes a place in the queue.

        Raises RequestError. A good request costs no call to the backend, which checks it again anyway.
        """
        hide(request.prompt, request.negative_prompt)
        if request.webhook is not None:
            raise unsupported("webhook", "it is for jobs: send 'Prefer: respond-async', or PUT the job")
        if request.response_format == "url" and self._archive is None:
            raise unsupported("response_format", "pictures come in the answer: use 'b64_json'")
        if self._card is not None:
            try:
                return admit(request, self._card, self._job.limits), self._card
            except RequestError:
                # The model may be another one by now: only its own card may refuse.
                pass
        self._card = await self.describe()
        return admit(request, self._card, self._job.limits), self._card

    async def draw(self, request: GenerationRequest, asker: Asker) -> GenerationResponse:
        """The request's pictures. Raises RequestError."""
        try:
            async with asyncio.timeout(self._seconds(asker)):
                plan, _ = await self.check(request)
                async with self._charged(asker, plan.row_steps):
                    generation = await self._backend.generate(request, self._call(asker))
                return await self._answer(generation, request, asker)
        except TimeoutError:
            raise self._late(asker) from None

    async def draw_again(self, request: GenerationRequest, record: Record, asker: Asker) -> GenerationResponse:
        """A picture of a record, by the version that drew it; not remembered again. Raises RequestError."""
        hide(request.prompt, request.negative_prompt)
        call = self._call(asker, version=record.model_version, ids=(record.id,))
        try:
            # Not checked here: this version need not be the one whose card is known.
            cost = row_steps(1, record.steps, record.guidance_scale, record.sampler)
            async with asyncio.timeout(self._seconds(asker)), self._charged(asker, cost):
                generation = await self._backend.generate(request, call)
        except TimeoutError:
            raise self._late(asker) from None
        note(**facts(generation))
        return generation.response()

    async def stream(
        self, request: GenerationRequest, asker: Asker
    ) -> AsyncGenerator[Preview | GenerationResponse, None]:
        """Previews, and in the end the answer. To be read by one task and closed by it. Raises RequestError."""
        call = self._call(asker, previews=request.partial_images or 0)
        try:
            async with asyncio.timeout(self._seconds(asker)):
                plan, _ = await self.check(request)
                async with (
                    self._charged(asker, plan.row_steps),
                    aclosing(self._backend.stream(request, call)) as events,
                ):
                    async for event in events:
                        if isinstance(event, Generation):
                            yield await self._answer(event, request, asker)
                        else:
                            yield event
        except TimeoutError:
            raise self._late(asker) from None

    @asynccontextmanager
    async def _charged(self, asker: Asker, cost: int) -> AsyncIterator[None]:
        """Takes what a request costs from its key; what the server fails at costs nothing. Raises RequestError."""
        if self._quotas is None or asker.key is None:
            yield
            return
        if asker.key.row_steps_per_day is not None and self._quotas.stale:
            async with self._counting:
                await asyncio.to_thread(self._quotas.sync)
        self._quotas.charge(asker.key, cost)
        await self._count(self._quotas)
        try:
            yield
        except Exception as error:
            if not isinstance(error, RequestError) or error.status == 429 or error.status >= 500:
                self._quotas.refund(asker.key, cost)
                await self._count(self._quotas)
            raise

    async def _count(self, quotas: Quotas) -> None:
        if quotas.unwritten:
            async with self._counting:
                await asyncio.to_thread(quotas.flush)

    async def _answer(self, generation: Generation, request: GenerationRequest, asker: Asker) -> GenerationResponse:
        note(**facts(generation))
        response = generation.response()
        if self._archive is None:
            return response
        if request.response_format == "url":
            response = await self._with_urls(self._archive, generation, response, asker)
        records = records_of(
            response,
            generation.plan,
            request_id=asker.request_id,
            key=asker.key_id,
            prompts=self._archive.config.prompts,
        )
        try:
            await asyncio.to_thread(self._archive.keep, records)
        except OSError:
            # The pictures are drawn: they are not to be lost for it.
            _log.exception("what was drawn for %s could not be remembered", asker.request_id)
        if self._sweeping is None or self._sweeping.done():
            self._sweeping = asyncio.ensure_future(asyncio.to_thread(self._archive.sweep))
        return response

    async def _with_urls(
        self, archive: Archive, generation: Generation, response: GenerationResponse, asker: Asker
    ) -> GenerationResponse:
        base = archive.config.public_url or asker.base_url
        data = []
        for datum, picture in zip(response.data, generation.pictures, strict=True):
            if picture.data is None:
                data.append(datum)
                continue
            try:
                name = await asyncio.to_thread(archive.put, picture.data, response.output_format)
            except OSError as error:
                raise RequestError(
                    "The pictures could not be kept; 'b64_json' needs no keeping.",
                    status=503,
                    param="response_format",
                    code="storage_unavailable",
                    retry_after_s=30.0,
                ) from error
            url = f"{base.rstrip('/')}/v1/pictures/{name}"
            data.append(datum.model_copy(update={"b64_json": None, "url": url}))
        return response.model_copy(update={"data": data})

    def _call(
        self, asker: Asker, *, previews: int = 0, version: str | None = None, ids: tuple[str, ...] | None = None
    ) -> Call:
        return Call(
            request_id=asker.request_id,
            flow=asker.key_id,
            version=version,
            previews=previews,
            ids=ids,
            seconds=self._seconds(asker),
            trace=trace(),
        )

    def _seconds(self, asker: Asker) -> float:
        most = self._job.request_timeout_s
        # Ray Serve's proxy reads the same header, and breaks off: our answer is to be there before.
        return most if asker.seconds is None else min(most, asker.seconds - min(0.2, asker.seconds / 10))

    def _late(self, asker: Asker) -> RequestError:
        return RequestError(
            f"The pictures were not ready within {self._seconds(asker):g} s.", status=504, code="timeout"
        )
