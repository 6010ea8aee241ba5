"""The serve job: cheap to read, strict about what it says."""

from __future__ import annotations

import subprocess
import sys
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from serving.api import SamplerName
from serving.job import ServeJob, plan
from training.sampling import Sampler


def test_reading_a_job_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'ray', 'mlflow', 'fastapi', 'diffusers', 'open_clip'}"
    code = f"import sys, serving.job; sys.exit(sorted({heavy} & set(sys.modules)) or None)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_apis_samplers_are_those_of_training() -> None:
    assert get_args(SamplerName) == get_args(Sampler)


@pytest.mark.parametrize(
    "fields",
    [
        {"prot": 8000},
        {"port": 0},
        {"replicas": 0},
        {"route_prefix": "v1"},
        {"name": "My App"},
        {"defaults": {"steps": 200}},
        {"limits": {"max_images": 11}},
        {"safety": {"concepts": {"weapon": 2.0}}},
    ],
)
def test_a_mistake_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ServeJob.model_validate({"model": "models:/drawings@champion", **fields})


def test_the_plan_says_what_ray_will_be_asked_for() -> None:
    job = ServeJob(
        model="models:/drawings@champion", replicas=2, cpus_per_replica=1.5, host="0.0.0.0", port=9000, keys="open"
    )
    planned = plan(job)
    assert planned["url"] == "http://127.0.0.1:9000/v1/images/generations"
    assert planned["cpus"] == 3.0
    assert planned["deployments"]["sampler"]["threads"] == 2


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.3", "gateway.example.org"])
def test_a_server_for_other_machines_says_who_may_ask(host: str) -> None:
    with pytest.raises(ValidationError, match="keys: open"):
        ServeJob(model="m", host=host)
    assert ServeJob(model="m", host=host, keys="open").keys == "open"
    ServeJob.model_validate({"model": "m", "host": host, "keys": {"file": "keys.json"}})


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_on_this_machine_no_keys_are_needed(host: str) -> None:
    assert ServeJob(model="m", host=host).keys is None
