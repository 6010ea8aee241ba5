"""The training loop: from a training set to a bundle, in a plain process or as one worker of several.

It counts images seen, resumes from the newest checkpoint in the run's folder, and finishes by writing the bundle. Two
runs of one job at one topology (workers, accumulation, threads, machine) end in the same bits, however often they were
interrupted.
"""

from __future__ import annotations

import functools
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from curation import storage
from curation.events import CheckpointRefused, CheckpointWritten, Resumed
from training import averages, checkpoint, checkpoint_evaluation, finish, kept, retraining, sharding
from training import space as spaces
from training.bundle import INFO_FILE, DiffusionModel
from training.checkpoint import CheckpointInfo, Identity, state_sha256
from training.conditioning import PromptEncoder
from training.data import TrainingSet
from training.grid import grid
from training.job import TrainJob
from training.learner import Learner, Place, learning_rate
from training.notice import Notice, SharedNotice, Takes, Terminated
from training.progress import Leg, Point, Report, Tell, Timing
from training.space import Space
from training.writer import Writer

if TYPE_CHECKING:
    from training.shards import ShardFiles

logger = logging.getLogger(__name__)

_POINTS = 400  # measured over a whole run, whatever its length


@dataclass(frozen=True)
class Outcome:
    """What a finished run came to. Only the first worker's has a bundle.

    Attributes:
        legs: the topologies that it was trained at; with more than one, the bits are nobody else's.
    """

    images_seen: int
    resumed_from: int
    state_sha256: str
    metrics: dict[str, float]
    bundle: str | None
    legs: tuple[Leg, ...]


def train(
    job: TrainJob,
    *,
    folder: str,
    data: TrainingSet,
    text: PromptEncoder,
    place: Place,
    space: Space | None = None,
    report: Report | None = None,
    notice: Notice | None = None,
    tell: Tell | None = None,
) -> Outcome:
    """Trains to the end of the job's budget and writes `<folder>/bundle`.

    Args:
        folder: the run's own folder, local or S3; its checkpoints are resumed from.
        space: what the network's clean pictures are; None: patches of pixels.
        report: called on the first worker with every point; a resumed run first tells those of its checkpoint again.
        notice: of an interruption; the first worker's is looked at after each step.
        tell: called on the first worker with what happens and how long it takes, also from the thread that writes
            checkpoints.

    Raises:
        UserError: a checkpoint in the folder belongs to another manifest, text encoder or configuration, or the one of
            `resume_from` is not one that this run would have come by.
        Terminated: after a notice that ends the run, when its state is saved.
    """
    if place.device.type == "cuda":
        torch.use_deterministic_algorithms(True, warn_only=True)
    loop = _Loop(
        job,
        folder,
        data,
        text,
        place,
        space or spaces.build(job.patch_size, frames=data.frames),
        report or (lambda point: None),
        notice or Notice(ends=True),
        tell or (lambda told: None),
    )
    try:
        return loop.run()
    finally:
        loop.writer.close()
        loop.snapshots.close()


class _Loop:
    def __init__(
        self,
        job: TrainJob,
        folder: str,
        data: TrainingSet,
        text: PromptEncoder,
        place: Place,
        space: Space,
        report: Report,
        notice: Notice,
        tell: Tell,
    ) -> None:
        self._job = job
        self._folder = folder
        self._data = data
        self._text = text
        self._place = place
        self._report = report
        self._tell_of: Tell = tell if place.rank == 0 else lambda told: None
        self._space = space
        self._notice: Takes = notice
        self._learner = Learner(job, data, text, place, space)
        self._shards: ShardFiles | None = None
        if self._learner.sharded:
            from training.shards import ShardFiles

            self._shards = ShardFiles()
            self._notice = SharedNotice(notice)
        self._identity = Identity(
            manifest_id=data.roster.info.manifest_id,
            training_set_digest=data.roster.info.digest,
            text_encoder_sha256=text.digest(),
            config=job.identity(),
        )
        self._topology = {
            "workers": place.world_size,
            "accumulation": -(-job.batch_size // (place.world_size * job.micro_batch)),
            "resident_captions": int(self._learner.resident_captions),
            "gpus": int(place.device.type == "cuda"),
            **({"compiled": 1} if job.compile else {}),
            **({"sharded": 1} if self._learner.sharded else {}),
            **({"kept_latents": 1} if self._learner.keeps_latents else {}),
        }
        self._legs: tuple[Leg, ...] = (Leg(images=0, topology=self._topology),)
        self._seen = retraining.Seen(job, data)
        self.snapshots = Writer(averages.folder_of(folder), keep=1)
        self.writer = Writer(
            self._checkpoints,
            keep=job.keep_checkpoints,
            keep_best=job.keep_best_checkpoints,
            standing=kept.standing(folder, job.best_by),
            write=checkpoint.save if self._shards is None else self._shards.write_like(self._learner.state()),
            written=self._written,
            after=self.snapshots,  # a run that goes on from a checkpoint never comes by the snapshots before it again
        )
        self._saved = 0  # images seen at the newest checkpoint
        self._budget = job.steps * job.batch_size
        self._point_every = max(1, job.steps // _POINTS) * job.batch_size
        self._points: list[Point] = []  # of the whole run; they travel in checkpoints, for a driver that was killed
        self._metrics: dict[str, float] = {}
        self._cpu_began = time.process_time()

    def run(self) -> Outcome:
        job, learner = self._job, self._learner
        seen = resumed_from = self._resume()
        if seen < self._budget:
            self._prepare_evaluations(seen)
            learner.settle(seen)
        loss_sum = norm_sum = torch.zeros((), device=self._place.device)
        window, began, data = seen, time.monotonic(), learner.data_seconds
        while seen < self._budget:
            loss, norm = learner.step(seen, before_change=self._taken)
            loss_sum, norm_sum = loss_sum + loss, norm_sum + norm
            before, seen = seen, seen + job.batch_size
            self._snapshot(before, seen)
            milestone = job.milestones is not None and self._due(job.milestones, before, seen)
            saves = milestone or self._due(job.checkpoint_every, before, seen) or job.evaluates_at(seen)
            draws = self._due(job.sample.every, before, seen)
            if saves or draws or self._due(self._point_every, before, seen):
                steps = (seen - window) // job.batch_size
                took = max(time.monotonic() - began, 1e-9)
                rate = (seen - window) / took
                self._tell_of(self._timing(took / steps, (learner.data_seconds - data) / took))
                self._measure(seen, float(self._place.mean(loss_sum)) / steps, float(norm_sum) / steps, rate)
                if draws:
                    self._draw_grid(seen)
                if saves:
                    self._save(seen, milestone)
                loss_sum = norm_sum = torch.zeros((), device=self._place.device)
                window, began, data = seen, time.monotonic(), learner.data_seconds
            if self._notice.take():
                self._save_in_time(seen)
        self.writer.flush()
        self.snapshots.flush()
        sha256 = state_sha256(learner.state())
        bundle = self._finish(seen, sha256)
        return Outcome(seen, resumed_from, sha256, self._metrics, bundle, self._legs)

    def _taken(self) -> None:
        self.writer.taken()
        self.snapshots.taken()

    def _due(self, every: int | None, before: int, seen: int) -> bool:
        """Whether a multiple of `every` images was reached in this step; the end of the budget always counts."""
        return seen >= self._budget or (every is not None and seen // every > before // every)

    def _save_in_time(self, seen: int) -> None:
        """Saves between two steps, as the run is about to be interrupted.

        Where all workers hold the same state the first one does it alone and the others need not know; where they hold
        shares, all take the notice after the same step (`SharedNotice`). What was measured
        since the last point is not in it: a run that goes on from here averages its next point over fewer steps.
        """
        if seen > self._saved:
            self._save(seen, milestone=False)
        self.writer.flush()
        logger.warning("interrupted: the state after %d images is saved", seen)
        if self._notice.ends:
            raise Terminated(seen)

    def _measure(self, seen: int, loss: float, norm: float, rate: float) -> None:
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss} after {seen} images: lower optimizer.lr or use precision fp32"
            )
        self.snapshots.check()
        self.writer.check()
        self._metrics = {"loss": loss, "grad_norm": norm}
        lr = learning_rate(self._job.optimizer, seen, self._budget)
        self._tell(Point(images=seen, time=time.time(), values={**self._metrics, "lr": lr, "images_per_second": rate}))

    def _tell(self, point: Point) -> None:
        self._points.append(point)
        if self._place.rank == 0:
            self._report(point)

    def _timing(self, step_seconds: float, data_share: float) -> Timing:
        cpu, workers = time.process_time() - self._cpu_began, self._place.world_size
        return Timing(step_seconds=step_seconds, data_share=min(data_share, 1.0), cpu_seconds=cpu, workers=workers)

    def _written(self, path: str, seconds: float, stalled: float) -> None:
        self._tell_of(CheckpointWritten(checkpoint.images_of(path), path, round(seconds, 3), round(stalled, 3)))

    # --- checkpoints ---

    @property
    def _checkpoints(self) -> str:
        return storage.join(self._folder, "checkpoints")

    def _resume(self) -> int:
        """Images seen at the checkpoint that the run continues from; 0 for a fresh run."""
        if self._place.rank == 0:
            checkpoint.sweep(self._checkpoints)
            checkpoint.sweep(averages.folder_of(self._folder))
        path = self._place.agree(self._latest() if self._place.rank == 0 else None)
        read: checkpoint.Read = checkpoint.read_state
        if self._shards is not None:
            read = functools.partial(self._shards.read, into=self._learner.state())
        if path is not None:
            info, state = checkpoint.load(path, self._identity, read)
            points = info.points
        elif self._job.resume_from is not None:
            path = self._job.resume_from
            info, state = retraining.take_up(path, self._identity, self._topology, self._data, self._seen, read)
            points = tuple(point for point in info.points if point.grid is None)  # pictures stay with their run
            if self._place.rank == 0 and self._job.ema.profiles:
                averages.take_over(path, self._folder, self._identity, retraining.Seen(self._job, self._data))
        else:
            self._tell_of(Resumed(0, self._place.world_size))
            return 0
        self._tell_of(Resumed(info.images_seen, self._place.world_size, path))
        if self._shards is None:
            self._learner.restore(state)
        self._legs = info.legs_of(self._topology)
        for point in points:
            self._tell(point)
            if "loss" in point.values:
                self._metrics = {key: point.values[key] for key in ("loss", "grad_norm")}
        self._saved = info.images_seen
        logger.info("resumed at %d images from %s", info.images_seen, path)
        return info.images_seen

    def _latest(self) -> str | None:
        return checkpoint.latest(self._checkpoints, lambda path, why: self._tell_of(CheckpointRefused(path, why)))

    def _snapshot(self, before: int, seen: int) -> None:
        """Stores the averages by profile if they are due; they are milestones, which are never removed."""
        times = self._job.ema.snapshots
        due = seen * times // self._budget > before * times // self._budget
        if not due or not self._job.ema.profiles:
            return
        found = self._learner.averages()
        if self._shards is not None:
            found = {part: sharding.gather(of, keep=self._place.rank == 0) for part, of in found.items()}
        if self._place.rank == 0:
            self.snapshots.save(found, self._told(seen, milestone=True), copies_beside=True)

    def _save(self, seen: int, milestone: bool) -> None:
        if self._place.rank == 0 or self._shards is not None:
            since = [p.values["loss"] for p in self._points if p.images > self._saved and "loss" in p.values]
            told = self._told(
                seen,
                points=tuple(self._points),
                milestone=milestone,
                loss=sum(since) / len(since) if since else None,
                base_digest=self._data.roster.info.order_digest,
                removed_digest=self._data.roster.info.removed_digest,
            )
            self.writer.save(self._learner.state(), told, copies_beside=True)
            self._saved = seen

    def _told(self, seen: int, **more: Any) -> Callable[[], CheckpointInfo]:
        """What a checkpoint says about itself, put together by the thread that writes: to hash what was seen takes
        time."""
        known = {"identity": self._identity, "topology": self._topology, "legs": self._legs, "points": (), **more}
        return lambda: CheckpointInfo(
            images_seen=seen, libraries=finish.libraries(), seen_sha256=self._seen.upto(seen), **known
        )

    # --- what is left for others ---

    def _draw_grid(self, seen: int) -> None:
        """One column per prompt, one row per seed, as a PNG in the run's folder."""
        model = self._averaged()
        if model is None:
            return
        distinct = self._data.texts
        prompts = list(self._job.sample.prompts) or distinct[:: max(1, len(distinct) // 8)][:8]
        path = storage.join(self._folder, "samples", f"{seen:012d}.png")
        storage.write_bytes(path, grid(model, prompts, finish.sampling_of(self._job)))
        self._tell(Point(images=seen, time=time.time(), values={}, grid=path))

    def _prepare_evaluations(self, seen: int) -> None:
        """A bundle that checkpoints' weights can be put into, by processes that know nothing of a training."""
        if self._job.evaluation is not None:
            target = storage.join(self._folder, checkpoint_evaluation.FOLDER, checkpoint_evaluation.MODEL)
            there = storage.exists(storage.join(target, INFO_FILE))
            if self._place.agree(None if there else target) is not None:
                self._write_bundle(target, seen, "")

    def _averaged(self) -> DiffusionModel | None:
        """The averaged network as serving will see it, on the first worker; all have to ask. Its weights may change as
        training goes on."""
        network = self._learner.averaged()
        if self._place.rank != 0:
            return None
        return DiffusionModel(
            unet=network,
            text=self._text,
            betas=self._job.schedule.betas(),
            prediction=self._job.prediction,
            image_size=self._data.image_size,
            patch_size=self._job.patch_size,
            device=self._place.device,
            space=self._space,
        )

    def _finish(self, seen: int, sha256: str) -> str | None:
        return self._write_bundle(storage.join(self._folder, "bundle"), seen, sha256)

    def _write_bundle(self, target: str, seen: int, sha256: str) -> str | None:
        """On the first worker; all have to call it."""
        model = self._averaged()
        if model is None:
            return None
        info = finish.describe(
            self._job,
            self._data,
            self._text,
            model,
            images_seen=seen,
            state_sha256=sha256,
            metrics=self._metrics,
        )
        return finish.write(target, model, info)
