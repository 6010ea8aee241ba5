"""Files for Ray Serve: what Ray would take in silence is found, with its place and what was meant."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from curation.errors import UserError
from serving.deployment import check, refuse

GOOD: dict[str, Any] = yaml.safe_load("""
proxy_location: EveryNode
http_options: {host: 0.0.0.0, port: 8000}
applications:
  - name: drawings
    route_prefix: /drawings
    import_path: serving.app:build
    args:
      model: models:/drawings@champion
      rollout: {poll_s: 1, canary: {alias: next, share: 0.1}}
      engine: {max_rows: 8}
    deployments:
      - name: sampler
        num_replicas: 2
        max_ongoing_requests: 64
        ray_actor_options: {num_cpus: 2, runtime_env: {env_vars: {OMP_NUM_THREADS: "2"}}}
        user_config: {anything: goes}
      - name: gateway
        autoscaling_config:
          min_replicas: 1
          max_replicas: 3
          policy: {policy_function: "serving.autoscaling:OutstandingRowSteps", policy_kwargs: {per_replica: 10}}
  - name: another
    route_prefix: /another
    import_path: theirs:app
    args: {model: 3}
    deployments: [{name: Whatever}]
""")


def changed(path: str, value: Any) -> dict[str, Any]:
    raw = copy.deepcopy(GOOD)
    *parents, last = path.split(".")
    node: Any = raw
    for part in parents:
        node = node[int(part) if part.isdigit() else part]
    node[int(last) if last.isdigit() else last] = value
    return raw


def test_a_good_file_has_no_mistakes() -> None:
    assert check(GOOD) == []
    refuse([])


SAMPLER, ARGS = "applications.0.deployments.0", "applications.0.args"
GATEWAY = "applications.0.deployments.1"


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        (f"{SAMPLER}.num_replica", "num_replicas"),
        (f"{SAMPLER}.max_ongoing_request", "max_ongoing_requests"),
        (f"{SAMPLER}.ray_actor_options.num_cpu", "num_cpus"),
        (f"{GATEWAY}.autoscaling_config.max_replica", "max_replicas"),
        (f"{GATEWAY}.autoscaling_config.target_ongoing_request", "target_ongoing_requests"),
        (f"{GATEWAY}.autoscaling_config.policy.policy_kwarg", "policy_kwargs"),
        ("http_options.prot", "port"),
        ("applications.1.route_prefx", "route_prefix"),
        ("proxy_locations", "proxy_location"),
    ],
)
def test_what_ray_takes_in_silence_is_found(path: str, meant: str) -> None:
    raw = changed(path, 1)
    ServeDeploySchema.model_validate(raw)  # this is what makes the check necessary
    (mistake,) = check(raw)
    assert (mistake.field, mistake.remedy) == (path, f"did you mean {meant}?")


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        (f"{SAMPLER}.num_replicas", -1, "greater than"),
        (f"{GATEWAY}.autoscaling_config.max_replicas", 0, "greater than 0"),
        (f"{GATEWAY}.autoscaling_config", {"min_replicas": 3, "max_replicas": 2}, "max_replicas (2) must be greater"),
        (f"{GATEWAY}.autoscaling_config.policy.policy_function", "nowhere:P", "cannot be imported"),
        ("http_options.port", "many", "integer"),
        (f"{ARGS}.rollout.poll_s", 0, "greater than 0"),
        (f"{ARGS}.rollout.canary.share", 2, "less than 1"),
        (f"{SAMPLER}.name", "sampler1", "no deployment 'sampler1'"),
    ],
)
def test_values_are_checked(path: str, value: Any, told: str) -> None:
    (mistake,) = check(changed(path, value))
    assert path.startswith(mistake.field)
    assert told in mistake.message


def test_our_arguments_are_a_serve_job() -> None:
    (mistake,) = check(changed(f"{ARGS}.rollout.canary.shares", 0.1))
    assert mistake.field == f"{ARGS}.rollout.canary.shares"
    assert mistake.remedy == "did you mean share?"
    (mistake,) = check(changed(f"{ARGS}.replica", 2))
    assert mistake.remedy == "did you mean replicas?"
    (mistake,) = check(changed(ARGS, {}))
    assert (mistake.field, mistake.remedy) == (f"{ARGS}.model", "add it")


def test_what_serve_decides_itself_is_said_to_be_elsewhere() -> None:
    (mistake,) = check(changed(f"{ARGS}.port", 9000))
    assert mistake.field == f"{ARGS}.port"
    assert "http_options.port" in mistake.remedy


def test_a_file_without_applications_needs_some() -> None:
    (mistake,) = check({"http_options": {}})
    assert (mistake.field, mistake.remedy) == ("applications", "add it")


def test_all_mistakes_are_named_the_first_one_in_full() -> None:
    raw = changed(f"{SAMPLER}.num_replica", 1)
    raw["applications"][0]["args"]["replica"] = 2
    with pytest.raises(UserError, match=rf"no such field.*1 more: {ARGS}.replica") as caught:
        refuse(check(raw))
    assert caught.value.field == f"{SAMPLER}.num_replica"


def test_a_ray_service_holds_the_same_as_a_text() -> None:
    service = {"kind": "RayService", "spec": {"serveConfigV2": yaml.safe_dump(GOOD)}}
    assert check(service) == []
    service["spec"] = {"serveConfigV2": yaml.safe_dump(changed("proxy_locations", 1))}
    (mistake,) = check(service)
    assert mistake.field == "spec.serveConfigV2.proxy_locations"
    for text in (None, "a: [", "word"):
        service["spec"] = {"serveConfigV2": text}  # type: ignore[dict-item]
        with pytest.raises(UserError) as caught:
            check(service)
        assert caught.value.field == "spec.serveConfigV2"
