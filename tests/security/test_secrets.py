"""Secrets that a deployment has are nowhere in what it leaves behind."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from curation import workers
from curation.errors import UserError
from curation.job import CurateJob
from curation.listing import listing
from pipelines import config
from serving import keys
from tests.curation.pictures import encoded, noise
from tests.ports import free_port

ROOT = Path(__file__).parents[2]
PLANTED = {
    "AWS_ACCESS_KEY_ID": "AKIAPLANTEDPLANTED01",
    "AWS_SECRET_ACCESS_KEY": "planted-aws-secret-0123456789",
    "AWS_SESSION_TOKEN": "planted-aws-session-0123456789",
    "MLFLOW_TRACKING_USERNAME": "planted-mlflow-user",
    "MLFLOW_TRACKING_PASSWORD": "planted-mlflow-password",
    "CLEANPLATE_WEBHOOK_SECRET": "planted-webhook-secret-0123456789abcdef",
    "CLEANPLATE_API_KEY": "cp_00000000_planted-by-the-caller",
    "SPAWNING_API_KEY": "planted-registry-key",
    "CAPTIONS_KEY": "planted-captions-key",
    "HF_TOKEN": "hf_planted0123456789",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": "feedfacecafebeef" * 4,
}
URL_PASSWORD = "planted-url-password"


def leaks(folder: Path, secrets: dict[str, bytes]) -> list[str]:
    """Which files below a folder hold which secrets; a database's and a bundle's are files, too."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            data = path.read_bytes()
            found += [f"{name} in {path}" for name, secret in secrets.items() if secret in data]
    return found


def test_a_secret_that_is_there_is_found(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c.db").write_bytes(b"\0\1planted-mlflow-password\2")
    secrets = {name: value.encode() for name, value in PLANTED.items()}
    assert leaks(tmp_path, secrets) == [f"MLFLOW_TRACKING_PASSWORD in {tmp_path / 'a' / 'b' / 'c.db'}"]


@pytest.mark.parametrize(
    ("field", "job"),
    [
        ("tracking.uri", {"kind": "train", "tracking": {"uri": f"https://me:{URL_PASSWORD}@mlflow.example"}}),
        ("tracking_uri", {"kind": "serve", "model": "m", "tracking_uri": f"postgresql://m:{URL_PASSWORD}@db/mlflow"}),
        ("optout.0.path", {"kind": "curate", "optout": [{"kind": "list", "path": f"s3://key:{URL_PASSWORD}@bucket"}]}),
    ],
)
def test_no_password_stands_in_a_job(field: str, job: dict[str, Any]) -> None:
    """A job is written into manifests, bundles and MLflow."""
    with pytest.raises(UserError, match="password") as caught:
        config.build(job)
    assert caught.value.field == field
    assert URL_PASSWORD not in str(caught.value)


def test_a_location_s_password_is_not_kept(tmp_path: Path) -> None:
    """It is used to fetch the picture; the units of a job, which stay, do not have it."""
    (tmp_path / "heap").mkdir()
    dead = f"http://user:{URL_PASSWORD}@127.0.0.1:{free_port()}/a.png"
    (tmp_path / "heap" / "t.csv").write_text(f"url\n{dead}\n")
    source = {"kind": "table", "path": str(tmp_path / "heap" / "t.csv")}
    fields = {"source": source, "output": str(tmp_path / "out"), "clip": None, "image_size": 16}
    found = listing(CurateJob.model_validate({**fields, "fetch": {"allow_private": True, "retries": 0}}))
    worker = workers.Worker(workers.config_of(found))
    for todo in found.todo():
        worker.run(workers.item_of(todo))
    (row,) = found.stages["measure"].read(found.units[0].key).to_pylist()
    assert row["failed_reason"] == "site_unreachable"
    assert row["location"] == dead.replace(f"user:{URL_PASSWORD}@", "")
    assert leaks(tmp_path / "out", {"password": URL_PASSWORD.encode()}) == []


@pytest.fixture
def told(tmp_path: Path) -> Iterator[tuple[int, str, str]]:
    """What `tests.security.whole` leaves behind, after it was asked for pictures: its process, and what it said."""
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(encoded(noise(number)))
    dead = f"http://user:{URL_PASSWORD}@127.0.0.1:{free_port()}/a.png"
    (tmp_path / "pictures.csv").write_text("\n".join(["url", "0.png", "1.png", "2.png", dead]) + "\n")
    _, secret = keys.create(str(tmp_path / "keys.json"), "studio", ["generate"])
    port = free_port()
    own = {
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
        "CLEANPLATE_CREDENTIALS": str(tmp_path / "credentials"),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "PYTHONPATH": str(ROOT),
        **PLANTED,
    }
    ours = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.security.whole", str(tmp_path), str(port)], cwd=tmp_path, env={**ours, **own},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=(tmp_path / "stderr").open("wb"), text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert str(port) in line, (tmp_path / "stderr").read_text()
        with httpx.Client(base_url=line.strip(), timeout=120, trust_env=False) as client:
            body = {"prompt": "noise", "num_inference_steps": 1}
            for header, status in (({"Authorization": f"Bearer {secret}"}, 200), ({"Authorization": secret}, 401)):
                answer = client.post("/v1/images/generations", json=body, headers=header)
                assert answer.status_code == status, answer.text
        said, _ = process.communicate("\n", timeout=300)
        assert process.returncode == 0, (tmp_path / "stderr").read_text()
        yield process.pid, said, secret
    finally:
        process.kill()
        process.wait()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_from_pictures_to_a_served_one_no_secret_is_left(told: tuple[int, str, str], tmp_path: Path) -> None:
    pid, said, secret = told
    signing = (tmp_path / "credentials" / "signer.key").read_bytes()
    watermark = (tmp_path / "credentials" / "watermark.key").read_bytes()
    (tmp_path / "credentials").rename(tmp_path.parent / f"{tmp_path.name}-credentials")  # where they may be
    (tmp_path / "pictures.csv").unlink()
    secrets = {name: value.encode() for name, value in PLANTED.items() if name != "RAY_AUTH_MODE"}
    secrets |= {"the URL's password": URL_PASSWORD.encode(), "the API key": secret.encode()}
    secrets |= {"the signing key": signing.splitlines()[1], "the watermark's key": watermark.strip()}
    assert all(len(secret) >= 16 for secret in secrets.values())
    assert leaks(tmp_path, secrets) == []
    assert {path.name for path in tmp_path.iterdir()} >= {
        "manifests",
        "training",
        "mlflow.db",
        "mlartifacts",
        "serve.jsonl",
    }
    assert not [name for name, value in secrets.items() if value.decode(errors="replace") in said]
    sessions = list(Path(f"/tmp/cleanplate-{os.getuid()}").glob(f"session_*_{pid}"))
    assert len(sessions) == 1, "Ray's logs are among what is looked at"
    assert list((sessions[0] / "logs").iterdir())
    assert leaks(sessions[0], secrets) == []
