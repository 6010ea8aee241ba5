"""The loop of a distillation: from a teacher and a training set to the student's bundle, in a plain process.

Like `training.loop` it counts images seen, resumes from the newest checkpoint in the run's folder, also one in the
middle of a halving, and ends in the same bits however often it was interrupted.
"""

from __future__ import annotations

import logging
import platform
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from curation import storage
from training import checkpoint
from training.bundle import CAPTION_CAP, INFO_FILE, BundleInfo, DiffusionModel, write_bundle
from training.checkpoint import CheckpointInfo, Identity, state_sha256
from training.data import TrainingSet
from training.dependencies import made_from
from training.distill_job import DistillJob
from training.folders import upload
from training.grid import grid
from training.progress import Point, Report
from training.sampling import SamplingParams
from training.student import Student

logger = logging.getLogger(__name__)

_POINTS = 400  # measured over a whole run, whatever its length


@dataclass(frozen=True)
class Teacher:
    """What a student learns from.

    Attributes:
        sha256: of the bundle's `cleanplate.json`, which holds the sha256 of every other file.
        guidance_scale: that it is guided by; the student takes that over.
    """

    model: DiffusionModel
    sha256: str
    guidance_scale: float


@dataclass(frozen=True)
class Outcome:
    """What a finished distillation came to."""

    images_seen: int
    resumed_from: int
    state_sha256: str
    metrics: dict[str, float]
    bundle: str


def distill(
    job: DistillJob, *, folder: str, teacher: Teacher, data: TrainingSet, report: Report | None = None
) -> Outcome:
    """Distils on the teacher's device to the end of the job's budget and writes `<folder>/bundle`.

    Args:
        folder: the run's own folder, local or S3; its checkpoints are resumed from.
        report: called with every point; a resumed run first tells those of its checkpoint again.

    Raises:
        UserError: a checkpoint in the folder belongs to another manifest, teacher or configuration.
    """
    if teacher.model.device.type == "cuda":
        torch.use_deterministic_algorithms(True, warn_only=True)
    return _Loop(job, folder, teacher, data, report or (lambda point: None)).run()


class _Loop:
    def __init__(self, job: DistillJob, folder: str, teacher: Teacher, data: TrainingSet, report: Report) -> None:
        self._job = job
        self._folder = folder
        self._teacher = teacher
        self._data = data
        self._report = report
        self._student = Student(job, teacher.model, data, guidance_scale=teacher.guidance_scale)
        model = teacher.model
        self._model = DiffusionModel(  # the student as serving will see it; its weights change as it learns
            unet=self._student.unet,
            text=model.text,
            betas=model.betas,
            prediction=model.prediction,
            image_size=model.image_size,
            patch_size=model.patch_size,
            device=model.device,
        )
        self._identity = Identity(
            manifest_id=data.roster.info.manifest_id,
            training_set_digest=data.roster.info.digest,
            text_encoder_sha256=model.text.digest(),
            config={**job.identity(teacher.sha256), "guidance_scale": teacher.guidance_scale},
        )
        self._topology = {
            "workers": 1,
            "accumulation": job.accumulation,
            "resident_captions": int(self._student.resident_captions),
            "gpus": int(model.device.type == "cuda"),
        }
        self._point_every = max(1, job.budget // job.batch_size // _POINTS) * job.batch_size
        self._points: list[Point] = []  # of the whole run; they travel in checkpoints
        self._metrics: dict[str, float] = {}

    def run(self) -> Outcome:
        job, student = self._job, self._student
        seen = resumed_from = self._resume()
        loss_sum = norm_sum = torch.zeros((), device=self._teacher.model.device)
        window, began = seen, time.monotonic()
        while seen < job.budget:
            loss, norm = student.step(seen)
            loss_sum, norm_sum = loss_sum + loss, norm_sum + norm
            before, seen = seen, seen + job.batch_size
            stage_ends = seen % job.stage_images == 0
            saves = stage_ends or seen // job.checkpoint_every > before // job.checkpoint_every
            if saves or seen // self._point_every > before // self._point_every:
                steps = (seen - window) // job.batch_size
                rate = (seen - window) / max(time.monotonic() - began, 1e-9)
                self._measure(seen, float(loss_sum) / steps, float(norm_sum) / steps, rate)
                if stage_ends:
                    self._draw_grid(seen)
                if saves:
                    self._save(seen)
                loss_sum = norm_sum = torch.zeros((), device=self._teacher.model.device)
                window, began = seen, time.monotonic()
        sha256 = state_sha256(student.state())
        return Outcome(seen, resumed_from, sha256, self._metrics, self._write_bundle(seen, sha256))

    def _measure(self, seen: int, loss: float, norm: float, rate: float) -> None:
        if not np.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss} after {seen} images: lower optimizer.lr")
        job = self._job
        self._metrics = {"loss": loss, "grad_norm": norm}
        middle = seen - job.batch_size / 2
        told = {
            **self._metrics,
            "lr": self._student.learning_rate(middle),
            "images_per_second": rate,
            "student_steps": float(job.student_steps(int(middle // job.stage_images))),
        }
        self._tell(Point(images=seen, time=time.time(), values=told))

    def _tell(self, point: Point) -> None:
        self._points.append(point)
        self._report(point)

    # --- checkpoints ---

    @property
    def _checkpoints(self) -> str:
        return storage.join(self._folder, "checkpoints")

    def _resume(self) -> int:
        """Images seen at the checkpoint that the run continues from; 0 for a fresh run."""
        checkpoint.sweep(self._checkpoints)
        path = checkpoint.latest(self._checkpoints)
        if path is None:
            return 0
        info, state = checkpoint.load(path, self._identity)
        self._student.restore(state)
        for point in info.points:
            self._tell(point)
            if "loss" in point.values:
                self._metrics = {key: point.values[key] for key in ("loss", "grad_norm")}
        logger.info("resumed at %d images from %s", info.images_seen, path)
        return info.images_seen

    def _save(self, seen: int) -> None:
        info = CheckpointInfo(
            images_seen=seen,
            identity=self._identity,
            topology=self._topology,
            libraries=_libraries(),
            points=tuple(self._points),
            base_digest=self._data.roster.info.base_digest,
            removed_digest=self._data.roster.info.removed_digest,
        )
        checkpoint.save(self._checkpoints, self._student.state(), info, keep=self._job.keep_checkpoints)

    # --- pictures and the bundle ---

    def _sampling(self, steps: int) -> SamplingParams:
        """One evaluation a step: the student has the guidance in its weights."""
        return SamplingParams(steps=steps, guidance_scale=1.0, sampler="ddim")

    def _draw_grid(self, seen: int) -> None:
        """One column per prompt, one row per seed, as a PNG in the run's folder."""
        distinct = self._data.texts
        prompts = list(self._job.prompts) or distinct[:: max(1, len(distinct) // 8)][:8]
        steps = self._job.student_steps(seen // self._job.stage_images - 1)
        self._student.unet.eval()
        drawn = grid(self._model, prompts, self._sampling(steps))
        self._student.unet.train()
        path = storage.join(self._folder, "samples", f"{seen:012d}.png")
        storage.write_bytes(path, drawn)
        self._tell(Point(images=seen, time=time.time(), values={}, grid=path))

    def _write_bundle(self, seen: int, sha256: str) -> str:
        """What the teacher's bundle says, but for what is the student's own."""
        data, job, trained_on = self._data, self._job, self._data.roster.info
        mean, std = data.channel_stats()
        own = {
            "name": job.name,
            "manifest_id": trained_on.manifest_id,
            "manifest_uri": trained_on.manifest_uri,
            "training_set_digest": trained_on.digest,
            "training_set_digest_kind": "merkle",
            "training_rows": len(data),
            "base_rows": trained_on.base_rows,
            "excluded_rows": trained_on.excluded_rows,
            "licences": data.licences,
            "ledger_uri": trained_on.ledger_uri,
            "takedown_ledger_version": trained_on.ledger_version,
            "config_sha256": job.config_sha256(self._teacher.sha256, trained_on.manifest_id),
            "job": job.public() | {"guidance_scale": self._teacher.guidance_scale},
            "images_seen": seen,
            "state_sha256": sha256,
            "metrics": self._metrics,
            "channel_mean": mean,
            "channel_std": std,
            "captions": [text for text in data.texts if text][:CAPTION_CAP],
            "sampling": self._sampling(job.steps),
            "libraries": _libraries(),
            "distilled_from": self._teacher.sha256,
            "depends_on": made_from("teacher", self._teacher.sha256, self._teacher.model.info),
            "self_test": None,
            "files": {},
        }
        info = BundleInfo.model_validate({**self._teacher.model.info.model_dump(), **own})
        self._student.unet.eval()
        target = storage.join(self._folder, "bundle")
        if not storage.is_remote(target):
            write_bundle(storage.filesystem(target)[1], self._model, info)
            return target
        with tempfile.TemporaryDirectory() as scratch:
            write_bundle(Path(scratch) / "bundle", self._model, info)
            upload(Path(scratch) / "bundle", target, last=INFO_FILE)
        return target


def _libraries() -> dict[str, str]:
    import diffusers

    return {"python": platform.python_version(), "torch": torch.__version__, "diffusers": diffusers.__version__}
