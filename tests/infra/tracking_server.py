"""MLflow as infra/compose.yaml starts it: on a PostgreSQL of its own, its artifacts on an S3 server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from tests.curation.seaweed import S3
from tests.infra import postgres
from tests.ports import free_port

COMPOSE = yaml.safe_load((Path(__file__).parents[2] / "infra" / "compose.yaml").read_text())["services"]["mlflow"]


@contextmanager
def tracking_server(s3: S3, folder: Path) -> Iterator[str]:
    """Its address. The command is compose's own, but for the address and the secret's place.

    Args:
        s3: has a bucket `cleanplate`.
        folder: for the log.
    """
    port = free_port()
    command = COMPOSE["command"][-1].replace("$$", "$")
    command = command.replace("0.0.0.0", "127.0.0.1").replace("5000", str(port))
    command = command.replace("/run/secrets/mlflow_store", str(folder / "store"))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    environment |= {**COMPOSE["environment"], **s3.environment}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    with postgres.postgres() as store:
        (folder / "store").write_text(store)
        with open(folder / "log", "w") as log:
            process = subprocess.Popen(
                ["sh", "-c", command], env=environment, stdout=log, stderr=log, cwd=folder, start_new_session=True
            )
        try:
            while not _healthy(port):
                assert process.poll() is None, (folder / "log").read_text()
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(60)


def _healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
