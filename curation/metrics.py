"""What Prometheus is told of a curation while it runs; the driver counts it from what reaches it anyway.

Labels take few values: stages, decisions, reasons and kinds of nodes. Never a picture, a place or a site.
"""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from curation.events import Event, NodeLost, UnitHeld, UnitRetried
from curation.standing import Standing

SECONDS = (0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0)


class CurationMetrics:
    """Families of one run; an observer of its recorder."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        name = "cleanplate_curation"
        self._rows = Counter(f"{name}_rows", "Rows as they are published.", ["decision", "reason"], registry=registry)
        self._failed = Counter(f"{name}_rows_failed", "Rows that could not be measured.", ["reason"], registry=registry)
        self._units = Counter(f"{name}_units", "Units that a stage was run on.", ["stage"], registry=registry)
        self._seconds = Histogram(
            f"{name}_unit_seconds", "A worker's time for a unit.", buckets=SECONDS, registry=registry
        )
        self._retried = Counter(f"{name}_units_retried", "Units that were done again.", registry=registry)
        self._held = Counter(f"{name}_units_held", "Units with rows that the next run asks again.", registry=registry)
        self._bytes = Counter(f"{name}_fetched_bytes", "Bytes of pictures that were fetched.", registry=registry)
        self._lost = Counter(f"{name}_nodes_lost", "Nodes that went away.", registry=registry)
        self._done = Gauge(f"{name}_stage_done_rows", "Rows that a stage is done with.", ["stage"], registry=registry)
        self._total = Gauge(f"{name}_stage_rows", "Rows that a stage has in all.", ["stage"], registry=registry)
        self._pace = Gauge(
            f"{name}_rows_per_second", "A stage's pace over the last minute.", ["stage"], registry=registry
        )
        self._workers = Gauge(f"{name}_workers", "Workers that the job asks for.", registry=registry)
        self._nodes = Gauge(f"{name}_nodes", "Nodes of the cluster.", ["kind"], registry=registry)

    def unit(self, stages: list[str], seconds: float, fetched: int, failed: Mapping[str, int]) -> None:
        """A unit is stored."""
        for stage in stages:
            self._units.labels(stage).inc()
        self._seconds.observe(seconds)
        self._bytes.inc(fetched)
        for reason, rows in failed.items():
            self._failed.labels(reason).inc(rows)

    def rows(self, counts: Mapping[tuple[str, str], int]) -> None:
        """Rows were published, by decision and reason."""
        for (decision, reason), rows in counts.items():
            self._rows.labels(decision, reason).inc(rows)

    def event(self, event: Event) -> None:
        """Something happened."""
        self._retried.inc(isinstance(event, UnitRetried))
        self._held.inc(isinstance(event, UnitHeld))
        self._lost.inc(isinstance(event, NodeLost))

    def standing(self, standing: Standing) -> None:
        """How it stands now."""
        for name, stage in standing.stages.items():
            self._done.labels(name).set(stage.done)
            self._total.labels(name).set(stage.total)
            self._pace.labels(name).set((stage.per_second or 0.0) if stage.done < stage.total else 0.0)
        self._workers.set(standing.workers)
        self._nodes.clear()
        for kind, count in standing.nodes.items():
            self._nodes.labels(kind).set(count)
