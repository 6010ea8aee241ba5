"""`cleanplate serve`: an endpoint for a registered model, until it is interrupted."""

from __future__ import annotations

import math
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

if TYPE_CHECKING:
    from serving.job import ServeJob


def plan(job: ServeJob) -> dict[str, Any]:
    """What serving would take."""
    from serving.job import plan as serving_plan

    return serving_plan(job)


@contextmanager
def endpoint(job: ServeJob) -> Iterator[str]:
    """The job's endpoint, up and ready for the duration of a `with` block; gives its URL.

    Raises:
        UserError: a version that the job's policy on takedowns refuses, or as `serving.app.run`.
    """
    from pipelines.cluster import authenticate, connect

    authenticate()
    from serving import app, takedowns

    takedowns.check(job)  # a cluster is not started for what is refused
    # Serve's controller and proxies take no logical CPU here, but Ray wants one to start them on.
    with connect(cpus=math.ceil(job.most_replicas * job.cpus_per_replica) + 1):
        url = app.run(job)
        try:
            yield url
        finally:
            app.stop(job)


class Served(BaseModel):
    """A running endpoint."""

    url: str
    model: str


class Checked(BaseModel):
    """A file for Ray Serve's own tools that has no mistake."""

    file: str
    applications: list[str]


def checked(path: str) -> Checked:
    """Checks a Serve config file, or a RayService that holds one. Raises UserError: the first mistake, in full."""
    from pipelines.config import read
    from serving import deployment

    raw = read(path)
    deployment.refuse(deployment.check(raw))
    return Checked(file=path, applications=deployment.applications(raw))


def run(job: ServeJob, on_ready: Callable[[Served], None]) -> None:
    """Serves until SIGINT or SIGTERM, then takes the application down; calls `on_ready` once it answers."""
    done = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: done.set())
    print("starting Ray Serve …", file=sys.stderr, flush=True)
    with endpoint(job) as url:
        on_ready(Served(url=url, model=job.model))
        done.wait()
        print("stopping …", file=sys.stderr, flush=True)


def summary(served: Served | Checked) -> list[str]:
    """The endpoint, or the check, for a person."""
    if isinstance(served, Checked):
        return [f"{served.file}: nothing wrong; applications: {', '.join(served.applications)}"]
    return [
        f"{served.model} is served at {served.url}/v1/images/generations  (Ctrl-C ends it)",
        f'try: cleanplate generate "red apple" --server {served.url} --out apple.png',
    ]
