"""Which request the code at hand works for: its id, what is noted about it on the way, and what must not be told of it.

The gateway opens a context for every request, the replica opens one of the same id; logs look it up by themselves.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Origin:
    """What of a request's context goes to another process with it.

    Attributes:
        request_id: as in the answer's X-Request-Id.
        trace: W3C's `traceparent` and `tracestate`, for spans to come below; empty without a trace.
    """

    request_id: str
    trace: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Tracked:
    """A request under way in this process.

    Attributes:
        origin: which one.
        facts: what its line in the log will say.
        private: texts of the client's that no log may repeat.
    """

    origin: Origin
    facts: dict[str, Any] = field(default_factory=dict)
    private: list[str] = field(default_factory=list)


_LAWFUL = re.compile(r"[A-Za-z0-9._-]{1,128}")
_current: ContextVar[Tracked | None] = ContextVar("request", default=None)


def request_id_of(asked: str = "") -> str:
    """A request's id: the one that the client asks for, where that is one, else a new one."""
    return asked if _LAWFUL.fullmatch(asked) else f"req_{secrets.token_hex(16)}"


def current() -> Tracked | None:
    """The request that the running task works for, if it is one."""
    return _current.get()


def trace() -> Mapping[str, str]:
    """W3C's headers of the request's span; empty without a trace."""
    tracked = _current.get()
    return {} if tracked is None else tracked.origin.trace


@contextmanager
def track(origin: Origin) -> Iterator[Tracked]:
    """The `with` block, and every task that it starts, works for this request."""
    tracked = Tracked(origin)
    before = _current.get()
    _current.set(tracked)
    try:
        yield tracked
    finally:
        # Not by the token: a stream may be closed by another task than the one that read it.
        _current.set(before)


def note(**facts: Any) -> None:
    """Has the request's line in the log say this too. Without a request, nothing."""
    tracked = _current.get()
    if tracked is not None:
        tracked.facts.update(facts)


def hide(*texts: str | None) -> None:
    """Keeps the client's own words out of the logs of this request."""
    tracked = _current.get()
    if tracked is not None:
        tracked.private += [text for text in texts if text]
