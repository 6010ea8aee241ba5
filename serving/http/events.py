"""A request's stream: server-sent events, named and shaped as OpenAI's.

A stream has one `image_generation.completed` for each image, and before it at most `partial_images` times
`image_generation.partial_image`; with `n` above 1, `image_index` says whose. A preview that the guard withholds is not
sent; a withheld picture's event has no `b64_json` and says why, as in an answer that comes whole. What goes wrong
before the first event is an ordinary answer with its status, and later an `error` event, after which nothing comes.
While nothing is to say, comments keep the connection alive. `X-Model-Version` says who draws, unless the connection
wanted a sign of life before that was known; the last events say it always.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from typing import Any, Literal

from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict
from starlette.types import Receive, Scope, Send

from serving.api import Drawn, ErrorDetail, GenerationResponse, ImageDatum, ImageFormat, RequestError
from serving.http import errors
from serving.service import Preview

VERSION_HEADER = "X-Model-Version"
KEEP_ALIVE_S = 10.0
"""Seconds of silence after which a comment is sent; proxies between here and the client often give up after 30."""

Source = Callable[[], AsyncGenerator[Preview | GenerationResponse, None]]
_log = logging.getLogger(__name__)


class TokenDetails(BaseModel):
    model_config = ConfigDict(frozen=True)
    image_tokens: int = 0
    text_tokens: int = 0


class Usage(BaseModel):
    """OpenAI's clients expect it; nothing here is counted in tokens."""

    model_config = ConfigDict(frozen=True)
    input_tokens: int = 0
    input_tokens_details: TokenDetails = TokenDetails()
    output_tokens: int = 0
    total_tokens: int = 0


class PartialImage(BaseModel):
    """`image_generation.partial_image`: an image as it looks so far. `step` and `steps` count denoising steps."""

    model_config = ConfigDict(frozen=True)
    type: Literal["image_generation.partial_image"] = "image_generation.partial_image"
    b64_json: str
    partial_image_index: int
    image_index: int
    step: int
    steps: int
    created_at: int
    background: Literal["opaque"] = "opaque"
    output_format: ImageFormat
    quality: Literal["auto"] = "auto"
    size: str


class CompletedImage(ImageDatum, Drawn):
    """`image_generation.completed`: a picture, or that it was withheld, with what the whole answer says of it."""

    type: Literal["image_generation.completed"] = "image_generation.completed"
    image_index: int
    created_at: int
    quality: Literal["auto"] = "auto"
    usage: Usage = Usage()


class StreamError(BaseModel):
    """`error`: why there is no more."""

    model_config = ConfigDict(frozen=True)
    type: Literal["error"] = "error"
    error: ErrorDetail


OPENAPI: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The pictures; with `stream` as server-sent events.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}


class EventStream(StreamingResponse):
    """The answer to a request with `stream`. The source is begun and ended here, whether the client stays or leaves.

    Args:
        source: begins the request.
        output_format, size: of the pictures.
        keep_alive_s: of silence, after which a comment is sent.
    """

    media_type = "text/event-stream"

    def __init__(
        self, source: Source, output_format: ImageFormat, size: str, *, keep_alive_s: float = KEEP_ALIVE_S
    ) -> None:
        super().__init__(self._frames(), headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self._source = source
        self._format = output_format
        self._size = size
        self._keep_alive_s = keep_alive_s
        self._arrived: asyncio.Queue[Preview | GenerationResponse | Exception | None] = asyncio.Queue()
        self._begun = asyncio.Event()
        self._refusal: Exception | None = None
        self._version: str | None = None
        self._sent: Counter[int] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        pump = asyncio.create_task(self._pump(), name="stream of a request")
        try:
            await self._opened()
            await super().__call__(scope, receive, send)
        finally:
            pump.cancel()
            await asyncio.gather(pump, return_exceptions=True)

    async def _opened(self) -> None:
        """Returns with the first event, or when the connection wants a sign of life; raises what comes before both."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._keep_alive_s):
                await self._begun.wait()
        self._begun.set()
        if self._refusal is not None:
            raise self._refusal
        if self._version is not None:
            self.headers[VERSION_HEADER] = self._version

    async def _pump(self) -> None:
        try:
            async with aclosing(self._source()) as events:
                async for event in events:
                    self._version = event.version if isinstance(event, Preview) else event.model_version
                    self._arrived.put_nowait(event)
                    self._begun.set()
        except Exception as error:
            if self._begun.is_set():
                self._arrived.put_nowait(error)
            else:
                self._refusal = error
        self._arrived.put_nowait(None)
        self._begun.set()

    async def _frames(self) -> AsyncGenerator[bytes, None]:
        while True:
            try:
                async with asyncio.timeout(self._keep_alive_s):
                    event = await self._arrived.get()
            except TimeoutError:
                yield b": keep-alive\n\n"
                continue
            if event is None:
                return
            for said in self._said(event):
                yield f"event: {said.type}\ndata: {said.model_dump_json()}\n\n".encode()

    def _said(
        self, event: Preview | GenerationResponse | Exception
    ) -> Iterator[PartialImage | CompletedImage | StreamError]:
        if isinstance(event, GenerationResponse):
            yield from _completed(event)
        elif isinstance(event, RequestError):
            yield StreamError(error=event.body().error)
        elif isinstance(event, Exception):
            _log.error("a stream failed", exc_info=event)
            yield StreamError(error=errors.internal().body().error)
        elif event.data is not None:
            index = self._sent[event.image]
            self._sent[event.image] += 1
            yield PartialImage(
                b64_json=base64.b64encode(event.data).decode(),
                partial_image_index=index,
                image_index=event.image,
                step=event.done,
                steps=event.steps,
                created_at=int(time.time()),
                output_format=self._format,
                size=self._size,
            )


def _completed(response: GenerationResponse) -> Iterator[CompletedImage]:
    whole = response.model_dump(exclude={"data", "created"})
    for index, datum in enumerate(response.data):
        yield CompletedImage(image_index=index, created_at=response.created, **whole, **datum.model_dump())
