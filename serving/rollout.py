"""What a serve job says about going from one version to the next (`serving.versions`, `serving.canary`)."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class CanaryConfig(BaseModel):
    """A second alias that gets a share of the requests, and when it gets none any more."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    alias: str = Field("challenger", description="the second alias; while the registry has none, nothing happens")
    share: float = Field(0.1, gt=0, lt=1, description="share of the callers that it answers; who gets it, keeps it")
    min_requests: int = Field(100, ge=1, description="answers of each version before the two are compared")
    window: int = Field(1_000, ge=1, description="newest answers of each version that are compared")
    max_more_errors: float = Field(
        0.02, ge=0, le=1, description="share of failed requests over the champion's; beyond it, the challenger returns"
    )
    max_more_blocks: float = Field(
        0.1, ge=0, le=1, description="share of withheld pictures over the champion's; beyond it, the challenger returns"
    )
    max_slowdown: float = Field(
        1.5, ge=1, description="median seconds of a row-step over the champion's; beyond it, the challenger returns"
    )

    @model_validator(mode="after")
    def _enough_is_kept(self) -> CanaryConfig:
        if self.min_requests > self.window:
            raise ValueError(f"min_requests {self.min_requests} is over window {self.window}: they are never compared")
        return self


class RolloutConfig(BaseModel):
    """How replicas follow the registry's alias while they serve."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    poll_s: float = Field(2.0, gt=0, description="seconds between two looks at the alias")
    keep_warm_s: float = Field(
        600.0, ge=0, description="seconds that a version stays loaded after it was replaced: going back takes none then"
    )
    keep: int = Field(1, ge=0, description="replaced versions that stay loaded at once; each takes the model's memory")
    retry_s: float = Field(60.0, gt=0, description="seconds until a version that could not be loaded is tried again")
    takedowns_every_s: float = Field(
        30.0, gt=0, description="seconds between two looks at how the served versions stand to the takedowns"
    )
    self_test: Literal["refuse", "warn", "off"] = Field(
        "refuse",
        description="what to do with a version whose self-test does not draw what it drew when it was registered",
    )
    canary: CanaryConfig | None = Field(None, description="a second alias that gets a share of the requests")
