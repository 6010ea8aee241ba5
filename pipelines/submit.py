"""`cleanplate submit`: a job runs on a Ray cluster elsewhere, with this checkout as its code.

The job file is resolved here and travels inside the command, so it may lie anywhere; paths in it are the cluster's.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import shlex
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from curation.errors import UserError
from pipelines import config


class Submission(BaseModel):
    """A job on a cluster, ended or on its way."""

    job_id: str
    status: str
    exit_code: int


def run(path: str, overrides: list[str], *, address: str, follow: bool = True) -> Submission:
    """Submits a job through the Ray Jobs API and follows its log to the end.

    Args:
        path: the job file; its `kind` says which verb runs it.
        overrides: as for the verb itself.
        address: the cluster's dashboard, `http://HEAD:8265`. A token comes from RAY_AUTH_TOKEN (RAY_AUTH_MODE=token).
        follow: print the job's log until it ends; otherwise return once it is accepted.

    Raises:
        UserError: for a bad job, or a cluster that does not answer.
    """
    job = config.load_job(path, overrides)
    if job.kind == "promote":
        raise UserError(
            "promoting takes no cluster", field="kind", remedy=f"run `cleanplate promote NAME VERSION --job {path}`"
        )
    root = checkout()
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    try:
        client = JobSubmissionClient(address)
        job_id = client.submit_job(
            entrypoint=_entrypoint(job),
            # .rayignore and .gitignore say what stays behind
            runtime_env={"working_dir": str(root), "env_vars": {"PYTHONUNBUFFERED": "1"}},
            metadata={"cleanplate": job.kind, "name": job.name},
        )
    except (AuthenticationError, ConnectionError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"the cluster at {address} did not take the job: {reason}",
            field="--address",
            remedy="check the address of the head's dashboard, and RAY_AUTH_MODE and RAY_AUTH_TOKEN for its token",
        ) from None
    print(f"submitted {job.kind} {job.name} as {job_id}", file=sys.stderr, flush=True)
    if not follow:
        return Submission(job_id=job_id, status="PENDING", exit_code=0)
    asyncio.run(_follow(client, job_id))
    info = client.get_job_info(job_id)
    code = info.driver_exit_code
    return Submission(
        job_id=job_id,
        status=str(info.status.value),
        exit_code=code if code is not None else int(str(info.status.value) != "SUCCEEDED"),
    )


def _entrypoint(job: Any) -> str:
    text = base64.b64encode(config.to_yaml(job).encode()).decode()
    return f"echo {shlex.quote(text)} | base64 -d | python -m pipelines {job.kind} - --json"


async def _follow(client: Any, job_id: str) -> None:
    """Prints the log as it comes; a lost log stream is taken up again until the job has ended."""
    while True:
        with contextlib.suppress(RuntimeError, OSError):
            async for lines in client.tail_job_logs(job_id):
                sys.stdout.write(lines)
                sys.stdout.flush()
        if client.get_job_status(job_id).is_terminal():
            return
        await asyncio.sleep(0.5)


def checkout() -> Path:
    """The folder that is shipped: the checkout this code runs from."""
    root = Path(__file__).resolve().parents[1]
    if not (root / "pyproject.toml").is_file():
        raise UserError(
            f"{root} is no checkout of cleanplate", field="submit", remedy="install with `pip install -e` from one"
        )
    return root
