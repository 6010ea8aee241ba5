"""The files in infra/ against what reads them: our job models, Ray's schema, Kubernetes' schemas, and what must not be.

With `KUBERAY_CRDS` naming a folder of KubeRay's custom resource definitions (helm-chart/kuberay-operator/crds in its
repository) Ray's kinds are checked against those, strictly; they are not ours to ship.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from pipelines import config, pipeline
from serving import keys
from serving.deployment import check
from serving.job import ServeJob
from serving.keys import KeysConfig

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
COMPOSE = yaml.safe_load((INFRA / "compose.yaml").read_text())


@pytest.fixture(scope="module")
def documents() -> list[dict[str, Any]]:
    """What `kubectl apply -k infra/kuberay` would send."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    done = subprocess.run(["kubectl", "kustomize", str(INFRA / "kuberay")], capture_output=True, text=True, check=True)
    return list(yaml.safe_load_all(done.stdout))


def parts(node: Any) -> Iterator[dict[str, Any]]:
    """Every mapping inside of a document."""
    if isinstance(node, dict):
        yield node
    for part in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from parts(part)


def pods(documents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [part["spec"] for document in documents for part in parts(document) if "containers" in part.get("spec", {})]


def test_the_jobs_are_jobs_and_the_entrypoint_runs_them(documents: list[dict[str, Any]]) -> None:
    job = config.load_job(str(INFRA / "kuberay" / "pipeline.yaml"))
    assert [step["verb"] for step in pipeline.plan(job)["steps"]] == ["curate", "train", "register", "promote"]
    (submission,) = [document for document in documents if document["kind"] == "RayJob"]
    assert submission["spec"]["entrypoint"].split()[:4] == ["python", "-m", "pipelines", job.kind]
    (mounted,) = [part for part in parts(submission) if "configMap" in part]
    (made,) = [document for document in documents if document["kind"] == "ConfigMap"]
    assert mounted["configMap"]["name"] == made["metadata"]["name"]
    assert yaml.safe_load(made["data"][Path(submission["spec"]["entrypoint"].split()[4]).name])["name"] == job.name


def test_the_endpoint_s_arguments_are_a_serve_job(documents: list[dict[str, Any]]) -> None:
    (service,) = [document for document in documents if document["kind"] == "RayService"]
    assert check(service) == []
    (application,) = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
    assert application["import_path"] == "serving.app:build"
    job = ServeJob.model_validate(application["args"])
    sample = service["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]
    assert job.replicas <= sample["minReplicas"]
    assert job.cpus_per_replica <= float(sample["template"]["spec"]["containers"][0]["resources"]["requests"]["cpu"])
    assert sample["template"]["spec"]["terminationGracePeriodSeconds"] > job.request_timeout_s
    # It listens for other machines: keys are there and asked for, and all pods sign in one name.
    assert isinstance(job.keys, KeysConfig)
    assert job.keys.usage is not None
    assert job.keys.usage.startswith("s3://"), "the keys' own folder cannot be written"
    for pod in pods([service]):
        (container,) = pod["containers"]
        places = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
        for folder in (Path(job.keys.file).parent, Path(str(job.credentials.folder))):
            assert places[str(folder)]["readOnly"]
            (volume,) = [volume for volume in pod["volumes"] if volume["name"] == places[str(folder)]["name"]]
            assert volume["secret"]["defaultMode"] == 0o440
        assert pod["securityContext"]["fsGroup"]


def test_kubernetes_kinds_have_the_fields_they_say(documents: list[dict[str, Any]]) -> None:
    validate = pytest.importorskip("kubernetes_validate")
    core = [document for document in documents if not document["apiVersion"].startswith("ray.io/")]
    assert {document["kind"] for document in core} > {"Namespace", "NetworkPolicy", "StatefulSet", "Deployment"}
    for document in core:
        validate.validate(document, "1.31", strict=True)
    for pod in pods(documents):  # those inside of Ray's kinds, too
        whole = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": pod}
        validate.validate(whole, "1.31", strict=True)


@pytest.mark.skipif("KUBERAY_CRDS" not in os.environ, reason="KUBERAY_CRDS names no folder")
def test_ray_s_kinds_are_what_their_definitions_say(documents: list[dict[str, Any]]) -> None:
    for document in documents:
        if document["apiVersion"] != "ray.io/v1":
            continue
        file = Path(os.environ["KUBERAY_CRDS"]) / f"ray.io_{document['kind'].lower()}s.yaml"
        versions = yaml.safe_load(file.read_text())["spec"]["versions"]
        (schema,) = [version["schema"]["openAPIV3Schema"] for version in versions if version["name"] == "v1"]
        jsonschema.validate(document, _strict(schema))


def _strict(node: Any) -> Any:
    """A definition as a JSON schema that refuses fields it does not name."""
    if isinstance(node, list):
        return [_strict(part) for part in node]
    if not isinstance(node, dict):
        return node
    found = {key: _strict(part) for key, part in node.items()}
    if found.pop("x-kubernetes-int-or-string", False):
        found.pop("type", None)
        found["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    named = isinstance(found.get("properties"), dict) and found.get("type") == "object"
    if named and not found.get("x-kubernetes-preserve-unknown-fields") and "additionalProperties" not in found:
        found["additionalProperties"] = False
        found["properties"] |= {key: {} for key in ("apiVersion", "kind", "metadata")}
    return found


def test_the_control_plane_asks_for_a_token_and_stays_inside(documents: list[dict[str, Any]]) -> None:
    clusters = [part for document in documents for part in parts(document) if "headGroupSpec" in part]
    assert [cluster["authOptions"] for cluster in clusters] == [{"mode": "token"}] * 2
    services = [document for document in documents if document["kind"] == "Service"]
    assert {service["spec"].get("type", "ClusterIP") for service in services} == {"ClusterIP"}
    policies = {d["metadata"]["name"]: d["spec"] for d in documents if d["kind"] == "NetworkPolicy"}
    assert policies["inside-only"] == {
        "podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"from": [{"podSelector": {}}]}]
    }  # fmt: skip
    rules = [rule for policy in policies.values() for rule in policy.get("ingress", ())]
    assert {port["port"] for rule in rules for port in rule.get("ports", ())} == {8265, 8000}
    closed = [part for rule in policies["no-metadata"]["egress"] for part in parts(rule["to"]) if "except" in part]
    assert {address for block in closed for address in block["except"]} == {"169.254.169.254/32", "fd00:ec2::254/128"}


def test_containers_are_nobody_special(documents: list[dict[str, Any]]) -> None:
    found = pods(documents)
    assert len(found) == 8
    for pod in found:
        assert pod["securityContext"]["runAsNonRoot"]
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
                "readOnlyRootFilesystem": True,
            }
            written = [mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")]
            assert written, "nothing runs without a place for its scratch"
            assert "memory" in container["resources"]["limits"]
            assert re.search(r":[\d.]+", container["image"]), "a tag that does not move"


def test_no_secret_is_written_down(documents: list[dict[str, Any]]) -> None:
    """Each is a reference: to a file that compose mounts, or to a Kubernetes secret."""
    told = [
        (key, value)
        for part in (*parts(COMPOSE), *(part for document in documents for part in parts(document)))
        for key, value in (part.items() if "valueFrom" not in part else ())
        if re.search(r"(?i)password|secret|token|credential", str(key)) and isinstance(value, str)
    ]
    assert told
    assert not [
        (key, value) for key, value in told if not value.startswith(("/run/secrets/", "cleanplate-")) and value != key
    ]
    environment = [(part["name"], part.get("value", "")) for d in documents for part in parts(d) if "value" in part]
    assert not [name for name, _ in environment if re.search(r"(?i)password|secret|key|store", name)]


def test_compose_listens_on_this_machine_alone() -> None:
    published = [port for service in COMPOSE["services"].values() for port in service.get("ports", [])]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)
    assert COMPOSE["networks"]["inside"] == {"internal": True}
    for name, service in COMPOSE["services"].items():
        assert set(service.get("secrets", [])) <= set(COMPOSE["secrets"]), name
        assert re.search(r":\d", service["image"]), "a tag that does not move"
        assert set(service.get("depends_on", {})) <= set(COMPOSE["services"])
    for name in ("head", "worker", "mlflow", "bucket"):
        assert COMPOSE["services"][name]["read_only"]
        assert COMPOSE["services"][name]["cap_drop"] == ["ALL"]
    assert all("no-new-privileges:true" in service["security_opt"] for service in COMPOSE["services"].values())
    assert "./keys:/etc/cleanplate/keys:ro" in COMPOSE["services"]["head"]["volumes"]
    for name in ("head", "worker"):  # whichever draws, and whichever verifies, has the same certificate and keys
        assert "home:/home/cleanplate" in COMPOSE["services"][name]["volumes"]
        assert "CLEANPLATE_CREDENTIALS" not in COMPOSE["services"][name]["environment"]
    assert not [volume for volume in COMPOSE["services"]["mlflow"]["volumes"] if ":" in volume]
    ray = COMPOSE["services"]["head"]
    assert ray["environment"]["RAY_AUTH_MODE"] == "token"
    assert ray["build"]["target"] in re.findall(r"^FROM \S+ AS (\w+)$", (INFRA / "Dockerfile").read_text(), re.M)


def test_secrets_are_random_and_stay(tmp_path: Path) -> None:
    script = shutil.copy(INFRA / "secrets.sh", tmp_path)
    subprocess.run([script], check=True, capture_output=True)
    made = {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}
    assert set(made) == set(COMPOSE["secrets"])
    assert re.fullmatch(r"[0-9a-f]{64}", made["ray_token"])
    assert made["postgres_password"] in made["mlflow_store"]
    (identity,) = json.loads(made["s3_identities"])["identities"]
    assert identity["credentials"][0]["secretKey"] in made["s3_credentials"]
    assert keys.read(str(tmp_path / "keys" / "keys.json")) == ()
    keys.create(str(tmp_path / "keys" / "keys.json"), "studio", ["generate"])
    subprocess.run([script], check=True, capture_output=True)
    assert len(keys.read(str(tmp_path / "keys" / "keys.json"))) == 1
    assert {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()} == made


def test_the_cluster_launcher_s_file_is_one() -> None:
    import ray.autoscaler

    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    found = yaml.safe_load((INFRA / "ray-cluster.yaml").read_text())
    jsonschema.validate(found, schema)
    assert found["head_node_type"] in found["available_node_types"]
    assert all("RAY_AUTH_MODE=token" in command for command in found["head_start_ray_commands"][1:])
    assert "--dashboard-host=127.0.0.1" in found["head_start_ray_commands"][1]


def test_the_image_holds_what_is_there_and_runs_as_nobody() -> None:
    lines = (INFRA / "Dockerfile").read_text().splitlines()
    copied = [word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]]
    assert all((ROOT / word).exists() for word in copied)
    constraints = (ROOT / "constraints.txt").read_text()
    pins = set(re.findall(r'"(torch\w*==[\d.]+)"', "\n".join(lines)))
    assert len(pins) == 2
    assert all(pin in constraints.split() for pin in pins)
    for target in ("cpu", "cuda"):
        stage = lines[lines.index(f"FROM base AS {target}") + 1 :]
        assert "USER 1000" in stage[: stage.index('ENTRYPOINT ["tini", "--"]')]
