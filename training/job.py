"""The train job: everything a user says about how a manifest becomes a model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

from curation.manifest import Name
from curation.observability import RunObservability
from training import pairs
from training.conditioning import ConditioningConfig
from training.data_config import DataConfig, MemoryData
from training.evaluation_config import EvaluationConfig, refuse_best
from training.latents import AutoencoderConfig
from training.network import NetworkConfig
from training.schedules import CosineSchedule, ScheduleConfig
from training.timesteps import TimestepConfig, UniformTimesteps
from training.unet import UnetConfig
from training.video import VideoUnetConfig


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LossConfig(_Config):
    """Mean squared error of the prediction, with one weighting or none."""

    min_snr_gamma: float | None = Field(
        None, gt=0, description="min-SNR weighting (Hang et al. 2023), 5 is usual; null: unweighted"
    )
    soft_min_snr_gamma: float | None = Field(
        None, gt=0, description="the same without a kink (Crowson et al. 2024), 4 is usual; null: unweighted"
    )

    @property
    def weightings(self) -> tuple[str, ...]:
        """Names of the fields that ask for one."""
        return tuple(self.model_dump(exclude_none=True))


class OptimizerConfig(_Config):
    """AdamW. The learning rate is a function of the images seen, so neither batch size nor workers stretch it."""

    lr: float = Field(2e-3, gt=0, le=1, description="peak learning rate")
    betas: tuple[float, float] = Field((0.9, 0.99), description="decay of the two running moments")
    weight_decay: float = Field(0.01, ge=0, le=1, description="decoupled weight decay")
    warmup_images: int = Field(1000, ge=0, description="images over which the learning rate rises from 0")
    decay: Literal["cosine", "constant"] = Field("cosine", description="cosine falls to 0 at the end of the budget")

    @field_validator("betas")
    @classmethod
    def _betas_below_one(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError("both must be at least 0 and below 1")
        return betas


class EmaConfig(_Config):
    """The moving average of the weights, which is what the bundle holds."""

    decay: float = Field(0.995, ge=0, lt=1, description="how much of the average is kept at each step")
    warmup: bool = Field(True, description="begin with a short memory: decay is at most (1 + step) / (10 + step)")
    profiles: tuple[Annotated[float, Field(ge=0.01, le=0.25)], ...] = Field(
        (),
        description="lengths, as shares of the run, of averages that are stored beside it, e.g. [0.05, 0.1]: from two "
        "of them an average of any length near theirs can be made afterwards (Karras et al. 2024)",
    )
    snapshots: int = Field(16, ge=1, le=1000, description="times in the run at which the profiles are stored")

    @field_validator("profiles")
    @classmethod
    def _profiles_differ(cls, profiles: tuple[float, ...]) -> tuple[float, ...]:
        if len({f"{profile:g}" for profile in profiles}) < len(profiles):
            raise ValueError("two are the same")
        return profiles


class ElasticWorkers(_Config):
    """As many workers as there is room for; the run goes on at another number from its newest checkpoint."""

    min: int = Field(1, ge=1, le=4096, description="fewest workers to train with; with fewer the run waits")
    max: int = Field(ge=1, le=4096, description="most workers")
    check_seconds: float = Field(60, gt=0, description="seconds between two looks whether more would fit")

    @model_validator(mode="after")
    def _in_order(self) -> ElasticWorkers:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")
        return self


class SampleConfig(_Config):
    """Grids of pictures drawn while training, and how the finished model is drawn with by default."""

    prompts: tuple[str, ...] = Field((), max_length=64, description="one column each; none: eight training captions")
    every: int | None = Field(None, ge=1, description="images between two grids; null: one grid, at the end")
    steps: int = Field(20, ge=1, le=1000, description="solver steps")
    guidance_scale: float = Field(2.5, ge=0, le=50, description="classifier-free guidance")
    sampler: Literal["ddim", "pndm", "dpmsolver++", "ddpm", "euler", "heun"] = Field(
        "ddim", description="the solver; euler and heun are those of flow, euler unless said"
    )


class TrackingConfig(_Config):
    """Where MLflow keeps the run."""

    uri: str | None = Field(
        None, description="tracking server; null: $MLFLOW_TRACKING_URI, else sqlite:///runs/mlflow.db"
    )
    experiment: str = Field("cleanplate", min_length=1, description="MLflow experiment")


class TrainJob(_Config):
    """`kind: train`: a manifest in, a bundle out. The defaults are a recipe for recognisable pictures on a CPU."""

    kind: Literal["train"] = "train"
    name: Name = Field("model", description="a short name; it begins the run's folder")
    manifest: str = Field(description="a manifest's folder, or a folder of manifests (its newest); local or s3://")
    output: str = Field(description="folder or s3:// prefix for run folders, e.g. runs/drawings/training")
    ledger: str | None = Field(
        None,
        description="takedown ledger that is asked beside the manifest's own; null: the manifest's, else "
        "$CLEANPLATE_LEDGER",
    )
    consent_max_age_days: float | None = Field(
        30, gt=0, description="how old the manifest's rights evidence may be; null: any age"
    )
    data: DataConfig = Field(MemoryData(), description="where pictures are read from while training")
    image_size: int | None = Field(
        None, ge=8, le=1024, description="side of the pictures; null: as in the manifest, and nothing else is accepted"
    )
    autoencoder: AutoencoderConfig | None = Field(
        None, description="whose latents are denoised; null: pixels are, as patches"
    )
    patch_size: int = Field(
        2,
        ge=1,
        le=16,
        description="space-to-depth factor of the stem: 2 at 32 pixels, 4 at 64; of latents 1 unless said",
    )
    network: NetworkConfig = Field(UnetConfig(), description="a U-Net, a diffusion transformer, or a U-Net of films")
    conditioning: ConditioningConfig = Field(
        ConditioningConfig(), description="what the network is told: captions, classes, both or nothing"
    )
    schedule: ScheduleConfig = Field(CosineSchedule(), description="how noise is added")
    prediction: Literal["epsilon", "v_prediction", "sample", "flow"] = Field(
        "v_prediction",
        description="what the network predicts; at small budgets v learns colours and captions far sooner than "
        "epsilon. flow is rectified flow: with it, schedule, timestep_sampling and the sampler have other defaults",
    )
    timestep_sampling: TimestepConfig = Field(
        UniformTimesteps(), description="how often each noise level is trained; flow: logit_normal unless said"
    )
    loss: LossConfig = Field(LossConfig(), description="the objective's weighting")
    caption_mix: dict[str, float] | None = Field(
        None,
        min_length=1,
        description="captioner: how often its caption is drawn, relative to the others that an image has; null: the "
        "manifest's chosen caption, which also stands in where an image has none of these",
    )
    caption_dropout: float = Field(0.1, ge=0, le=1, description="share of samples trained without their caption")
    conditioning_images: int = Field(
        4096, ge=1, description="samples, the first ones, over whose captions the conditioning is standardised"
    )
    flip: bool = Field(False, description="mirror half of the samples; wrong for letters, arrows and flags")
    optimizer: OptimizerConfig = Field(OptimizerConfig(), description="AdamW and its learning rate")
    grad_clip: float = Field(1.0, gt=0, description="largest norm of the gradient of the global batch")
    ema: EmaConfig = Field(EmaConfig(), description="moving average of the weights")
    images: int = Field(40_000, ge=1, description="budget in images seen; rounded up to whole batches")
    batch_size: int = Field(32, ge=1, description="samples of one step over all workers together")
    accumulation: int = Field(
        1,
        ge=1,
        description="parts that a worker's share of a batch is computed in, to save memory; with fewer workers than "
        "the most, more parts of the same size",
    )
    precision: Literal["fp32", "bf16"] = Field("bf16", description="bf16 is autocast; weights and optimizer stay fp32")
    compile: bool = Field(
        False, description="torch.compile the network: a minute at the start, then faster steps on a GPU"
    )
    gradient_checkpointing: bool = Field(False, description="recompute activations: less memory, a third slower")
    checkpoint_every: int = Field(10_000, ge=1, description="images between two checkpoints")
    keep_checkpoints: int = Field(2, ge=1, description="newest checkpoints that are kept")
    keep_best_checkpoints: int = Field(0, ge=0, description="the best checkpoints that are kept beside the newest")
    best_by: str = Field(
        "loss",
        description="what makes a checkpoint the best: the mean loss since the one before, or a metric of `evaluation`",
    )
    bundle: Literal["last", "best"] = Field(
        "last", description="best: the best checkpoint that is kept is written as `bundle_best`, too"
    )
    milestones: int | None = Field(
        None, ge=1, description="images between checkpoints that are kept for ever; a retraining may start from one"
    )
    resume_from: str | None = Field(
        None,
        description="another run's checkpoint to start from, of the same configuration and base set, from before "
        "anything was seen that is left out now",
    )
    workers: Annotated[
        Annotated[int, Field(ge=0, le=4096), Tag("number")] | Annotated[ElasticWorkers, Tag("range")],
        Discriminator(lambda given: "range" if isinstance(given, Mapping | ElasticWorkers) else "number"),
    ] = Field(1, description="Ray Train workers, a number or {min, max}; 0 trains in this process without Ray")
    strategy: Literal["ddp", "fsdp"] = Field(
        "ddp",
        description="ddp: every worker holds the whole network; fsdp: each a share of its weights, gradients, moments "
        "and averages, for networks that do not fit one device",
    )
    gpus_per_worker: int = Field(0, ge=0, le=1, description="1 trains on GPUs with NCCL, 0 on CPUs with gloo")
    labels: dict[str, str] = Field({}, description="node labels that workers are placed by, as Ray's label_selector")
    max_failures: int = Field(
        1, ge=-1, description="worker failures that are retried from the last checkpoint; -1: all"
    )
    sample: SampleConfig = Field(SampleConfig(), description="grids, and the model's default way to be drawn with")
    evaluation: EvaluationConfig | None = Field(
        None, description="checkpoints are evaluated while training goes on; null: none is"
    )
    tracking: TrackingConfig = Field(TrackingConfig(), description="MLflow")
    observability: RunObservability = Field(RunObservability(), description="how the run is watched")
    seed: int = Field(0, ge=0, lt=2**63, description="of initial weights, order, timesteps, noise, dropout and flips")

    @field_validator("caption_mix")
    @classmethod
    def _weights_are_positive(cls, mix: dict[str, float] | None) -> dict[str, float] | None:
        if mix is not None and not all(0 < weight <= 1e6 for weight in mix.values()):
            raise ValueError("weights must be above 0 and at most a million")
        return mix

    @model_validator(mode="before")
    @classmethod
    def _says_kinds(cls, raw: Any) -> Any:
        """A network is a U-Net unless said; `unet` is what it was called when there was no other."""
        if not isinstance(raw, Mapping):
            return raw
        told = dict(raw)
        if "network" not in told and "unet" in told:
            told["network"] = told.pop("unet")
        if isinstance(told.get("network"), Mapping):
            told["network"] = {"kind": "unet", **told["network"]}
        if told.get("autoencoder") is not None:
            told.setdefault("patch_size", 1)
        return told

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_flow(cls, raw: Any) -> Any:
        """Written into the job, so that what is stored says it all."""
        if not isinstance(raw, Mapping) or raw.get("prediction") != "flow":
            return raw
        filled = dict(raw)
        for name, field, value in _FLOW:
            given = raw.get(name, {})
            filled[name] = {field: value, **given} if isinstance(given, Mapping) else given
        return filled

    @model_validator(mode="after")
    def _choices_go_together(self) -> TrainJob:
        pairs.refuse_objective(self.prediction, self.schedule, self.loss.weightings)
        pairs.refuse_sampler(self.sample.sampler, self.prediction, self.schedule.betas(), field="sample.sampler")
        refuse_best(self.best_by, self.keep_best_checkpoints, self.bundle, self.evaluation)
        return self

    @model_validator(mode="after")
    def _network_can(self) -> TrainJob:
        if isinstance(self.network, VideoUnetConfig) and self.gradient_checkpointing:
            raise ValueError("gradient_checkpointing: diffusers' UNet3DConditionModel cannot recompute activations")
        return self

    @model_validator(mode="after")
    def _batch_divides(self) -> TrainJob:
        parts = self.most_workers * self.accumulation
        if self.batch_size % parts:
            raise ValueError(
                f"batch_size {self.batch_size} does not divide by workers x accumulation = {parts}: "
                f"use batch_size {-(-self.batch_size // parts) * parts}"
            )
        return self

    @property
    def fewest_workers(self) -> int:
        """Workers that the run needs to go on; 0 without Ray."""
        return self.workers.min if isinstance(self.workers, ElasticWorkers) else self.workers

    @property
    def most_workers(self) -> int:
        """Processes that train at once, at most."""
        return self.workers.max if isinstance(self.workers, ElasticWorkers) else max(self.workers, 1)

    @property
    def is_sharded(self) -> bool:
        """Whether the network is split, at the most workers: one worker has nothing to split."""
        return self.strategy == "fsdp" and self.most_workers > 1

    @property
    def micro_batch(self) -> int:
        """Samples that a worker computes at once, at most, however many workers there are."""
        return self.batch_size // (self.most_workers * self.accumulation)

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole budget."""
        return -(-self.images // self.batch_size)

    @property
    def conditioning_window(self) -> int:
        """How many samples the conditioning is standardised over: the budget has fewer than it may ask for."""
        return min(self.conditioning_images, self.steps * self.batch_size)

    @property
    def held_out_share(self) -> float:
        """The share of the manifest that is not trained on."""
        return 0.0 if self.evaluation is None else self.evaluation.held_out_share

    def evaluates_at(self, images: int) -> bool:
        """Whether the checkpoint after so many images is to be evaluated."""
        if self.evaluation is None:
            return False
        every = self.evaluation.every
        due = every is not None and images // every > (images - self.batch_size) // every
        return due or images >= self.steps * self.batch_size

    def public(self) -> dict[str, Any]:
        """The job as it is put on record: without places, which say nothing elsewhere and can hold a password."""
        told = self.model_dump(mode="json", exclude=_PLACES | {"observability"})
        told["data"] = self.data.identity()
        if self.evaluation is not None and isinstance(self.evaluation.holdout, str):
            del told["evaluation"]["holdout"]
        if self.autoencoder is not None:
            del told["autoencoder"]["path"]
        return told

    def identity(self) -> dict[str, Any]:
        """What of the job the trained weights depend on: not paths, workers, how memory is saved or what is logged."""
        told = self.model_dump(mode="json", exclude=_NOT_IDENTITY)
        if self.caption_mix is None:
            del told["caption_mix"]  # a run begun before there was a mix is still the same run
        if self.autoencoder is not None:
            told["autoencoder"] = self.autoencoder.sha256
        if not self.conditioning.reads_classes:
            told["conditioning"]["classes"] = "dataset"  # not asked
        if told["network"].pop("kind") == "unet":
            told["unet"] = told.pop("network")
        else:
            told["network"]["kind"] = self.network.kind
        del told["ema"]["snapshots"]  # how often is stored what is there anyway
        told["data"] = self.data.identity()
        if self.held_out_share:
            told["holdout"] = self.held_out_share
        for name, default in _LATER.items():
            *above, last = name.split(".")
            place = told[above[0]] if above else told
            if place.get(last) == default:
                del place[last]
        return told

    def config_sha256(self, manifest_id: str) -> str:
        """The hash of `identity` and the manifest: with the same rows left out, equal hashes train the same model."""
        text = json.dumps([self.identity(), manifest_id], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


_FLOW = (("schedule", "kind", "flow"), ("timestep_sampling", "kind", "logit_normal"), ("sample", "sampler", "euler"))
# Fields that came later, with the value that means what there was before: a run begun then is still the same run.
_LATER: dict[str, Any] = {
    "timestep_sampling": UniformTimesteps().model_dump(mode="json"),
    "schedule.zero_terminal_snr": False,
    "loss.soft_min_snr_gamma": None,
    "ema.profiles": [],
    "conditioning": ConditioningConfig().model_dump(mode="json"),
    "autoencoder": None,
    "data": MemoryData().identity(),
}
_PLACES = {"manifest", "output", "tracking", "ledger", "resume_from"}
_NOT_IDENTITY = _PLACES | {
    "kind", "name", "consent_max_age_days", "accumulation", "compile", "gradient_checkpointing", "checkpoint_every",
    "keep_checkpoints", "keep_best_checkpoints", "best_by", "bundle", "evaluation", "milestones",
    "workers", "strategy", "gpus_per_worker", "labels", "max_failures", "observability",
    "sample",
}  # fmt: skip
