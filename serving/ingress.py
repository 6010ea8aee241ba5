"""The gateway's Ray Serve deployment, as its other processes and the driver speak to it: counted, asked, and closed.

`Gateway` is what `serve.ingress` puts the watched API into; `others` asks all processes of the server for `/metrics`;
`end` is a graceful end, seen from the driver.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from serving import logs, traces
from serving.access import Access, Others
from serving.doorway import Doorway
from serving.job import GATEWAY, SAMPLER, ServeJob
from serving.metrics import GatewayMetrics, Snapshot

if TYPE_CHECKING:
    from starlette.types import ASGIApp

SCRAPE_S = 2.0
"""How long the server's processes may take to say what they counted."""

_LOOK_S = 0.1


class Gateway:
    """The deployment's methods beside its HTTP face. `app` is Serve's, and the `Access` that `watched` made."""

    app: Any

    def __init__(self, *deployments: DeploymentHandle[Any]) -> None:
        """Takes what it is bound to, and asks Serve for it by name."""

    async def snapshot(self) -> Snapshot:
        """What it has counted."""
        snapshot: Snapshot = self.app.metrics.snapshot()
        return snapshot

    async def close_door(self) -> None:
        """Answers 503 to new requests from here on; those under way go on."""
        self.app.doorway.close()

    async def inside(self) -> int:
        """Requests and jobs under way."""
        inside: int = self.app.doorway.inside
        return inside


def watched(api: ASGIApp, job: ServeJob, doorway: Doorway) -> Access:
    """A gateway's API, counted, logged and traced. To be called in its replica.

    Args:
        doorway: the API's.
    """
    replica = name_of_this()
    logs.configure(job.observability, replica)
    spans = traces.build(job.observability)
    app = serve.get_replica_context().app_name
    handles = [serve.get_deployment_handle(name, app_name=app) for name in (SAMPLER, GATEWAY)]
    metrics = GatewayMetrics(replica)
    return Access(
        api,
        job.observability,
        metrics=metrics,
        spans=spans,
        others=others(handles, replica),
        named_outside=True,
        doorway=doorway,
    )


def others(handles: Sequence[DeploymentHandle[Any]], own: str) -> Others:
    """Asks every process of some deployments, but this one."""

    async def ask() -> tuple[list[Snapshot], bool]:
        told = await asyncio.gather(*(_told(handle) for handle in handles))
        found = [each for answers, _ in told for each in answers if each.replica != own]
        return found, all(complete for _, complete in told)

    return ask


def name_of_this() -> str:
    """What this replica is called in metrics and logs."""
    context = serve.get_replica_context()
    return f"{context.deployment}-{context.replica_tag}"


async def _told(handle: DeploymentHandle[Any]) -> tuple[list[Snapshot], bool]:
    try:
        answers = await handle.broadcast("snapshot").results_async(timeout_s=SCRAPE_S, return_exceptions=True)
    except RayServeException:
        return [], True  # there is no process of it now: it is scaled to zero, or going
    except (TimeoutError, RayError):
        return [], False
    snapshots = [answer for answer in answers if isinstance(answer, Snapshot)]
    return snapshots, len(snapshots) == len(answers)


@dataclass(frozen=True)
class Totals:
    """What a server has done in its life.

    Attributes:
        requests: for pictures, however they ended.
        pictures: that were handed out.
        refused: requests answered 429 or 503.
        blocked: pictures that were withheld.
        cut_off: requests and jobs that were still under way when it ended.
    """

    requests: int
    pictures: int
    refused: int
    blocked: int
    cut_off: int


def end(job: ServeJob) -> Totals:
    """Closes the gateways' doors and waits until nobody is inside, or `job.shutdown_s` are over.

    Raises:
        RayError, RayServeException, TimeoutError: when they do not answer.
    """
    gateways: DeploymentHandle[Any] = serve.get_deployment_handle(GATEWAY, app_name=job.name)
    samplers: DeploymentHandle[Any] = serve.get_deployment_handle(SAMPLER, app_name=job.name)
    deadline = time.monotonic() + job.shutdown_s
    gateways.broadcast("close_door").results(timeout_s=SCRAPE_S)
    while (inside := sum(gateways.broadcast("inside").results(timeout_s=SCRAPE_S))) and time.monotonic() < deadline:
        time.sleep(_LOOK_S)
    snapshots = gateways.broadcast("snapshot").results(timeout_s=SCRAPE_S)
    with suppress(RayServeException):  # scaled to zero
        snapshots += samplers.broadcast("snapshot").results(timeout_s=SCRAPE_S)
    return totals(snapshots, cut_off=inside)


def totals(snapshots: Sequence[Snapshot], *, cut_off: int = 0) -> Totals:
    """The sums of what several processes have counted."""
    samples = [sample for each in snapshots for family in each.families for sample in family.samples]

    def total(name: str, label: str = "", *values: str) -> int:
        return int(sum(s.value for s in samples if s.name == name and (not values or s.labels[label] in values)))

    drawn = "cleanplate_pictures_total"
    asked = [s for s in samples if s.name == "cleanplate_request_seconds_count" and "images" in s.labels["route"]]
    return Totals(
        requests=int(sum(s.value for s in asked)),
        pictures=total(drawn, "finish_reason", "stop"),
        refused=int(sum(s.value for s in asked if s.labels["outcome"] == "refused")),
        blocked=total(drawn) - total(drawn, "finish_reason", "stop"),
        cut_off=cut_off,
    )
