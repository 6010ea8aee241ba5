"""What logs say, and above all what they do not."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from serving import context, logs
from serving.admission import Limits
from serving.api import GenerationRequest
from serving.context import Origin, hide, note, track
from serving.generator import Generator
from serving.observability import ObservabilityConfig
from serving.service import Service
from serving.watch import Watch
from training.bundle import DiffusionModel
from training.tracking import ModelVersion

PROMPT = "my grandmother's Geheimnis, in a red kitchen"
S3_KEY, S3_SECRET = "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
API_KEY = "cp_live_5f2d1c9b7a6e4d3c2b1a0f9e8d7c6b5a"
PRIVATE = "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg7nF2"
PEM = f"-----BEGIN PRIVATE KEY-----\n{PRIVATE}\n-----END PRIVATE KEY-----"
ENVIRONMENT = {"AWS_ACCESS_KEY_ID": S3_KEY, "AWS_SECRET_ACCESS_KEY": S3_SECRET, "HOME": "/home/someone"}


def formatter(*, log_prompts: bool = False) -> logs.JsonLines:
    return logs.JsonLines(log_prompts=log_prompts, process="gateway", environment=ENVIRONMENT)


def formatted(message: str, *args: Any, log_prompts: bool = False, **extra: Any) -> dict[str, Any]:
    record = logging.LogRecord("serving.x", logging.INFO, __file__, 1, message, args, extra.pop("exc_info", None))
    record.__dict__.update(extra)
    text = formatter(log_prompts=log_prompts).format(record)
    assert "\n" not in text
    line: dict[str, Any] = json.loads(text)
    return line


def test_a_line_says_when_who_and_which_request() -> None:
    with track(Origin("req_1")):
        line = formatted("drew %d", 3, facts={"steps": 20, "blocked": ["picture:blood"]})
    assert line["message"] == "drew 3"
    assert (line["level"], line["logger"], line["process"]) == ("info", "serving.x", "gateway")
    assert (line["request_id"], line["steps"], line["blocked"]) == ("req_1", 20, ["picture:blood"])
    assert line["time"].endswith("+00:00")
    assert "request_id" not in formatted("at the start")


@pytest.mark.parametrize(
    "text",
    [
        f"the key {API_KEY} is not known",
        f"Authorization: Bearer {API_KEY[3:]}",
        f"s3://{S3_KEY}:{S3_SECRET}@127.0.0.1:9000/bucket could not be read",
        f"GET https://x/y?X-Amz-Credential={S3_KEY}&X-Amz-Signature=0123abcd",
        f"NoCredentials: key={S3_KEY} secret={S3_SECRET}",
        f"cannot read {PEM}",
        f"cannot read {PEM[:60]}",
        f"postgresql://user:{S3_SECRET[:7]}@db/mlflow",
    ],
)
def test_secrets_stand_in_no_line(text: str) -> None:
    def raised() -> Any:
        try:
            raise ValueError(text)
        except ValueError:
            return sys.exc_info()

    for line in (
        formatted(text, log_prompts=True),
        formatted("%s", text),
        formatted("x", facts={"where": text, "path": Path(text)}),
        formatted("it failed", exc_info=raised()),
    ):
        told = json.dumps(line)
        for secret in (API_KEY[3:], S3_KEY, S3_SECRET, PRIVATE[:20], "0123abcd", f"user:{S3_SECRET[:7]}"):
            assert secret not in told
        assert logs.HIDDEN in told


def test_a_secret_at_the_end_of_a_long_line_is_hidden_too() -> None:
    for shown in range(1, len(S3_SECRET) + 1):
        told = formatted("." * (2_000 - shown) + S3_SECRET)["message"]
        assert set(told) <= set("." + logs.HIDDEN), told[-40:]


def test_an_exception_is_told_with_where_and_without_the_clients_words() -> None:
    class Body(BaseModel):
        steps: int

    with track(Origin("req_1")):
        hide(PROMPT, None)
        for raising in (lambda: {}[PROMPT], lambda: Body(steps=PROMPT), lambda: int(PROMPT), lambda: int(PROMPT[8:30])):
            try:
                raising()
            except (KeyError, ValueError, ValidationError):
                line = formatted("it failed", exc_info=sys.exc_info())
            assert line["error"].split(":")[0] in ("KeyError", "ValueError", "ValidationError")
            assert line["where"][0].startswith("tests/serving/test_logs.py")
            for word in ("grandmother", "Geheimnis", "kitchen", "geheim"):
                assert word not in json.dumps(line)


def test_prompts_stand_in_logs_where_the_operator_says_so() -> None:
    with track(Origin("req_1")):
        hide(PROMPT)
        assert PROMPT in formatted(f"about {PROMPT}", log_prompts=True)["message"]
        assert "kitchen" not in formatted(f"about {PROMPT}")["message"]


@given(st.text(min_size=5), st.text(), st.text(), st.integers(0, 50))
def test_no_five_characters_of_what_is_private_are_left(private: str, before: str, after: str, cut: int) -> None:
    with track(Origin("r")):
        hide(private)
        line = formatter().clean(before + private[cut:] + after)
    folded, low = line.replace(logs.HIDDEN, "\0").casefold(), private.casefold()
    assert not any(low[k : k + 5] in folded for k in range(len(low) - 4) if "\0" not in low[k : k + 5])


def test_notes_belong_to_the_request_that_wrote_them() -> None:
    async def one(name: str) -> dict[str, Any]:
        with track(Origin(name)) as tracked:
            await asyncio.sleep(0)
            note(key_id=name)
            await asyncio.gather(asyncio.create_task(also(name)))
            return tracked.facts

    async def also(name: str) -> None:
        note(task=name)

    async def go() -> list[dict[str, Any]]:
        return await asyncio.gather(*(one(f"r{k}") for k in range(3)))

    assert asyncio.run(go()) == [{"key_id": f"r{k}", "task": f"r{k}"} for k in range(3)]
    note(lost=True)  # without a request, nothing
    assert context.current() is None


def test_a_sampler_says_what_it_drew_and_what_failed(
    version: ModelVersion, model: DiffusionModel, tmp_path: Path, configured: Any
) -> None:
    """A real service, its line, and a failure inside a pass: the request is named, its prompt is not."""
    file = tmp_path / "log.jsonl"
    configured(file)
    generator = Generator(version, model, None, Limits())
    watch = Watch(ObservabilityConfig(), "sampler-a")
    told = GenerationRequest(prompt=PROMPT, num_inference_steps=2, n=2, guidance_scale=3.0)

    async def go() -> None:
        service = Service(generator)
        with watch.request(told, Origin("req_7")) as drew:
            drew(await service.generate(told))
        broken = Service(generator)
        broken.engine._denoiser = Broken()
        with pytest.raises(ValueError, match="no such"), watch.request(told, Origin("req_8")):
            await broken.generate(told)
        for each in (service, broken):
            await each.engine.close()

    class Broken:
        def predict(self, rows: Any) -> Any:
            raise ValueError(f"no such {PROMPT}, key {API_KEY}")

    asyncio.run(go())
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    drew = next(line for line in lines if line["message"].startswith("drew"))
    assert (drew["request_id"], drew["model_version"], drew["steps"], drew["row_steps"]) == ("req_7", "3", 2, 8)
    assert drew["timings"]["first_step_ms"] > 0
    assert next(line for line in lines if line.get("request_id") == "req_8")["error"].startswith("ValueError: no such")
    assert "kitchen" not in file.read_text()
    assert API_KEY not in file.read_text()
    counts = {sample.name: sample.value for family in watch.metrics.snapshot([]).families for sample in family.samples}
    assert counts["cleanplate_generations_failed_total"] == 1
    assert counts["cleanplate_pictures_total"] == 2


def test_a_moved_log_file_is_begun_anew(tmp_path: Path, configured: Any) -> None:
    file = tmp_path / "log.jsonl"
    configured(file)
    logging.getLogger("serving.x").warning("first")
    file.rename(tmp_path / "log.1")
    logging.getLogger("serving.x").warning("second")
    assert "first" in (tmp_path / "log.1").read_text()
    assert json.loads(file.read_text())["message"] == "second"


def test_rays_own_logger_hides_the_same(configured: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    configured(tmp_path / "log.jsonl")
    ray = logging.getLogger("ray.serve")
    ray.addHandler(caplog.handler)
    try:
        ray.error("%s", f"Request failed: Bearer {API_KEY}")
        try:
            raise ValueError(API_KEY)
        except ValueError:
            ray.exception("Request failed")
    finally:
        ray.removeHandler(caplog.handler)
    assert "ValueError" in caplog.text
    assert API_KEY not in caplog.text
