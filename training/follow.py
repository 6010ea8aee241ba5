"""The driver's view of a run that trains elsewhere: it is begun in MLflow, points arrive, go there and move a progress
bar."""

from __future__ import annotations

import contextlib
import json
import logging
import queue
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curation import storage
from curation.events import Event
from curation.manifest import Manifest
from training.progress import Point, Progress, Timing, progress_of
from training.roster import Roster
from training.run_record import RUN_FILE, known_run

if TYPE_CHECKING:
    from training.autoencoder_job import AutoencoderJob
    from training.distill_job import DistillJob
    from training.job import TrainJob
    from training.tracking import Run

logger = logging.getLogger(__name__)

OnProgress = Callable[[Progress], None]
Told = Point | Timing | Event
_POLL_SECONDS = 1.0


def start_run(
    job: TrainJob | DistillJob | AutoencoderJob,
    folder: str,
    manifest: Manifest,
    roster: Roster,
    *,
    config_sha256: str,
    images: int,
    tags: Mapping[str, str],
) -> Run:
    """The MLflow run of a folder: the one that an earlier attempt began, or a new one.

    Args:
        images: of the whole budget.
        tags: what is to be said of it beside this.
    """
    from training.tracking import Run, roster_tags

    common = {"config_sha256": config_sha256, "run_folder": folder, "seed": str(job.seed), "images": str(images)}
    run = Run.start(
        job.name,
        uri=job.tracking.uri,
        experiment=job.tracking.experiment,
        known_run_id=known_run(folder),
        tags={**common, **tags, **roster_tags(roster)},
    )
    storage.write_bytes(storage.join(folder, RUN_FILE), json.dumps({"run_id": run.run_id}).encode())
    run.params(job.public())
    run.dataset(name=manifest.info.name, uri=manifest.uri, digest=manifest.id)
    run.training_set(roster)
    return run


class Mailbox:
    """What loop and driver leave for each other. Lives in the driver, or as an actor when the loop is elsewhere."""

    def __init__(self) -> None:
        self._told: queue.SimpleQueue[Told] = queue.SimpleQueue()
        self._outcome: dict[str, Any] | None = None
        self._ending = False
        self._saved: int | None = None

    def put(self, told: Told) -> None:
        self._told.put(told)

    def drain(self) -> list[Told]:
        told = []
        while not self._told.empty():
            told.append(self._told.get())
        return told

    def finish(self, outcome: dict[str, Any]) -> None:
        self._outcome = outcome

    def outcome(self) -> dict[str, Any] | None:
        return self._outcome

    def end(self) -> None:
        """Says that the run is to save its state and end."""
        self._ending = True

    def ending(self) -> bool:
        return self._ending

    def keep(self, images: int) -> None:
        """Says that the state after so many images is saved, as the run is to end."""
        self._saved = images

    def saved(self) -> int | None:
        return self._saved


class Follower:
    """Takes points to MLflow and to the caller's progress bar, in a thread of the driver.

    Args:
        beside: what else is done in that thread, every second.
        record: hears of all that comes.
    """

    def __init__(
        self,
        run: Run,
        images_total: int,
        on_progress: OnProgress | None,
        beside: Callable[[], None] | None = None,
        record: Callable[[Told], None] | None = None,
    ) -> None:
        self._run = run
        self._total = images_total
        self._on_progress = on_progress
        self._beside = beside or (lambda: None)
        self._record = record or (lambda told: None)
        self._pending: list[Point] = []

    @contextlib.contextmanager
    def following(self, drain: Callable[[], list[Told]]) -> Iterator[None]:
        """Polls `drain` until the block ends, then once more."""
        done = threading.Event()

        def follow() -> None:
            while not done.wait(_POLL_SECONDS):
                try:
                    self._take(drain())
                    self._beside()
                except Exception:
                    # an unreachable tracking server must not cost a training run: the points wait for the next round
                    logger.warning("points could not be logged yet", exc_info=True)

        thread = threading.Thread(target=follow, name="training-follower", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
        try:
            self._take(drain())
        except Exception:
            logger.warning("the last points could not be logged; the run's folder has them", exc_info=True)

    def _take(self, told: list[Told]) -> None:
        self._pending += [each for each in told if isinstance(each, Point)]
        for each in told:
            self._record(each)
        self._run.log(self._pending)
        for point in self._pending:
            if point.grid is not None:
                self._upload(point.grid)
        news = [progress for point in self._pending if (progress := progress_of(point, self._total)) is not None]
        self._pending = []
        if news and self._on_progress is not None:
            self._on_progress(news[-1])

    def _upload(self, grid: str) -> None:
        if not storage.is_remote(grid):
            self._run.artifact(grid, "samples")
            return
        with tempfile.TemporaryDirectory() as scratch:
            local = Path(scratch) / grid.rsplit("/", 1)[-1]
            local.write_bytes(storage.read_bytes(grid))
            self._run.artifact(local, "samples")
