"""The HTTP face, through ASGI, in front of a real generator that runs in this process."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest

from serving.admission import ModelCard
from serving.api import GenerationResponse, RequestError
from serving.generator import Generator
from tests.serving.local import JOB, LocalBackend, client_of, error_of, post, send


def test_the_same_request_gets_the_same_bytes(generator: Generator) -> None:
    body = {"prompt": "a red apple", "n": 2, "seed": 4, "num_inference_steps": 2}
    first, second = (post(LocalBackend(generator), body) for _ in range(2))
    assert first.status_code == 200
    parsed, again = (GenerationResponse.model_validate_json(answer.content) for answer in (first, second))
    assert [datum.picture() for datum in parsed.data] == [datum.picture() for datum in again.data]
    assert [datum.pixels_sha256 for datum in parsed.data] == [datum.pixels_sha256 for datum in again.data]
    names = [datum.id for datum in (*parsed.data, *again.data)]
    assert all(re.fullmatch(r"img_[0-9a-f]{32}", name) for name in names)
    assert len(set(names)) == 4
    assert [datum.seed for datum in parsed.data] == [4, 5]
    assert all((datum.picture() or b"").startswith(b"\x89PNG") for datum in parsed.data)


@pytest.mark.parametrize(
    ("body", "status", "param", "code"),
    [
        ({}, 400, "prompt", "missing_required_parameter"),
        ([], 400, None, "invalid_json"),
        ("a", 400, None, "invalid_json"),
        ({"prompt": 3}, 400, "prompt", "invalid_value"),
        ({"prompt": "a", "n": 0}, 400, "n", "invalid_value"),
        ({"prompt": "a", "n": 11}, 400, "n", "invalid_value"),
        ({"prompt": "a", "output": "/etc/passwd"}, 400, "output", "unknown_parameter"),
        ({"prompt": "a", "sampler": "unipc"}, 400, "sampler", "invalid_value"),
        ({"prompt": "a", "sampler": "euler"}, 400, "sampler", "unsupported_value"),
        ({"prompt": "a", "num_inference_steps": 9}, 400, "num_inference_steps", "over_limit"),
        ({"prompt": "a", "size": "1024x1024"}, 400, "size", "unsupported_value"),
        ({"prompt": "a", "partial_images": 1}, 400, "partial_images", "unsupported_value"),
        ({"prompt": "a", "stream": True, "size": "64x64"}, 400, "size", "unsupported_value"),
        ({"prompt": "a", "response_format": "url"}, 400, "response_format", "unsupported_value"),
        ({"prompt": "a", "model": "dall-e-3"}, 404, "model", "model_not_found"),
        ({"prompt": "x" * 5000}, 413, None, "body_too_large"),
    ],
)
def test_a_bad_body_is_refused_before_it_queues(
    generator: Generator, body: Any, status: int, param: str | None, code: str
) -> None:
    backend = LocalBackend(generator)
    answer = post(backend, body)
    error = error_of(answer)
    assert (answer.status_code, error["param"], error["code"]) == (status, param, code)
    assert error["type"] == "invalid_request_error"
    assert backend.asked == 0


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"null",
        b"\xff\xfe",
        b'{"prompt": "a", "guidance_scale": NaN}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "a", "\\ud800": 1}',
        b'{"prompt": "a", "seed": 1' + b"0" * 3000 + b"}",
        b"[" * 4000,
        b'{"prompt":' * 300,
    ],
)
def test_no_body_is_so_broken_that_the_server_fails(generator: Generator, content: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    answer = send(LocalBackend(generator), "POST", "/v1/images/generations", content=content, headers=headers)
    error_of(answer)
    assert answer.status_code == 400


def test_a_body_without_a_length_is_counted_as_it_comes(generator: Generator) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b'{"prompt": "'
        for _ in range(100):
            yield b"x" * 100

    answer = send(LocalBackend(generator), "POST", "/v1/images/generations", content=chunks())
    assert answer.status_code == 413
    assert error_of(answer)["code"] == "body_too_large"


def test_a_body_of_another_type_is_told_which_is_wanted(generator: Generator) -> None:
    answer = send(LocalBackend(generator), "POST", "/v1/images/generations", data={"prompt": "a"})
    assert answer.status_code == 400
    assert "application/json" in error_of(answer)["message"]


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nothing", 404, "unknown_url"),
        ("GET", "/v1/images/generations", 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ("GET", "/v1/models/dall-e-3", 404, "model_not_found"),
    ],
)
def test_unknown_ways_are_answered_in_the_same_shape(
    generator: Generator, method: str, path: str, status: int, code: str
) -> None:
    answer = send(LocalBackend(generator), method, path)
    assert (answer.status_code, error_of(answer)["code"]) == (status, code)


def test_the_model_list_says_which_version_and_manifest(generator: Generator) -> None:
    listed = send(LocalBackend(generator), "GET", "/v1/models").json()
    assert listed["object"] == "list"
    (entry,) = listed["data"]
    assert (entry["id"], entry["object"], entry["version"], entry["alias"]) == ("tiny", "model", "3", "champion")
    assert (entry["manifest_id"], entry["size"]) == ("m" * 64, "16x16")
    for name in ("tiny", "tiny@champion", "tiny/3"):
        assert send(LocalBackend(generator), "GET", f"/v1/models/{name}").json() == entry


def test_too_many_requests_are_told_when_to_come_again(generator: Generator) -> None:
    async def full() -> None:
        raise RequestError("full", status=429, code="overloaded", retry_after_s=2.2)

    answer = post(LocalBackend(generator, full), {"prompt": "a"})
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "3")
    assert error_of(answer)["type"] == "rate_limit_error"


def test_a_request_that_takes_too_long_is_given_up(generator: Generator) -> None:
    given_up = asyncio.Event()

    async def never() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            given_up.set()

    answer = post(LocalBackend(generator, never), {"prompt": "a"}, JOB.model_copy(update={"request_timeout_s": 0.05}))
    assert (answer.status_code, error_of(answer)["code"]) == (504, "timeout")
    assert given_up.is_set()


def test_a_defect_is_a_500_that_tells_nothing_of_the_inside(generator: Generator) -> None:
    async def defect() -> None:
        raise ZeroDivisionError("secret path /srv/models")

    answer = post(LocalBackend(generator, defect), {"prompt": "a"})
    error = error_of(answer)
    assert (answer.status_code, error["type"], error["code"]) == (500, "server_error", "internal")
    assert "secret" not in json.dumps(error)


def test_health_is_the_gateways_own_and_readiness_the_models(generator: Generator) -> None:
    class Dead(LocalBackend):
        async def describe(self) -> ModelCard:
            raise RequestError("gone", status=503, code="sampler_unavailable", retry_after_s=5)

    ready = send(LocalBackend(generator), "GET", "/v1/health/ready")
    expected = {
        "status": "ready",
        "model": "tiny",
        "version": "3",
        "backend": "torch-fp32",
        "exact": True,
        "rollout": None,
    }
    assert ready.json() == expected
    assert send(Dead(generator), "GET", "/v1/health/live").status_code == 200
    answer = send(Dead(generator), "GET", "/v1/health/ready")
    assert (answer.status_code, error_of(answer)["code"]) == (503, "sampler_unavailable")


def test_a_new_model_is_not_refused_by_the_card_of_the_old_one(generator: Generator) -> None:
    class Moving(LocalBackend):
        """First a model of another size stands behind the alias, then this one."""

        describes = 0

        async def describe(self) -> ModelCard:
            self.describes += 1
            card = await super().describe()
            return card.model_copy(update={"image_size": 64}) if self.describes == 1 else card

    async def twice() -> list[int]:
        async with client_of(Moving(generator)) as client:
            bodies = [{"prompt": "a", "size": size, "num_inference_steps": 1} for size in ("auto", "16x16")]
            return [(await client.post("/v1/images/generations", json=body)).status_code for body in bodies]

    assert asyncio.run(twice()) == [200, 200]


def test_the_schema_describes_the_request(generator: Generator) -> None:
    schema = send(LocalBackend(generator), "GET", "/openapi.json").json()
    fields = schema["components"]["schemas"]["GenerationRequest"]
    assert fields["additionalProperties"] is False
    assert {"prompt", "n", "seed", "num_inference_steps", "guidance_scale", "sampler"} <= fields["properties"].keys()


@pytest.mark.parametrize(("asked", "kept"), [("job-7.a", True), ("", False), ("a\tb", False), ("x" * 129, False)])
def test_every_answer_says_the_requests_id(generator: Generator, asked: str, kept: bool) -> None:
    backend = LocalBackend(generator)
    for path, status in (("/v1/images/generations", 200), ("/v1/nothing", 404)):
        answer = send(backend, "POST", path, headers={"X-Request-Id": asked}, json={"prompt": "a"})
        assert answer.status_code == status
        assert (answer.headers["x-request-id"] == asked) is kept
        assert kept or answer.headers["x-request-id"].startswith("req_")
    assert backend.calls[0].request_id.startswith("job-7.a" if kept else "req_")
    assert send(backend, "POST", "/v1/images/generations", json={"prompt": "a"}).headers["x-model-version"] == "3"


@pytest.mark.parametrize("given", ["0", "-1", "soon", "nan", "inf"])
def test_a_deadline_is_a_number_of_seconds(generator: Generator, given: str) -> None:
    answer = post(LocalBackend(generator), {"prompt": "a"}, headers={"X-Request-Timeout-Seconds": given})
    assert (answer.status_code, error_of(answer)["code"]) == (400, "invalid_value")


def test_a_request_is_given_up_when_its_client_says_so(generator: Generator) -> None:
    async def never() -> None:
        await asyncio.Event().wait()

    backend = LocalBackend(generator, never)
    answer = post(backend, {"prompt": "a"}, headers={"X-Request-Timeout-Seconds": "0.05"})
    assert (answer.status_code, error_of(answer)["code"]) == (504, "timeout")
    assert backend.calls[0].seconds == pytest.approx(0.045)
    post(LocalBackend(generator), {"prompt": "a"}, headers={"X-Request-Timeout-Seconds": "100000"})


def test_every_refusal_for_a_while_says_for_how_long(generator: Generator) -> None:
    for status in (429, 503):

        async def refuse(status: int = status) -> None:
            raise RequestError("later", status=status)

        assert post(LocalBackend(generator, refuse), {"prompt": "a"}).headers["retry-after"] == "1"
