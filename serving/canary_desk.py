"""Where the replicas' outcomes come together: an actor of the sampler's deployment, which Serve keeps alive.

It decides by `serving.canary` and writes the decision into the registry, as a tag of the challenger's version
(`registered.RETURNED`), which every replica heeds at its next look. So the decision outlives the actor, and whoever
reads the registry sees it. What is lost when the actor is, is only what was counted so far.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.config import DeploymentActorConfig

from serving.canary import Outcome, Tally
from serving.job import ServeJob
from serving.rollout import CanaryConfig

NAME = "canary"

_log = logging.getLogger(__name__)


class CanaryDesk:
    """The actor's class."""

    def __init__(self, canary: CanaryConfig, tracking_uri: str | None) -> None:
        self._tracking_uri = tracking_uri
        self._tally = Tally(canary)
        self._writing = False

    async def add(self, model: str, version: str, challenger: bool, outcome: Outcome) -> None:
        """Takes the outcome of a request to a version of a registered model."""
        self._tally.add(version, challenger, outcome)
        found = self._tally.returned()
        if found is None or self._writing:
            return
        version, why = found
        self._writing = True
        try:
            await asyncio.to_thread(self._send_back, model, version, why)
        except Exception:
            _log.exception("that version %s goes back could not be written down, the next outcome tries again", version)
        else:
            self._tally.forget()  # whoever takes the tag away gives it another chance
        finally:
            self._writing = False

    def _send_back(self, model: str, version: str, why: str) -> None:
        from serving.registered import RETURNED
        from training.tracking import tag_version

        _log.error("version %s goes back: %s", version, why)
        at = datetime.now(UTC).isoformat(timespec="seconds")
        tag_version(model, version, {RETURNED: f"{at}: {why}"}, tracking_uri=self._tracking_uri)


class Reporter:
    """A replica's way to the desk. A report that is lost, while Serve replaces the actor, changes no decision."""

    def __init__(self) -> None:
        self._desk: Any = None

    def add(self, model: str, version: str, challenger: bool, outcome: Outcome) -> None:
        """Returns at once."""
        try:
            if self._desk is None:
                self._desk = serve.get_deployment_actor(NAME)
            self._desk.add.remote(model, version, challenger, outcome)
        except (ValueError, RayActorError):  # not there yet, or not any more
            self._desk = None


def actors(job: ServeJob) -> list[dict[Any, Any] | DeploymentActorConfig]:
    """The sampler's actors: none where there is no canary."""
    if job.rollout.canary is None:
        return []
    told = {"canary": job.rollout.canary, "tracking_uri": job.tracking_uri}
    desk = DeploymentActorConfig(
        name=NAME, actor_class=ray.remote(CanaryDesk), init_kwargs=told, actor_options={"num_cpus": 0}
    )
    return [desk]
