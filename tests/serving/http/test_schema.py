"""The API against its own description: whatever is generated from it, and whatever is not, no answer is a 5xx."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable

from serving.admission import Limits
from serving.api import GenerationRequest
from serving.gateway import create_app
from serving.generator import Generator
from serving.jobs import JobsConfig
from serving.records import RecordsConfig
from tests.serving.local import JOB, LocalBackend, error_of
from training.bundle import DiffusionModel
from training.tracking import ModelVersion

schemathesis = pytest.importorskip("schemathesis", reason="a development dependency")

LIMITS = Limits(max_steps=2, max_images=2, max_prompt_chars=200)


@pytest.fixture(scope="module")
def generator(version: ModelVersion, model: DiffusionModel) -> Generator:
    return Generator(version, model, None, LIMITS)


@pytest.fixture(scope="module")
def schema(generator: Generator, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("served")
    update = {
        "limits": LIMITS,
        "records": RecordsConfig(folder=str(folder / "records")),
        "jobs": JobsConfig(folder=str(folder / "jobs")),
    }
    app = create_app(LocalBackend(generator), JOB.model_copy(update=update))
    return schemathesis.openapi.from_asgi("/openapi.json", app)


@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_every_answer_is_as_the_schema_says(schema: Any, mode: str) -> None:
    """Its status, its type and its shape are among those that the operation states, and none is a 5xx."""
    from schemathesis import checks
    from schemathesis.specs.openapi import checks as openapi

    answered_as_told = [
        checks.not_a_server_error,
        openapi.status_code_conformance,
        openapi.content_type_conformance,
        openapi.response_schema_conformance,
    ]
    asked: set[str] = set()
    for found in schema.get_all_operations():
        operation = found.ok()

        @settings(
            max_examples=6, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
        )
        @given(case=operation.as_strategy(generation_mode=schemathesis.GenerationMode(mode)))
        def ask(case: Any) -> None:
            asked.add(case.operation.label)
            case.call_and_validate(checks=answered_as_told)

        with contextlib.suppress(Unsatisfiable):  # where nothing can be said there is nothing wrong to say
            ask()
    assert "POST /v1/images/generations" in asked
    assert "PUT /v1/images/jobs/{job_id}" in asked


NAMES = st.sampled_from(sorted(GenerationRequest.model_fields)) | st.text(max_size=8)
LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
    | st.sampled_from(["png", "auto", "16x16", "url", "ddim", 2**53, -(2**63), 1e308, "\ud800", "\0", "a" * 300])
)  # fmt: skip
VALUES = st.recursive(LEAVES, lambda v: st.lists(v, max_size=3) | st.dictionaries(NAMES, v, max_size=3), max_leaves=6)
BODIES = st.dictionaries(NAMES, VALUES, max_size=6).map(lambda body: json.dumps({"prompt": "a", **body}).encode())


@settings(max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(
    body=BODIES | VALUES.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=64),
    path=st.sampled_from(["generations", "jobs/a", "img_" + "0" * 32 + "/reproduce"]),
    prefer=st.sampled_from(["", "respond-async", "\x7f,;=", "wait=1e9"]),
)
def test_no_body_makes_the_server_fail(schema: Any, body: bytes, path: str, prefer: str) -> None:
    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(schema.app), base_url="http://test") as client:
            method = "PUT" if path.startswith("jobs/") else "POST"
            headers = {"Content-Type": "application/json", "Prefer": prefer}
            return await client.request(method, f"/v1/images/{path}", content=body, headers=headers)

    answer = asyncio.run(ask())
    assert answer.status_code < 500
    if answer.status_code >= 400:
        error_of(answer)
