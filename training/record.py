"""The record of a training: what its driver hears from the loop, for its event log, its standing and its metrics."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

from curation import events, nodes, running
from curation.events import Event, Resized, Resumed
from curation.running import Recorder
from training.job import TrainJob
from training.progress import Point, Timing

if TYPE_CHECKING:
    from training.metrics import TrainingMetrics
    from training.shard_job import OnStage

STAGE = "train"


class Record:
    """What the driver is told, in the order in which it comes.

    Args:
        apart: the loop is in other processes than the driver, and so is the time that it takes.
    """

    def __init__(self, recorder: Recorder, images: int, metrics: TrainingMetrics | None, *, apart: bool) -> None:
        self.recorder = recorder
        self._images = images
        self._metrics = metrics
        self._seen = 0
        self._workers: int | None = None
        self._apart = apart
        self._cpu_s = 0.0  # of the workers that there are now
        self._cpu_s_before = 0.0

    def take(self, told: Point | Timing | Event) -> None:
        """A message of the loop."""
        if isinstance(told, Point):
            self._point(told)
        elif isinstance(told, Timing):
            self._cpu_s = told.cpu_seconds * told.workers
            if self._apart:
                self.recorder.reckon(self._cpu_s_before + self._cpu_s)
            if self._metrics is not None:
                self._metrics.timing(told)
        else:
            self.recorder.tell(told)
            if isinstance(told, Resumed):
                self._resumed(told)

    def stage(self, on_stage: OnStage | None) -> OnStage:
        """Hears of the stages before training, too, on their way to the caller."""

        def told(stage: str, done: int, total: int) -> None:
            self.recorder.progress(stage, done, total)
            if on_stage is not None:
                on_stage(stage, done, total)

        return told

    def _point(self, point: Point) -> None:
        if "loss" not in point.values:
            return
        self.recorder.values(point.values)
        if point.images > self._seen:  # a run that goes on tells again what it has told
            self._seen = point.images
            self.recorder.at_pace(STAGE, point.images, self._images, point.values["images_per_second"])

    def _resumed(self, resumed: Resumed) -> None:
        if self._workers is not None and self._workers != resumed.workers:
            self.recorder.tell(Resized(resumed.images, self._workers, resumed.workers))
        self._workers, self._seen = resumed.workers, resumed.images
        self._cpu_s_before, self._cpu_s = self._cpu_s_before + self._cpu_s, 0.0
        self.recorder.workers(resumed.workers)
        self.recorder.at_pace(STAGE, resumed.images, self._images, 0.0)


@contextlib.contextmanager
def recording(job: TrainJob, folder: str, images: int) -> Iterator[Record]:
    """Records a run for the duration of a `with` block.

    Args:
        images: of the whole budget.

    Raises:
        UserError: metrics cannot be offered where the job wants them.
    """

    def metrics() -> TrainingMetrics:
        from training.metrics import TrainingMetrics

        return TrainingMetrics()

    begun = running.begun(
        events.read(folder),
        "train",
        job.name,
        of="images",
        total=images,
        done=0,
        workers=job.most_workers,
        like=like(job),
    )
    how = {"workers_kind": nodes.kind_of(job.gpus_per_worker), "always_busy": True}
    with running.recorded(folder, job.observability, metrics, begun, **how) as (recorder, observer):
        yield Record(recorder, images, observer, apart=bool(job.workers))


def like(job: TrainJob) -> str:
    """Tells jobs whose workers do the same work for an image: whose pace may be compared."""
    of = {"network", "image_size", "autoencoder", "patch_size", "precision", "compile", "gradient_checkpointing"}
    told = job.model_dump(mode="json", include=of | {"strategy", "gpus_per_worker"})
    if told["autoencoder"] is not None:
        del told["autoencoder"]["sha256"]  # which a job has once it is prepared
    return hashlib.sha256(json.dumps([told, job.micro_batch], sort_keys=True).encode()).hexdigest()[:16]
