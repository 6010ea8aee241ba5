"""The driver's side of evaluations in the loop: has checkpoints evaluated beside a training, and takes in the results.

Nothing of it is in a worker's way: an evaluation is a Ray task with resources of its own or, without Ray, a process at
low priority, and reads the run's folder. One goes on at a time, of the newest checkpoint that is due when it starts.
One that fails costs a warning and its numbers, never the run.
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from curation import storage
from training import checkpoint_evaluation as evaluations
from training.checkpoint_evaluation import EvaluationTask, Evaluator
from training.evaluate import Evaluation
from training.evaluation_child import evaluate_as, named
from training.job import TrainJob
from training.roster import Roster

if TYPE_CHECKING:
    from training.tracking import Run

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.2


class Running(Protocol):
    """An evaluation that was started."""

    def failure(self) -> str | None:
        """Why it failed, "" where it did not; None while it goes on."""

    def cancel(self) -> None:
        """Ends it at once."""


Start = Callable[[EvaluationTask], Running]
TakeIn = Callable[[Evaluation, list[str]], None]
"""An evaluation and its files, in the run's folder, to where they are looked at."""


class Watch:
    """Calls to `step` keep evaluations going; all of them come from one thread at a time."""

    def __init__(self, task: EvaluationTask, start: Start, take_in: TakeIn) -> None:
        self._task = task
        self._start = start
        self._take_in = take_in
        self._running: Running | None = None
        self._failed: set[int] = set()
        self._taken: set[int] = set()

    def step(self) -> None:
        """Takes in what is there, and starts the next one. Returns at once."""
        self._collect()
        if self._running is None and evaluations.due(self._now):
            self._running = self._start(self._now)

    def finish(self) -> None:
        """Waits, after the training, until its last checkpoint is evaluated; older ones are not begun any more."""
        last = self._task.job.steps * self._task.job.batch_size
        while self._running is not None or last in evaluations.due(self._now):
            if self._running is None:
                self.step()
            time.sleep(_POLL_SECONDS)
            self._collect()
        self._collect()

    def cancel(self) -> None:
        """Ends what goes on."""
        if self._running is not None:
            self._running.cancel()
            self._running = None
            evaluations.set_busy(self._task.folder, None)

    @property
    def _now(self) -> EvaluationTask:
        return self._task.model_copy(update={"skip": tuple(sorted(self._failed))})

    def _collect(self) -> None:
        failure = None if self._running is None else self._running.failure()
        if failure is not None:
            self._running = None
            at = evaluations.busy(self._task.folder)
            if failure:
                # without a checkpoint it failed before it had one: it would fail again
                waiting = evaluations.due(self._task) if at is None else [at]
                self._failed |= set(waiting)
                logger.warning("the evaluation at %s images failed: %s", at, failure)
            if at is not None:
                evaluations.set_busy(self._task.folder, None)
        for images in evaluations.done(self._task.folder):
            if images not in self._taken:
                files = [evaluations.path_of(self._task.folder, images, ending) for ending in ("json", "png")]
                curves = storage.join(self._task.folder, evaluations.FOLDER, evaluations.CURVES_FILE)
                found = evaluations.read(self._task.folder, images)
                self._take_in(found, files + ([curves] if storage.exists(curves) else []))
                self._taken.add(images)


@contextlib.contextmanager
def watching(watch: Watch | None) -> Iterator[None]:
    """Ends what goes on when the block ends, however it does."""
    try:
        yield
    finally:
        if watch is not None:
            watch.cancel()


def watch_of(
    job: TrainJob, folder: str, run: Run, held_out: Roster | None, evaluator: Evaluator | None
) -> Watch | None:
    """Has a run's checkpoints evaluated, and its MLflow run told; None where the job asks for no evaluations.

    Args:
        held_out: what is not trained on.
    """
    if job.evaluation is None:
        return None
    if evaluator is None:
        raise ValueError("the job asks for evaluations, and there is nobody to make them")
    if held_out is not None:
        where = storage.join(folder, evaluations.FOLDER, evaluations.HELD_OUT_FILE)
        storage.write_bytes(where, held_out.to_parquet())
    evaluations.set_busy(folder, None)  # what an attempt that was killed left

    def take_in(found: Evaluation, files: list[str]) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            local = [_local(file, Path(scratch)) for file in files]
            run.evaluation(found.images_seen, found.at, found.values(), local)

    started: type[_Child | _RayTask] = _Child if job.workers == 0 else _RayTask
    return Watch(EvaluationTask(job=job, folder=folder), lambda task: started(evaluator, task), take_in)


# --- how one is started ---


class _Child:
    def __init__(self, evaluator: Evaluator, task: EvaluationTask) -> None:
        hidden = {} if task.device == "cuda" else {"CUDA_VISIBLE_DEVICES": ""}
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the process
        command = [sys.executable, "-m", "training.evaluation_child", named(evaluator)]
        environment = {**os.environ, **hidden, "PYTHONPATH": os.pathsep.join(path or "." for path in sys.path)}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=self._said, stderr=self._said, env=environment
        )
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it ended already, and says why
            self._process.stdin.write(task.model_dump_json().encode() + b"\n")
            self._process.stdin.flush()

    def failure(self) -> str | None:
        code = self._process.poll()
        if code is None:
            return None
        self._said.seek(0)
        said = self._said.read().decode(errors="replace").strip()
        self._close()
        return "" if code == 0 else f"exit {code}: {said[-2000:]}"

    def cancel(self) -> None:
        self._process.kill()
        self._process.wait()
        self._close()

    def _close(self) -> None:
        self._said.close()
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()


class _RayTask:
    def __init__(self, evaluator: Evaluator, task: EvaluationTask) -> None:
        import ray

        config = task.job.evaluation
        assert config is not None
        # a process for each, as priority once lowered cannot be raised again
        remote = ray.remote(num_cpus=config.cpus, num_gpus=config.gpus, max_calls=1, max_retries=0)(evaluate_as)
        self._reference: Any = remote.remote(named(evaluator), task)

    def failure(self) -> str | None:
        import ray

        ready, _ = ray.wait([self._reference], timeout=0)
        if not ready:
            return None
        try:
            ray.get(self._reference)
        except ray.exceptions.RayError as error:
            return str(error)[-2000:]
        return ""

    def cancel(self) -> None:
        import ray

        ray.cancel(self._reference, force=True)


def _local(uri: str, scratch: Path) -> Path:
    """A file on this machine's disk."""
    if not storage.is_remote(uri):
        return Path(storage.filesystem(uri)[1])
    local = scratch / uri.rsplit("/", 1)[-1]
    local.write_bytes(storage.read_bytes(uri))
    return local
