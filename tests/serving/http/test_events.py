"""Streams, read as they come: through ASGI by hand, and by OpenAI's own client."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable
from typing import Any

import httpx2
import openai
import pytest
from openai.types import ImageGenCompletedEvent, ImageGenPartialImageEvent

from curation.clip import ClipConfig
from serving import guard
from serving.admission import Limits
from serving.api import RequestError
from serving.gateway import create_app
from serving.generator import Generator
from serving.http.events import EventStream
from serving.safety import OutputSafety
from serving.service import Preview
from tests.serving.local import JOB, LocalBackend, error_of, post
from training.bundle import DiffusionModel
from training.tracking import ModelVersion

BODY = {"prompt": "a red apple", "seed": 4, "num_inference_steps": 4, "stream": True}


def events_of(text: str) -> list[tuple[str, dict[str, Any]]]:
    """The events of a whole stream, without its comments."""
    frames = [frame.splitlines() for frame in text.split("\n\n") if frame and not frame.startswith(":")]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in frames]


def test_a_stream_has_previews_and_then_the_picture_of_the_whole_answer(generator: Generator) -> None:
    answer = post(LocalBackend(generator), BODY | {"partial_images": 2, "n": 2})
    assert answer.headers["x-model-version"] == "3"
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = events_of(answer.text)
    assert all(name == data["type"] for name, data in events)
    previews = [data for name, data in events if name == "image_generation.partial_image"]
    assert [name for name, _ in events[4:]] == ["image_generation.completed"] * 2
    told = sorted((data["image_index"], data["partial_image_index"], data["step"]) for data in previews)
    assert told == [(0, 0, 1), (0, 1, 2), (1, 0, 1), (1, 1, 2)]
    assert all(base64.b64decode(data["b64_json"]).startswith(b"\x89PNG") for data in previews)
    whole = post(LocalBackend(generator), BODY | {"stream": False, "n": 2}).json()["data"]
    assert [data["b64_json"] for _, data in events[4:]] == [datum["b64_json"] for datum in whole]
    assert [(data["seed"], data["model_version"]) for _, data in events[4:]] == [(4, "3"), (5, "3")]


def test_without_previews_there_is_one_event(generator: Generator) -> None:
    answer = post(LocalBackend(generator), BODY)
    assert [name for name, _ in events_of(answer.text)] == ["image_generation.completed"]
    assert answer.headers["x-model-version"] == "3"


def test_openais_client_reads_the_stream(generator: Generator) -> None:
    async def read() -> list[Any]:
        transport = httpx2.ASGITransport(create_app(LocalBackend(generator), JOB))
        async with (
            httpx2.AsyncClient(transport=transport) as http,
            openai.AsyncOpenAI(api_key="none", base_url="http://test/v1", http_client=http, max_retries=0) as api,
        ):
            events = await api.images.generate(
                prompt="a red apple", stream=True, partial_images=3, extra_body={"num_inference_steps": 8}
            )
            return [event async for event in events]

    *previews, last = asyncio.run(read())
    for event in previews:
        assert isinstance(event, ImageGenPartialImageEvent)
        ImageGenPartialImageEvent.model_validate(event.model_dump())
    assert [event.partial_image_index for event in previews] == [0, 1, 2]
    assert isinstance(last, ImageGenCompletedEvent)
    ImageGenCompletedEvent.model_validate(last.model_dump())


def test_openais_client_raises_what_went_wrong_on_the_way(generator: Generator) -> None:
    class Failing(LocalBackend):
        async def stream(self, *asked: Any) -> Any:
            async for event in super().stream(*asked):
                yield event
                raise RequestError("gone", status=503, code="sampler_unavailable")

    async def read() -> list[str]:
        transport = httpx2.ASGITransport(create_app(Failing(generator), JOB))
        seen = []
        async with (
            httpx2.AsyncClient(transport=transport) as http,
            openai.AsyncOpenAI(api_key="none", base_url="http://test/v1", http_client=http, max_retries=0) as api,
        ):
            events = await api.images.generate(prompt="a", stream=True, partial_images=1)
            seen.append((await anext(events)).type)
            with pytest.raises(openai.APIError, match="gone") as raised:
                await anext(events)
        assert (raised.value.code, raised.value.type) == ("sampler_unavailable", "server_error")
        return seen

    assert asyncio.run(read()) == ["image_generation.partial_image"]


def test_a_refusal_before_the_first_event_has_its_status(generator: Generator) -> None:
    async def full() -> None:
        raise RequestError("full", status=429, code="overloaded", retry_after_s=2.2)

    answer = post(LocalBackend(generator, full), BODY)
    assert (answer.status_code, answer.headers["retry-after"], error_of(answer)["code"]) == (429, "3", "overloaded")


def test_a_defect_on_the_way_tells_nothing_of_the_inside(generator: Generator) -> None:
    class Failing(LocalBackend):
        async def stream(self, *asked: Any) -> Any:
            async for event in super().stream(*asked):
                yield event
                raise ZeroDivisionError("secret path /srv/models")

    answer = post(Failing(generator), BODY | {"partial_images": 1})
    (_, preview), (name, error) = events_of(answer.text)
    assert preview["partial_image_index"] == 0
    assert (name, error["error"]["code"]) == ("error", "internal")
    assert "secret" not in answer.text


def test_a_stream_that_takes_too_long_ends_with_an_error_event(generator: Generator) -> None:
    class Stuck(LocalBackend):
        async def stream(self, *asked: Any) -> Any:
            yield Preview(0, 1, 4, b"", "3")
            await asyncio.Event().wait()

    short = JOB.model_copy(update={"request_timeout_s": 0.5})
    events = events_of(post(Stuck(generator), BODY | {"partial_images": 1}, short).text)
    assert [name for name, _ in events][-1] == "error"
    assert events[-1][1]["error"]["code"] == "timeout"


def test_nothing_of_a_withheld_picture_is_sent(
    version: ModelVersion, model: DiffusionModel, tiny_clip: ClipConfig
) -> None:
    watching = guard.build(OutputSafety(concepts={"weapon": -0.99}), tiny_clip)
    strict = Generator(version, model, watching, Limits())
    ((name, data),) = events_of(post(LocalBackend(strict), BODY | {"partial_images": 3}).text)
    assert (name, data["b64_json"], data["finish_reason"]) == ("image_generation.completed", None, "content_filtered")


async def stream_to(app: Any, body: dict[str, Any], on_body: Callable[[bytes], bool]) -> None:
    """Asks an app for a stream as a server would, and leaves when `on_body` says so of a piece of the answer."""
    left = asyncio.Event()
    whole = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]

    async def receive() -> dict[str, Any]:
        if whole:
            return whole.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.body" and on_body(message.get("body", b"")):
            left.set()
            await asyncio.sleep(0)

    scope = {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": "POST",
        "path": "/v1/images/generations", "raw_path": b"/v1/images/generations", "query_string": b"", "root_path": "",
        "scheme": "http", "headers": [(b"content-type", b"application/json")], "client": None, "server": None,
    }  # fmt: skip
    await app(scope, receive, send)


def test_a_client_that_leaves_takes_its_request_out_of_the_engine(generator: Generator) -> None:
    async def go() -> None:
        backend = LocalBackend(generator)
        body = BODY | {"num_inference_steps": 8, "n": 4, "partial_images": 3}
        await stream_to(create_app(backend, JOB), body, lambda piece: b"partial_image" in piece)
        assert backend.service is not None
        assert backend.service.engine.status().pictures == 0
        passes = backend.service.engine.status().passes
        await backend.service.drain()
        assert backend.service.engine.status().passes <= passes + 1

    asyncio.run(go())


def test_silence_is_filled_with_comments() -> None:
    async def go() -> list[bytes]:
        go_on = asyncio.Event()

        async def source() -> Any:
            await go_on.wait()
            raise RequestError("gone", status=503, code="sampler_unavailable")
            yield

        pieces: list[bytes] = []

        def on_body(piece: bytes) -> bool:
            pieces.append(piece)
            if len(pieces) == 2:
                go_on.set()
            return False

        stream = EventStream(source, "png", "16x16", keep_alive_s=0.001)
        await stream_to(stream, {}, on_body)
        return [piece for piece in pieces if piece]

    first, second, *_, last = asyncio.run(go())
    assert first == second == b": keep-alive\n\n"
    assert last.startswith(b"event: error\ndata: {")
