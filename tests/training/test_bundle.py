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
from training.sampling import SamplingParams, sample
from training.schedules import SigmoidSchedule
from training.text import TextEncoder
from training.unet import UnetConfig, build_unet


@pytest.fixture(scope="module")
def model(tower: Path) -> DiffusionModel:
    torch.manual_seed(1)
    text = TextEncoder(tower)
    shape = UnetConfig(block_out_channels=(32, 32), layers_per_block=1, attention_heads=2)
    unet = build_unet(shape, image_size=8, patch_size=1, text_width=text.width).eval()
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
