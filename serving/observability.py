"""What a serve job says about being watched: logs, traces and metrics."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class ObservabilityConfig(BaseModel):
    """What is told of requests, and where. Prompts are told nowhere unless `log_prompts` says so; secrets never."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    log_file: str | None = Field(
        None,
        description="file that JSON lines are appended to by every process of the server on a machine; it may be moved "
        "away at any time; null: standard error, which Ray keeps in its own logs",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="the least that is logged")
    access_log: bool = Field(True, description="one line for every request that was answered, and for who left before")
    log_prompts: bool = Field(False, description="whether prompts may stand in the logs")
    metrics: bool = Field(
        True,
        description="whether GET /metrics answers in Prometheus' format; where there are API keys, it asks for one",
    )
    traces: bool = Field(
        False,
        description="OpenTelemetry spans of every request; the variables OTEL_* of the server's environment say where "
        "they go",
    )
