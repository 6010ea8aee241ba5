"""`cleanplate submit` and `cleanplate jobs`: a job runs on a Ray cluster elsewhere, with this checkout as its code.

The job file is resolved here and travels inside the command, so it may lie anywhere; paths in it are the cluster's.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from curation.errors import UserError
from pipelines import config

_ENVIRONMENT = {
    "PYTHONUNBUFFERED": "1",
    "RAY_JOB_STOP_WAIT_TIME_S": "90",  # a run saves its state before it ends; Ray would kill it after three
}


class Submission(BaseModel):
    """A job on a cluster, ended or on its way."""

    job_id: str
    status: str
    exit_code: int


class Submitted(BaseModel):
    """A submission as the cluster tells of it; times are Unix, in seconds."""

    job_id: str
    kind: str
    name: str
    status: str
    message: str | None
    started: float | None
    ended: float | None


class Submissions(BaseModel):
    """Those of a cluster, the newest first."""

    jobs: list[Submitted]


def run(path: str, overrides: list[str], *, address: str, follow: bool = True) -> Submission:
    """Submits a job through the Ray Jobs API and follows its log to the end.

    The same job has the same id. While it runs it is followed and not started again; once it has ended, well or not, it
    is started anew under its id, and resumes by its own means.

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
    job_id = id_of(job)
    with _told(address):
        client = _client(address)
        there = {found.submission_id: found.status for found in client.list_jobs()}
        if job_id in there and not there[job_id].is_terminal():
            print(f"{job_id} runs already", file=sys.stderr, flush=True)
        else:
            if job_id in there:
                client.delete_job(job_id)
            client.submit_job(
                entrypoint=_entrypoint(job),
                submission_id=job_id,
                # .rayignore and .gitignore say what stays behind
                runtime_env={"working_dir": str(root), "env_vars": _ENVIRONMENT},
                metadata={"cleanplate": job.kind, "name": getattr(job, "name", job.kind)},
            )
            print(f"submitted as {job_id}", file=sys.stderr, flush=True)
        if not follow:
            return Submission(job_id=job_id, status="PENDING", exit_code=0)
        return _followed(client, job_id)


def id_of(job: BaseModel) -> str:
    """A job's id on every cluster: its kind, its name and a hash of all that it says."""
    told: Any = job
    sha256 = hashlib.sha256(config.to_yaml(job).encode()).hexdigest()
    return f"{told.kind}-{getattr(job, 'name', 'job')}-{sha256[:8]}"


def submissions(address: str) -> Submissions:
    """What was submitted to a cluster. Raises UserError when it does not answer."""
    with _told(address):
        found = [_submitted(job) for job in _client(address).list_jobs() if "cleanplate" in (job.metadata or {})]
    return Submissions(jobs=sorted(found, key=lambda job: -(job.started or 0)))


def status(address: str, job_id: str) -> Submitted:
    """How a submission stands. Raises UserError when there is none of that id."""
    with _told(address, job_id):
        return _submitted(_client(address).get_job_info(job_id))


def logs(address: str, job_id: str, *, follow: bool) -> Submission:
    """Prints a submission's log so far, or until it ends. Raises UserError when there is none of that id."""
    with _told(address, job_id):
        client = _client(address)
        if follow:
            return _followed(client, job_id)
        sys.stdout.write(client.get_job_logs(job_id))
        return Submission(job_id=job_id, status=str(client.get_job_status(job_id).value), exit_code=0)


def stop(address: str, job_id: str) -> Submission:
    """Ends a submission as SIGTERM does: what trains saves its state first. Returns when it has ended.

    Raises:
        UserError: when there is none of that id.
    """
    with _told(address, job_id):
        client = _client(address)
        client.stop_job(job_id)
        while not (found := client.get_job_status(job_id)).is_terminal():
            time.sleep(0.2)
        return Submission(job_id=job_id, status=str(found.value), exit_code=0)


def show(jobs: Sequence[Submitted]) -> None:
    """Prints submissions as a table."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("id", "kind", "status", "started", "took", "message")
    for job in jobs:
        began = datetime.fromtimestamp(job.started).strftime("%Y-%m-%d %H:%M") if job.started else ""
        took = str(timedelta(seconds=round((job.ended or time.time()) - job.started))) if job.started else ""
        said = (job.message or "").strip().splitlines()
        cells = (job.job_id, job.kind, job.status.lower(), began, took, said[-1] if said else "")
        table.add_row(*map(Text, cells))
    Console().print(table if jobs else "nothing was submitted")


def _client(address: str) -> Any:
    from ray.job_submission import JobSubmissionClient

    return JobSubmissionClient(address)


@contextlib.contextmanager
def _told(address: str, job_id: str | None = None) -> Iterator[None]:
    """Makes what a cluster refuses the user's mistake that it is."""
    from ray.exceptions import AuthenticationError

    try:
        yield
    except (AuthenticationError, ConnectionError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if job_id is not None and ("does not exist" in str(error) or "404" in reason):
            raise UserError(
                f"the cluster knows no job {job_id}", field="ID", remedy="`cleanplate jobs list` tells those it knows"
            ) from None
        raise UserError(
            f"the cluster at {address} did not take that: {reason}",
            field="--address",
            remedy="check the address of the head's dashboard, and RAY_AUTH_MODE and RAY_AUTH_TOKEN for its token",
        ) from None


def _submitted(job: Any) -> Submitted:
    metadata = job.metadata or {}
    return Submitted(
        job_id=job.submission_id,
        kind=metadata.get("cleanplate", ""),
        name=metadata.get("name", ""),
        status=str(job.status.value),
        message=job.message,
        started=job.start_time and job.start_time / 1e3,
        ended=job.end_time and job.end_time / 1e3,
    )


def _followed(client: Any, job_id: str) -> Submission:
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
