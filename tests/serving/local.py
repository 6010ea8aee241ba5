"""A server in this process: the API in front of a real generator, without a cluster, asked through ASGI."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import httpx

from serving.admission import Limits, ModelCard
from serving.api import GenerationRequest
from serving.call import Call
from serving.gateway import create_app
from serving.generator import Generation, Generator
from serving.job import ServeJob
from serving.service import Preview, Service, last
from serving.standing import Vocabulary

JOB = ServeJob(model="models:/tiny@champion", keys="open", limits=Limits(max_steps=8, max_body_bytes=4096))


class LocalBackend:
    """A backend without a cluster: the generator's service, in the loop that asks first.

    Attributes:
        asked: requests that reached it.
        calls: what came with them.
        service: the service of the loop that asked last.
    """

    def __init__(self, generator: Generator, before: Callable[[], Any] | None = None) -> None:
        self.generator = generator
        self.before = before
        self.asked = 0
        self.calls: list[Call] = []
        self.service: Service | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def describe(self) -> ModelCard:
        return self.generator.card

    async def vocabulary(self) -> Vocabulary:
        return self.generator.vocabulary()

    async def generate(self, request: GenerationRequest, call: Call) -> Generation:
        return await last(self.stream(request, call))

    async def stream(self, request: GenerationRequest, call: Call) -> AsyncGenerator[Preview | Generation, None]:
        self.asked += 1
        self.calls.append(call)
        if self.before is not None:
            await self.before()
        if self.service is None or self._loop is not asyncio.get_running_loop():
            self._loop = asyncio.get_running_loop()
            self.service = Service(self.generator)
        drawn = self.service.stream(request, flow=call.flow, previews=call.previews, ids=call.ids, seconds=call.seconds)
        async with aclosing(drawn) as events:
            async for event in events:
                yield event


@asynccontextmanager
async def client_of(backend: Any, job: ServeJob = JOB) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(backend, job))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


def send(backend: Any, method: str, path: str, job: ServeJob = JOB, **request: Any) -> httpx.Response:
    async def once() -> httpx.Response:
        async with client_of(backend, job) as client:
            return await client.request(method, path, **request)

    return asyncio.run(once())


def post(backend: Any, body: Any, job: ServeJob = JOB, **request: Any) -> httpx.Response:
    return send(backend, "POST", "/v1/images/generations", job, json=body, **request)


def error_of(answer: httpx.Response) -> dict[str, Any]:
    """The error object, whose shape is checked for every refusal of these tests."""
    body: dict[str, dict[str, Any]] = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    return body["error"]
