"""What Prometheus is told of a training while it runs; the driver counts it from what its workers tell it anyway."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from curation.events import CheckpointRefused, CheckpointWritten, Event, NodeLost, Resized, Resumed, WorkerLost
from curation.standing import Standing
from training.progress import Timing

SECONDS = (0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0)
_VALUES = {
    "loss": ("loss", "Mean loss since the point before."),
    "grad_norm": ("gradient_norm", "Mean norm of the gradient before clipping."),
    "lr": ("learning_rate", "Learning rate."),
    "images_per_second": ("images_per_second", "Pace since the point before."),
}


class TrainingMetrics:
    """Families of one run; an observer of its recorder."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        name = "cleanplate_training"
        self._images = Gauge(f"{name}_images_seen", "Images seen.", registry=registry)
        self._budget = Gauge(f"{name}_images", "Images of the whole budget.", registry=registry)
        self._values = {
            value: Gauge(f"{name}_{shown}", text, registry=registry) for value, (shown, text) in _VALUES.items()
        }
        self._step = Gauge(f"{name}_step_seconds", "Mean time of a step since the point before.", registry=registry)
        self._data = Gauge(
            f"{name}_data_wait_ratio",
            "Share of a step that the first worker's batch takes.",
            registry=registry,
        )
        self._written = Histogram(
            f"{name}_checkpoint_seconds",
            "From taking it to its being there.",
            buckets=SECONDS,
            registry=registry,
        )
        self._stalled = Histogram(
            f"{name}_checkpoint_stall_seconds",
            "How long training waited for a checkpoint.",
            buckets=SECONDS,
            registry=registry,
        )
        self._newest = Gauge(
            f"{name}_checkpoint_time_seconds", "When the newest checkpoint came, Unix time.", registry=registry
        )
        self._refused = Counter(f"{name}_checkpoints_refused", "Checkpoints that were passed over.", registry=registry)
        self._workers = Gauge(f"{name}_workers", "Workers that train: the world size.", registry=registry)
        self._restarts = Counter(f"{name}_restarts", "Times that workers began anew.", registry=registry)
        self._resizes = Counter(f"{name}_resizes", "Times that their number changed.", registry=registry)
        self._lost = Counter(f"{name}_workers_lost", "Workers that ended before their time.", registry=registry)
        self._nodes_lost = Counter(f"{name}_nodes_lost", "Nodes that went away.", registry=registry)
        self._nodes = Gauge(f"{name}_nodes", "Nodes of the cluster.", ["kind"], registry=registry)
        self._resumed = False

    def timing(self, timing: Timing) -> None:
        """How long steps took."""
        self._step.set(timing.step_seconds)
        self._data.set(timing.data_share)

    def event(self, event: Event) -> None:
        """Something happened."""
        if isinstance(event, CheckpointWritten):
            self._written.observe(event.seconds)
            self._stalled.observe(event.stalled)
            self._newest.set(time.time())
        if isinstance(event, Resumed):
            self._restarts.inc(self._resumed)
            self._resumed = True
        self._refused.inc(isinstance(event, CheckpointRefused))
        self._resizes.inc(isinstance(event, Resized))
        self._lost.inc(isinstance(event, WorkerLost))
        self._nodes_lost.inc(isinstance(event, NodeLost))

    def standing(self, standing: Standing) -> None:
        """How it stands now."""
        train = standing.stages.get("train")
        if train is not None:
            self._images.set(train.done)
            self._budget.set(train.total)
        for name, gauge in self._values.items():
            if name in standing.values:
                gauge.set(standing.values[name])
        self._workers.set(standing.workers)
        self._nodes.clear()
        for kind, count in standing.nodes.items():
            self._nodes.labels(kind).set(count)
