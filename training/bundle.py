"""The bundle: what training hands to serving. A folder, self-contained, in diffusers' layout, without a pickle.

    unet/                 config.json, diffusion_pytorch_model.safetensors: the EMA weights, a plain diffusers model;
                          of a transformer the folder is `transformer/`
    scheduler/            scheduler_config.json: a DDIMScheduler with the schedule as explicit betas; of a flow, a
                          FlowMatchEulerDiscreteScheduler
    text_encoder/         what prompts are read with: the text tower's folder (`training.text`), the names of
                          classes, or both (`training.conditioning`)
    vae/                  the autoencoder whose latents the network denoises, where it does (`training.latents`)
    self_test.png         what the model drew when it was written
    README.md             the model card
    cleanplate.json       `BundleInfo`, written last: a folder without it is no bundle

The first three load without our code.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from curation import storage, torchvision_ops
from curation.errors import UserError
from curation.manifest import FileName
from training import conditioning, foreign, latents, space
from training.card import model_card
from training.conditioning import PromptEncoder
from training.dependencies import Dependency
from training.films import png
from training.folders import cache_root, download
from training.network import folder_of
from training.objective import Prediction
from training.sampling import SamplingParams, sample
from training.schedules import FlowPath
from training.space import PatchSpace, Space

SCHEMA_VERSION = 1
INFO_FILE = "cleanplate.json"
CAPTION_CAP = 2000
WORD_CAP = 20_000


class SelfTest(BaseModel):
    """A picture drawn when the bundle was written: whoever loads it can draw it again."""

    model_config = ConfigDict(frozen=True)
    prompt: str
    seed: int
    params: SamplingParams
    sha256: str = Field(description="of the picture's uint8 pixels (H, W, 3)")


class BundleInfo(BaseModel):
    """The contents of `cleanplate.json`: what the model is, what it was made from, and what is in the folder."""

    model_config = ConfigDict(frozen=True)
    schema_version: int = SCHEMA_VERSION
    name: str
    manifest_id: str
    manifest_uri: str | None = Field(None, description="where it lay")
    training_set_digest: str = Field(
        description="Merkle digest of the ids of the rows trained on (`training.merkle`): what was among them and what "
        "was not is proven against it"
    )
    training_set_digest_kind: Literal["lines", "merkle"] = Field(
        "lines", description="older bundles have the sha256 of the sorted ids, a line each, which proves nothing"
    )
    training_rows: int
    base_rows: int | None = Field(None, description="slots of the order of samples, empty ones too (`training.roster`)")
    excluded_rows: int = Field(0, description="rows that the manifest keeps and the takedown ledger revokes")
    held_out_rows: int = Field(0, description="rows of the others that were not trained on either, to measure by")
    licences: dict[str, int] = Field(description="rows trained on, by stated licence; 'unstated' where there was none")
    ledger_uri: str | None = Field(
        None, description="the takedown ledgers that were asked; 'none' where none was named"
    )
    takedown_ledger_version: str | None = Field(None, description="what they held, or 'none'")
    config_sha256: str
    job: dict[str, Any]
    images_seen: int
    state_sha256: str
    metrics: dict[str, float]
    image_size: int
    patch_size: int
    sizes: tuple[tuple[int, int], ...] = Field(
        (), description="width and height of the shapes that it was trained in, where they were several"
    )
    frames: int | None = Field(None, description="of a film; null: it draws pictures")
    prediction: Prediction
    channel_mean: tuple[float, float, float] = Field(description="of the training pictures, in [-1, 1]")
    channel_std: tuple[float, float, float]
    text_encoder: str = Field(description="the CLIP that the text tower was taken from")
    captions: list[str] = Field(description=f"distinct training captions, sorted, at most {CAPTION_CAP}")
    words: list[str] | None = Field(
        None, description=f"the words of all training captions, sorted; null in older bundles, and above {WORD_CAP}"
    )
    sampling: SamplingParams = Field(description="how to draw with this model when nothing else is said")
    distilled_from: str | None = Field(
        None, description="sha256 of the `cleanplate.json` of the teacher, whose training set it depends on, too"
    )
    depends_on: tuple[Dependency, ...] = Field(
        (), description="all models that it was made from, whose training sets count as well (`training.dependencies`)"
    )
    ema_sigma_rel: float | None = Field(
        None,
        description="length of the average that the weights are, where it was made afterwards (`training.averages`)",
    )
    self_test: SelfTest | None = None
    parameters: int
    libraries: dict[str, str]
    files: dict[FileName, str] = Field(default_factory=dict, description="sha256 of every other file, by its path")


def words_of(captions: Iterable[str]) -> list[str] | None:
    """The words of captions in lower case, sorted; None where they are more than `WORD_CAP`."""
    found = {word for caption in captions for word in re.findall(r"[^\W_]+", caption.lower())}
    return None if len(found) > WORD_CAP else sorted(found)


class DiffusionModel:
    """A model rebuilt from a bundle, ready for `training.sampling.sample`.

    Attributes:
        info: what stands in the bundle's `cleanplate.json`.
        unet: the network, of any kind (`training.network`), in evaluation mode.
        text: what prompts are read with.
        betas: float64 (T,), the noise schedule; of a flow, those with its SNR.
        prediction: what the U-Net predicts.
        image_size, patch_size: pixels of a picture's side; factor of the space-to-depth stem.
        space: what the network's clean pictures are.
    """

    def __init__(
        self, *, unet: Any, text: PromptEncoder, betas: np.ndarray, prediction: Prediction, image_size: int,
        patch_size: int, device: str | torch.device = "cpu", space: Space | None = None,
    ) -> None:  # fmt: skip
        self.device = torch.device(device)
        self.unet = unet
        self.text = text
        self.betas = betas
        self.prediction = prediction
        self.image_size = image_size
        self.patch_size = patch_size
        self.space = space or PatchSpace(patch_size)
        self._info: BundleInfo | None = None

    @property
    def info(self) -> BundleInfo:
        """Raises RuntimeError for a model that is still being trained and has no bundle."""
        if self._info is None:
            raise RuntimeError("this model was not loaded from a bundle")
        return self._info

    @info.setter
    def info(self, info: BundleInfo) -> None:
        self._info = info

    def self_test(self) -> bool:
        """Draws the self-test picture again: whether its bytes are those of the machine that wrote the bundle.

        False on other hardware is no fault: floating-point sums differ in their last bits between machines.
        """
        test = self.info.self_test
        return test is None or picture_digest(draw_self_test(self, test)) == test.sha256


def draw_self_test(model: DiffusionModel, test: SelfTest) -> np.ndarray:
    """The self-test picture, uint8 (H, W, 3); of a film (F, H, W, 3)."""
    picture: np.ndarray = sample(model, [test.prompt], [test.seed], test.params)[0]
    return picture


def picture_digest(picture: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(picture).tobytes()).hexdigest()


def write_bundle(folder: str | Path, model: DiffusionModel, info: BundleInfo) -> BundleInfo:
    """Writes a bundle. All or nothing: the folder appears when it is whole.

    An older bundle of the same name is replaced. Returns `info` with the self-test and the files filled in.
    """
    target = Path(folder)
    staging = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.partial")
    staging.mkdir(parents=True)
    try:
        model.unet.save_pretrained(staging / folder_of(model.unet), safe_serialization=True)
        _scheduler(model).save_pretrained(staging / "scheduler")
        model.text.save(staging / "text_encoder")
        if (latent := latents.latent_space(model.space)) is not None:
            latent.save(staging / latents.FOLDER)
        info = info.model_copy(update={"self_test": _write_self_test(staging, model, info)})
        (staging / "README.md").write_text(model_card(info), encoding="utf-8")
        info = info.model_copy(update={"files": _digests(staging)})
        (staging / INFO_FILE).write_text(info.model_dump_json(indent=2), encoding="utf-8")
        shutil.rmtree(target, ignore_errors=True)
        staging.rename(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return info


def _scheduler(model: DiffusionModel) -> Any:
    import diffusers

    if model.prediction == "flow":
        return diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=len(model.betas))
    return diffusers.DDIMScheduler(
        num_train_timesteps=len(model.betas),
        trained_betas=model.betas.tolist(),
        prediction_type=model.prediction,
        clip_sample=True,
        timestep_spacing="trailing",
    )


def _write_self_test(staging: Path, model: DiffusionModel, info: BundleInfo) -> SelfTest:
    prompt = info.captions[0] if info.captions else ""
    steps = (
        4 if info.distilled_from is None else info.sampling.steps
    )  # a student knows the levels of its own steps only
    test = SelfTest(prompt=prompt, seed=0, params=info.sampling.model_copy(update={"steps": steps}), sha256="")
    picture = draw_self_test(model, test)
    (staging / "self_test.png").write_bytes(png(picture))
    return test.model_copy(update={"sha256": picture_digest(picture)})


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != INFO_FILE)
    return {path.relative_to(folder).as_posix(): storage.sha256_of(path) for path in files}


def read_info(folder: str | Path) -> BundleInfo:
    """The bundle's description, without its weights.

    Raises:
        UserError: no bundle there, a damaged one, or one of a newer schema.
    """
    path = Path(folder) / INFO_FILE
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        version = raw.get("schema_version") if isinstance(raw, Mapping) else None
        if not isinstance(version, int) or version > SCHEMA_VERSION:
            raise UserError(
                f"the bundle at {folder} has schema version {version}; this cleanplate reads up to {SCHEMA_VERSION}",
                field="model",
                remedy="upgrade cleanplate, or train with this version",
            )
        return BundleInfo.model_validate(raw)
    except OSError:
        raise _no_bundle(folder) from None
    except (ValueError, ValidationError) as error:
        raise UserError(f"{path} is damaged: {error}", field="model", remedy=_RESTORE) from None


def _no_bundle(folder: str | Path) -> UserError:
    return UserError(
        f"no bundle at {folder}: {INFO_FILE} is missing",
        field="model",
        remedy="give a bundle's folder or models:/NAME@alias; `cleanplate train` makes bundles",
    )


_RESTORE = "restore the folder from where it came, or train or download it again"


def verify(folder: str | Path, info: BundleInfo) -> None:
    """Compares every file with the sha256 it was written with.

    Raises:
        UserError: a file is missing or was changed, or there is one that no bundle holds.
    """
    try:
        foreign.refuse_programs(Path(folder))
    except (OSError, ValueError) as error:
        raise UserError(
            f"the bundle at {folder} is not to be trusted: {error}", field="model", remedy=_RESTORE
        ) from None
    for name, expected in info.files.items():
        path = Path(folder) / name
        if not path.is_file():
            raise UserError(f"the bundle at {folder} is torn: {name} is missing", field="model", remedy=_RESTORE)
        if storage.sha256_of(path) != expected:
            raise UserError(f"the bundle at {folder} is damaged: {name} was changed", field="model", remedy=_RESTORE)


def local_bundle(bundle: str | Path) -> Path:
    """The bundle's folder on this machine: one on S3 is downloaded, once, to a folder named after its contents.

    Raises:
        UserError: no bundle there, or what was downloaded is damaged.
    """
    uri = str(bundle)
    if not storage.is_remote(uri):
        return Path(storage.filesystem(uri)[1])
    try:
        digest = hashlib.sha256(storage.read_bytes(storage.join(uri, INFO_FILE))).hexdigest()
    except FileNotFoundError:
        raise _no_bundle(uri) from None
    target = cache_root() / "bundles" / digest
    if not (target / INFO_FILE).is_file():
        staging = target.with_name(f".{digest[:8]}.{uuid.uuid4().hex[:8]}.partial")
        try:
            download(uri, staging)
            verify(staging, read_info(staging))
            shutil.rmtree(target, ignore_errors=True)
            staging.rename(target)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return target


def load_bundle(folder: str | Path, device: str = "cpu") -> DiffusionModel:
    """Rebuilds a model from a bundle, local or on S3, after checking every file.

    Raises:
        UserError: no bundle there, a torn or damaged one, or one of a newer schema.
    """
    torchvision_ops.declare()  # before diffusers, which imports torchvision where that is installed
    import diffusers

    folder = local_bundle(folder)
    info = read_info(folder)
    verify(folder, info)
    kind = "transformer" if (folder / "transformer").is_dir() else "unet"
    try:
        config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
        network_class = foreign.class_of(folder / kind, foreign.NETWORKS)
    except (OSError, ValueError) as error:
        raise UserError(f"the bundle at {folder} is damaged: {error}", field="model", remedy=_RESTORE) from None
    unet = getattr(diffusers, network_class).from_pretrained(
        str(folder), subfolder=kind, local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False
    )
    vae = folder / latents.FOLDER
    model = DiffusionModel(
        unet=unet.to(device).eval().requires_grad_(False),
        text=conditioning.load(folder / "text_encoder", device),
        betas=_betas(config),
        prediction=info.prediction,
        image_size=info.image_size,
        patch_size=info.patch_size,
        device=device,
        space=space.build(info.patch_size, vae if vae.is_dir() else None, device, frames=info.frames),
    )
    model.info = info
    return model


def _betas(scheduler: Mapping[str, Any]) -> np.ndarray:
    if "trained_betas" in scheduler:
        return np.asarray(scheduler["trained_betas"], dtype=np.float64)
    return FlowPath(timesteps=scheduler["num_train_timesteps"]).betas()
