"""A curate job as a queue: units on workers, which share their cores with the driver and Ray's own processes.

`simulate` hands each unit to the worker that is free first, as Ray Data's actor pool does. `tests.bench.scaling` feeds
it with rates of a run on one worker and holds it to a run on two; `tests.bench.planning` with those of a cluster.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Rates:
    """What was measured on one worker; seconds."""

    row_s: float  # a worker's, for a row
    unit_s: float  # a worker's, for a unit beside its rows
    others_s: float  # CPU of the driver and of Ray's processes for a unit, while workers measure
    decide_s: float  # the driver's, for a row
    publish_start_s: float  # until the first part is being written
    publish_s: float  # a writer's, for a row


def simulate(units: Sequence[int], workers: int, cores: int, rates: Rates) -> float:
    """Seconds from the first unit's beginning to the published manifest.

    Args:
        units: rows of each unit, in order.
        workers: actors, each of one core.
        cores: what workers, driver and Ray's processes share.
        rates: of one worker that had a core to itself.
    """
    rows, count = sum(units), len(units)
    alone = rows * rates.row_s + count * rates.unit_s
    wanted = min(workers, count) * (1 + rates.others_s * count / alone)  # cores, with the others' work beside it
    slow = max(1.0, wanted / cores)
    measured = _makespan([(n * rates.row_s + rates.unit_s) * slow for n in units], workers)
    written = _makespan([n * rates.publish_s for n in units], workers)
    return measured + rows * rates.decide_s + rates.publish_start_s + written


def _makespan(seconds: Sequence[float], workers: int) -> float:
    """When the last of some tasks ends that are taken in order by whoever is free."""
    free = [0.0] * max(1, min(workers, len(seconds)))
    for duration in seconds:
        heapq.heappush(free, heapq.heappop(free) + duration)
    return max(free)
