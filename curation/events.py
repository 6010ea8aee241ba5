"""The event log of a run: what happened to it and why, as JSON lines beside its outputs.

Only the driver writes, and every attempt has a file of its own below `events/`, so nobody ever writes where another
does. Locally a line is appended; a store has no appending, so there the file is written anew, at most every few
seconds. The log is for people and for `cleanplate status`: no result depends on it, and where it cannot be written the
run goes on without. Secrets never stand in it.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import re
import threading
import time
import uuid
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, get_args

from curation import storage
from curation.secrets import Hider

logger = logging.getLogger(__name__)

FOLDER = "events"
_MOST = 1_000  # lines of one kind that an attempt writes
_REMOTE_EVERY_S = 5.0
_LONGEST = 500


@dataclass(frozen=True)
class Begun:
    """An attempt began.

    Attributes:
        verb: which command: curate, train.
        attempt: counted from 1, over all that began in this folder.
        of: what `total` and `done` count: inputs, images.
        todo: what is missing, by stage: units; empty where there are none.
        workers: that are asked for, at most.
        like: tells runs whose pace may be compared from others.
    """

    verb: str
    name: str
    attempt: int
    of: str
    total: int
    done: int
    todo: dict[str, int]
    workers: int
    host: str
    pid: int
    like: str = ""


@dataclass(frozen=True)
class UnitRetried:
    """A unit is done again, whole (`rows` is None) or some of its rows. `attempt` is the second one at least."""

    unit: str
    why: str
    attempt: int
    rows: int | None = None


@dataclass(frozen=True)
class UnitHeld:
    """Rows of a unit failed in a way that may pass: the next run of the job asks them again.

    Attributes:
        reasons: rows by what they failed with.
    """

    unit: str
    reasons: dict[str, int]


@dataclass(frozen=True)
class NodeJoined:
    """A node is there that was not when the attempt began."""

    node: str
    kind: str


@dataclass(frozen=True)
class NodeLost:
    """A node is not there any more."""

    node: str
    kind: str
    why: str


@dataclass(frozen=True)
class WorkerLost:
    """A worker ended before its time."""

    worker: int
    why: str


@dataclass(frozen=True)
class Resumed:
    """Training goes on: from a checkpoint, or from the beginning (`images` is 0) where there is none."""

    images: int
    workers: int
    checkpoint: str | None = None


@dataclass(frozen=True)
class Resized:
    """Training goes on with another number of workers."""

    images: int
    before: int
    after: int


@dataclass(frozen=True)
class CheckpointWritten:
    """A checkpoint is whole.

    Attributes:
        seconds: from taking it to its being there, beside training.
        stalled: how long the training thread waited for it.
    """

    images: int
    path: str
    seconds: float
    stalled: float


@dataclass(frozen=True)
class CheckpointRefused:
    """A checkpoint is passed over."""

    path: str
    why: str


@dataclass(frozen=True)
class Published:
    """What a run was for is there: a manifest, a bundle. `counts` are rows by decision where there are any."""

    place: str
    id: str
    counts: dict[str, int]


@dataclass(frozen=True)
class Ended:
    """An attempt ended.

    Attributes:
        how: finished, failed, or interrupted: asked to end, with its state saved.
        done: in this attempt, by stage.
        left_out: lines that the log has not, since too many were of one kind; by kind.
        spent: as `running.Spent` has it.
    """

    how: str
    why: str
    done: dict[str, int]
    left_out: dict[str, int]
    spent: dict[str, Any]


Event = (
    Begun
    | UnitRetried
    | UnitHeld
    | NodeJoined
    | NodeLost
    | WorkerLost
    | Resumed
    | Resized
    | CheckpointWritten
    | CheckpointRefused
    | Published
    | Ended
)


def kind_of(event: type[Event] | Event) -> str:
    """The name that an event has in the file: `unit_retried`."""
    name = event.__name__ if isinstance(event, type) else type(event).__name__
    return re.sub(r"(?<!^)([A-Z])", r"_\1", name).lower()


_KINDS: dict[str, type[Any]] = {kind_of(kind): kind for kind in get_args(Event)}


@dataclass(frozen=True)
class Entry:
    """A line of a log.

    Attributes:
        at: Unix time.
        attempt: the file's name, which tells one attempt from another.
    """

    at: float
    attempt: str
    event: Event


class EventLog:
    """Writes the events of one attempt.

    Args:
        folder: of the run; its log is in `events/`.
    """

    def __init__(self, folder: str) -> None:
        begun = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        self.attempt = f"{begun}-{uuid.uuid4().hex[:8]}"
        self.folder = storage.join(storage.absolute(folder), FOLDER)
        self._path = storage.join(self.folder, f"{self.attempt}.jsonl")
        self._remote = storage.is_remote(self._path)
        self._lock = threading.Lock()
        self._lines: list[bytes] = []  # of a remote file: all of it
        self._stored = 0
        self._tried = 0.0
        self._warned = False
        self._counts: Counter[str] = Counter()

    @property
    def left_out(self) -> dict[str, int]:
        """How many events of a kind were too many to be written."""
        return {kind: n - _MOST for kind, n in self._counts.items() if n > _MOST}

    def write(self, event: Event) -> None:
        """Adds an event. Never raises: what cannot be written is warned of once."""
        kind = kind_of(event)
        with self._lock:
            self._counts[kind] += 1
            if self._counts[kind] > _MOST:
                return
            told = {"at": round(time.time(), 3), "event": kind, **dataclasses.asdict(event)}
            text = json.dumps(_clean(told, Hider()), ensure_ascii=False, default=str)
            line = text.encode(errors="replace") + b"\n"  # the name of a file may be no text
            if self._remote:
                self._lines.append(line)
            else:
                self._guarded(line)
        self.flush(now=isinstance(event, Begun | Ended))

    def flush(self, *, now: bool = False) -> None:
        """Writes what waits for its turn, if it is due."""
        with self._lock:
            due = now or time.monotonic() - self._tried >= _REMOTE_EVERY_S
            if self._remote and len(self._lines) > self._stored and due:
                self._tried = time.monotonic()
                if self._guarded(None):
                    self._stored = len(self._lines)

    def _guarded(self, line: bytes | None) -> bool:
        """Appends a line, or writes the remote file anew; whether that worked."""
        try:
            if line is None:
                storage.write_bytes(self._path, b"".join(self._lines))
            else:
                os.makedirs(self.folder, exist_ok=True)
                with open(self._path, "ab", buffering=0) as file:
                    file.write(line)
        except Exception as error:
            if not self._warned:
                logger.warning("the event log %s cannot be written: %s", self._path, error)
            self._warned = True
            return False
        return True


def read(folder: str) -> list[Entry]:
    """All events of a run's folder, the oldest first. What cannot be read, or is of another version, is passed over."""
    found: list[Entry] = []
    try:
        names = [info.base_name for info in storage.list_files(storage.join(folder, FOLDER))]
    except OSError:
        return []
    for name in sorted(name for name in names if name.endswith(".jsonl")):
        try:
            data = storage.read_bytes(storage.join(folder, FOLDER, name))
        except OSError:
            continue
        entries = (_entry(line, name.removesuffix(".jsonl")) for line in data.splitlines())
        found += [entry for entry in entries if entry is not None]
    return sorted(found, key=lambda entry: entry.at)


def attempts_of(entries: list[Entry]) -> Counter[str]:
    """How often each unit was retried, by all that a log tells."""
    return Counter(entry.event.unit for entry in entries if isinstance(entry.event, UnitRetried))


def _entry(line: bytes, attempt: str) -> Entry | None:
    try:
        told = json.loads(line)
        kind = _KINDS[told.pop("event")]
        at = float(told.pop("at"))
        names = {field.name for field in dataclasses.fields(kind)}
        return Entry(at, attempt, kind(**{name: value for name, value in told.items() if name in names}))
    except (ValueError, KeyError, TypeError, AttributeError):  # half a line, or one of a later version
        return None


def _clean(value: Any, hide: Hider) -> Any:
    if isinstance(value, str):
        return hide(value)[:_LONGEST]  # of a secret that was cut in two nobody would know the half
    if isinstance(value, dict):
        return {hide(str(name)): _clean(part, hide) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(part, hide) for part in value]
    return value
