"""What a finished run leaves: the averaged network, and all that is to be known about it."""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch

from curation import storage
from training.bundle import CAPTION_CAP, INFO_FILE, BundleInfo, DiffusionModel, words_of, write_bundle
from training.conditioning import PromptEncoder
from training.data import TrainingSet
from training.folders import upload
from training.job import TrainJob
from training.latents import dependency, latent_space
from training.sampling import SamplingParams


def describe(
    job: TrainJob,
    data: TrainingSet,
    text: PromptEncoder,
    model: DiffusionModel,
    *,
    images_seen: int,
    state_sha256: str,
    metrics: Mapping[str, float],
) -> BundleInfo:
    """What the bundle of a run says about itself."""
    trained_on = data.roster.info
    mean, std = data.source.channel_stats()
    latent = latent_space(model.space)
    statement = None if job.autoencoder is None else job.autoencoder.statement
    return BundleInfo(
        name=job.name,
        manifest_id=trained_on.manifest_id,
        manifest_uri=trained_on.manifest_uri,
        training_set_digest=trained_on.digest,
        training_set_digest_kind="merkle",
        training_rows=len(data),
        base_rows=trained_on.base_rows,
        excluded_rows=trained_on.excluded_rows,
        held_out_rows=trained_on.held_out_rows,
        ledger_uri=trained_on.ledger_uri,
        takedown_ledger_version=trained_on.ledger_version,
        licences=data.licences,
        config_sha256=job.config_sha256(trained_on.manifest_id),
        job=job.public(),
        images_seen=images_seen,
        state_sha256=state_sha256,
        metrics=dict(metrics),
        image_size=data.image_size,
        patch_size=job.patch_size,
        sizes=trained_on.shapes,
        frames=data.frames,
        prediction=job.prediction,
        channel_mean=mean,
        channel_std=std,
        text_encoder=text.name,
        captions=[caption for caption in data.texts if caption][:CAPTION_CAP],
        words=words_of(data.texts),
        sampling=sampling_of(job),
        depends_on=() if latent is None else (dependency(latent.folder, statement),),
        parameters=sum(p.numel() for p in model.unet.parameters()),
        libraries=libraries(),
    )


def write(target: str, model: DiffusionModel, info: BundleInfo) -> str:
    """Writes a bundle into a folder, local or S3, and returns the folder."""
    if not storage.is_remote(target):
        write_bundle(storage.filesystem(target)[1], model, info)
        return target
    with tempfile.TemporaryDirectory() as scratch:
        write_bundle(Path(scratch) / "bundle", model, info)
        upload(Path(scratch) / "bundle", target, last=INFO_FILE)
    return target


def sampling_of(job: TrainJob) -> SamplingParams:
    """How the model is drawn with by default."""
    config = job.sample
    return SamplingParams(steps=config.steps, guidance_scale=config.guidance_scale, sampler=config.sampler)


def libraries() -> dict[str, str]:
    """The versions that the bits of a run depend on."""
    import diffusers

    return {"python": platform.python_version(), "torch": torch.__version__, "diffusers": diffusers.__version__}
