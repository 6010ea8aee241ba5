"""`cleanplate submit` to a cluster that is not the driver's own: a head node in a session of its own."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.curation.pictures import encoded, noise
from tests.nodes import Nodes, nodes
from tests.training.conftest import shapes, write_manifest

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def head() -> Iterator[Nodes]:
    with nodes() as found:
        found.add(cpus=2)
        yield found


def submit(job: Path, head: Nodes, *more: str) -> subprocess.CompletedProcess[str]:
    return head.cleanplate("submit", str(job), *more)


@pytest.fixture
def job(tmp_path: Path) -> Path:
    (tmp_path / "pictures").mkdir()
    for i in range(4):
        (tmp_path / "pictures" / f"{i}.png").write_bytes(encoded(noise(i)))
    raw = {
        "kind": "curate",
        "name": "elsewhere",
        "source": {"kind": "folder", "path": str(tmp_path / "pictures")},
        "output": str(tmp_path / "out"),
        "licences": {"unstated": "keep"},
        "image_size": 32,
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(raw))
    return tmp_path / "job.yaml"


def test_a_submitted_job_runs_there_and_its_result_comes_back(job: Path, head: Nodes) -> None:
    done = submit(job, head, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    result = json.loads(lines[-2])
    assert result["counts"]["kept"] == 4
    assert (Path(result["manifest"]) / "manifest.json").is_file()
    assert json.loads(lines[-1])["status"] == "SUCCEEDED"
    assert head.environment["RAY_AUTH_TOKEN"] not in done.stdout + done.stderr

    job_id = json.loads(lines[-1])["job_id"]
    again = submit(job, head, "--json")
    assert again.returncode == 0, again.stdout + again.stderr
    assert json.loads(again.stdout.splitlines()[-1])["job_id"] == job_id, "the same job has the same id"
    (found,) = json.loads(head.cleanplate("jobs", "list", "--json").stdout)["jobs"]
    assert (found["job_id"], found["kind"], found["name"], found["status"]) == (
        job_id,
        "curate",
        "elsewhere",
        "SUCCEEDED",
    )
    assert result["manifest"] in head.cleanplate("jobs", "logs", job_id).stdout
    unknown = head.cleanplate("jobs", "status", "curate-nothing-0")
    assert unknown.returncode == 2
    assert "knows no job curate-nothing-0" in unknown.stderr


def test_the_exit_code_is_the_job_s_own(job: Path, head: Nodes) -> None:
    done = submit(job, head, "--set", "source.path=/nowhere")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "no folder at /nowhere" in done.stdout


def test_a_wrong_token_is_told(job: Path, head: Nodes) -> None:
    done = head.cleanplate("submit", str(job), token="0" * 64)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "RAY_AUTH_TOKEN" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_that_is_stopped_saves_its_state_first(head: Nodes, tmp_path: Path) -> None:
    raw = {
        "kind": "train", "name": "stopped", "manifest": write_manifest(tmp_path / "manifests", shapes(8)).uri,
        "output": str(tmp_path / "training"), "workers": 0, "patch_size": 1, "conditioning": {"kind": "none"},
        "network": {"block_out_channels": [32, 32], "layers_per_block": 1, "attention_heads": 2},
        "images": 10**7, "batch_size": 8, "checkpoint_every": 10**6, "sample": {"steps": 2},
        "tracking": {"uri": f"sqlite:///{tmp_path}/mlflow.db"},
    }  # fmt: skip
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(raw))
    accepted = submit(tmp_path / "train.yaml", head, "--no-follow", "--json")
    assert accepted.returncode == 0, accepted.stdout + accepted.stderr
    job_id = json.loads(accepted.stdout.splitlines()[-1])["job_id"]
    while not list((tmp_path / "training").rglob("run.json")):
        status = json.loads(head.cleanplate("jobs", "status", job_id, "--json").stdout)["status"]
        assert status in ("PENDING", "RUNNING"), head.cleanplate("jobs", "logs", job_id).stdout
    stopped = head.cleanplate("jobs", "stop", job_id)
    assert stopped.returncode == 0, stopped.stderr
    assert "stopped" in stopped.stderr
    assert "is saved" in head.cleanplate("jobs", "logs", job_id).stdout
