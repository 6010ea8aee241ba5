"""What an event log tells, in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import timedelta

from curation.events import (
    Begun,
    CheckpointRefused,
    CheckpointWritten,
    Ended,
    Entry,
    Event,
    NodeJoined,
    NodeLost,
    Published,
    Resized,
    Resumed,
    UnitHeld,
    UnitRetried,
    WorkerLost,
)

_CENTURY = 100 * 365.25 * 86_400.0


def told(event: Event) -> str:
    """An event in a line."""
    match event:
        case Begun():
            again = f", attempt {event.attempt}" if event.attempt > 1 else ""
            before = f", {event.done:,} of them done before" if event.done else ""
            return f"{event.verb} {event.name} began{again}: {event.total:,} {event.of}{before}"
        case UnitRetried():
            what = "was done again" if event.rows is None else f"had {event.rows:,} rows asked again"
            return f"unit {event.unit[:12]} {what} (attempt {event.attempt}): {event.why}"
        case UnitHeld():
            return f"unit {event.unit[:12]} has rows that the next run asks again: {listed(event.reasons)}"
        case NodeJoined():
            return f"{event.kind} {event.node} joined"
        case NodeLost():
            return f"{event.kind} {event.node} was lost: {event.why}"
        case WorkerLost():
            return f"worker {event.worker} was lost: {event.why}"
        case Resumed():
            where = f"went on at {event.images:,} images" if event.images else "began with the first image"
            return f"training {where} on {event.workers} worker{'' if event.workers == 1 else 's'}"
        case Resized():
            return f"training went on with {event.after} workers instead of {event.before}"
        case CheckpointWritten():
            took = f"{event.seconds:.1f} s, of which training waited {event.stalled:.2f} s"
            return f"checkpoint at {event.images:,} images took {took}"
        case CheckpointRefused():
            return f"checkpoint {event.path} was passed over: {event.why}"
        case Published():
            return f"published {event.place}"
        case Ended():
            return f"{event.how}{': ' if event.why else ''}{event.why.splitlines()[0] if event.why else ''}"


def explained(entries: Iterable[Entry]) -> list[str]:
    """Retries, held rows, losses and refusals, each kind with its reasons counted; nothing where all went well."""
    retried, held, lost, refused = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    units = 0
    for entry in entries:
        match entry.event:
            case UnitRetried(why=why):
                retried[why] += 1
            case UnitHeld(reasons=reasons):
                units += 1
                held.update(reasons)
            case NodeLost(kind=kind):
                lost[f"a {kind}"] += 1
            case WorkerLost(why=why):
                lost[f"a worker ({why})"] += 1
            case CheckpointRefused(why=why):
                refused[why] += 1
            case _:
                pass
    lines = {
        f"{retried.total():,} units were done again, whole or in part": retried,
        f"{units:,} units have rows that the next run asks again": held,
        f"{lost.total():,} times something was lost": lost,
        f"{refused.total():,} checkpoints were passed over": refused,
    }
    return [f"{line}: {listed(why)}" for line, why in lines.items() if why]


def listed(counts: Mapping[str, int]) -> str:
    """What is most frequent, and how often."""
    return ", ".join(f"{what} {n:,}" for what, n in Counter(counts).most_common(5))


def duration(seconds: float) -> str:
    """A time span for a person."""
    return str(timedelta(seconds=round(seconds))) if seconds < _CENTURY else "more than a century"
