"""The versions that a process holds, and the watcher that follows the registry's aliases.

What is decided stands in `serving.slots`; here it is done: the registry is asked in a thread, a version is loaded in
another one beside the versions that answer, and what nobody needs is let go. Knows neither Ray nor MLflow: the
registry is a `Registry`, in production `serving.registered`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from curation.errors import UserError
from serving.admission import ModelCard
from serving.api import GenerationRequest, RequestError
from serving.rollout import RolloutConfig
from serving.service import Service
from serving.slots import Slot, Slots
from serving.standing import RolloutStanding, TakedownStanding, VersionState
from serving.takedowns import RefusedVersion

CHAMPION, CHALLENGER = "champion", "challenger"
"""The roles: whatever the aliases are called that the job follows."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Opened:
    """A version that is ready to answer; `self_test` says how it was tested."""

    service: Service
    self_test: str | None = None


class Registry(Protocol):
    """Where versions come from. Its calls block, and are made in threads."""

    @property
    def aliases(self) -> dict[str, str]:
        """The roles that are followed, and their aliases; none where the job names a version or a folder."""
        ...

    def target(self, role: str) -> str | None:
        """The version that a role's alias names; None where there is none. Raises what keeps it from knowing."""

    def open(self, version: str) -> Opened:
        """Loads, warms up and tests a version. Raises UserError."""

    def standing(self, version: str, before: TakedownStanding | None) -> TakedownStanding | None:
        """How a version stands to the takedowns now. Raises RefusedVersion."""

    def went_live(self, role: str, version: str) -> None:
        """Is told when a version begins to answer."""


class Versions:
    """Belongs to one event loop.

    Args:
        first, opened: the version that answers from the start.
        clock: seconds, monotonic.
        thread: runs what blocks.
    """

    def __init__(
        self,
        config: RolloutConfig,
        registry: Registry,
        first: str,
        opened: Opened,
        *,
        clock: Callable[[], float] = time.monotonic,
        thread: Callable[..., Awaitable[Any]] = asyncio.to_thread,
    ) -> None:
        self._config = config
        self._registry = registry
        self._clock = clock
        self._thread = thread
        self._slots = Slots(keep_warm_s=config.keep_warm_s, keep=config.keep, retry_s=config.retry_s)
        self._opened: dict[str, Opened] = {first: opened}
        self._named: dict[str, str] = {}
        self._unknown: dict[str, str] = {}
        self._looked_at_takedowns = clock()
        self._loading: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._slots.follow(CHAMPION, first, clock())
        self._slots.loaded(first, clock())
        self._name()

    def watch(self) -> None:
        """Begins to follow the registry, unless it does already."""
        if self._watching is None and self._registry.aliases:
            self._watching = asyncio.create_task(self._watch(), name="version watcher")

    async def look(self) -> None:
        """Asks the registry once and acts on it; loads go on in the background (`settled`)."""
        for role in self._registry.aliases:
            await self._follow(role)
        if self._clock() >= self._looked_at_takedowns + self._config.takedowns_every_s:
            self._looked_at_takedowns = self._clock()
            await self._look_at_takedowns()
        if (version := self._slots.to_load(self._clock())) is not None:
            self._loading = asyncio.create_task(self._load(version), name=f"loading version {version}")
        await self._moved()
        for version in self._slots.drop(self._clock()):
            if (opened := self._opened.pop(version, None)) is not None:
                await opened.service.engine.close()

    async def settled(self) -> None:
        """Returns when what is being loaded is loaded, or failed."""
        if self._loading is not None:
            await self._loading

    @contextmanager
    def serving(
        self, request: GenerationRequest, draw: float | None = None, *, version: str | None = None
    ) -> Iterator[Service]:
        """The version that answers a request, from its beginning to its end.

        Args:
            draw: the caller's place in [0, 1), below the challenger's share for those whom it answers; None: nobody's.
            version: that must answer, also one that is loaded and answers nobody else; None: whichever does.

        Raises:
            RequestError: 503 where no version may answer, 409 where `version` is not loaded here or may not.
        """
        version = self._choose(request, draw) if version is None else self._exactly(version)
        service = self._opened[version].service
        self._slots.begin(version)
        try:
            yield service
        finally:
            self._slots.end(version)

    def compared(self, version: str) -> bool | None:
        """Whether a version is the challenger (or else the champion); None where there is nothing to compare."""
        challenger = self._slots.live(CHALLENGER)
        if challenger is None or version not in (challenger, self._slots.live(CHAMPION)):
            return None
        return version == challenger

    def describe(self) -> ModelCard:
        """The champion's card, with what else is here. Raises RequestError as `serving`."""
        card = self._card(self._champion())
        challenger = self._slots.live(CHALLENGER)
        beside = () if challenger in (None, card.version) else (self._card(str(challenger)),)
        return card.model_copy(update={"beside": beside, "rollout": self.standing()})

    def services(self) -> list[Service]:
        return [opened.service for opened in self._opened.values()]

    def standing(self) -> RolloutStanding:
        """What is here and why."""
        states = tuple(self._state(version, slot) for version, slot in self._slots.all())
        return RolloutStanding(versions=states, problem=self._problem())

    def _problem(self) -> str | None:
        found = dict(self._unknown)
        for role in (CHAMPION, CHALLENGER):
            if (why := self._slots.why_not(role)) is not None:
                found[role] = why
        return "; ".join(f"{role}: {why}" for role, why in found.items()) or None

    def _state(self, version: str, slot: Slot) -> VersionState:
        opened, roles = self._opened.get(version), self._slots.roles_of(version)
        idle = "refused" if slot.refused is not None else "warm"
        return VersionState(
            version=version,
            state=("live" if roles else idle) if slot.stage == "ready" else slot.stage,
            aliases=tuple(self._registry.aliases[role] for role in roles if role in self._registry.aliases),
            self_test=None if opened is None else opened.self_test,
            problem=slot.refused or slot.problem,
        )

    def _card(self, version: str) -> ModelCard:
        return self._opened[version].service.generator.card

    def _champion(self) -> str:
        version = self._slots.live(CHAMPION)
        if version is None:
            why = self._slots.why_not(CHAMPION) or "it may not be served any more"
            raise RequestError(
                f"No version of the model is served now: {why}.",
                status=503,
                code="version_refused",
                retry_after_s=60.0,
            )
        return version

    def _choose(self, request: GenerationRequest, draw: float | None) -> str:
        challenger, canary = self._slots.live(CHALLENGER), self._config.canary
        if challenger is None or canary is None:
            return self._champion()
        theirs = self._card(challenger)
        champion = self._slots.live(CHAMPION)
        own = set() if champion is None else self._card(champion).names()
        if request.model in theirs.names() - own:
            return challenger
        asked = request.model is None or request.model in theirs.names()
        if not asked or draw is None or draw >= canary.share:
            return self._champion()
        try:
            self._opened[challenger].service.generator.admit(request)
        except RequestError:
            return self._champion()  # it cannot draw that, or nobody can
        return challenger

    def _exactly(self, version: str) -> str:
        slot = dict(self._slots.all()).get(version)
        if slot is None or slot.stage != "ready" or slot.refused is not None:
            raise RequestError(
                f"Version {version[:40]} of the model is not served here any more.",
                status=409,
                code="version_not_served",
            )
        return version

    async def _watch(self) -> None:
        while True:
            try:
                await self.look()
            except Exception:
                _log.exception("the version watcher failed, and goes on")
            await asyncio.sleep(self._config.poll_s)

    async def _follow(self, role: str) -> None:
        try:
            target = await self._thread(self._registry.target, role)
        except Exception as error:  # whatever the registry's client raises: what answers goes on answering
            self._report(role, f"the registry could not be asked: {error}")
            return
        if target is None and role == CHAMPION:
            self._report(role, f"the alias {self._registry.aliases[role]} is gone")
            return
        self._unknown.pop(role, None)
        self._slots.follow(role, target, self._clock())

    def _report(self, role: str, problem: str) -> None:
        if self._unknown.get(role) != problem:
            _log.warning("%s; the version that answers goes on", problem)
        self._unknown[role] = problem

    async def _load(self, version: str) -> None:
        begun = self._clock()
        try:
            opened = await self._thread(self._registry.open, version)
        except Exception as error:  # nothing that is wrong with a version may end what answers
            problem = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            _log.error("version %s does not answer, what answered goes on: %s", version, problem)
            self._slots.failed(version, problem, self._clock())
            return
        self._opened[version] = opened
        self._slots.loaded(version, self._clock())
        _log.info("version %s was loaded in %.1f s; self-test: %s", version, self._clock() - begun, opened.self_test)
        await self._moved()

    async def _look_at_takedowns(self) -> None:
        for version in list(self._opened):
            generator = self._opened[version].service.generator
            try:
                found = await self._thread(self._registry.standing, version, generator.card.takedowns)
            except RefusedVersion as refused:
                _log.error("%s", refused)
                self._slots.refuse(version, str(refused), self._clock())
            except Exception as error:
                _log.warning("how version %s stands to the takedowns could not be asked: %s", version, error)
            else:
                self._slots.refuse(version, None, self._clock())
                generator.card = generator.card.model_copy(update={"takedowns": found})

    async def _moved(self) -> None:
        """Notes who answers by now."""
        for role, version in self._name().items():
            _log.info("version %s answers as %s", version, self._registry.aliases.get(role, role))
            try:
                await self._thread(self._registry.went_live, role, version)
            except Exception as error:
                _log.warning("that version %s answers could not be noted: %s", version, error)

    def _name(self) -> dict[str, str]:
        """Tells the versions by which aliases they answer; returns the roles whose version is another one."""
        live = {role: version for role in (CHAMPION, CHALLENGER) if (version := self._slots.live(role)) is not None}
        changed = {role: version for role, version in live.items() if self._named.get(role) != version}
        for role in reversed(changed):
            if (alias := self._registry.aliases.get(role)) is not None:
                generator = self._opened[changed[role]].service.generator
                generator.card = generator.card.model_copy(update={"alias": alias})
        self._named = live
        return changed
