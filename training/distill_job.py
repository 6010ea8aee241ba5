"""The distill job: everything a user says about how a model becomes one that draws in few steps."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from curation.manifest import Name
from training.job import TrackingConfig


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ProgressiveConfig(_Config):
    """Halve the steps again and again (Salimans & Ho 2022, arXiv 2202.00512)."""

    kind: Literal["progressive"] = "progressive"
    teacher_steps: int = Field(
        32,
        ge=2,
        le=1024,
        description="steps that the first halving starts from: the fewest that the teacher draws well in, as each "
        "halving adds errors of its own",
    )
    images_per_stage: int = Field(16_000, ge=1, description="budget of each halving; rounded up to whole batches")
    most_weight: float | None = Field(
        None, ge=1, description="largest weight of an error, which is its level's SNR; null: any"
    )


class ConsistencyConfig(_Config):
    """Answer the same picture anywhere on the teacher's way (Luo et al. 2023, arXiv 2310.04378)."""

    kind: Literal["consistency"] = "consistency"
    solver_steps: int = Field(
        48, ge=2, le=1000, description="levels that the teacher's solver steps between; a multiple of `steps`"
    )
    images: int = Field(48_000, ge=1, description="budget in images seen; rounded up to whole batches")
    ema_decay: float = Field(0.95, ge=0, lt=1, description="of the moving average that sets the target")
    huber_c: float = Field(0.001, gt=0, description="where the loss turns from squared to absolute")


MethodConfig = Annotated[ProgressiveConfig | ConsistencyConfig, Field(discriminator="kind")]


class StudentOptimizerConfig(_Config):
    """AdamW; its learning rate falls in a line to 0, in each halving anew."""

    lr: float = Field(5e-4, gt=0, le=1, description="learning rate that a stage begins with")
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        (0.9, 0.99), description="decay of the two running moments"
    )
    weight_decay: float = Field(0.0, ge=0, le=1, description="decoupled weight decay")


class DistillJob(_Config):
    """`kind: distill`: a model and its training set in, a bundle of a few-step student out."""

    kind: Literal["distill"] = "distill"
    name: Name = Field("student", description="a short name; it begins the run's folder")
    teacher: str = Field(description="models:/NAME@alias, models:/NAME/3, NAME, or a bundle's folder")
    manifest: str | None = Field(
        None, description="a manifest's folder, or a folder of manifests; null: the one that the teacher was trained on"
    )
    output: str = Field(description="folder or s3:// prefix for run folders, e.g. runs/drawings/students")
    ledger: str | None = Field(
        None,
        description="takedown ledger that is asked beside the manifest's own; null: the manifest's, else "
        "$CLEANPLATE_LEDGER",
    )
    consent_max_age_days: float | None = Field(
        30, gt=0, description="how old the manifest's rights evidence may be; null: any age"
    )
    method: MethodConfig = Field(ProgressiveConfig(), description="how the student learns")
    steps: int = Field(4, ge=1, le=256, description="steps that the student draws in, one evaluation each")
    guidance_scale: float | None = Field(
        None, ge=0, le=50, description="guidance that the student takes over; null: the teacher's own default"
    )
    caption_dropout: float = Field(0.05, ge=0, le=1, description="share of samples distilled without their caption")
    optimizer: StudentOptimizerConfig = Field(StudentOptimizerConfig(), description="AdamW and its learning rate")
    grad_clip: float = Field(1.0, gt=0, description="largest norm of the gradient of a batch")
    batch_size: int = Field(32, ge=1, description="samples of one step over all workers together")
    accumulation: int = Field(
        1, ge=1, description="parts that a worker's share of a batch is computed in, to save memory"
    )
    precision: Literal["fp32", "bf16"] = Field("bf16", description="bf16 is autocast; weights and optimizer stay fp32")
    checkpoint_every: int = Field(10_000, ge=1, description="images between two checkpoints")
    keep_checkpoints: int = Field(2, ge=1, description="newest checkpoints that are kept")
    compile: bool = Field(
        False, description="torch.compile the networks: minutes at the start, then faster steps on a GPU"
    )
    gradient_checkpointing: bool = Field(False, description="recompute activations: less memory, slower")
    workers: int = Field(0, ge=0, le=4096, description="Ray Train workers; 0 distils in this process, without Ray")
    gpus_per_worker: int = Field(
        0,
        ge=0,
        le=1,
        description="1 distils on GPUs with NCCL, 0 on CPUs with gloo; without Ray a GPU is used if there is one",
    )
    max_failures: int = Field(
        1, ge=-1, description="worker failures that are retried from the last checkpoint; -1: all"
    )
    prompts: tuple[str, ...] = Field((), max_length=64, description="of the grids; none: eight training captions")
    tracking: TrackingConfig = Field(TrackingConfig(), description="MLflow")
    seed: int = Field(0, ge=0, lt=2**63, description="of order, levels, noise, captions and flips")

    @model_validator(mode="after")
    def _fits(self) -> DistillJob:
        method = self.method
        if isinstance(method, ProgressiveConfig):
            ratio, rest = divmod(method.teacher_steps, self.steps)
            if rest or ratio < 2 or ratio & (ratio - 1):
                raise ValueError(
                    f"method.teacher_steps {method.teacher_steps} halved does not come to steps {self.steps}: "
                    f"use {self.steps * 8}"
                )
        elif method.solver_steps % self.steps or method.solver_steps == self.steps:
            raise ValueError(
                f"method.solver_steps {method.solver_steps} is no multiple of steps {self.steps}: use {self.steps * 12}"
            )
        parts = max(self.workers, 1) * self.accumulation
        if self.batch_size % parts:
            raise ValueError(
                f"batch_size {self.batch_size} does not divide by workers x accumulation = {parts}: "
                f"use batch_size {-(-self.batch_size // parts) * parts}"
            )
        return self

    @property
    def stages(self) -> int:
        """How often a teacher is replaced by what it taught."""
        if isinstance(self.method, ConsistencyConfig):
            return 1
        return (self.method.teacher_steps // self.steps).bit_length() - 1

    @property
    def stage_images(self) -> int:
        """Images of one stage, in whole batches."""
        wanted = self.method.images_per_stage if isinstance(self.method, ProgressiveConfig) else self.method.images
        return -(-wanted // self.batch_size) * self.batch_size

    @property
    def budget(self) -> int:
        """Images of all stages."""
        return self.stages * self.stage_images

    def student_steps(self, stage: int) -> int:
        """Steps of the student that a stage makes."""
        return self.steps << (self.stages - 1 - stage)

    def public(self) -> dict[str, Any]:
        """The job as it is put on record: without places, which say nothing elsewhere and can hold a password."""
        return self.model_dump(mode="json", exclude=_PLACES)

    def identity(self, teacher: str) -> dict[str, Any]:
        """What of the job the student's weights depend on, and its teacher's digest."""
        told = self.model_dump(mode="json", exclude=_NOT_IDENTITY)
        if told["method"].get("most_weight") is None:
            told["method"].pop("most_weight", None)  # a run begun before there was one is still the same run
        return {**told, "teacher": teacher}

    def config_sha256(self, teacher: str, manifest_id: str) -> str:
        """The hash of `identity` and the manifest: equal ones, of the same rows, make the same student."""
        return hashlib.sha256(json.dumps([self.identity(teacher), manifest_id], sort_keys=True).encode()).hexdigest()


_PLACES = {"teacher", "manifest", "output", "tracking", "ledger"}
_NOT_IDENTITY = _PLACES | {
    "kind", "name", "consent_max_age_days", "accumulation", "checkpoint_every", "keep_checkpoints", "compile",
    "gradient_checkpointing", "workers", "gpus_per_worker", "max_failures", "prompts",
}  # fmt: skip
