"""The autoencoder job: everything a user says about how a manifest becomes an autoencoder."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from curation.manifest import Name
from training.job import OptimizerConfig, TrackingConfig


class AutoencoderShape(BaseModel):
    """Channels of each resolution, highest first, and residual blocks at each."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    block_out_channels: tuple[int, ...]
    layers_per_block: int


# the last one has the widths and depths of Stable Diffusion's (Rombach et al. 2022, arXiv 2112.10752)
PRESETS: dict[str, AutoencoderShape] = {
    "tiny": AutoencoderShape(block_out_channels=(32, 64, 64), layers_per_block=1),
    "small": AutoencoderShape(block_out_channels=(64, 128, 128, 128), layers_per_block=1),
    "sd": AutoencoderShape(block_out_channels=(128, 256, 512, 512), layers_per_block=2),
}


class AutoencoderJob(BaseModel):
    """`kind: autoencoder`: a manifest in, an autoencoder in diffusers' layout out."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["autoencoder"] = "autoencoder"
    name: Name = Field("autoencoder", description="a short name; it begins the run's folder")
    manifest: str = Field(description="a manifest's folder, or a folder of manifests (its newest); local or s3://")
    output: str = Field(description="folder or s3:// prefix for run folders, e.g. runs/drawings/autoencoders")
    ledger: str | None = Field(
        None,
        description="takedown ledger that is asked beside the manifest's own; null: the manifest's, else "
        "$CLEANPLATE_LEDGER",
    )
    consent_max_age_days: float | None = Field(
        30, gt=0, description="how old the manifest's rights evidence may be; null: any age"
    )
    preset: Literal["tiny", "small", "sd"] = Field(
        "tiny", description="pixels of a side that a latent stands for, and parameters in millions: 4 and 0.8, 8 and "
        "4.5, 8 and 84"
    )  # fmt: skip
    latent_channels: int = Field(4, ge=1, le=64, description="channels of a latent")
    kl_weight: float = Field(1e-6, ge=0, le=1, description="pull of the latents towards a standard normal")
    optimizer: OptimizerConfig = Field(
        OptimizerConfig(lr=1e-3, betas=(0.9, 0.99), weight_decay=0.0), description="AdamW and its learning rate"
    )
    grad_clip: float = Field(1.0, gt=0, description="largest norm of the gradient of a batch")
    flip: bool = Field(True, description="mirror half of the samples")
    images: int = Field(20_000, ge=1, description="budget in images seen; rounded up to whole batches")
    batch_size: int = Field(32, ge=1, description="samples of one step")
    precision: Literal["fp32", "bf16"] = Field("bf16", description="bf16 is autocast; weights and optimizer stay fp32")
    checkpoint_every: int = Field(10_000, ge=1, description="images between two checkpoints")
    workers: int = Field(0, ge=0, le=1, description="1 trains in a Ray task; 0 in this process, without Ray")
    gpus_per_worker: int = Field(
        0, ge=0, le=1, description="of the Ray task; without Ray a GPU is used if there is one"
    )
    max_failures: int = Field(
        1, ge=-1, description="deaths of the Ray task's process that it goes on after; -1: all"
    )  # fmt: skip
    tracking: TrackingConfig = Field(TrackingConfig(), description="MLflow")
    seed: int = Field(0, ge=0, lt=2**63, description="of initial weights, order, latents and flips")

    @model_validator(mode="before")
    @classmethod
    def _keeps_the_rates(cls, raw: Any) -> Any:
        """What is not said of the optimizer is this job's default, not the train job's."""
        if isinstance(raw, dict) and isinstance(raw.get("optimizer"), dict):
            return {**raw, "optimizer": {"lr": 1e-3, "weight_decay": 0.0, **raw["optimizer"]}}
        return raw

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole budget."""
        return -(-self.images // self.batch_size)

    @property
    def factor(self) -> int:
        """Pixels of a side that a latent stands for."""
        return 1 << (len(PRESETS[self.preset].block_out_channels) - 1)

    def public(self) -> dict[str, Any]:
        """The job as it is put on record: without places, which say nothing elsewhere and can hold a password."""
        return self.model_dump(mode="json", exclude=_PLACES)

    def identity(self) -> dict[str, Any]:
        """What of the job the trained weights depend on."""
        return self.model_dump(mode="json", exclude=_NOT_IDENTITY)

    def config_sha256(self, manifest_id: str) -> str:
        """The hash of `identity` and the manifest."""
        return hashlib.sha256(json.dumps([self.identity(), manifest_id], sort_keys=True).encode()).hexdigest()


_PLACES = {"manifest", "output", "tracking", "ledger"}
_NOT_IDENTITY = _PLACES | {
    "name", "consent_max_age_days", "checkpoint_every", "workers", "gpus_per_worker", "max_failures",
}  # fmt: skip
