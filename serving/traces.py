"""Spans of OpenTelemetry: a gateway's request, and below it a sampler's queue, sampling, guard and encoding.

Where they go is said by OpenTelemetry's own variables (`OTEL_TRACES_EXPORTER`, `OTEL_EXPORTER_OTLP_ENDPOINT`,
`OTEL_SERVICE_NAME`, `OTEL_TRACES_SAMPLER`, …). A caller's `traceparent` is heeded. Without `observability.traces`
nothing of OpenTelemetry is imported.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from curation.errors import UserError
from serving.context import Origin
from serving.generator import Generation
from serving.observability import ObservabilityConfig

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span

_OTLP = "opentelemetry.exporter.otlp"
_STAGES = ("queue", "sample", "guard", "encode")


class Traces:
    """Makes spans, or with None none. Its provider is its own: what else in the process makes spans is not touched."""

    def __init__(self, provider: TracerProvider | None = None) -> None:
        self._provider = provider
        self._tracer = None if provider is None else provider.get_tracer("cleanplate")

    @contextmanager
    def serving(self, name: str, headers: Mapping[str, str]) -> Iterator[dict[str, str]]:
        """A request at the gateway, below the caller's span where its headers name one.

        Gives the headers for other processes' spans to come below.
        """
        if self._tracer is None:
            yield {}
            return
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        carrier: dict[str, str] = {}
        with self._tracer.start_as_current_span(
            name, context=_parent(headers), kind=SpanKind.SERVER, record_exception=False, set_status_on_exception=False
        ):
            TraceContextTextMapPropagator().inject(carrier)
            yield carrier

    @contextmanager
    def drawing(self, origin: Origin) -> Iterator[Span | None]:
        """A request in a sampler, below the gateway's. Not the current span: a stream has no context of its own."""
        if self._tracer is None:
            yield None
            return
        attributes = {"request_id": origin.request_id}
        span = self._tracer.start_span("generate", context=_parent(origin.trace), attributes=attributes)
        try:
            yield span
        finally:
            span.end()

    def served(self, name: str, status: int, outcome: str) -> None:
        """The current span's request was answered; `name` is known by now."""
        if self._tracer is None:
            return
        from opentelemetry.trace import StatusCode, get_current_span

        span = get_current_span()
        span.update_name(name)
        span.set_attributes({"http.response.status_code": status, "outcome": outcome})
        if outcome in ("failed", "timeout"):
            span.set_status(StatusCode.ERROR)

    def drew(self, span: Span | None, generation: Generation) -> None:
        """Where a request's time went, from its timings: spans below its own that end now, one after the other."""
        if self._tracer is None or span is None:
            return
        from opentelemetry.context import Context
        from opentelemetry.trace import set_span_in_context

        below = set_span_in_context(span, Context())
        span.set_attributes(
            {
                "model_version": generation.card.version,
                "steps": generation.plan.steps,
                "pictures": len(generation.pictures),
            }
        )
        lengths = {stage: int(getattr(generation.timings, f"{stage}_ms") * 1e6) for stage in _STAGES}
        begun = time.time_ns() - sum(lengths.values())
        for stage, length in lengths.items():
            part = self._tracer.start_span(stage, context=below, start_time=begun)
            begun += length
            part.end(begun)

    def close(self) -> None:
        """Sends what has not been sent."""
        if self._provider is not None:
            self._provider.shutdown()


def build(config: ObservabilityConfig) -> Traces:
    """The spans of a job, sent in the background.

    Raises:
        UserError: as `check`.
    """
    if not config.traces:
        return Traces()
    check(config)
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    made = provider()
    exporter = _exporter()
    if exporter is not None:
        made.add_span_processor(BatchSpanProcessor(exporter))
    return Traces(made)


def provider() -> TracerProvider:
    """Of OpenTelemetry, under our name unless its variables give another."""
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider

    name = {} if "OTEL_SERVICE_NAME" in os.environ else {"service.name": "cleanplate"}
    return TracerProvider(resource=Resource.create(name))


def check(config: ObservabilityConfig) -> None:
    """Raises UserError when spans are asked for and cannot be sent where the environment says."""
    wanted = _wanted()
    if not config.traces or wanted in ("console", "none"):
        return
    if wanted != "otlp":
        raise UserError(
            f"OTEL_TRACES_EXPORTER is {wanted!r}",
            field="observability.traces",
            remedy="use otlp, console or none",
        )
    if find_spec("opentelemetry.exporter") is None or find_spec(_OTLP) is None:
        raise UserError(
            "traces are asked for, and nothing here sends them",
            field="observability.traces",
            remedy="pip install opentelemetry-exporter-otlp-proto-http, or set OTEL_TRACES_EXPORTER=console",
        )


def _wanted() -> str:
    return os.environ.get("OTEL_TRACES_EXPORTER", "otlp").strip() or "otlp"


def _exporter() -> SpanExporter | None:
    match _wanted():
        case "console":
            from opentelemetry.sdk.trace.export import ConsoleSpanExporter

            return ConsoleSpanExporter(out=sys.stderr)
        case "otlp":
            from importlib import import_module

            exporter: SpanExporter = import_module(f"{_OTLP}.proto.http.trace_exporter").OTLPSpanExporter()
            return exporter
    return None


def _parent(headers: Mapping[str, str]) -> Any:
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    # From nothing, not from the context at hand: Ray may have a span of its own there.
    return TraceContextTextMapPropagator().extract(headers, context=Context())
