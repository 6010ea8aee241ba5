"""Spans, as an exporter in memory gets them."""

from __future__ import annotations

import asyncio
import pickle
import subprocess
import sys
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from curation.errors import UserError
from serving import traces
from serving.access import Access
from serving.admission import Limits
from serving.api import GenerationRequest
from serving.call import Call
from serving.context import Origin
from serving.gateway import create_app
from serving.generator import Generation, Generator
from serving.job import ServeJob
from serving.observability import ObservabilityConfig
from serving.service import Service
from serving.traces import Traces
from serving.watch import Watch
from tests.serving.local import LocalBackend
from training.bundle import DiffusionModel
from training.tracking import ModelVersion

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class OtherProcess(LocalBackend):
    """A sampler: it gets of the gateway's context what crosses over, and nothing else."""

    def __init__(self, generator: Generator, spans: Traces) -> None:
        super().__init__(generator)
        self._watch = Watch(ObservabilityConfig(), "sampler", spans=spans)

    async def generate(self, request: GenerationRequest, call: Call) -> Generation:
        origin = Origin(call.request_id, pickle.loads(pickle.dumps(call)).trace)
        service = Service(self.generator)
        with self._watch.request(request, origin) as drew:
            generation = await service.generate(request)
            drew(generation)
        await service.engine.close()
        return generation


@pytest.fixture
def memory() -> tuple[InMemorySpanExporter, Traces]:
    exporter, provider = InMemorySpanExporter(), traces.provider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return exporter, Traces(provider)


def ask(app: Access, body: dict[str, Any], **headers: str) -> int:
    async def go() -> int:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return (await client.post("/v1/images/generations", json=body, headers=headers)).status_code

    return asyncio.run(go())


def test_a_request_is_one_tree_below_its_callers_span(
    version: ModelVersion, model: DiffusionModel, memory: tuple[InMemorySpanExporter, Traces]
) -> None:
    exporter, spans = memory
    backend = OtherProcess(Generator(version, model, None, Limits()), spans)
    app = Access(create_app(backend, ServeJob(model="m", keys="open")), ObservabilityConfig(), spans=spans)
    assert ask(app, {"prompt": "a", "num_inference_steps": 2}, traceparent=CALLER) == 200
    found = {span.name: span for span in exporter.get_finished_spans()}
    root = found["POST /v1/images/generations"]
    assert set(found) == {root.name, "generate", "queue", "sample", "guard", "encode"}
    assert {f"{span.context.trace_id:032x}" for span in found.values() if span.context} == {CALLER[3:35]}
    assert root.parent is not None
    assert f"{root.parent.span_id:016x}" == CALLER[36:52]

    def parent(name: str) -> int:
        above = found[name].parent
        assert above is not None
        return above.span_id

    assert root.context is not None
    assert found["generate"].context is not None
    assert parent("generate") == root.context.span_id
    assert {parent(name) for name in ("queue", "sample", "guard", "encode")} == {found["generate"].context.span_id}
    ends = [found[name].end_time for name in ("queue", "sample", "guard")]
    assert ends == [found[name].start_time for name in ("sample", "guard", "encode")]
    assert (root.attributes or {})["http.response.status_code"] == 200
    assert (found["generate"].attributes or {})["model_version"] == "3"
    assert "prompt" not in str([span.attributes for span in found.values()])


def test_without_a_caller_a_trace_begins_here_and_says_what_failed(
    version: ModelVersion, model: DiffusionModel, memory: tuple[InMemorySpanExporter, Traces]
) -> None:
    async def broken() -> None:
        raise ValueError("my prompt")

    exporter, spans = memory
    backend = LocalBackend(Generator(version, model, None, Limits()), before=broken)
    app = Access(create_app(backend, ServeJob(model="m", keys="open")), ObservabilityConfig(), spans=spans)
    assert ask(app, {"prompt": "a"}) == 500
    (root,) = exporter.get_finished_spans()
    assert root.parent is None
    assert not root.status.is_ok
    assert not root.events  # an exception's text stands in no span


def test_off_by_default_and_then_nothing_of_it_is_imported() -> None:
    code = (
        "import sys; from serving import traces; from serving.observability import ObservabilityConfig\n"
        "spans = traces.build(ObservabilityConfig())\n"
        "with spans.serving('x', {}) as carrier: assert carrier == {}\n"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')], 'imported'"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("exporter", ["console", "none"])
def test_where_spans_go_is_opentelemetrys_to_say(
    exporter: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", exporter)
    spans = traces.build(ObservabilityConfig(traces=True))
    with spans.serving("GET /x", {}) as carrier:
        assert carrier["traceparent"].startswith("00-")
    spans.close()
    assert ('"name": "GET /x"' in capsys.readouterr().err) == (exporter == "console")


def test_an_exporter_that_is_not_there_is_said_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "zipkin")
    with pytest.raises(UserError) as caught:
        traces.check(ObservabilityConfig(traces=True))
    assert caught.value.field == "observability.traces"
    traces.check(ObservabilityConfig(traces=False))
