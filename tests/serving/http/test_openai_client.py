"""OpenAI's own client against the public surface, in this process."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from serving import keys
from serving.api import RequestError
from serving.gateway import create_app
from serving.generator import Generator
from serving.job import ServeJob
from serving.keys import KeysConfig
from serving.records import RecordsConfig
from tests.serving.local import JOB, LocalBackend


@pytest.fixture
def job(tmp_path: Path) -> ServeJob:
    file = str(tmp_path / "keys.json")
    keys.create(file, "first", ["generate"])
    update = {"keys": KeysConfig(file=file), "records": RecordsConfig(folder=str(tmp_path / "records"))}
    return JOB.model_copy(update=update)


def use(backend: Any, job: ServeJob, key: str, what: Callable[[openai.AsyncOpenAI], Awaitable[Any]]) -> Any:
    async def go() -> Any:
        transport = httpx2.ASGITransport(create_app(backend, job))
        async with (
            httpx2.AsyncClient(transport=transport) as http,
            openai.AsyncOpenAI(api_key=key, base_url="http://test/v1", http_client=http, max_retries=0) as api,
        ):
            return await what(api)

    return asyncio.run(go())


def secret(job: ServeJob, *scopes: keys.Scope, **limits: int) -> str:
    assert isinstance(job.keys, KeysConfig)
    return keys.create(job.keys.file, "more", scopes, **limits)[1]


def test_pictures_whole_and_at_urls(generator: Generator, job: ServeJob) -> None:
    async def what(api: openai.AsyncOpenAI) -> tuple[Any, Any]:
        extra = {"seed": 3, "num_inference_steps": 2, "guidance_scale": 1.5, "sampler": "ddim"}
        whole = await api.images.generate(
            prompt="a red apple", model="tiny", n=2, size="16x16", quality="auto", output_format="webp",
            output_compression=80, background="opaque", moderation="low", user="somebody", extra_body=extra,
        )  # fmt: skip
        linked = await api.images.generate(prompt="a red apple", response_format="url", extra_body=extra)
        return whole, linked

    whole, linked = use(LocalBackend(generator), job, secret(job, "generate"), what)
    assert [base64.b64decode(datum.b64_json)[8:12] for datum in whole.data] == [b"WEBP"] * 2
    assert (whole.output_format, whole.background, whole.size) == ("webp", "opaque", "16x16")
    assert [datum.seed for datum in whole.data] == [3, 4]
    assert linked.data[0].b64_json is None
    assert linked.data[0].url.startswith("http://test/v1/pictures/")


def test_models_are_listed_and_found(generator: Generator, job: ServeJob) -> None:
    async def what(api: openai.AsyncOpenAI) -> list[str]:
        listed = [model.id async for model in api.models.list()]
        return [*listed, (await api.models.retrieve("tiny@champion")).id]

    assert use(LocalBackend(generator), job, secret(job, "verify"), what) == ["tiny", "tiny"]


@pytest.mark.parametrize(
    ("fields", "kind", "param", "code"),
    [
        ({"size": "1024x1024"}, openai.BadRequestError, "size", "unsupported_value"),
        ({"n": 11}, openai.BadRequestError, "n", "invalid_value"),
        ({"model": "dall-e-3"}, openai.NotFoundError, "model", "model_not_found"),
        ({"extra_body": {"path": "/etc/passwd"}}, openai.BadRequestError, "path", "unknown_parameter"),
        ({"stream": True, "partial_images": 9}, openai.BadRequestError, "partial_images", "invalid_value"),
    ],
)
def test_a_mistake_is_raised_with_its_field(
    generator: Generator,
    job: ServeJob,
    fields: dict[str, Any],
    kind: type[openai.APIStatusError],
    param: str,
    code: str,
) -> None:
    async def what(api: openai.AsyncOpenAI) -> openai.APIStatusError:
        with pytest.raises(kind) as caught:
            await api.images.generate(**{"prompt": "a", **fields})
        return caught.value

    error = use(LocalBackend(generator), job, secret(job, "generate"), what)
    assert (error.param, error.code, error.type) == (param, code, "invalid_request_error")
    assert error.request_id.startswith("req_")


def test_who_may_not_is_told_so_by_name(generator: Generator, job: ServeJob) -> None:
    async def what(api: openai.AsyncOpenAI) -> Any:
        return await api.images.generate(prompt="a")

    backend = LocalBackend(generator)
    with pytest.raises(openai.AuthenticationError):
        use(backend, job, "sk-none", what)
    with pytest.raises(openai.PermissionDeniedError):
        use(backend, job, secret(job, "read"), what)
    with pytest.raises(openai.RateLimitError) as caught:
        use(backend, job, secret(job, "generate", row_steps_per_minute=1), twice)
    assert caught.value.code == "rate_limit_exceeded"
    assert int(caught.value.response.headers["retry-after"]) >= 1


async def twice(api: openai.AsyncOpenAI) -> None:
    for _ in range(2):
        await api.images.generate(prompt="a", extra_body={"num_inference_steps": 1})


def test_the_client_comes_again_when_it_was_told_to(generator: Generator) -> None:
    """429 and 503 are what it retries by itself, after as long as Retry-After says."""
    refusals = [
        RequestError("full", status=429, code="overloaded", retry_after_s=0.1),
        RequestError("gone", status=503, code="sampler_unavailable", retry_after_s=0.1),
    ]

    async def before() -> None:
        if refusals:
            raise refusals.pop(0)

    async def what(api: openai.AsyncOpenAI) -> Any:
        return await api.with_options(max_retries=2).images.generate(prompt="a")

    assert use(LocalBackend(generator, before), JOB, "none", what).data[0].b64_json
    assert not refusals
