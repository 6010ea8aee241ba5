"""How many replicas there are to be: by the row-steps that are outstanding, not by requests.

A request of fifty steps costs as much as twelve of four, so counting requests says little. Every replica reports what
its engines still have to do (`Sampler.record_autoscaling_stats`). Serve pickles the policy by value and runs it in its
controller: this module imports nothing of ours.
"""

from __future__ import annotations

import math
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

STAT = "row_steps"
"""What a replica's report is called."""


class AutoscalingConfig(BaseModel):
    """Replicas come and go with what is to be drawn."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    min_replicas: int = Field(1, ge=0, description="0: none while nobody asks; the next request waits for one to load")
    max_replicas: int = Field(4, ge=1, description="replicas at most")
    row_steps_per_replica: int = Field(
        4_096, ge=1, description="rows times steps outstanding that one replica is for; twice as many want two"
    )
    look_back_s: float = Field(15.0, gt=10, description="seconds over which what is outstanding is averaged")
    upscale_after_s: float = Field(5.0, ge=0, description="seconds that more are wanted until they are started")
    downscale_after_s: float = Field(120.0, ge=0, description="seconds that fewer are wanted until they are ended")
    to_zero_after_s: float = Field(600.0, ge=0, description="seconds without a request until the last one is ended")

    @model_validator(mode="after")
    def _ordered(self) -> AutoscalingConfig:
        if self.max_replicas < self.min_replicas:
            raise ValueError("max_replicas is below min_replicas")
        return self

    def for_serve(self) -> dict[str, Any]:
        """As Serve's `autoscaling_config`."""
        return {
            "min_replicas": self.min_replicas,
            "initial_replicas": max(1, self.min_replicas),  # somebody is about to ask whether it is ready
            "max_replicas": self.max_replicas,
            "look_back_period_s": self.look_back_s,
            "upscale_delay_s": self.upscale_after_s,
            "downscale_delay_s": self.downscale_after_s,
            "downscale_to_zero_delay_s": self.to_zero_after_s,
            "policy": {
                "policy_function": f"{__name__}:OutstandingRowSteps",
                "policy_kwargs": {"per_replica": self.row_steps_per_replica},
            },
        }


class OutstandingRowSteps:
    """Serve's policy: as many replicas as it takes for each to have `per_replica` row-steps to do.

    Serve itself keeps it between the bounds, waits out the delays, and starts one where there is none and a request
    comes.
    """

    def __init__(self, per_replica: float) -> None:
        self._per_replica = per_replica

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        reports = (context.aggregated_metrics or {}).get("row_steps") or {}
        wanted = math.ceil(sum(reports.values()) / self._per_replica)
        if wanted == 0 and context.total_queued_requests:
            wanted = 1
        return wanted, {}
