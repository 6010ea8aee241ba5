"""A manifest of coloured shapes and a tiny text tower, made in a second by the project's own writers."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import settings
from PIL import Image

from curation.manifest import (
    ClipInfo,
    InputsInfo,
    Manifest,
    ManifestInfo,
    manifest_id,
    now,
    publish,
    schema,
    write_part,
)
from curation.takedowns import Ledger, Selector
from training.data import TrainingSet, load
from training.job import TrainJob
from training.text import TextEncoder

COLOURS = {"red": (220, 30, 30), "green": (30, 170, 60), "blue": (40, 60, 220), "yellow": (240, 220, 40)}
WIDTH = 32  # of the text tower

# wall-clock limits of single examples say nothing on a shared machine
settings.register_profile("training", deadline=None, max_examples=50)
settings.load_profile("training")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


def shapes(size: int) -> list[tuple[str, np.ndarray]]:
    """Captions and uint8 (size, size, 3): each colour as a square and as a disc, on white."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    masks = {"square": np.maximum(abs(x), abs(y)) < size * 0.3, "circle": x**2 + y**2 < (size * 0.35) ** 2}
    rows = []
    for colour, rgb in COLOURS.items():
        for shape, mask in masks.items():
            picture = np.full((size, size, 3), 255, np.uint8)
            picture[mask] = rgb
            rows.append((f"a {colour} {shape}", picture))
    return rows


def write_manifest(
    output: Path,
    rows: list[tuple[str, np.ndarray]],
    without: tuple[str, ...] = (),
    said: dict[str, Any] | None = None,
    **changes: Any,
) -> Manifest:
    """Publishes rows as kept, each with its picture as PNG.

    Args:
        without: columns that an older manifest did not have.
        said: fields of its `manifest.json`.
        changes: overwrite columns of every row, with a value or with a function of the caption.
    """
    # sizes and counts of frames, which only some manifests have
    fields = schema(4)
    for name in changes.keys() - set(fields.names):
        fields = fields.append(pa.field(name, pa.int32()))
    columns: list[dict[str, Any]] = []
    for caption, picture in rows:
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "PNG")
        row = dict.fromkeys(fields.names)
        row |= {"id": hashlib.sha256(buffer.getvalue()).hexdigest(), "caption": caption, "licence": "CC0-1.0"}
        row |= {"decision": "kept", "image": {"bytes": buffer.getvalue(), "path": None}}
        row |= {name: value(caption) if callable(value) else value for name, value in changes.items()}
        columns.append(row)
    table = pa.Table.from_pylist(columns, schema=fields).drop_columns(list(without))
    staging = output / "staging"
    part, digest = write_part(str(staging / "part-00000.parquet"), table)
    kept = sum(row["decision"] == "kept" for row in columns)
    info = ManifestInfo(
        id=manifest_id({}, [digest]), name="shapes", created_at=now(), code_version="test", job={},
        inputs=InputsInfo.of(str(row["uri"]) for row in columns), clip=ClipInfo(name="test", dim=4),
        rows=len(columns), counts={"kept": kept, "dropped": len(columns) - kept},
        reasons={}, rights=[], files=[part],
    )  # fmt: skip
    return publish(str(staging), str(output), info.model_copy(update=said or {}))


def many(count: int) -> list[tuple[str, np.ndarray]]:
    """Captions, some longer than others, and as many different pictures of 8 x 8 pixels."""
    noise = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), np.uint8)
    return [(f"{'very ' * (i % 5)}noisy picture {i}", picture) for i, picture in enumerate(noise)]


def row_id(picture: np.ndarray) -> str:
    """The id that `write_manifest` gives a picture."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return hashlib.sha256(buffer.getvalue()).hexdigest()


def derive(output: Path, rows: list[tuple[str, np.ndarray]], gone: Collection[str], **changes: Any) -> Manifest:
    """The manifest that `recheck` derives from one of these rows when those of some captions are revoked."""
    return write_manifest(
        output,
        rows,
        decision=lambda caption: "dropped" if caption in gone else "kept",
        was_kept=lambda caption: True if caption in gone else None,
        **changes,
    )


def opt_out(ledger: Path, *ids: str) -> str:
    """Adds a takedown request for some inputs to a ledger; the id of its entry."""
    selectors = [Selector.of("sha256", id_) for id_ in ids]
    return Ledger.open(str(ledger)).append_entry(requester="Jane", ground="no consent", selectors=selectors).id


def write_tower(folder: Path) -> Path:
    """A random text tower in the form that `curation.clip.Clip.export_text_tower` writes."""
    from curation import torchvision_ops

    torchvision_ops.declare()
    from open_clip.model import _build_text_tower
    from safetensors.torch import save_file

    text_cfg = {"context_length": 12, "vocab_size": 49408, "width": WIDTH, "heads": 2, "layers": 1}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tower = _build_text_tower(16, text_cfg)
    folder.mkdir(parents=True)
    # wider than open_clip's initialisation, so that words differ as they do in a trained tower
    state = {key: (value * 20 if "token_embedding" in key else value) for key, value in tower.state_dict().items()}
    save_file({key: value.half() for key, value in state.items()}, folder / "model.safetensors")
    tokenizer = {"architecture": None, "hf_tokenizer_name": None, "tokenizer_kwargs": {}, "context_length": 12}
    description = {"embed_dim": 16, "text_cfg": text_cfg, "quick_gelu": False, "tokenizer": tokenizer, "clip": "test"}
    (folder / "open_clip_text.json").write_text(json.dumps(description))
    return folder


@pytest.fixture(scope="session")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tower(tmp_path_factory.mktemp("tower") / "text_encoder")


@pytest.fixture(scope="session")
def text(tower: Path) -> TextEncoder:
    return TextEncoder(tower)


@pytest.fixture(scope="session")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Eight pictures of 8 x 8 pixels."""
    return write_manifest(tmp_path_factory.mktemp("manifests"), shapes(8))


@pytest.fixture(scope="session")
def data(manifest: Manifest) -> TrainingSet:
    return load(manifest)


@pytest.fixture(scope="session")
def autoencoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of two levels, as it is before training."""
    from diffusers import AutoencoderKL

    folder = tmp_path_factory.mktemp("vae")
    levels: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "block_out_channels": (16, 16),
    }
    torch.manual_seed(0)
    AutoencoderKL(**levels, latent_channels=4, norm_num_groups=8).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tracking_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One SQLite store for the session: creating one takes seven seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture
def make_job(manifest: Manifest, tmp_path: Path) -> Callable[..., TrainJob]:
    """Jobs of a network with 8 x 8 pixels and two levels that trains a hundred steps in a second."""

    def make(**changes: Any) -> TrainJob:
        settings: dict[str, Any] = {
            "name": "shapes",
            "manifest": manifest.uri,
            "output": str(tmp_path / "training"),
            "patch_size": 1,
            "network": {"block_out_channels": (32, 32), "layers_per_block": 1, "attention_heads": 2},
            "images": 64,
            "batch_size": 8,
            "precision": "fp32",
            "checkpoint_every": 16,
            "sample": {"steps": 2},
        }
        return TrainJob.model_validate({**settings, **changes})

    return make
