"""Keys at the door, through the API."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from serving import keys
from serving.api import RequestError
from serving.generator import Generator
from serving.job import ServeJob
from serving.keys import KeysConfig, Scope
from serving.records import RecordsConfig
from tests.serving.local import JOB, LocalBackend, error_of, post, send

BODY = {"prompt": "a red apple", "seed": 4, "num_inference_steps": 2}


@pytest.fixture
def job(tmp_path: Path) -> ServeJob:
    file = str(tmp_path / "keys.json")
    keys.create(file, "first", ["generate"])
    records = RecordsConfig(folder=str(tmp_path / "records"))
    return JOB.model_copy(update={"keys": KeysConfig(file=file), "records": records})


def made(job: ServeJob, *scopes: Scope, **limits: int) -> dict[str, Any]:
    """What a request with a new key adds."""
    assert isinstance(job.keys, KeysConfig)
    _, secret = keys.create(job.keys.file, "more", scopes, **limits)
    return {"headers": {"Authorization": f"Bearer {secret}"}}


@pytest.mark.parametrize(
    ("header", "code"),
    [
        (None, "missing_api_key"),
        ("Basic Y3A6", "missing_api_key"),
        ("Bearer", "invalid_api_key"),
        ("Bearer sk-1234", "invalid_api_key"),
        ("Bearer cp_00000000_" + "A" * 43, "invalid_api_key"),
    ],
)
def test_without_a_key_nothing_is_read_or_asked(
    generator: Generator, job: ServeJob, header: str | None, code: str
) -> None:
    backend = LocalBackend(generator)
    headers = {} if header is None else {"Authorization": header}
    for method, path in (("POST", "/v1/images/generations"), ("GET", "/v1/guide"), ("GET", "/v1/nothing")):
        answer = send(backend, method, path, job, content=b"{" * 10_000, headers=headers)
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert error_of(answer)["code"] == code
        assert "x-request-id" in answer.headers
    assert backend.asked == 0


def test_health_and_pictures_at_urls_want_no_key(generator: Generator, job: ServeJob) -> None:
    backend = LocalBackend(generator)
    for path, status in (("/v1/health/live", 200), ("/v1/health/ready", 200), ("/v1/pictures/x", 404), ("/", 200)):
        assert send(backend, "GET", path, job).status_code == status


@pytest.mark.parametrize(
    ("scope", "allowed"),
    [("generate", {"generate"}), ("read", {"read"}), ("verify", set()), ("admin", {"generate", "read"})],
)
def test_a_key_may_what_its_scopes_say(generator: Generator, job: ServeJob, scope: Scope, allowed: set[str]) -> None:
    who = made(job, scope)
    backend = LocalBackend(generator)
    name = "img_" + "0" * 32
    asked = {
        "generate": post(backend, BODY, job, **who),
        "read": send(backend, "GET", f"/v1/images/{name}", job, **who),
    }
    for what, answer in asked.items():
        assert (answer.status_code != 403) is (what in allowed)
        if answer.status_code == 403:
            assert error_of(answer)["code"] == "insufficient_scope"
    assert send(backend, "POST", f"/v1/images/{name}/reproduce", job, **who).status_code in (
        {404} if "generate" in allowed else {403}
    )
    assert send(backend, "GET", "/v1/models", job, **who).status_code == 200


def test_a_picture_is_shown_to_whose_it_is(generator: Generator, job: ServeJob) -> None:
    mine, others, admin = made(job, "generate", "read"), made(job, "read"), made(job, "admin")
    backend = LocalBackend(generator)
    name = post(backend, BODY, job, **mine).json()["data"][0]["id"]
    assert backend.calls[0].flow == send(backend, "GET", f"/v1/images/{name}", job, **mine).json()["key"]
    shown = [send(backend, "GET", f"/v1/images/{name}", job, **who).status_code for who in (mine, others, admin)]
    assert shown == [200, 404, 200]


def test_a_key_is_charged_in_row_steps(generator: Generator, job: ServeJob) -> None:
    """Two steps with guidance are four rows."""
    who = made(job, "generate", row_steps_per_day=10)
    backend = LocalBackend(generator)

    def ask(**more: Any) -> httpx.Response:
        return post(backend, BODY | more, job, **who)  # at a gateway of its own each time

    assert [ask().status_code, ask(guidance_scale=1.0, n=2).status_code] == [200, 200]
    answer = ask()
    error = error_of(answer)
    assert (answer.status_code, error["type"], error["code"]) == (429, "rate_limit_error", "quota_exceeded")
    assert 1 <= int(answer.headers["retry-after"]) <= 86_400
    assert backend.asked == 2
    streamed = ask(stream=True)
    assert (streamed.status_code, error_of(streamed)["code"]) == (429, "quota_exceeded")


def test_what_the_server_fails_at_costs_nothing(generator: Generator, job: ServeJob) -> None:
    async def gone() -> None:
        raise RequestError("gone", status=503, code="sampler_unavailable")

    who = made(job, "generate", row_steps_per_day=4)
    assert [post(LocalBackend(generator, gone), BODY, job, **who).status_code for _ in range(3)] == [503] * 3
    assert [post(LocalBackend(generator), BODY, job, **who).status_code for _ in range(2)] == [200, 429]


def test_the_keys_are_in_the_schema(generator: Generator, job: ServeJob) -> None:
    schema = send(LocalBackend(generator), "GET", "/openapi.json", job).json()
    assert schema["components"]["securitySchemes"]["HTTPBearer"] == {"type": "http", "scheme": "bearer"}


def test_pages_of_the_named_origins_may_ask_and_no_others(generator: Generator, job: ServeJob) -> None:
    backend = LocalBackend(generator)
    origin = {"Origin": "https://studio.example"}
    preflight = origin | {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    open_to = job.model_copy(update={"cors_origins": ("https://studio.example",)})
    for asked, allowed in ((job, None), (open_to, "https://studio.example")):
        answer = send(backend, "OPTIONS", "/v1/images/generations", asked, headers=preflight)
        assert (answer.status_code == 200) is (allowed is not None)
        assert answer.headers.get("access-control-allow-origin") == allowed
        refusal = send(backend, "GET", "/v1/models", asked, headers=origin)
        assert (refusal.status_code, refusal.headers.get("access-control-allow-origin")) == (401, allowed)
    other = send(backend, "OPTIONS", "/v1/models", open_to, headers=preflight | {"Origin": "https://other.example"})
    assert "access-control-allow-origin" not in other.headers


@pytest.mark.parametrize(
    ("host", "admitted"),
    [
        ("127.0.0.1:8000", True),
        ("localhost", True),
        ("[::1]:8000", True),
        ("rebound.example:8000", False),
        ("10.0.0.3", False),
        ("localhost.rebound.example", False),
        ("", False),
    ],
)
def test_without_keys_only_this_machine_is_answered(generator: Generator, host: str, admitted: bool) -> None:
    """Whatever address a page's own name leads to, its browser says that name."""
    here = JOB.model_copy(update={"keys": None})
    backend = LocalBackend(generator)
    answer = post(backend, BODY, here, headers={"Host": host})
    assert answer.status_code == (200 if admitted else 403)
    assert admitted or error_of(answer)["code"] == "host_not_allowed"
    assert send(backend, "GET", "/v1/health/ready", here, headers={"Host": host}).status_code == 200
    assert backend.asked == admitted
