"""What is counted, and how it is read.

Every process of the server counts for itself: gateways what is asked and answered, samplers what is drawn. `GET
/metrics` at any gateway asks all of them and answers for the whole server, each process by its `replica` label: one
address to scrape, however many replicas there are, and a replica that goes takes its own series with it instead of
turning a sum back. Ray's own metrics stay where Ray offers them.

Labels take few values: versions, roles, routes, codes and categories that an operator or this code named. Never a
prompt, a user or a key.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric

from serving.engine import Status
from serving.generator import Generation
from serving.job import GATEWAY, SAMPLER
from serving.standing import VersionState

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0)
_MOST_CODES = 64
_ENGINE_COUNTERS = (
    ("passes", "passes", "Forward passes."),
    ("row_steps", "rows", "Rows of forward passes: a picture one step on takes one, or two with guidance."),
    ("busy_seconds", "busy_s", "Time in forward passes."),
)
_ENGINE_GAUGES = (
    ("queue_row_steps", "row_steps", "Row-steps that are outstanding."),
    ("pictures_under_way", "pictures", "Pictures in the engine."),
    ("pace_row_steps_per_second", "row_steps_per_s", "Recent pace of forward passes."),
    ("engine_silent_seconds", "silent_s", "Since a pass ended, with pictures under way."),
    ("engine_draining", "draining", "1 while nothing new is taken."),
)


@dataclass(frozen=True)
class Held:
    """A version in a sampler.

    Attributes:
        standing: whether it answers, and for which aliases.
        status: its engine's; None while it has none.
    """

    standing: VersionState
    status: Status | None


@dataclass(frozen=True)
class Snapshot:
    """What one process has counted. Can be pickled."""

    replica: str
    families: tuple[Metric, ...]


class GatewayMetrics:
    """What is asked and answered."""

    def __init__(self, replica: str = GATEWAY) -> None:
        self.replica = replica
        self._registry = CollectorRegistry()
        self._codes: set[str] = set()
        self._requests = Histogram(
            "cleanplate_request_seconds",
            "From a request's arrival to the end of its answer.",
            ["route", "outcome"],
            buckets=SECONDS,
            registry=self._registry,
        )
        self._refusals = Counter(
            "cleanplate_refusals", "Answers of 400 and above.", ["status", "code"], registry=self._registry
        )
        self.in_flight = Gauge("cleanplate_requests_in_flight", "Requests under way.", registry=self._registry)
        self.accepting = Gauge(
            "cleanplate_accepting", "1 while requests are taken, 0 while shutting down.", registry=self._registry
        )
        self.complete = Gauge(
            "cleanplate_scrape_complete",
            "1 when every sampler answered this scrape, 0 when theirs are missing.",
            registry=self._registry,
        )

    def answered(self, route: str, outcome: str, seconds: float) -> None:
        """A request has its answer, or its client has left."""
        self._requests.labels(route, outcome).observe(seconds)

    def refused(self, status: int, code: str) -> None:
        """A request was answered 400 or above, with a code of ours."""
        # The codes are this code's own; should one ever be made of what a client sent, it fills no memory.
        if code not in self._codes and len(self._codes) >= _MOST_CODES:
            code = "other"
        self._codes.add(code)
        self._refusals.labels(str(status), code).inc()

    def snapshot(self) -> Snapshot:
        return Snapshot(self.replica, tuple(self._registry.collect()))


class SamplerMetrics:
    """What is drawn."""

    def __init__(self, replica: str = SAMPLER) -> None:
        self.replica = replica
        self._registry = registry = CollectorRegistry()
        self._pictures = Counter(
            "cleanplate_pictures", "Pictures by what became of them.", ["version", "finish_reason"], registry=registry
        )
        self._moderated = Counter(
            "cleanplate_pictures_moderated",
            "Findings in pictures and their prompts, and what was done to the picture.",
            ["stage", "category", "action"],
            registry=registry,
        )
        self._attributed = Counter(
            "cleanplate_pictures_attributed", "Pictures that name training pictures near to them.", registry=registry
        )
        self._redrawn = Counter(
            "cleanplate_pictures_redrawn", "Drawings thrown away for being near copies.", registry=registry
        )
        self._prompts = Counter(
            "cleanplate_prompts_blocked", "Requests refused for their prompt.", ["category"], registry=registry
        )
        self._failed = Counter(
            "cleanplate_generations_failed", "Requests that broke off in a sampler.", registry=registry
        )
        self._first_step = Histogram(
            "cleanplate_time_to_first_step_seconds",
            "From arrival at a sampler to the first solver step.",
            buckets=SECONDS,
            registry=registry,
        )
        self._first_preview = Histogram(
            "cleanplate_time_to_first_preview_seconds",
            "From arrival at a sampler to the first preview.",
            buckets=SECONDS,
            registry=registry,
        )
        self._stages = Histogram(
            "cleanplate_stage_seconds",
            "Where requests spend their time in a sampler.",
            ["stage"],
            buckets=SECONDS,
            registry=registry,
        )

    def drew(self, generation: Generation) -> None:
        """A request's pictures are there."""
        version, timings = generation.card.version, generation.timings
        for picture in generation.pictures:
            self._pictures.labels(version, picture.finish_reason).inc()
            self._attributed.inc(picture.attribution is not None)
            self._redrawn.inc(0 if picture.near_copy is None else picture.near_copy.redrawn)
        for finding in findings(generation):
            self._moderated.labels(*finding).inc()
        for stage in ("queue", "sample", "guard", "encode"):
            self._stages.labels(stage).observe(getattr(timings, f"{stage}_ms") / 1e3)
        if timings.first_step_ms is not None:
            self._first_step.observe(timings.first_step_ms / 1e3)
        if timings.first_preview_ms is not None:
            self._first_preview.observe(timings.first_preview_ms / 1e3)

    def prompt_blocked(self, categories: Iterable[str]) -> None:
        """A request was refused for what its prompt says."""
        for category in categories:
            self._prompts.labels(category).inc()

    def broke_off(self) -> None:
        """A request failed in a sampler: was not refused, and its client had not left."""
        self._failed.inc()

    def snapshot(self, held: Sequence[Held]) -> Snapshot:
        """What was counted, and how the engines of the versions stand."""
        return Snapshot(self.replica, (*self._registry.collect(), *_versions(held), *_engines(held)))


def findings(generation: Generation) -> Iterator[tuple[str, str, str]]:
    """What was found in a request's pictures: the stage, the category and the action, once for each picture."""
    for picture in generation.pictures:
        for entry in picture.moderation:
            yield entry.stage, entry.category, entry.action
        if picture.near_copy is not None:
            yield "near_copy", "near_copy", picture.near_copy.action


def exposition(snapshots: Iterable[Snapshot]) -> bytes:
    """Prometheus' text format, version 0.0.4: all processes' series, each with its `replica`."""
    return generate_latest(_Collected(snapshots))


def families() -> dict[str, str]:
    """Every family's name and type, as Prometheus will know them."""
    idle = Status(0, 0, 0, 0, 0.0, 0.0, False)
    live = VersionState(version="1", state="live", aliases=("champion",))
    snapshots = GatewayMetrics().snapshot(), SamplerMetrics().snapshot([Held(live, idle)])
    return {family.name: family.type for snapshot in snapshots for family in snapshot.families}


class _Collected:
    """Families of several processes as one registry."""

    def __init__(self, snapshots: Iterable[Snapshot]) -> None:
        self._snapshots = list(snapshots)

    def collect(self) -> Iterator[Metric]:
        merged: dict[str, Metric] = {}
        for snapshot in self._snapshots:
            for family in snapshot.families:
                into = merged.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                into.samples += [
                    sample._replace(labels={**sample.labels, "replica": snapshot.replica})
                    for sample in family.samples
                    if not sample.name.endswith("_created")
                ]
        yield from merged.values()


def _versions(held: Sequence[Held]) -> Iterator[Metric]:
    state = GaugeMetricFamily(
        "cleanplate_version",
        "1 for each version that a sampler holds, with how it stands.",
        labels=["version", "state"],
    )
    alias = GaugeMetricFamily(
        "cleanplate_version_answers", "1 for each alias that a version answers for.", labels=["version", "alias"]
    )
    for each in (one.standing for one in held):
        state.add_metric([each.version, each.state], 1)
        for name in each.aliases:
            alias.add_metric([each.version, name], 1)
    yield from (state, alias)


def _engines(held: Sequence[Held]) -> Iterator[Metric]:
    rows = [(each.standing.version, each.status) for each in held if each.status is not None]
    for kind, families in ((CounterMetricFamily, _ENGINE_COUNTERS), (GaugeMetricFamily, _ENGINE_GAUGES)):
        for name, attribute, text in families:
            family = kind(f"cleanplate_{name}", text, labels=["version"])
            for version, status in rows:
                family.add_metric([version], float(getattr(status, attribute)))
            yield family
    yield _fill(rows)


def _fill(rows: Sequence[tuple[str, Status]]) -> Metric:
    fill = HistogramMetricFamily(
        "cleanplate_pass_fill_ratio", "Rows of a pass over the most it may have.", labels=["version"]
    )
    for version, status in rows:
        upto = itertools.accumulate(status.fill)
        buckets = [(str(tenth / 10), count) for tenth, count in zip(range(1, 11), upto, strict=False)]
        fill.add_metric([version], [*buckets, ("+Inf", status.passes)], status.rows / status.max_rows)
    return fill
