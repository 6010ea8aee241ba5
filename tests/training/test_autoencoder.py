"""An autoencoder trained here, and diffusion in its latents, to a bundle that draws."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from curation.errors import UserError
from curation.manifest import Manifest
from pipelines import autoencoder, train
from training import autoencoding, dependencies, latents
from training.autoencoder_job import AutoencoderJob
from training.autoencoder_loop import train as train_autoencoder
from training.bundle import load_bundle
from training.data import TrainingSet
from training.job import TrainJob
from training.latents import LatentSpace
from training.launch import launch
from training.prepare import prepare
from training.progress import Point
from training.sampling import SamplingParams, sample

MakeJob = Callable[..., TrainJob]


def job_of(manifest: Manifest, output: Path, **changes: Any) -> AutoencoderJob:
    told = {"manifest": manifest.uri, "output": str(output), "images": 64, "batch_size": 8, "checkpoint_every": 16}
    return AutoencoderJob.model_validate({**told, "precision": "fp32", "optimizer": {"warmup_images": 0}, **changes})


@pytest.fixture(scope="module")
def made(manifest: Manifest, data: TrainingSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("autoencoder")
    job = job_of(manifest, folder, images=400)
    return Path(train_autoencoder(job, folder=str(folder), data=data).bundle)


def test_it_learns_and_its_latents_are_standardised(made: Path, data: TrainingSet) -> None:
    info = latents.info_of(made)
    assert info is not None
    space = LatentSpace(made)
    z = space.encode(data.pictures)
    assert z.shape == (len(data), 4, 2, 2)
    assert (space.channels, space.factor) == latents.geometry(made) == (4, 4)
    assert float(z.mean()) == pytest.approx(0, abs=1e-3)
    assert float(z.std(correction=0)) == pytest.approx(1, abs=1e-3)
    again = space.decode(z)
    plain = data.pictures.permute(0, 2, 3, 1).numpy()
    error, blank = (np.abs(x.astype(float) - plain).mean() for x in (again, np.full_like(plain, plain.mean())))
    assert error < 0.5 * blank
    assert info.metrics["psnr"] > 10


def test_patches_of_latents_decode_to_the_same(made: Path, data: TrainingSet) -> None:
    plain, patched = LatentSpace(made), LatentSpace(made, patch_size=2)
    assert patched.encode(data.pictures).shape == (len(data), 16, 1, 1)
    assert np.array_equal(plain.decode(plain.encode(data.pictures)), patched.decode(patched.encode(data.pictures)))


def test_an_interrupted_run_ends_in_the_same_bits(manifest: Manifest, data: TrainingSet, tmp_path: Path) -> None:
    def stop(point: Point) -> None:
        if point.images >= 40:
            raise KeyboardInterrupt

    job = job_of(manifest, tmp_path)
    straight = train_autoencoder(job, folder=str(tmp_path / "straight"), data=data)
    with pytest.raises(KeyboardInterrupt):
        train_autoencoder(job, folder=str(tmp_path / "killed"), data=data, report=stop)
    resumed = train_autoencoder(job, folder=str(tmp_path / "killed"), data=data)
    assert resumed.resumed_from in (16, 32)
    assert resumed.state_sha256 == straight.state_sha256


def test_from_manifest_to_a_latent_model_that_draws(
    manifest: Manifest, make_job: MakeJob, tower: Path, tracking_uri: str, tmp_path: Path
) -> None:
    tracking = {"uri": tracking_uri, "experiment": "latents"}
    first = autoencoding.launch(job_of(manifest, tmp_path / "ae", images=32, tracking=tracking))
    assert autoencoder.summary(first)
    assert autoencoding.launch(job_of(manifest, tmp_path / "ae", images=32, tracking=tracking)) == first
    job = make_job(
        autoencoder={"path": first.bundle}, workers=0, images=16, tracking=tracking,
        network={"block_out_channels": (32,), "layers_per_block": 1, "attention_heads": 2},
    )  # fmt: skip
    assert job.patch_size == 1
    planned = train.plan(job)
    assert planned["memory_mib"]["total"] > 0
    result = launch(job, text_encoder=str(tower))
    model = load_bundle(result.bundle)
    assert isinstance(model.space, LatentSpace)
    params = SamplingParams(steps=2)
    pictures = sample(model, ["a red circle"] * 2, [1, 1], params)
    assert pictures.shape == (2, 8, 8, 3)
    assert (pictures[0] == pictures[1]).all()
    assert model.self_test()
    (made_from,) = model.info.depends_on
    assert (made_from.kind, made_from.training_set_digest) == ("autoencoder", first.training_set_digest)
    kept = Path(prepare(job).folder) / dependencies.FOLDER / dependencies.file_of(made_from.sha256)
    assert kept.is_file()
    assert launch(job, text_encoder=str(tower)) == result


def test_another_autoencoder_is_another_run(made: Path, make_job: MakeJob, tmp_path: Path) -> None:
    job = make_job(autoencoder={"path": str(made)})
    other = tmp_path / "other"
    LatentSpace(made).save(other)
    weights = latents.WEIGHTS_FILE
    assert prepare(make_job(autoencoder={"path": str(other)})).folder == prepare(job).folder  # wherever it lies
    (other / weights).write_bytes((other / weights).read_bytes() + b" ")
    assert prepare(make_job(autoencoder={"path": str(other)})).folder != prepare(job).folder
    wanted = latents.digest(made)
    word = {"by": "Jane", "ground": "its data card", "date": "2026-01-02"}
    with pytest.raises(UserError, match="says itself on what") as needless:
        prepare(make_job(autoencoder={"path": str(made), "statement": word}))
    assert needless.value.field == "autoencoder.statement"
    with pytest.raises(UserError, match="another one"):
        prepare(make_job(autoencoder={"path": str(other), "sha256": wanted}))


@pytest.mark.parametrize("name", ["AutoencoderTiny", "AutoencoderDC"])
def test_other_kinds_of_diffusers_fit(name: str, tmp_path: Path, data: TrainingSet) -> None:
    import diffusers

    torch.manual_seed(0)
    small: dict[str, dict[str, Any]] = {
        "AutoencoderTiny": {
            "encoder_block_out_channels": (16, 16), "decoder_block_out_channels": (16, 16),
            "num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1), "latent_channels": 4,
        },
        "AutoencoderDC": {
            "encoder_block_out_channels": (16, 32), "decoder_block_out_channels": (16, 32), "latent_channels": 8,
            "encoder_layers_per_block": (1, 1), "decoder_layers_per_block": (1, 1),
            "encoder_block_types": "ResBlock", "decoder_block_types": "ResBlock",
            "encoder_qkv_multiscales": ((), ()), "decoder_qkv_multiscales": ((), ()),
        },
    }  # fmt: skip
    getattr(diffusers, name)(**small[name]).save_pretrained(tmp_path)
    space = LatentSpace(tmp_path)
    assert space.encode(data.pictures).shape == (len(data), space.channels, 4, 4)
    assert space.decode(space.encode(data.pictures)).shape == (len(data), 8, 8, 3)
    assert latents.dependency(tmp_path).training_set_digest is None


def test_what_is_no_autoencoder_is_named(tmp_path: Path, make_job: MakeJob) -> None:
    (tmp_path / latents.CONFIG_FILE).write_text('{"_class_name": "UNet2DModel"}')
    (tmp_path / latents.WEIGHTS_FILE).write_bytes(b"")
    for path in (str(tmp_path), str(tmp_path / "absent"), "nobody/nothing"):
        with pytest.raises(UserError) as caught:
            train.plan(make_job(autoencoder={"path": path}))
        assert caught.value.field == "autoencoder.path"
