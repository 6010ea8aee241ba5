"""How many replicas there are to be, as Serve's controller would ask: its own wrapper around our policy."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from ray.serve._private.autoscaling_state import _apply_autoscaling_config
from ray.serve.config import AutoscalingConfig as ServesConfig
from ray.serve.config import AutoscalingContext

from serving.autoscaling import AutoscalingConfig, OutstandingRowSteps
from serving.job import ServeJob, plan


def context(row_steps: list[float], **fields: Any) -> AutoscalingContext:
    told = {
        "deployment_id": None,
        "deployment_name": "sampler",
        "app_name": "cleanplate",
        "current_num_replicas": len(row_steps),
        "target_num_replicas": len(row_steps),
        "running_replicas": [],
        "total_num_requests": 0,
        "total_queued_requests": 0,
        "aggregated_metrics": {"row_steps": dict(enumerate(row_steps))},
        "raw_metrics": {},
        "capacity_adjusted_min_replicas": 0,
        "capacity_adjusted_max_replicas": 10,
        "policy_state": {},
        "last_scale_up_time": None,
        "last_scale_down_time": None,
        "current_time": None,
        "config": None,
    }
    return AutoscalingContext(**{**told, **fields})


@pytest.mark.parametrize(
    ("row_steps", "wanted"), [([0], 0), ([1], 1), ([100], 1), ([101], 2), ([150, 151], 4), ([400, 0, 0], 4)]
)
def test_as_many_as_it_takes(row_steps: list[float], wanted: int) -> None:
    assert OutstandingRowSteps(100)(context(row_steps)) == (wanted, {})


def test_a_request_that_waits_for_a_replica_keeps_one() -> None:
    policy = OutstandingRowSteps(100)
    assert policy(context([], total_queued_requests=1))[0] == 1
    assert policy(context([], aggregated_metrics={}))[0] == 0
    assert policy(context([], aggregated_metrics=None))[0] == 0


@given(st.lists(st.floats(0, 1e6), max_size=8), st.floats(1, 1e5))
def test_more_to_do_never_wants_fewer(row_steps: list[float], more: float) -> None:
    policy = OutstandingRowSteps(512)
    assert policy(context(row_steps))[0] <= policy(context([*row_steps, more]))[0]


def test_serve_takes_the_settings_and_the_policy_by_value() -> None:
    told = AutoscalingConfig(min_replicas=0, max_replicas=3, row_steps_per_replica=100, upscale_after_s=0)
    serves = ServesConfig(**told.for_serve())
    assert set(told.for_serve()) <= set(ServesConfig.model_fields)
    assert (serves.min_replicas, serves.initial_replicas, serves.max_replicas) == (0, 1, 3)
    policy = serves.policy.get_policy()
    assert b"aggregated_metrics" in (serves.policy.get_serialized_policy_def() or b"")  # its code, not only its name
    wrapped = _apply_autoscaling_config(policy(**serves.policy.policy_kwargs))
    assert wrapped(context([250], config=serves))[0] == 3
    assert wrapped(context([], config=serves, total_num_requests=1))[0] == 1  # from none, at once
    assert wrapped(context([0], config=serves))[0] == 1  # to none, but not at once


def test_bounds_must_make_sense_and_the_plan_asks_for_the_most() -> None:
    with pytest.raises(ValidationError, match="max_replicas is below"):
        AutoscalingConfig(min_replicas=3, max_replicas=2)
    job = ServeJob(model="m", autoscaling=AutoscalingConfig(max_replicas=5), cpus_per_replica=2)
    assert plan(job)["cpus"] == 10
