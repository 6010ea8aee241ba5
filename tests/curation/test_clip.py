"""The shipped CLIP with its real weights, and folders holding tiny random models of both open_clip kinds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from curation import torchvision_ops
from curation.clip import EMBEDDED, Clip, ClipConfig
from curation.errors import UserError

# OpenMoji drawings (CC BY-SA 4.0, openmoji.org), 32 x 32 pixels each: a row of twelve of the fifth that is never
# trained on, then a row of twelve of the others.
SPRITE = Path(__file__).parent / "fixtures" / "openmoji_24x32.png"
NAMES: dict[str, list[str]] = json.loads(SPRITE.with_suffix(".json").read_text())

CLASSIC: dict[str, Any] = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


@pytest.fixture(scope="module")
def clip() -> Clip:
    return ClipConfig(device="cpu", batch_size=4).build()


@pytest.fixture(scope="module")
def rows(clip: Clip) -> dict[str, np.ndarray]:
    sprite = Image.open(SPRITE).convert("RGB")
    return {
        row: np.stack([clip.prepare(sprite.crop((32 * i, 32 * j, 32 * i + 32, 32 * j + 32))) for i in range(12)])
        for j, row in enumerate(NAMES)
    }


@pytest.fixture(scope="module")
def drawings(rows: dict[str, np.ndarray]) -> np.ndarray:
    return rows["held_out"]


def save_model(folder: Path, architecture: dict[str, Any]) -> Path:
    """A randomly initialised open_clip model, saved as a folder."""
    import torch

    torchvision_ops.declare()
    import open_clip
    from safetensors.torch import save_file

    folder.mkdir()
    preprocess = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": architecture, "preprocess_cfg": preprocess}))
    torch.manual_seed(0)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, folder / "model.safetensors")
    return folder


def rebuild_tower(folder: Path) -> tuple[Any, Any]:
    """What a reader of an exported text tower does: (tower that also returns tokens, tokenizer)."""
    import open_clip
    from safetensors.torch import load_file

    config = json.loads((folder / "open_clip_text.json").read_text())
    text_cfg = {**config["text_cfg"], "output_tokens": True}
    tower = open_clip.model._build_text_tower(config["embed_dim"], text_cfg, quick_gelu=config["quick_gelu"])
    state = {key: value.float() for key, value in load_file(folder / "model.safetensors").items()}
    tower.load_state_dict(state)
    tokenizer = open_clip.get_tokenizer("ViT-B-32", context_length=config["tokenizer"]["context_length"])
    return tower.eval(), tokenizer


def test_embedded_is_named_by_its_weights_and_fits_the_repository(clip: Clip) -> None:
    assert clip.name.startswith("embedded@")
    assert len(clip.name) == len("embedded@") + 8
    assert sum(path.stat().st_size for path in EMBEDDED.glob("*.*")) < 30e6


def test_prepare_cuts_the_centre_of_any_shape(clip: Clip) -> None:
    wide = Image.new("RGB", (300, 100), "white")
    wide.paste("red", (100, 0, 200, 100))
    pixels = clip.prepare(wide)
    assert pixels.shape == (clip.image_size, clip.image_size, 3)
    assert pixels.dtype == np.uint8
    assert (pixels[:, 8:-8] == (255, 0, 0)).all()
    assert clip.prepare(Image.new("L", (7, 5))).shape == pixels.shape


def test_images_become_unit_vectors_whose_bits_do_not_depend_on_their_neighbours(
    clip: Clip, drawings: np.ndarray
) -> None:
    together = clip.embed_images(drawings)
    assert together.shape == (len(drawings), clip.dim)
    assert together.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    assert np.array_equal(together[5:7], clip.embed_images(drawings[5:7]))
    assert clip.embed_images(drawings[:0]).shape == (0, clip.dim)


@pytest.mark.parametrize("shape", [(1, 8, 8, 3), (192, 192, 3)])
def test_pixels_of_another_shape_are_refused(clip: Clip, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="uint8"):
        clip.embed_images(np.zeros(shape, np.uint8))


def test_texts_become_unit_vectors_and_long_ones_are_cut(clip: Clip) -> None:
    vectors = clip.embed_texts(["a cat", "a cat", "a volcano " * 50, "", "два кота"])
    assert vectors.shape == (5, clip.dim)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert vectors[0] @ vectors[1] > 0.9999
    assert clip.embed_texts([]).shape == (0, clip.dim)


def test_text_space_knows_what_is_like_what(clip: Clip) -> None:
    cat, kitten, lorry, truck = clip.embed_texts(["a cat", "a kitten", "a lorry", "a truck"])
    assert min(cat @ kitten, lorry @ truck) > max(cat @ lorry, cat @ truck, kitten @ lorry, kitten @ truck)


# Over many draws 92 % of the drawings trained on and 66 % of the others find their name; by chance it would be 8 %.
@pytest.mark.parametrize(("row", "at_least"), [("trained_on", 10), ("held_out", 6)])
def test_small_drawings_find_their_name_among_twelve(
    clip: Clip, rows: dict[str, np.ndarray], row: str, at_least: int
) -> None:
    similarity = clip.embed_images(rows[row]) @ clip.embed_texts(NAMES[row]).T
    nearest = [NAMES[row][i] for i in similarity.argmax(axis=1)]
    assert sum(found == name for found, name in zip(nearest, NAMES[row], strict=True)) >= at_least, nearest


def test_batch_norm_folded_into_convolutions_changes_nothing(clip: Clip, drawings: np.ndarray) -> None:
    import open_clip
    import torch

    plain = open_clip.create_model(f"local-dir:{EMBEDDED}").eval()
    x = torch.from_numpy(drawings[:4]).permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        expected = plain.encode_image((x - 0.5) / 0.5, normalize=True).numpy()
    np.testing.assert_allclose(clip.embed_images(drawings[:4]), expected, atol=2e-5)


def test_concepts_have_a_direction_and_a_threshold_where_one_was_calibrated(clip: Clip) -> None:
    weapon = clip.concept("weapon")
    assert weapon.shape == (clip.dim,)
    assert np.linalg.norm(weapon) == pytest.approx(1, abs=1e-5)
    calibrated = ClipConfig().calibrated()
    assert 0 < calibrated["weapon"] < 1
    assert "nudity" not in calibrated, "there was no positive to calibrate it on"
    gun, teapot = clip.embed_texts(["a pistol", "a teapot"])
    assert weapon @ gun > weapon @ teapot
    assert clip.concept("velocipede") @ clip.embed_texts(["velocipede"])[0] > 0.5


def test_embedded_text_tower_exports_and_rebuilds(clip: Clip, tmp_path: Path) -> None:
    import torch

    clip.export_text_tower(tmp_path)
    tower, tokenizer = rebuild_tower(tmp_path)
    texts = ["a red apple", "volcano", "woman cook"]
    with torch.inference_mode():
        pooled, tokens = tower(tokenizer(texts))
    np.testing.assert_allclose(
        torch.nn.functional.normalize(pooled, dim=-1).numpy(), clip.embed_texts(texts), atol=1e-5
    )
    assert tokens.shape[0] == 3
    assert tokens.shape[1] == json.loads((tmp_path / "open_clip_text.json").read_text())["tokenizer"]["context_length"]
    assert (tokens[0] - tokens[1]).abs().mean() > 0.1
    assert (tmp_path / "model.safetensors").stat().st_size < 20e6  # stays in fp16, as stored


@pytest.mark.parametrize("custom_text", [False, True])
def test_a_folder_of_either_open_clip_kind_loads_embeds_and_exports(tmp_path: Path, custom_text: bool) -> None:
    import torch

    folder = save_model(tmp_path / "tiny", {**CLASSIC, "custom_text": custom_text})
    config = ClipConfig(model=str(folder), device="cpu")
    config.check()
    tiny = config.build()
    assert (tiny.dim, tiny.image_size) == (16, 32)
    assert tiny.name.startswith("tiny@")
    assert tiny.embed_images(np.zeros((2, 32, 32, 3), np.uint8)).shape == (2, 16)
    assert config.calibrated() == {}
    tiny.export_text_tower(tmp_path / "tower")
    tower, tokenizer = rebuild_tower(tmp_path / "tower")
    with torch.inference_mode():
        pooled, tokens = tower(tokenizer(["a cat", "two dogs"]))
        original = tiny._model  # the classic class has no public way to token states
        ids = tokenizer(["a cat", "two dogs"])
        if custom_text:
            expected = original.text.transformer(
                original.text.token_embedding(ids) + original.text.positional_embedding,
                attn_mask=original.text.attn_mask,
            )
            expected = original.text.ln_final(expected)
        else:
            expected = original.token_embedding(ids) + original.positional_embedding
            expected = original.ln_final(original.transformer(expected, attn_mask=original.attn_mask))
    np.testing.assert_allclose(tokens.numpy(), expected.numpy(), atol=1e-5)
    unit = torch.nn.functional.normalize(pooled, dim=-1).numpy()
    np.testing.assert_allclose(unit, tiny.embed_texts(["a cat", "two dogs"]), atol=1e-5)


def test_an_architecture_with_a_weights_file_goes_the_same_way(tmp_path: Path) -> None:
    torchvision_ops.declare()
    import open_clip

    folder = save_model(tmp_path / "tiny", CLASSIC)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "tiny-classic.json").write_text(json.dumps(CLASSIC))
    open_clip.add_model_config(tmp_path / "configs")
    weights = folder / "model.safetensors"
    named = ClipConfig(model="tiny-classic", weights=str(weights), device="cpu").build()
    assert named.name.startswith("tiny-classic@")
    same = ClipConfig(model=str(folder), device="cpu").build()
    assert np.array_equal(named.embed_texts(["a cat"]), same.embed_texts(["a cat"]))


@pytest.mark.parametrize(
    ("model", "weights", "field"),
    [
        ("ViT-L-41", None, "clip.model"),
        ("/nowhere/at/all", None, "clip.model"),
        ("hf-hub:nonsense", None, "clip.model"),
        ("ViT-L-14", None, "clip.weights"),
        ("ViT-L-14", "datacomp_of_another_world", "clip.weights"),
        ("embedded", "openai", "clip.weights"),
    ],
)
def test_what_cannot_be_loaded_is_a_users_mistake(model: str, weights: str | None, field: str) -> None:
    with pytest.raises(UserError) as caught:
        ClipConfig(model=model, weights=weights).check()
    assert caught.value.field == field
    assert caught.value.remedy


def test_what_can_be_loaded_passes_the_check() -> None:
    ClipConfig().check()
    ClipConfig(model="ViT-L-14", weights="datacomp_xl_s13b_b90k").check()
    ClipConfig(model="hf-hub:laion/CLIP-ViT-B-32-laion2B-s34B-b79K").check()


def test_a_folder_without_weights_is_a_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "open_clip_config.json").write_text("{}")
    with pytest.raises(UserError, match="no weights"):
        ClipConfig(model=str(tmp_path)).check()
