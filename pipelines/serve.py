"""`cleanplate serve`: an endpoint for a registered model, until it is interrupted."""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
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


class Ending:
    """A signal's handler: the first one asks for the end, and a later one does not wait for it.

    Those of the first second are one: a pipeline that is stopped as a submission hears of it from Ray, as its step that
    serves does, and tells the step, too.

    Attributes:
        asked: set by the first.
        number: of the first.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.asked = threading.Event()
        self.number = 0
        self._clock = clock
        self._at = 0.0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if not self.asked.is_set():
            self.number, self._at = number, self._clock()
            self.asked.set()
        elif self._clock() > self._at + 1:
            raise SystemExit(128 + number)


def run(job: ServeJob, on_ready: Callable[[Served], None]) -> int:
    """Serves until SIGINT or SIGTERM; then takes no more requests, lets those under way finish, and ends.

    A second signal, more than a second later, does not wait for them.

    Args:
        on_ready: called once it answers.

    Returns:
        The exit code: 0 when every request had its answer, 128 and the signal's number when some were cut off after
        `job.shutdown_s`.
    """
    ending = Ending()
    print("starting Ray Serve …", file=sys.stderr, flush=True)
    with endpoint(job) as url:
        for number in (signal.SIGINT, signal.SIGTERM):  # not before: `ray.init` sets its own for SIGTERM
            signal.signal(number, ending)
        on_ready(Served(url=url, model=job.model))
        ending.asked.wait()
        print(f"stopping: requests and jobs under way have {job.shutdown_s:g} s …", file=sys.stderr, flush=True)
        cut_off = _end(job)
    return 128 + ending.number if cut_off else 0


def _end(job: ServeJob) -> int:
    """Waits for the requests under way and says what was done; returns how many will be cut off."""
    from serving import ingress

    try:
        done = ingress.end(job)
    except Exception as error:  # a server that does not answer is to end all the same
        print(f"the server did not say what it has done: {error}", file=sys.stderr, flush=True)
        return 0
    told = [f"{done.requests} requests", f"{done.pictures} pictures", f"{done.refused} refused"]
    told += [f"{done.blocked} blocked"] + ([f"{done.cut_off} cut off"] if done.cut_off else [])
    print("served " + ", ".join(told), file=sys.stderr, flush=True)
    return done.cut_off


def summary(served: Served | Checked) -> list[str]:
    """The endpoint, or the check, for a person."""
    if isinstance(served, Checked):
        return [f"{served.file}: nothing wrong; applications: {', '.join(served.applications)}"]
    return [
        f"{served.model} is served at {served.url}/v1/images/generations  (Ctrl-C ends it)",
        f'try: cleanplate generate "red apple" --server {served.url} --out apple.png',
    ]
