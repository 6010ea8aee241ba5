"""Jobs, through the API: asked for, drawn, fetched, cancelled, told of, and not lost."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from aiohttp import web

from serving import keys
from serving.access import Access
from serving.api import GenerationRequest, RequestError
from serving.doorway import Doorway
from serving.gateway import create_app
from serving.generator import Generator
from serving.http.asker import Asker
from serving.http.job_runner import BEAT_S, Runner
from serving.job import ServeJob
from serving.jobs import JobsConfig, JobStore, WebhooksConfig
from serving.keys import KeysConfig
from serving.observability import ObservabilityConfig
from serving.webhooks import VARIABLE, Sender, secret_of
from tests.serving.local import JOB, LocalBackend, client_of, error_of, send

BODY = {"prompt": "a red apple", "seed": 4, "num_inference_steps": 2}
ASKER = Asker("req_1", "http://test")


@pytest.fixture
def job(tmp_path: Path) -> ServeJob:
    return JOB.model_copy(update={"jobs": JobsConfig(folder=str(tmp_path / "jobs"))})


async def ended(client: httpx.AsyncClient, where: str, **how: Any) -> dict[str, Any]:
    """The job when it has ended."""
    while True:
        told: dict[str, Any] = (await client.get(where, **how)).json()
        if told["status"] not in ("queued", "running"):
            return told
        await asyncio.sleep(0.01)


def test_pictures_are_asked_for_now_and_fetched_later(generator: Generator, job: ServeJob) -> None:
    async def go() -> None:
        async with client_of(LocalBackend(generator), job) as client:
            whole = (await client.post("/v1/images/generations", json=BODY)).json()
            prefer = {"Prefer": "handling=lenient, respond-async; wait=5"}
            answer = await client.post("/v1/images/generations", json=BODY, headers=prefer)
            assert (answer.status_code, answer.headers["preference-applied"]) == (202, "respond-async")
            assert re.fullmatch(r"http://test/v1/images/jobs/job_[0-9a-f]{32}", answer.headers["location"])
            told = await ended(client, answer.headers["location"])
            assert (told["status"], told["error"], told["id"]) == ("succeeded", None, answer.json()["id"])
            result = await client.get(answer.headers["location"] + "/result")
            assert result.json()["data"][0]["b64_json"] == whole["data"][0]["b64_json"]

    asyncio.run(go())


def test_the_same_job_is_drawn_once(generator: Generator, job: ServeJob) -> None:
    async def go() -> None:
        backend = LocalBackend(generator)
        async with client_of(backend, job) as client:
            where = "/v1/images/jobs/poster-7"
            answers = await asyncio.gather(*(client.put(where, json=BODY) for _ in range(4)))
            assert sorted(answer.status_code for answer in answers) == [200, 200, 200, 201]
            await ended(client, where)
            assert (await client.put(where, json=BODY | {"n": None})).json()["status"] == "succeeded"
            other = await client.put(where, json=BODY | {"seed": 5})
            assert (other.status_code, error_of(other)["code"]) == (409, "job_differs")
        assert backend.asked == 1

    asyncio.run(go())


@pytest.mark.parametrize(
    ("body", "status", "param", "code"),
    [
        ({"size": "64x64"}, 400, "size", "unsupported_value"),
        ({"stream": True}, 400, "stream", "unsupported_value"),
        ({"webhook": {"url": "https://example.org/done"}}, 400, "webhook", "unsupported_value"),
        ({"webhook": {"url": 3}}, 400, "webhook.url", "invalid_value"),
        ({"colour": "red"}, 400, "colour", "unknown_parameter"),
    ],
)
def test_a_job_that_could_not_be_drawn_is_none(
    generator: Generator, job: ServeJob, body: dict[str, Any], status: int, param: str, code: str
) -> None:
    backend = LocalBackend(generator)
    answer = send(backend, "PUT", "/v1/images/jobs/a", job, json=BODY | body)
    error = error_of(answer)
    assert (answer.status_code, error["param"], error["code"]) == (status, param, code)
    answer = send(backend, "GET", "/v1/images/jobs/a", job)
    assert (answer.status_code, error_of(answer)["code"]) == (404, "job_not_found")


def test_where_there_are_no_jobs_the_answer_comes_whole(generator: Generator) -> None:
    backend = LocalBackend(generator)
    prefer = {"Prefer": "respond-async"}
    assert send(backend, "POST", "/v1/images/generations", json=BODY, headers=prefer).status_code == 200
    answer = send(backend, "PUT", "/v1/images/jobs/a", json=BODY)
    assert (answer.status_code, error_of(answer)["code"]) == (404, "no_jobs")
    hook = BODY | {"webhook": {"url": "https://example.org"}}
    assert error_of(send(backend, "POST", "/v1/images/generations", json=hook))["param"] == "webhook"


def test_a_cancelled_job_leaves_the_engine_and_a_second_word_forgets_it(generator: Generator, job: ServeJob) -> None:
    async def go() -> None:
        left = asyncio.Event()
        begun = asyncio.Event()

        async def never() -> None:
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                left.set()

        async with client_of(LocalBackend(generator, never), job) as client:
            where = "/v1/images/jobs/a"
            await client.put(where, json=BODY)
            await begun.wait()
            early = await client.get(where + "/result")
            assert (early.status_code, error_of(early)["code"]) == (409, "job_not_ended")
            assert (await client.delete(where)).json()["status"] == "cancelled"
            await left.wait()
            result = await client.get(where + "/result")
            assert (result.status_code, error_of(result)["code"]) == (410, "job_cancelled")
            assert (await client.delete(where)).status_code == 200
            assert (await client.get(where)).status_code == 404

    asyncio.run(go())


def test_a_job_belongs_to_its_key(generator: Generator, job: ServeJob, tmp_path: Path) -> None:
    file = str(tmp_path / "keys.json")
    secrets = [keys.create(file, name, ["generate"])[1] for name in ("a", "b")]
    mine, others = ({"headers": {"Authorization": f"Bearer {secret}"}} for secret in secrets)
    keyed = job.model_copy(update={"keys": KeysConfig(file=file)})

    async def go() -> None:
        async with client_of(LocalBackend(generator), keyed) as client:
            where = "/v1/images/jobs/a"
            await client.put(where, json=BODY, **mine)
            assert (await client.get(where, **others)).status_code == 404
            assert (await client.put(where, json=BODY | {"seed": 9}, **others)).status_code == 201
            assert (await ended(client, where, **mine))["status"] == "succeeded"

    asyncio.run(go())


def test_a_prompt_is_in_no_file(generator: Generator, job: ServeJob, tmp_path: Path) -> None:
    async def go() -> None:
        async with client_of(LocalBackend(generator), job) as client:
            await client.put("/v1/images/jobs/a", json=BODY)
            await ended(client, "/v1/images/jobs/a")

    asyncio.run(go())
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) >= 2
    assert all(b"apple" not in path.read_bytes() for path in files)


class Time:
    """Sleeps that end when they are told to: the sign of life's never, the others at once."""

    def __init__(self) -> None:
        self.slept: list[float] = []
        self.now = 1_000.0

    async def sleep(self, seconds: float) -> None:
        if seconds == BEAT_S:
            await asyncio.Event().wait()
        self.slept.append(seconds)
        await asyncio.sleep(0)

    def clock(self) -> float:
        return self.now


async def status_of(runner: Runner, name: str) -> str:
    """Of a job that has ended."""
    while (stored := await runner.find(name, ASKER)) is None or stored.job.status in ("queued", "running"):
        await asyncio.sleep(0.001)
    return stored.job.status


def run_with(folder: Path, draw: Any, use: Callable[[Runner, Time], Awaitable[None]], **config: Any) -> None:
    async def go() -> None:
        time = Time()
        runner = Runner(JobsConfig(folder=str(folder), **config), draw, sleep=time.sleep, clock=time.clock)
        try:
            await use(runner, time)
        finally:
            await runner.close()

    asyncio.run(go())


REQUEST = GenerationRequest(prompt="a red apple")


def test_a_job_waits_where_a_request_would_be_refused_for_a_moment(generator: Generator, tmp_path: Path) -> None:
    refusals = [
        RequestError("full", status=429, code="overloaded", retry_after_s=3),
        RequestError("gone", status=503, code="sampler_unavailable", retry_after_s=500),
    ]

    async def draw(request: GenerationRequest, asker: Asker) -> Any:
        if refusals:
            raise refusals.pop(0)
        return generator.generate(GenerationRequest(prompt="a", num_inference_steps=1)).response()

    async def use(runner: Runner, time: Time) -> None:
        await runner.take("a", REQUEST, ASKER)
        assert await status_of(runner, "a") == "succeeded"
        assert time.slept == [3, 30]

    run_with(tmp_path, draw, use)


@pytest.mark.parametrize(
    ("error", "retryable"),
    [
        (RequestError("no", status=400, code="moderation_blocked"), False),
        (RequestError("used up", status=429, code="quota_exceeded"), True),
        (RequestError("late", status=504, code="timeout"), True),
        (ZeroDivisionError("secret"), True),
    ],
)
def test_a_job_that_failed_says_why_and_whether_to_ask_again(tmp_path: Path, error: Exception, retryable: bool) -> None:
    asked = 0

    async def draw(request: GenerationRequest, asker: Asker) -> Any:
        nonlocal asked
        asked += 1
        raise error

    async def use(runner: Runner, time: Time) -> None:
        await runner.take("a", REQUEST, ASKER)
        assert await status_of(runner, "a") == "failed"
        stored = await runner.find("a", ASKER)
        assert stored is not None
        assert stored.job.retryable is retryable
        assert "secret" not in stored.model_dump_json()
        _, new = await runner.take("a", REQUEST, ASKER)
        assert new is retryable
        await status_of(runner, "a")
        assert asked == 1 + retryable

    run_with(tmp_path, draw, use)


def test_so_many_jobs_are_drawn_at_a_time_and_so_many_wait(tmp_path: Path) -> None:
    under_way: list[str] = []

    async def draw(request: GenerationRequest, asker: Asker) -> Any:
        under_way.append(request.prompt)
        await asyncio.Event().wait()

    async def use(runner: Runner, time: Time) -> None:
        for name in "abc":
            await runner.take(name, GenerationRequest(prompt=name), ASKER)
        with pytest.raises(RequestError) as caught:
            await runner.take("d", REQUEST, ASKER)
        assert (caught.value.status, caught.value.code) == (429, "too_many_jobs")
        while len(under_way) < 2:
            await asyncio.sleep(0.001)
        stored = await runner.find("c", ASKER)
        assert stored is not None
        assert stored.job.status == "queued"

    run_with(tmp_path, draw, use, concurrent=2, max_waiting=3)


def test_the_jobs_of_a_process_that_went_have_failed_and_begin_anew(tmp_path: Path) -> None:
    async def never(request: GenerationRequest, asker: Asker) -> Any:
        await asyncio.Event().wait()

    async def go() -> None:
        config, time = JobsConfig(folder=str(tmp_path)), Time()
        first, second = (Runner(config, never, sleep=time.sleep, clock=time.clock) for _ in range(2))
        await first.take("a", REQUEST, ASKER)
        # As if it had been killed: its sign of life, which waits for ever here, is the last one.
        stored = await second.find("a", ASKER)
        assert stored is not None
        assert stored.job.status in ("queued", "running")
        time.now += 6 * BEAT_S + 1
        stored = await second.find("a", ASKER)
        assert stored is not None
        assert stored.job.error is not None
        assert (stored.job.status, stored.job.error.code, stored.job.retryable) == ("failed", "interrupted", True)
        job, new = await second.take("a", REQUEST, ASKER)
        assert (job.status, new) == ("queued", True)
        await second.close()
        await first.close()

    asyncio.run(go())


def test_a_process_that_ends_in_order_says_so_of_its_jobs(tmp_path: Path) -> None:
    async def never(request: GenerationRequest, asker: Asker) -> Any:
        await asyncio.Event().wait()

    async def use(runner: Runner, time: Time) -> None:
        await runner.take("a", REQUEST, ASKER)
        await asyncio.sleep(0.01)

    run_with(tmp_path, never, use)
    stored = JobStore(JobsConfig(folder=str(tmp_path)), lambda: 1_000.0).read(None, "a")
    assert stored is not None
    assert stored.job.error is not None
    assert (stored.job.status, stored.job.error.code) == ("failed", "interrupted")


def test_a_closed_door_lets_the_jobs_inside_finish_and_begins_no_others(generator: Generator, job: ServeJob) -> None:
    async def go() -> None:
        assert job.jobs is not None
        one = job.model_copy(update={"jobs": job.jobs.model_copy(update={"concurrent": 1})})
        drawing, go_on, doorway = asyncio.Event(), asyncio.Event(), Doorway()

        async def before() -> None:
            drawing.set()
            await go_on.wait()

        api = create_app(LocalBackend(generator, before), one, doorway)
        transport = httpx.ASGITransport(Access(api, ObservabilityConfig(), doorway=doorway))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            for name in ("inside", "waiting"):
                assert (await client.put(f"/v1/images/jobs/{name}", json=BODY)).status_code == 201
            await drawing.wait()
            assert doorway.inside == 1
            doorway.close()
            assert error_of(await client.put("/v1/images/jobs/late", json=BODY))["code"] == "shutting_down"
            go_on.set()
            told = await ended(client, "/v1/images/jobs/inside")
            assert told["status"] == "succeeded"
            told = await ended(client, "/v1/images/jobs/waiting")
            assert (told["status"], told["error"]["code"], told["retryable"]) == ("failed", "interrupted", True)
            while doorway.inside:
                await asyncio.sleep(0.001)

    asyncio.run(go())


def test_what_has_ended_is_forgotten_in_time(tmp_path: Path) -> None:
    async def draw(request: GenerationRequest, asker: Asker) -> Any:
        raise RequestError("no")

    async def use(runner: Runner, time: Time) -> None:
        await runner.take("a", REQUEST, ASKER)
        await status_of(runner, "a")
        time.now += 3_601
        assert await runner.find("a", ASKER) is None
        assert list(JobStore(JobsConfig(folder=str(tmp_path), hours=1), time.clock).all()) == []
        assert not list((tmp_path / "jobs").rglob("*.json"))

    run_with(tmp_path, draw, use, hours=1)


@asynccontextmanager
async def receiver(answer: Callable[[web.Request], Awaitable[int]]) -> AsyncIterator[str]:
    """A server that is told; its URL."""

    async def handle(request: web.Request) -> web.Response:
        return web.Response(status=await answer(request))

    app = web.Application()
    app.router.add_post("/done", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
    try:
        yield f"http://127.0.0.1:{port}/done"
    finally:
        await runner.cleanup()


def test_whoever_waits_is_told_and_can_see_that_it_was_us(
    generator: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second attempt is heard, and OpenAI's client finds its signature right."""
    monkeypatch.setenv(VARIABLE, "the operator's secret")
    webhooks = WebhooksConfig(allow_http=True, allow_private=True)
    told: list[tuple[dict[str, str], bytes]] = []

    async def go() -> None:
        heard = asyncio.Event()

        async def answer(request: web.Request) -> int:
            told.append((dict(request.headers), await request.read()))
            if len(told) == 1:
                return 500
            heard.set()
            return 204

        time = Time()
        sender = Sender(webhooks, sleep=time.sleep)

        async def draw(request: GenerationRequest, asker: Asker) -> Any:
            assert request.webhook is None
            return generator.generate(GenerationRequest(prompt="a", num_inference_steps=1)).response()

        config = JobsConfig(folder=str(tmp_path), webhooks=webhooks)
        runner = Runner(config, draw, sender=sender, sleep=time.sleep)
        async with receiver(answer) as url:
            asked = GenerationRequest.model_validate({"prompt": "a red apple", "webhook": {"url": url}})
            await runner.take("a", asked, ASKER)
            await heard.wait()
            while (stored := await runner.find("a", ASKER)) is not None and (
                stored.job.webhook is None or stored.job.webhook.state == "waiting"
            ):
                await asyncio.sleep(0.001)
        assert stored is not None
        assert stored.job.webhook is not None
        assert (stored.job.webhook.state, stored.job.webhook.attempts) == ("delivered", 2)
        await runner.close()

    asyncio.run(go())
    (first, body), (second, again) = told
    assert body == again
    assert first["webhook-id"] == second["webhook-id"]
    event = json.loads(body)
    assert (event["type"], event["data"]) == ("image_generation.job.succeeded", {"id": "a"})
    secret = secret_of(None)
    with openai.OpenAI(api_key="none") as api:
        api.webhooks.verify_signature(body, second, secret=secret)
        for wrong_body, wrong_secret in ((body + b" ", secret), (body, secret_of("somebody"))):
            with pytest.raises(openai.InvalidWebhookSignatureError):
                api.webhooks.verify_signature(wrong_body, second, secret=wrong_secret)


def test_a_key_is_told_its_own_secret(generator: Generator, job: ServeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = LocalBackend(generator)
    monkeypatch.delenv(VARIABLE, raising=False)
    assert send(backend, "GET", "/v1/images/webhook_secret", job).status_code == 404
    monkeypatch.setenv(VARIABLE, "the operator's secret")
    told = send(backend, "GET", "/v1/images/webhook_secret", job).json()
    assert told == {"secret": secret_of(None)}
    assert secret_of("a") != secret_of("b") != secret_of(None)


def test_looking_round_disturbs_no_sign_of_life_that_is_being_written(tmp_path: Path) -> None:
    store = JobStore(JobsConfig(folder=str(tmp_path)))
    store.beat("a" * 16)
    half = tmp_path / "gateways" / ".bbbb.0123.partial"
    half.write_bytes(b"")
    assert list(store.all()) == []
    assert half.exists()
    assert store.alive("a" * 16, 60)
