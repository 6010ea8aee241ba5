"""The only place that calls `ray.init`.

A command that was submitted to a cluster, or that finds `RAY_ADDRESS`, joins that cluster under its rules; any other
starts its own, on this machine and for its own lifetime. Ray's control plane runs whatever code it is sent, so that one
listens on loopback, and asks for a token all the same: others may be on this machine, too.
"""

from __future__ import annotations

import logging
import os
import secrets
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from curation.errors import UserError


@contextmanager
def connect(*, cpus: int = 1, gpus: float = 0) -> Iterator[None]:
    """A Ray cluster for the duration of a `with` block.

    Args:
        cpus: logical CPUs that the command needs at once; a local cluster gets at least as many.
        gpus: GPUs that the command needs at once; a local cluster has those of the machine, and no more.

    Raises:
        UserError: when a local cluster lacks the GPUs, for which Ray would wait for ever.
    """
    _quiet()
    authenticate()
    address = os.environ.get("RAY_ADDRESS", "local")
    import ray

    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": "ERROR"}
    if address == "local":
        # Ray's sockets live below the folder, and a socket's path is limited to 107 characters.
        options["_temp_dir"] = own_folder(f"/tmp/cleanplate-{os.getuid()}")
        options["include_dashboard"] = False
        options["num_cpus"] = max(cpus, os.cpu_count() or 1)
    with _stderr_held():
        ray.init(**options)
    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        there = ray.cluster_resources().get("GPU", 0)
        if address == "local" and gpus > there:
            raise UserError(
                f"the job needs {gpus:g} GPUs, this machine offers {there:g}",
                field="gpus_per_worker",
                remedy="ask for less, or submit the job to a cluster",
            )
        yield
    finally:
        ray.shutdown()


def authenticate() -> None:
    """Has a local cluster ask for a token and stay on loopback; before Ray is imported, which settles both for good."""
    if os.environ.get("RAY_ADDRESS", "local") == "local":
        # What Ray does where it does not support clusters of several machines: its node's address is 127.0.0.1.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def own_folder(path: str) -> str:
    """A folder that nobody else on this machine looks into, made where there is none: Ray's sockets lie in it.

    Raises:
        UserError: somebody else made it, or a link.
    """
    with suppress(FileExistsError):
        os.mkdir(path, 0o700)
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise UserError(f"{path} is no folder of yours", remedy="find out who made it, and remove it")
    if found.st_mode & 0o077:
        os.chmod(path, 0o700)
    return path


@contextmanager
def _stderr_held() -> Iterator[None]:
    """Keeps what is written to standard error, by C++ too, and shows it only when the block fails."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        except BaseException:
            os.dup2(kept, 2)
            file.seek(0)
            sys.stderr.write(file.read().decode(errors="replace"))
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _quiet() -> None:
    """Settings that Ray reads when it is imported or when a worker starts."""
    for name, value in {
        "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_BACKEND_LOG_LEVEL": "fatal",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "TOKENIZERS_PARALLELISM": "false",
    }.items():
        os.environ.setdefault(name, value)
