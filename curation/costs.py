"""What a job will take in node-hours, by the pace of earlier attempts at the like of it, and how that is told.

Where no attempt of the kind is on record nothing is reckoned, and the answer says so. Prices are those that the job
gives, never ours.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from curation.events import Begun, Ended, Entry
from curation.nodes import CPU_NODE, GPU_NODE
from curation.standing import Spent, priced


@dataclass(frozen=True)
class Pace:
    """What one worker did in a second, and which attempt that is from."""

    per_worker_second: float
    attempt: str


@dataclass(frozen=True)
class Estimate:
    """What is left of a job.

    Attributes:
        todo: inputs or images.
        nodes: that its workers need, by kind.
        basis: where the pace is from.
        assumes: what is guessed.
        worker_hours, wall_hours, node_hours: None where no pace is known.
        price: of kinds whose price is given.
    """

    todo: int
    workers: int
    nodes: dict[str, int]
    basis: str
    assumes: str
    worker_hours: float | None = None
    wall_hours: float | None = None
    node_hours: dict[str, float] | None = None
    price: dict[str, float] = field(default_factory=dict)


def pace_of(entries: Iterable[Entry], like: str, stage: str) -> Pace | None:
    """The newest pace of a stage in attempts that are alike (`Begun.like`); None where there is none."""
    alike, found = set(), None
    for entry in entries:
        if isinstance(entry.event, Begun) and entry.event.like == like:
            alike.add(entry.attempt)
        if isinstance(entry.event, Ended) and entry.attempt in alike:
            done, worked = entry.event.done.get(stage, 0), sum(entry.event.spent.get("worker_s", {}).values())
            if done > 0 and worked > 0:
                found = Pace(done / worked, entry.attempt)
    return found


def estimate(
    todo: int, workers: int, pace: Pace | None, *, cpus: float, gpus: float, prices: Mapping[str, float]
) -> Estimate:
    """What a job will take.

    Args:
        cpus, gpus: of all workers together.
    """
    here = os.cpu_count() or 1
    kind, count = (GPU_NODE, math.ceil(gpus)) if gpus else (CPU_NODE, math.ceil(cpus / here))
    nodes = {kind: max(count, 1)}
    assumes = "nodes of one GPU each" if gpus else f"nodes of {here} CPUs each, as this machine"
    if todo == 0:
        return Estimate(0, workers, nodes, "nothing is left to do", assumes, 0.0, 0.0, {kind: 0.0})
    if pace is None:
        return Estimate(todo, workers, nodes, "unknown: no attempt at the like of it is on record here", assumes)
    worker_s = todo / pace.per_worker_second
    wall_s = worker_s / max(workers, 1)
    node_s = {kind: wall_s * count for kind, count in nodes.items()}
    return Estimate(
        todo,
        workers,
        nodes,
        f"measured: {pace.per_worker_second:,.3g} a second and worker, in attempt {pace.attempt}",
        f"{assumes}; as many workers do as many times as much",
        round(worker_s / 3600, 4),
        round(wall_s / 3600, 4),
        {kind: round(seconds / 3600, 4) for kind, seconds in node_s.items()},
        priced(node_s, prices),
    )


def told(spent: Spent) -> str:
    """What a run took, in a line."""
    nodes = ", ".join(f"{_span(seconds)} of {kind}" for kind, seconds in spent.node_s.items())
    price = f"; at the prices given {_short(sum(spent.price.values()))}" if spent.price else ""
    return f"took {_span(spent.wall_s)}: {nodes}; {_span(spent.cpu_s)} of CPU{price}"


def _span(seconds: float) -> str:
    """A time in its largest unit that there is one of, seconds where there is none."""
    size, unit = next(((size, unit) for size, unit in ((3600, "h"), (60, "min")) if seconds >= size), (1, "s"))
    return f"{_short(seconds / size)} {unit}"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
