"""What is seen of requests at a gateway, through the real API in front of a real generator."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from serving import context, keys
from serving.access import Access, alone
from serving.gateway import create_app
from serving.generator import Generator
from serving.job import ServeJob
from serving.keys import KeysConfig
from serving.metrics import SamplerMetrics
from serving.observability import ObservabilityConfig
from tests.serving.local import LocalBackend
from training.bundle import DiffusionModel
from training.tracking import ModelVersion

JOB = ServeJob(model="models:/tiny@champion", keys="open")
URL = "/v1/images/generations"


@pytest.fixture(scope="module")
def generator(version: ModelVersion, model: DiffusionModel) -> Generator:
    return Generator(version, model, None, JOB.limits)


def watched(backend: Any, **settings: Any) -> Access:
    return Access(create_app(backend, JOB), ObservabilityConfig(**settings))


def talk(app: Access, work: Callable[[httpx.AsyncClient], Awaitable[Any]]) -> Any:
    async def go() -> Any:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await work(client)

    return asyncio.run(go())


async def scraped(client: httpx.AsyncClient) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    answer = await client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return parsed(answer.text)


def parsed(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """The samples by name and labels, whichever process they are of."""
    return {
        (
            sample.name,
            frozenset((name, value) for name, value in sample.labels.items() if name != "replica"),
        ): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def counted(found: dict[Any, float], name: str, **labels: str) -> float:
    return found.get((f"cleanplate_{name}", frozenset(labels.items())), 0.0)


def test_requests_are_counted_by_route_and_outcome(generator: Generator) -> None:
    async def go(client: httpx.AsyncClient) -> Any:
        await client.post(URL, json={"prompt": "a", "num_inference_steps": 1})
        await client.post(URL, json={"prompt": "a", "num_inference_steps": 9_999})
        await client.get("/v1/models/tiny")
        for path in ("/v1/nothing", "/v1/more", "/etc/passwd"):
            await client.get(path)
        return await scraped(client)

    found = talk(watched(LocalBackend(generator)), go)
    assert counted(found, "request_seconds_count", route=URL, outcome="ok") == 1
    assert counted(found, "request_seconds_count", route=URL, outcome="invalid") == 1
    assert counted(found, "request_seconds_count", route="/v1/models/{model:path}", outcome="ok") == 1
    assert counted(found, "request_seconds_count", route="unmatched", outcome="invalid") == 3
    assert counted(found, "refusals_total", status="400", code="over_limit") == 1
    assert counted(found, "refusals_total", status="404", code="unknown_url") == 3
    assert counted(found, "requests_in_flight") == 1  # this one
    assert counted(found, "accepting") == 1
    assert counted(found, "scrape_complete") == 1


def test_what_a_browser_asks_before_it_posts_is_no_request_for_pictures(generator: Generator) -> None:
    page = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST"}
    job = JOB.model_copy(update={"cors_origins": ("https://page.example",)})
    app = Access(create_app(LocalBackend(generator), job), ObservabilityConfig())

    async def go(client: httpx.AsyncClient) -> Any:
        assert (await client.options(URL, headers=page)).status_code == 200
        return await scraped(client)

    found = talk(app, go)
    assert counted(found, "request_seconds_count", route=URL, outcome="ok") == 0
    assert counted(found, "request_seconds_count", route="unmatched", outcome="ok") == 1


def test_what_nobody_caught_has_failed(generator: Generator) -> None:
    async def broken() -> None:
        raise ValueError("a defect")

    async def go(client: httpx.AsyncClient) -> Any:
        assert (await client.post(URL, json={"prompt": "a"})).status_code == 500
        return await scraped(client)

    found = talk(watched(LocalBackend(generator, before=broken)), go)
    assert counted(found, "request_seconds_count", route=URL, outcome="failed") == 1
    assert counted(found, "refusals_total", status="500", code="internal") == 1


def test_one_address_speaks_for_all_processes_and_says_when_it_cannot() -> None:
    async def others() -> Any:
        return [SamplerMetrics("sampler-a").snapshot([]), SamplerMetrics("sampler-b").snapshot([])], True

    async def nobody() -> Any:
        return [], False

    for source, complete in ((alone, 1), (others, 1), (nobody, 0)):
        text = talk(Access(create_app(None, JOB), ObservabilityConfig(), others=source), scraped_text)
        assert counted(parsed(text), "scrape_complete") == complete
        assert ('replica="sampler-a"' in text, 'replica="sampler-b"' in text) == (source is others,) * 2


async def scraped_text(client: httpx.AsyncClient) -> str:
    return (await client.get("/metrics")).text


def test_metrics_can_be_left_out_and_are_no_part_of_the_schema(generator: Generator) -> None:
    async def go(client: httpx.AsyncClient) -> None:
        answer = await client.get("/metrics")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_url")
        assert "/metrics" not in (await client.get("/openapi.json")).json()["paths"]

    talk(watched(LocalBackend(generator), metrics=False), go)


def test_where_there_are_keys_metrics_want_one_that_may_read_them(generator: Generator, tmp_path: Path) -> None:
    file = str(tmp_path / "keys.json")
    _, scrapes = keys.create(file, "prometheus", ["metrics"])
    _, draws = keys.create(file, "studio", ["generate"])
    job = JOB.model_copy(update={"keys": KeysConfig(file=file)})
    app = Access(create_app(LocalBackend(generator), job), ObservabilityConfig())

    async def go(client: httpx.AsyncClient) -> list[int]:
        headers = [{}, {"Authorization": f"Bearer {draws}"}, {"Authorization": f"Bearer {scrapes}"}]
        return [(await client.get("/metrics", headers=each)).status_code for each in headers]

    assert talk(app, go) == [401, 403, 200]


def test_the_request_id_is_the_clients_own_where_it_is_one() -> None:
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        tracked = context.current()
        assert tracked is not None
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        assert headers["x-request-id"] == tracked.origin.request_id
        seen.append(tracked.origin.request_id)
        await PlainTextResponse(".")(scope, receive, send)

    async def go(client: httpx.AsyncClient) -> None:
        for asked in ("mine-1", "two words", "x" * 200, ""):
            await client.get("/", headers={"X-Request-Id": asked} if asked else {})

    talk(Access(app, ObservabilityConfig()), go)
    assert seen[0] == "mine-1"
    assert all(name.startswith("req_") and len(name) == 36 for name in seen[1:])
    assert len(set(seen)) == 4


def test_the_request_id_is_said_once(generator: Generator) -> None:
    """By the API, or by Ray Serve's proxy, which adds it to every answer."""
    for outside in (False, True):
        app = Access(create_app(LocalBackend(generator), JOB), ObservabilityConfig(), named_outside=outside)
        answer = talk(app, lambda client: client.get("/v1/models", headers={"X-Request-Id": "mine"}))
        assert answer.headers.get_list("X-Request-Id") == ([] if outside else ["mine"])


def test_a_stream_that_breaks_off_has_failed_although_it_began_well() -> None:
    async def frames() -> Any:
        yield b"event: image_generation.partial_image\ndata: {}\n\n"
        yield b'event: error\ndata: {"type":"error","error":{"message":"x","code":"overloaded"}}\n\n'

    async def frames_app(scope: Scope, receive: Receive, send: Send) -> None:
        await StreamingResponse(frames(), media_type="text/event-stream")(scope, receive, send)

    app = Access(frames_app, ObservabilityConfig())
    talk(app, lambda client: client.get("/"))
    found = parsed(asyncio.run(app.exposition()).decode())
    assert counted(found, "request_seconds_count", route="unmatched", outcome="failed") == 1


def test_who_leaves_is_counted_as_that(generator: Generator) -> None:
    begun = asyncio.Event()

    async def for_ever() -> None:
        begun.set()
        await asyncio.Event().wait()

    app = watched(LocalBackend(generator, before=for_ever))

    async def go(client: httpx.AsyncClient) -> Any:
        asking = asyncio.create_task(client.post(URL, json={"prompt": "a"}))
        await begun.wait()
        assert app.doorway.inside == 1
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        assert app.doorway.inside == 0
        return await scraped(client)

    assert counted(talk(app, go), "request_seconds_count", route=URL, outcome="left") == 1


def test_a_closed_door_lets_those_inside_finish(generator: Generator) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def held() -> None:
        begun.set()
        await go_on.wait()

    app = watched(LocalBackend(generator, before=held))
    body = {"prompt": "a", "num_inference_steps": 1}

    async def go(client: httpx.AsyncClient) -> None:
        inside = asyncio.create_task(client.post(URL, json=body))
        await begun.wait()
        app.doorway.close()
        refused = await client.post(URL, json=body)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        assert refused.json()["error"]["code"] == "shutting_down"
        assert (await client.get("/v1/health/ready")).status_code == 503
        assert (await client.get("/v1/health/live")).status_code == 200
        assert (await client.get("/v1/models")).status_code == 200
        found = await scraped(client)
        assert counted(found, "accepting") == 0
        assert counted(found, "request_seconds_count", route=URL, outcome="refused") == 1
        assert app.doorway.inside == 1
        go_on.set()
        assert (await inside).status_code == 200
        assert app.doorway.inside == 0

    talk(app, go)


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_one_line_a_request(generator: Generator, configured: Any, tmp_path: Path) -> None:
    configured(tmp_path / "log.jsonl")

    async def go(client: httpx.AsyncClient) -> None:
        await client.post(URL, json={"prompt": "a secret garden"}, headers={"X-Request-Id": "mine-1"})
        await client.post(URL, json={"prompt": "a secret garden", "n": 99})

    talk(watched(LocalBackend(generator)), go)
    first, second = (line for line in read(tmp_path / "log.jsonl") if line["logger"] == "serving.access")
    assert first["request_id"] == "mine-1"
    assert (first["method"], first["route"], first["status"], first["outcome"]) == ("POST", URL, 200, "ok")
    assert first["ms"] > 0
    assert (second["status"], second["outcome"], second["code"]) == (400, "invalid", "invalid_value")
    assert "garden" not in (tmp_path / "log.jsonl").read_text()


def test_access_lines_can_be_left_out(generator: Generator, configured: Any, tmp_path: Path) -> None:
    configured(tmp_path / "log.jsonl")
    talk(watched(LocalBackend(generator), access_log=False), lambda client: client.get("/v1/models"))
    assert read(tmp_path / "log.jsonl") == []


SECRETS = {
    "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "CLEANPLATE_WEBHOOK_SECRET": "whsec_c2VjcmV0IG9mIHRoZSB3ZWJob29rcw",
}
PRIVATE_KEY = "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg7nF2"
PROMPT = "my grandmother's kitchen, all in red"


@pytest.mark.parametrize("level", ["info", "debug"])
def test_nothing_secret_and_no_prompt_is_logged_whatever_goes_wrong(
    generator: Generator, configured: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, level: str
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    log, file = tmp_path / "log.jsonl", str(tmp_path / "keys.json")
    configured(log, log_level=level)
    key, secret = keys.create(file, "studio", ["generate", "metrics"])
    job = JOB.model_copy(update={"keys": KeysConfig(file=file)})
    failures: list[Exception] = [
        ValueError(f"cannot draw {PROMPT!r}"),
        OSError(
            f"s3://{SECRETS['AWS_ACCESS_KEY_ID']}:{SECRETS['AWS_SECRET_ACCESS_KEY']}@127.0.0.1/bucket is not there"
        ),
        RuntimeError(f"-----BEGIN PRIVATE KEY-----\n{PRIVATE_KEY}\n-----END PRIVATE KEY-----"),
        KeyError(secret),
    ]

    async def go(client: httpx.AsyncClient) -> list[int]:
        mine, other = {"Authorization": f"Bearer {secret}"}, {"Authorization": f"Bearer {secret[:-1]}x"}
        body = {"prompt": PROMPT, "negative_prompt": f"not {PROMPT}", "num_inference_steps": 1}
        bad = (
            {"prompt": PROMPT, PROMPT: 1},
            {**body, "size": PROMPT},
            {**body, "model": PROMPT[:20]},
            {**body, "n": PROMPT},
        )
        answers = [await client.post(URL, json=body, headers=headers) for headers in (mine, other, {})]
        answers += [await client.post(URL, json=each, headers=mine) for each in bad]
        answers += [await client.get(f"/v1/{secret}", headers=mine)]
        answers += [await client.get("/v1/models", params={"key": secret, "prompt": PROMPT}, headers=mine)]
        backend.before = failing
        answers += [await client.post(URL, json=body, headers=mine) for _ in list(failures)]
        return [answer.status_code for answer in answers]

    async def failing() -> None:
        raise failures.pop()

    backend = LocalBackend(generator)
    app = Access(create_app(backend, job), ObservabilityConfig(log_level=level))  # type: ignore[arg-type]
    assert talk(app, go) == [200, 401, 401, 400, 400, 404, 400, 404, 200, 500, 500, 500, 500]
    lines = read(log)
    assert len([line for line in lines if line["logger"] == "serving.access"]) == 13
    assert len([line for line in lines if "error" in line]) == 4
    assert {line.get("key") for line in lines if line["message"] == "request"} == {key.id, None}
    told = log.read_text() + asyncio.run(app.exposition()).decode()
    for hidden in (*SECRETS.values(), PRIVATE_KEY, secret, secret[12:], PROMPT, "grandmother", "kitchen"):
        assert hidden not in told
