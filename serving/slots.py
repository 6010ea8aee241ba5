"""Which versions a process holds, and which of them answers: a state machine without threads, clocks or a network.

A *role* is an alias that is followed; its *live* version takes the new requests. The pointer moves when the version
that the alias names is ready and nothing speaks against it, and at no other time: a version that is still loading,
cannot be loaded, or fails its self-test changes nothing. The replaced version stays for a while, so that going back is
moving a pointer. A version that is *refused* (the takedown policy) stops being live, also when there is no other: then
there is none, until the alias names another one or nothing speaks against it any more.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Stage = Literal["loading", "ready", "failed"]


@dataclass
class Slot:
    """One version in this process.

    Attributes:
        stage: whether it could answer.
        problem: why it could not be loaded.
        refused: why it may not answer although it could.
        requests: begun and not ended.
        since: when it came to its stage, or lost its last role.
    """

    stage: Stage
    since: float
    problem: str | None = None
    refused: str | None = None
    requests: int = 0


class Slots:
    """Times are seconds of any monotonic clock, given with each event.

    Args:
        keep_warm_s: how long a version stays after it lost its last role.
        keep: how many of those at most.
        retry_s: until a version that failed is loaded again.
    """

    def __init__(self, *, keep_warm_s: float = 600.0, keep: int = 1, retry_s: float = 60.0) -> None:
        self._keep_warm_s = keep_warm_s
        self._keep = keep
        self._retry_s = retry_s
        self._slots: dict[str, Slot] = {}
        self._wanted: dict[str, str] = {}
        self._pointer: dict[str, str] = {}

    def follow(self, role: str, version: str | None, now: float) -> None:
        """The role's alias names this version; None: the role is given up."""
        if version is None:
            self._wanted.pop(role, None)
            self._point(role, None, now)
        else:
            self._wanted[role] = version
        self._flip(now)

    def to_load(self, now: float) -> str | None:
        """A version to load now, which counts as loading from here on; None where there is none, or one is loading."""
        if any(slot.stage == "loading" for slot in self._slots.values()):
            return None
        for version in self._wanted.values():
            slot = self._slots.get(version)
            if slot is None or (slot.stage == "failed" and now >= slot.since + self._retry_s):
                self._slots[version] = Slot("loading", now, None if slot is None else slot.problem)
                return version
        return None

    def loaded(self, version: str, now: float) -> None:
        """It can answer: it was warmed up, passed its self-test, and nothing spoke against it."""
        slot = self._slots.setdefault(version, Slot("loading", now))
        slot.stage, slot.since, slot.problem, slot.refused = "ready", now, None, None
        self._flip(now)

    def failed(self, version: str, problem: str, now: float) -> None:
        """It could not be loaded, or failed its self-test."""
        self._slots[version] = Slot("failed", now, problem)

    def refuse(self, version: str, why: str | None, now: float) -> None:
        """It may not answer; None: it may again."""
        if version in self._slots:
            self._slots[version].refused = why
        self._flip(now)

    def begin(self, version: str) -> None:
        """A request begins with a version that is ready, and stays with it."""
        slot = self._slots[version]
        assert slot.stage == "ready", version
        slot.requests += 1

    def end(self, version: str) -> None:
        self._slots[version].requests -= 1

    def live(self, role: str) -> str | None:
        """Who answers the role's new requests."""
        version = self._pointer.get(role)
        return None if version is None or self._slots[version].refused is not None else version

    def why_not(self, role: str) -> str | None:
        """Why what the role's alias names is not what answers; None where it is."""
        wanted = self._wanted.get(role)
        if wanted is None or wanted == self.live(role):
            return None
        slot = self._slots.get(wanted)
        return None if slot is None else slot.refused or slot.problem

    def roles_of(self, version: str) -> list[str]:
        """The roles in which it answers."""
        return [role for role in self._pointer if self.live(role) == version]

    def drop(self, now: float) -> list[str]:
        """Versions that nobody needs any more: they are forgotten here, and their memory may be given back."""
        idle = [version for version in self._slots if self._idle(version)]
        warm = sorted((v for v in idle if self._slots[v].stage == "ready"), key=lambda v: self._slots[v].since)
        gone = [v for v in idle if self._slots[v].stage == "failed"] + warm[: max(0, len(warm) - self._keep)]
        gone += [v for v in warm if v not in gone and now >= self._slots[v].since + self._keep_warm_s]
        for version in gone:
            del self._slots[version]
        return gone

    def all(self) -> Iterable[tuple[str, Slot]]:
        """Every version with its slot; not to be changed."""
        return self._slots.items()

    def _idle(self, version: str) -> bool:
        slot = self._slots[version]
        needed = version in self._wanted.values() or version in self._pointer.values()
        return not needed and not slot.requests and slot.stage != "loading"

    def _flip(self, now: float) -> None:
        for role, version in self._wanted.items():
            slot = self._slots.get(version)
            if slot is not None and slot.stage == "ready" and slot.refused is None:
                self._point(role, version, now)

    def _point(self, role: str, version: str | None, now: float) -> None:
        before = self._pointer.get(role)
        if before == version:
            return
        if version is None:
            del self._pointer[role]
        else:
            self._pointer[role] = version
        if before is not None and before not in self._pointer.values():
            self._slots[before].since = now
