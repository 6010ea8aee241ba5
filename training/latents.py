"""Latent pictures: an autoencoder of diffusers, and the space of its latents (Rombach et al. 2022, arXiv 2112.10752).

An autoencoder is a folder in diffusers' layout: `AutoencoderKL`, `AutoencoderDC` or `AutoencoderTiny`. One that was
trained by `cleanplate autoencoder` holds a `cleanplate.json` too, which says on which pictures.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from curation import storage, torchvision_ops
from curation.errors import UserError
from training import foreign
from training.dependencies import Dependency, Statement
from training.folders import cache_root, download
from training.roster import Roster
from training.space import FilmSpace, Space

FOLDER = "vae"
"""Of a bundle or a run: where its autoencoder lies."""
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
INFO_FILE = "cleanplate.json"
ROSTER_FILE = "training_set.parquet"
FILES = (CONFIG_FILE, WEIGHTS_FILE, ROSTER_FILE, INFO_FILE)
CLASSES = ("AutoencoderKL", "AutoencoderDC", "AutoencoderTiny")


class AutoencoderConfig(BaseModel):
    """The autoencoder whose latents a network denoises."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    path: str = Field(
        description="a folder in diffusers' layout, local or s3://, e.g. what `cleanplate autoencoder` made; or "
        "the name of a model on the Hugging Face hub"
    )
    sha256: str | None = Field(
        None, pattern="^[0-9a-f]{64}$", description="that it must have; null: it is filled in when the job starts"
    )
    statement: Statement | None = Field(
        None,
        description="of one from elsewhere: who says that it was not trained on what takedowns reach, on what ground, "
        "and when; null: what is asked about it is answered with 'unknown'",
    )


class AutoencoderInfo(BaseModel):
    """What an autoencoder that was trained here says of itself, in its `cleanplate.json`."""

    model_config = ConfigDict(frozen=True)
    name: str
    manifest_id: str
    manifest_uri: str | None
    training_set_digest: str
    training_rows: int
    ledger_uri: str | None
    takedown_ledger_version: str | None
    images_seen: int
    job: dict[str, Any]
    metrics: dict[str, float]
    run_id: str | None = None


def local_autoencoder(path: str) -> Path:
    """An autoencoder's folder on this machine: one on S3 or on the hub is downloaded, once.

    Raises:
        UserError: nothing there.
    """
    if storage.is_remote(path):
        target = cache_root() / "autoencoders" / hashlib.sha256(path.encode()).hexdigest()[:16]
        if not (target / CONFIG_FILE).is_file():
            download(path, target)
        folder = target
    else:
        folder = Path(storage.filesystem(path)[1])
        if not folder.is_dir() and path.count("/") == 1 and not path.startswith((".", "/")):
            folder = _from_hub(path)
    if not (folder / CONFIG_FILE).is_file() or not (folder / WEIGHTS_FILE).is_file():
        raise UserError(
            f"no autoencoder at {path}: {CONFIG_FILE} or {WEIGHTS_FILE} is missing",
            field="autoencoder.path",
            remedy="name a folder in diffusers' layout, or train one: cleanplate autoencoder JOB.yaml",
        )
    return folder


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=[CONFIG_FILE, WEIGHTS_FILE]))
    except Exception as error:
        raise UserError(
            f"no autoencoder at {name}: there is no such folder, and the hub does not give it ({type(error).__name__})",
            field="autoencoder.path",
            remedy="name a folder in diffusers' layout",
        ) from None


def digest(folder: Path) -> str:
    """sha256 of an autoencoder's configuration and weights."""
    h = hashlib.sha256()
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        with (folder / name).open("rb") as file:
            h.update(hashlib.file_digest(file, "sha256").digest())
    return h.hexdigest()


def info_of(folder: Path) -> AutoencoderInfo | None:
    """What it says of itself; None for one that was not trained here, or says nothing that can be read."""
    try:
        return AutoencoderInfo.model_validate_json((folder / INFO_FILE).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def dependency(folder: Path, statement: Statement | None = None) -> Dependency:
    """What a model that draws with an autoencoder says of it; of one from elsewhere, no more than its weights' hash,
    and the statement of who vouches for it."""
    info = info_of(folder)
    if info is None:
        return Dependency(kind="autoencoder", name="from elsewhere", sha256=digest(folder), statement=statement)
    return Dependency(
        kind="autoencoder",
        name=info.name,
        sha256=_sha256(folder / INFO_FILE),
        manifest_id=info.manifest_id,
        training_set_digest=info.training_set_digest,
        training_rows=info.training_rows,
        ledger_uri=info.ledger_uri,
        ledger_version=info.takedown_ledger_version,
    )


def rosters_of(folder: Path) -> dict[str, Roster]:
    """The training set of an autoencoder that was trained here, by its `Dependency.sha256`."""
    where = folder / ROSTER_FILE
    if info_of(folder) is None or not where.is_file():
        return {}
    return {_sha256(folder / INFO_FILE): Roster.from_parquet(where.read_bytes(), str(where))}


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def settled(config: AutoencoderConfig) -> AutoencoderConfig:
    """With the digest filled in.

    Raises:
        UserError: nothing there, or another one than was asked for, or a statement about one that needs none.
    """
    folder = local_autoencoder(config.path)
    if config.statement is not None and info_of(folder) is not None:
        raise UserError(
            f"the autoencoder at {config.path} was trained here, and says itself on what",
            field="autoencoder.statement",
            remedy="leave it out: a statement stands in where there is no record",
        )
    found = digest(folder)
    if config.sha256 not in (None, found):
        raise UserError(
            f"the autoencoder at {config.path} is another one ({found[:12]}…)",
            field="autoencoder.sha256",
            remedy="restore it, or leave sha256 out",
        )
    return config.model_copy(update={"sha256": found})


def geometry(folder: Path) -> tuple[int, int]:
    """Channels of its latents, and pixels of a side that one position stands for.

    Raises:
        UserError: a class that is not one of `CLASSES`.
    """
    config = _config(folder)
    levels = config.get("encoder_block_out_channels") or config.get("block_out_channels") or ()
    return int(config["latent_channels"]), 2 ** (len(levels) - 1)


def _config(folder: Path) -> dict[str, Any]:
    try:
        foreign.class_of(folder, CLASSES)
        config: dict[str, Any] = json.loads((folder / CONFIG_FILE).read_text())
        if not isinstance(config.get("latent_channels"), int):
            raise ValueError("latent_channels is missing")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(
            f"the autoencoder at {folder} cannot be used: {error}", field="autoencoder.path", remedy="name another"
        ) from None
    return config


def latent_space(space: Space) -> LatentSpace | None:
    """The space of latents that a space is, or that its frames lie in; None where there is none."""
    inner = space.of_frames if isinstance(space, FilmSpace) else space
    return inner if isinstance(inner, LatentSpace) else None


class LatentSpace:
    """Standardised latents, behind space to depth where `patch_size` is above 1: float32 (N, C, h, w).

    The posterior's mean stands for a picture: what is stored can be read again, and the noise of a posterior is far
    below that of diffusion. There is no range that clean latents could be clipped to.

    Attributes:
        folder: of the autoencoder.
        model: diffusers' autoencoder, frozen.
    """

    clip: float | None = None
    frames: int | None = None

    def __init__(self, folder: Path, patch_size: int = 1, device: torch.device | str = "cpu") -> None:
        """Loads an autoencoder.

        Raises:
            UserError: no autoencoder of `CLASSES`, or weights that do not fit it.
        """
        self.folder = folder
        latent_channels, factor = geometry(folder)
        self._patch = patch_size
        self.channels = latent_channels * patch_size**2
        self.factor = factor * patch_size
        config = _config(folder)
        self._scale = float(config.get("scaling_factor") or 1.0)
        self._shift = float(config.get("shift_factor") or 0.0)
        torchvision_ops.declare()  # before diffusers, which imports torchvision where that is installed
        import diffusers

        try:
            model = getattr(diffusers, config["_class_name"]).from_pretrained(
                str(folder), local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False
            )
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(
                f"the autoencoder at {folder} does not load: {error}", field="autoencoder.path", remedy="restore it"
            ) from None
        self.model: Any = model.to(device).eval().requires_grad_(False)

    def save(self, folder: Path) -> None:
        """Copies the autoencoder's files to a new folder."""
        folder.mkdir(parents=True)
        for name in FILES:
            if (self.folder / name).is_file():
                shutil.copyfile(self.folder / name, folder / name)

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> Tensor:
        """uint8 (N, 3, H, W) to float32 (N, C, H / factor, W / factor)."""
        told = self.model.encode(pictures.to(self.model.device).float() / 127.5 - 1)
        if hasattr(told, "latent_dist"):
            latents = told.latent_dist.mode()
        else:
            latents = told.latents if hasattr(told, "latents") else told.latent
        return pixel_unshuffle((latents.float() - self._shift) * self._scale, self._patch)

    @torch.no_grad()
    def decode(self, x0: Tensor) -> np.ndarray:
        """Latents to uint8 pictures (N, H, W, 3)."""
        latents = pixel_shuffle(x0.float(), self._patch) / self._scale + self._shift
        pixels = self.model.decode(latents.to(self.model.device)).sample.float().clamp(-1, 1)
        array: np.ndarray = ((pixels + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        return array
