"""The loop that trains an autoencoder, in one process: a small `AutoencoderKL` of diffusers, from a training set.

    loss = |x - decode(z)| + kl_weight KL(q(z | x) || N(0, 1)),  z ~ q(z | x)

(Kingma & Welling 2014, arXiv 1312.6114; weighted as by Rombach et al. 2022, arXiv 2112.10752, without their perceptual
and adversarial terms, which would need networks that no package ships: at factor 8 fine texture comes out soft.) Like
`training.loop` it counts images seen and ends in the same bits however often it was interrupted.
"""

from __future__ import annotations

import io
import logging
import math
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from curation import storage, torchvision_ops
from training import checkpoint, finish, latents, layout, moments, randomness
from training.autoencoder_job import PRESETS, AutoencoderJob
from training.checkpoint import CheckpointInfo, Identity, state_sha256
from training.data import TrainingSet
from training.folders import upload
from training.latents import AutoencoderInfo, LatentSpace
from training.learner import learning_rate
from training.progress import Leg, Point, Report
from training.randomness import Purpose
from training.writer import Writer

logger = logging.getLogger(__name__)

_POINTS = 200  # measured over a whole run, whatever its length
_KEEP = 2  # newest checkpoints
_MEASURED = 1024  # pictures that the latents' scale and the error are taken from, at most
_SHOWN = 8  # pictures of the comparison


@dataclass(frozen=True)
class Outcome:
    """What a finished run came to.

    Attributes:
        metrics: `loss`; `psnr`, mean of the pictures', dB; `factor`, by how much fewer numbers a latent has.
    """

    images_seen: int
    resumed_from: int
    state_sha256: str
    metrics: dict[str, float]
    bundle: str


def build(job: AutoencoderJob, image_size: int) -> Any:
    """A freshly initialised `AutoencoderKL` (from torch's global generator: seed it first)."""
    torchvision_ops.declare()  # before diffusers, which imports torchvision where that is installed
    from diffusers import AutoencoderKL

    shape = PRESETS[job.preset]
    levels = len(shape.block_out_channels)
    return AutoencoderKL(
        block_out_channels=shape.block_out_channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=shape.layers_per_block,
        latent_channels=job.latent_channels,
        norm_num_groups=min(32, *shape.block_out_channels),
        mid_block_add_attention=job.preset == "sd",
        sample_size=image_size,
        scaling_factor=1.0,
    )


def train(
    job: AutoencoderJob,
    *,
    folder: str,
    data: TrainingSet,
    device: torch.device | str = "cpu",
    report: Report | None = None,
    run_id: str | None = None,
) -> Outcome:
    """Trains to the end of the job's budget and writes `<folder>/bundle`, an autoencoder's folder (`training.latents`).

    Args:
        folder: the run's own folder, local or S3; its checkpoints are resumed from.
        report: called with every point; a resumed run first tells those of its checkpoint again.
        run_id: of the MLflow run.

    Raises:
        UserError: a checkpoint in the folder belongs to another manifest or configuration.
    """
    loop = _Loop(job, folder, data, torch.device(device), report or (lambda point: None), run_id)
    try:
        return loop.run()
    finally:
        loop.writer.close()


class _Loop:
    def __init__(
        self,
        job: AutoencoderJob,
        folder: str,
        data: TrainingSet,
        device: torch.device,
        report: Report,
        run_id: str | None,
    ) -> None:
        self._job = job
        self._folder = folder
        self._data = data
        self._device = device
        self._report = report
        self._run_id = run_id
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(job.seed)
            self._model = build(job, data.image_size)
        self._model.to(device, memory_format=layout.memory_format(device)).train()
        self._named: list[tuple[str, Tensor]] = list(self._model.named_parameters())
        config = job.optimizer
        self._optimizer = torch.optim.AdamW(
            self._model.parameters(), lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True
        )
        self._identity = Identity(
            manifest_id=data.roster.info.manifest_id,
            training_set_digest=data.roster.info.digest,
            text_encoder_sha256="none",
            config=job.identity(),
        )
        self._topology = {"workers": 1, "accumulation": 1, "gpus": int(device.type == "cuda")}
        self.writer = Writer(storage.join(folder, "checkpoints"), keep=_KEEP)
        self._budget = job.steps * job.batch_size
        self._point_every = max(1, job.steps // _POINTS) * job.batch_size
        self._points: list[Point] = []
        self._loss = math.nan

    def run(self) -> Outcome:
        job = self._job
        seen = resumed_from = self._resume()
        total = torch.zeros((), device=self._device)
        window, began = seen, time.monotonic()
        while seen < self._budget:
            total += self._step(seen)
            before, seen = seen, seen + job.batch_size
            ends = seen >= self._budget
            saves = ends or seen // job.checkpoint_every > before // job.checkpoint_every
            if saves or seen // self._point_every > before // self._point_every:
                steps = (seen - window) // job.batch_size
                rate = (seen - window) / max(time.monotonic() - began, 1e-9)
                self._measure(seen, float(total) / steps, rate)
                total, window, began = torch.zeros((), device=self._device), seen, time.monotonic()
            if saves:
                self._save(seen)
        self.writer.flush()
        sha256 = state_sha256({"weights": self._model.state_dict()})
        metrics = self._settle_scale()
        return Outcome(seen, resumed_from, sha256, metrics, self._write(seen, metrics))

    def _step(self, images_seen: int) -> Tensor:
        job = self._job
        index = torch.arange(images_seen, images_seen + job.batch_size)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(job.optimizer, images_seen + job.batch_size / 2, self._budget)
        pictures = self._data.pictures[self._data.shown(job.seed, index)]
        if job.flip:
            mirrored = randomness.uniform(job.seed, Purpose.FLIP, index) < 0.5
            pictures = torch.where(mirrored[:, None, None, None], pictures.flip(-1), pictures)
        x = layout.laid_out(pictures.to(self._device).float() / 127.5 - 1)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=job.precision == "bf16"):
            posterior = self._model.encode(x).latent_dist
            mean, std = posterior.mean.float(), posterior.std.float()
            noise = randomness.normal(job.seed, Purpose.POSTERIOR, index.to(self._device), tuple(mean.shape[1:]))
            decoded = self._model.decode(mean + std * noise).sample
        kl = 0.5 * (mean.square() + std.square() - 1 - 2 * std.log()).flatten(1).sum(dim=1).mean()
        loss: Tensor = (decoded.float() - x).abs().mean() + job.kl_weight * kl
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), job.grad_clip)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def _measure(self, seen: int, loss: float, rate: float) -> None:
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss} after {seen} images: lower optimizer.lr")
        self.writer.check()
        self._loss = loss
        lr = learning_rate(self._job.optimizer, seen, self._budget)
        self._tell(Point(images=seen, time=time.time(), values={"loss": loss, "lr": lr, "images_per_second": rate}))

    def _tell(self, point: Point) -> None:
        self._points.append(point)
        self._report(point)

    # --- checkpoints ---

    def _resume(self) -> int:
        folder = storage.join(self._folder, "checkpoints")
        checkpoint.sweep(folder)
        path = checkpoint.latest(folder)
        if path is None:
            return 0
        info, state = checkpoint.load(path, self._identity)
        self._model.load_state_dict(state["weights"])
        moments.restore(self._optimizer, self._named, state["optimizer"])
        for point in info.points:
            self._tell(point)
            self._loss = point.values.get("loss", self._loss)
        logger.info("resumed at %d images from %s", info.images_seen, path)
        return info.images_seen

    def _save(self, seen: int) -> None:
        info = CheckpointInfo(
            images_seen=seen,
            identity=self._identity,
            topology=self._topology,
            legs=(Leg(images=0, topology=self._topology),),
            libraries=finish.libraries(),
            points=tuple(self._points),
        )
        optimizer = moments.stored(self._optimizer, self._named)
        self.writer.save({"weights": dict(self._model.state_dict()), "optimizer": optimizer}, info)

    # --- the result ---

    @torch.no_grad()
    def _settle_scale(self) -> dict[str, float]:
        """Puts mean and deviation of the latents into the configuration, so that they are standardised from now on."""
        self._model.eval()
        count = errors = 0.0
        total = squares = torch.zeros((), dtype=torch.float64)
        rows = torch.arange(len(self._data))[:: -(-len(self._data) // _MEASURED)]
        for part in rows.split(32):
            x = self._data.pictures[part].to(self._device).float() / 127.5 - 1
            z = self._model.encode(x).latent_dist.mode()
            mse = (self._model.decode(z).sample.clamp(-1, 1) - x).square().flatten(1).mean(dim=1) / 4
            errors += float((-10 * mse.clamp(min=1e-10).log10()).sum())
            total = total + z.double().sum().cpu()
            squares = squares + z.double().square().sum().cpu()
            count += z.numel()
        mean = float(total) / count
        deviation = math.sqrt(max(float(squares) / count - mean**2, 1e-12))
        self._model.register_to_config(shift_factor=mean, scaling_factor=1 / deviation)
        size = 3 * self._job.factor**2 / self._job.latent_channels
        return {"loss": self._loss, "psnr": errors / len(rows), "factor": size}

    def _write(self, seen: int, metrics: dict[str, float]) -> str:
        trained_on = self._data.roster.info
        info = AutoencoderInfo(
            name=self._job.name,
            manifest_id=trained_on.manifest_id,
            manifest_uri=trained_on.manifest_uri,
            training_set_digest=trained_on.digest,
            training_rows=len(self._data),
            ledger_uri=trained_on.ledger_uri,
            takedown_ledger_version=trained_on.ledger_version,
            images_seen=seen,
            job=self._job.public(),
            metrics=metrics,
            run_id=self._run_id,
        )
        target = storage.join(self._folder, "bundle")
        with tempfile.TemporaryDirectory() as scratch:
            made = Path(scratch) / "bundle"
            self._model.to(memory_format=torch.contiguous_format).save_pretrained(made, safe_serialization=True)
            (made / latents.ROSTER_FILE).write_bytes(self._data.roster.to_parquet())
            (made / "comparison.png").write_bytes(self._compare(made))
            (made / latents.INFO_FILE).write_text(info.model_dump_json(indent=2), encoding="utf-8")
            if not storage.is_remote(target):
                shutil.rmtree(storage.filesystem(target)[1], ignore_errors=True)
            upload(made, target, last=latents.INFO_FILE)
        return target

    def _compare(self, folder: Path) -> bytes:
        """A PNG: pictures above, what comes out of the autoencoder for each below."""
        space = LatentSpace(folder, device=self._device)
        rows = torch.arange(len(self._data))[:: max(1, len(self._data) // _SHOWN)][:_SHOWN]
        pictures = self._data.pictures[rows]
        above = pictures.permute(0, 2, 3, 1).numpy()
        below = space.decode(space.encode(pictures))
        buffer = io.BytesIO()
        image = np.concatenate([np.concatenate(list(line), axis=1) for line in (above, below)])
        Image.fromarray(image).save(buffer, "PNG")
        return buffer.getvalue()
