"""`cleanplate submit` to a cluster that is not the driver's own: a `ray start --head` in a process group of its own."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.curation.pictures import encoded, noise
from tests.ports import free_port
from tests.training.conftest import shapes, write_manifest

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def head() -> Iterator[tuple[str, dict[str, str]]]:
    """A head node with token authentication; gives its dashboard's address and the environment that has its token."""
    folder = tempfile.mkdtemp(prefix="cp-head-", dir="/tmp")  # short: Ray's socket paths are limited
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "HF_HUB_OFFLINE": "1"}
    # The job's own python must be this environment's, as it would be in a cluster's image.
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    dashboard = free_port()
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"),
        *("--node-ip-address=127.0.0.1", f"--port={free_port()}", "--num-cpus=2", f"--temp-dir={folder}"),
        *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--ray-client-server-port={free_port()}"),
        *(f"--dashboard-agent-listen-port={free_port()}", "--object-store-memory=300000000"),
    ]
    with open(f"{folder}/head.log", "w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True, cwd=folder)
    address = f"http://127.0.0.1:{dashboard}"
    try:
        deadline = time.monotonic() + 120
        while not _answers(address, environment["RAY_AUTH_TOKEN"]):
            assert process.poll() is None, Path(f"{folder}/head.log").read_text()
            assert time.monotonic() < deadline, Path(f"{folder}/head.log").read_text()
            time.sleep(0.2)
        yield address, environment
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


def _answers(address: str, token: str) -> bool:
    request = urllib.request.Request(f"{address}/api/jobs/", headers={"Authorization": f"Bearer {token}"})
    try:
        with urllib.request.urlopen(request, timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def submit(job: Path, head: tuple[str, dict[str, str]], *more: str) -> subprocess.CompletedProcess[str]:
    return cleanplate(head, "submit", str(job), *more)


def cleanplate(head: tuple[str, dict[str, str]], *words: str) -> subprocess.CompletedProcess[str]:
    address, environment = head
    command = [sys.executable, "-m", "pipelines", *words, "--address", address]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


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


def test_a_submitted_job_runs_there_and_its_result_comes_back(job: Path, head: tuple[str, dict[str, str]]) -> None:
    done = submit(job, head, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    result = json.loads(lines[-2])
    assert result["counts"]["kept"] == 4
    assert (Path(result["manifest"]) / "manifest.json").is_file()
    assert json.loads(lines[-1])["status"] == "SUCCEEDED"
    assert head[1]["RAY_AUTH_TOKEN"] not in done.stdout + done.stderr

    job_id = json.loads(lines[-1])["job_id"]
    again = submit(job, head, "--json")
    assert again.returncode == 0, again.stdout + again.stderr
    assert json.loads(again.stdout.splitlines()[-1])["job_id"] == job_id, "the same job has the same id"
    (found,) = json.loads(cleanplate(head, "jobs", "list", "--json").stdout)["jobs"]
    assert (found["job_id"], found["kind"], found["name"], found["status"]) == (
        job_id,
        "curate",
        "elsewhere",
        "SUCCEEDED",
    )
    assert result["manifest"] in cleanplate(head, "jobs", "logs", job_id).stdout
    unknown = cleanplate(head, "jobs", "status", "curate-nothing-0")
    assert unknown.returncode == 2
    assert "knows no job curate-nothing-0" in unknown.stderr


def test_the_exit_code_is_the_job_s_own(job: Path, head: tuple[str, dict[str, str]]) -> None:
    done = submit(job, head, "--set", "source.path=/nowhere")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "no folder at /nowhere" in done.stdout


def test_a_wrong_token_is_told(job: Path, head: tuple[str, dict[str, str]]) -> None:
    address, environment = head
    done = submit(job, (address, environment | {"RAY_AUTH_TOKEN": "0" * 64}))
    assert done.returncode == 2, done.stdout + done.stderr
    assert "RAY_AUTH_TOKEN" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_that_is_stopped_saves_its_state_first(head: tuple[str, dict[str, str]], tmp_path: Path) -> None:
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
        status = json.loads(cleanplate(head, "jobs", "status", job_id, "--json").stdout)["status"]
        assert status in ("PENDING", "RUNNING"), cleanplate(head, "jobs", "logs", job_id).stdout
    stopped = cleanplate(head, "jobs", "stop", job_id)
    assert stopped.returncode == 0, stopped.stderr
    assert "stopped" in stopped.stderr
    assert "is saved" in cleanplate(head, "jobs", "logs", job_id).stdout
