"""The bundle: loads again, loads without our code, and says so when it is damaged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from curation.errors import UserError
from training.bundle import BundleInfo, DiffusionModel, load_bundle, read_info, write_bundle
from training.card import model_card
from training.network import build
from training.randomness import Purpose, normal
from training.sampling import SamplingParams, sample
from training.schedules import FlowPath, ScaledLinearSchedule, SigmoidSchedule
from training.space import PatchSpace
from training.text import TextEncoder
from training.unet import UnetConfig


@pytest.fixture(scope="module")
def model(tower: Path) -> DiffusionModel:
    torch.manual_seed(1)
    text = TextEncoder(tower)
    shape = UnetConfig(block_out_channels=(32, 32), layers_per_block=1, attention_heads=2)
    unet = build(shape, channels=3, side=8, width=text.width).eval()
    return DiffusionModel(
        unet=unet, text=text, betas=SigmoidSchedule().betas(), prediction="sample", image_size=8, patch_size=1
    )


def describe() -> BundleInfo:
    return BundleInfo(
        name="tiny", manifest_id="m" * 64, training_set_digest="d" * 64, training_rows=8, licences={"CC0-1.0": 8},
        config_sha256="c" * 64, job={"kind": "train"}, images_seen=64, state_sha256="s" * 64, metrics={"loss": 0.5},
        image_size=8, patch_size=1, prediction="sample", channel_mean=(0, 0, 0), channel_std=(1, 1, 1),
        text_encoder="test", captions=["a red circle"], sampling=SamplingParams(steps=5), parameters=1, libraries={},
    )  # fmt: skip


@pytest.fixture(scope="module")
def bundle(model: DiffusionModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "bundle"
    write_bundle(folder, model, describe())
    return folder


def test_a_loaded_bundle_draws_the_same_bytes(model: DiffusionModel, bundle: Path) -> None:
    loaded = load_bundle(bundle)
    assert loaded.info.manifest_id == "m" * 64
    assert (loaded.image_size, loaded.patch_size, loaded.prediction) == (8, 1, "sample")
    np.testing.assert_array_equal(loaded.betas, model.betas)
    params = SamplingParams(steps=3)
    assert (sample(loaded, ["a red circle"], [7], params) == sample(model, ["a red circle"], [7], params)).all()
    assert loaded.self_test()


def test_diffusers_alone_loads_it(model: DiffusionModel, bundle: Path) -> None:
    from diffusers import DDIMScheduler, UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(bundle, subfolder="unet")
    for (name, ours), theirs in zip(model.unet.state_dict().items(), unet.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name
    scheduler = DDIMScheduler.from_pretrained(bundle, subfolder="scheduler")
    assert scheduler.config.prediction_type == "sample"
    assert len(scheduler.betas) == 1000


def test_a_flow_makes_the_round_trip_and_diffusers_draws_with_it(model: DiffusionModel, tmp_path: Path) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler, UNet2DConditionModel

    flow = DiffusionModel(
        unet=model.unet, text=model.text, betas=FlowPath(timesteps=500).betas(), prediction="flow", image_size=8,
        patch_size=1,
    )  # fmt: skip
    params = SamplingParams(steps=5, sampler="euler", guidance_scale=1.0)
    write_bundle(tmp_path / "flow", flow, describe().model_copy(update={"prediction": "flow", "sampling": params}))
    loaded = load_bundle(tmp_path / "flow")
    np.testing.assert_array_equal(loaded.betas, flow.betas)
    ours = sample(loaded, ["a red circle"], [7], params)
    assert (ours == sample(flow, ["a red circle"], [7], params)).all()
    assert loaded.self_test()

    unet = UNet2DConditionModel.from_pretrained(tmp_path / "flow", subfolder="unet")
    assert "FlowMatchEulerDiscreteScheduler" in (tmp_path / "flow" / "README.md").read_text()
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(tmp_path / "flow", subfolder="scheduler")
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 5, 5).tolist())
    told = loaded.text.encode(["a red circle"])
    x = normal(0, Purpose.SAMPLE_NOISE, torch.tensor([7]), (3, 8, 8))
    with torch.inference_mode():
        for t in scheduler.timesteps:
            v = unet(x, t, told.states, class_labels=told.pooled, encoder_attention_mask=told.mask).sample
            x0 = (x - t / 500 * v).clamp(-1, 1)  # as our samplers clip
            x = scheduler.step((x - x0) / (t / 500), t, x).prev_sample
    assert np.abs(PatchSpace(1).decode(x).astype(int) - ours).max() <= 1


def test_zero_terminal_snr_makes_the_round_trip(model: DiffusionModel, tmp_path: Path) -> None:
    from diffusers import DDIMScheduler

    betas = ScaledLinearSchedule(zero_terminal_snr=True).betas()
    zero = DiffusionModel(
        unet=model.unet, text=model.text, betas=betas, prediction="v_prediction", image_size=8, patch_size=1
    )
    write_bundle(tmp_path / "zero", zero, describe().model_copy(update={"prediction": "v_prediction"}))
    loaded = load_bundle(tmp_path / "zero")
    np.testing.assert_array_equal(loaded.betas, betas)
    scheduler = DDIMScheduler.from_pretrained(tmp_path / "zero", subfolder="scheduler")
    assert scheduler.config.timestep_spacing == "trailing"
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == [999, 749, 499, 249]
    assert float(scheduler.alphas_cumprod[-1]) == 0
    x = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    step = scheduler.step(torch.zeros_like(x), 999, x)  # v = 0 at pure noise is a clean picture of zeros
    assert torch.equal(step.pred_original_sample, torch.zeros_like(x))
    assert torch.isfinite(step.prev_sample).all()


def test_no_pickle_and_a_card(bundle: Path) -> None:
    suffixes = {path.suffix for path in bundle.rglob("*") if path.is_file()}
    assert suffixes == {".json", ".safetensors", ".png", ".md"}
    card = (bundle / "README.md").read_text()
    assert "by heart" in card
    assert "CC0-1.0 | 8" in card


def test_a_bundle_is_replaced_whole(model: DiffusionModel, tmp_path: Path) -> None:
    for name in ("first", "second"):
        write_bundle(tmp_path / "bundle", model, describe().model_copy(update={"name": name}))
    assert read_info(tmp_path / "bundle").name == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "cleanplate.json").unlink(), "is missing"),
        (lambda folder: (folder / "cleanplate.json").write_text("{"), "is damaged"),
        (lambda folder: (folder / "cleanplate.json").write_text('{"schema_version": 99}'), "schema version 99"),
        (lambda folder: (folder / "unet" / "config.json").unlink(), "torn"),
        (lambda folder: (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"x"), "was changed"),
    ],
)
def test_a_damaged_bundle_is_refused(bundle: Path, tmp_path: Path, damage: object, message: str) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(bundle, folder)
    assert callable(damage)
    damage(folder)
    with pytest.raises(UserError, match=message):
        load_bundle(folder)


def test_info_is_plain_json(bundle: Path) -> None:
    raw = json.loads((bundle / "cleanplate.json").read_text())
    assert raw["self_test"]["prompt"] == "a red circle"
    assert set(raw["files"]) == {
        path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()
    } - {"cleanplate.json"}


def test_the_card_says_which_ledger_was_asked_and_how_to_check_a_picture() -> None:
    older = model_card(describe())
    assert "none was asked" in older
    assert "cleanplate prove" not in older
    told = {"training_set_digest_kind": "merkle", "takedown_ledger_version": "v7", "excluded_rows": 3}
    card = model_card(describe().model_copy(update=told))
    assert "`v7`; 3 pictures of the manifest were left out" in card
    assert "cleanplate prove SHA256" in card


def test_an_older_bundle_is_read(bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "old")
    raw = json.loads((bundle / "cleanplate.json").read_text())
    for field in ("manifest_uri", "training_set_digest_kind", "base_rows", "excluded_rows", "ledger_uri"):
        del raw[field]
    (tmp_path / "old" / "cleanplate.json").write_text(json.dumps(raw))
    assert load_bundle(tmp_path / "old").info.training_set_digest_kind == "lines"
