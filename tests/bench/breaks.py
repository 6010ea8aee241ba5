"""What of a job one machine, one host or one request after another has to bear alone, and when that gives way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.bench.planning import Guesses, Plan

HOUR, GIB = 3600.0, 2**30
PER_HOST = 4  # `fetch.per_host`'s default
DESKS, CONNECTIONS = 4, 64  # `engine._DESKS`; `fetch.connections`' default


@dataclass(frozen=True)
class Bottleneck:
    """A need and its limit."""

    name: str
    needed: float
    limit: float
    unit: str
    what: str  # the limit is
    answer: str  # what was changed, or what would be

    @property
    def strain(self) -> float:
        """Above 1 it does not hold, or is what a run waits for."""
        return self.needed / self.limit


def bottlenecks(plan: Plan, g: Guesses, r: Mapping[str, float]) -> list[Bottleneck]:
    """What may break, the worst first."""
    busy = max(plan.busy_s / plan.workers / HOUR, 0.1)
    found = [*_of_driver(plan, g, r, busy), *_of_store(plan, g, r, busy), *(_of_web(plan, g, busy) if plan.web else [])]
    return sorted(found, key=lambda b: -b.strain)


_TENTH, _WHOLE = "a tenth of the workers' hours", "the workers' hours"
_LARGER = "a larger unit_size"


def _of_driver(plan: Plan, g: Guesses, r: Mapping[str, float], busy: float) -> list[Bottleneck]:
    bucket = plan.size.n * g.distinct * r["band_fullest_share"] * 8 / GIB
    memory = "facts are put in their place and let go; next, a list of inputs that is read in parts"
    ruled = "workers rule on rows; next, they list them"
    equal = "equal hashes are one already; more key bits"
    return [
        Bottleneck("driver's memory", plan.driver_bytes / GIB, g.head_gib, "GiB", "the head's", memory),
        Bottleneck("driver's CPU, workers idle", plan.serial_s / HOUR, busy / 10, "h", _TENTH, ruled),
        Bottleneck("Ray's CPU on the head", plan.units * r["ray_head_s"] / HOUR, busy, "h", _WHOLE, _LARGER),
        Bottleneck("fullest bucket of hashes", bucket, 2, "GiB", "2 for a task", equal),
        Bottleneck("ledger, not packed", g.entries * r["ledger_single_s"], 600, "s", "ten minutes", "takedown pack"),
    ]


def _of_store(plan: Plan, g: Guesses, r: Mapping[str, float], busy: float) -> list[Bottleneck]:
    copies = plan.units * g.request_s * 3 / HOUR / (1 if plan.before else 16)  # a COPY takes some round trips
    told = "sixteen copies at a time; next, parts are written where they stay"
    size, parts = plan.units * r["manifest_part_bytes"] / 2**20, f"{_LARGER}; its list of parts as Parquet"
    listed = plan.units / 1000 * 2 * g.request_s * 3
    return [
        Bottleneck("objects below one prefix", 2 * plan.units, 1e7, "objects", "10^7", _LARGER),
        Bottleneck("listing which units are done", listed, 600, "s", "ten minutes", _LARGER),
        Bottleneck("manifest.json", size, 100, "MiB", "100", parts),
        Bottleneck("publishing in a bucket", copies, busy / 10, "h", _TENTH, told),
    ]


def _of_web(plan: Plan, g: Guesses, busy: float) -> list[Bottleneck]:
    sites = plan.hosts * g.site_files * g.site_s / (DESKS * CONNECTIONS) / HOUR
    alone = "raise it and set delay_s, which holds for all workers; next, workers that take turns at a host"
    waits = "it is what asking politely takes: fewer of its pictures, or ask for a dump"
    return [
        Bottleneck("workers of a job of the web", plan.workers, PER_HOST, "workers", "fetch.per_host's default", alone),
        Bottleneck("the largest host's delay", plan.polite_s / HOUR, busy, "h", _WHOLE, waits),
        Bottleneck("sites asked for their rules", sites, busy, "h", _WHOLE, "more desks (engine._DESKS)"),
    ]
