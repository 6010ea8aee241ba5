"""CLIP: one loader and embedder for curation, evaluation and the output guard.

The model is any open_clip model: the small one that ships in `curation/embedded` (its CARD.md says what to expect of
it), an architecture with a pretrained tag, a folder with `open_clip_config.json` and weights, or a hub id. All of
them go through open_clip's own factory; "embedded" and folders never touch the network.

torch and open_clip are imported where they are used: importing this module costs pydantic and numpy.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from curation.errors import UserError
from curation.hub import HUB_ID, TOKENIZER_OPTIONS
from curation.images import centre

if TYPE_CHECKING:
    import torch
    from PIL import Image

EMBEDDED = Path(__file__).parent / "embedded"
_HUB = "hf-hub:"
_CONFIG_FILE = "open_clip_config.json"
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")
# What a folder's description may have open_clip load by name.
_NAMED = (("text_cfg", "hf_model_name"), ("text_cfg", "hf_tokenizer_name"), ("vision_cfg", "timm_model_name"))
# Entries of a classic open_clip CLIP that belong to its text tower; a CustomTextCLIP keeps its own under `.text`.
_CLASSIC_TEXT = ("token_embedding.", "transformer.", "ln_final.", "positional_embedding", "text_projection")


class ClipConfig(BaseModel):
    """Which CLIP, where it runs and in what numbers. `check()` on the driver, `build()` on the worker."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field("embedded", description='"embedded", an open_clip architecture, a folder, or "hf-hub:org/name"')
    weights: str | None = Field(None, description="open_clip pretrained tag or a path; null for the others")
    device: str = Field(
        "auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="cpu, cuda or cuda:1; auto: a GPU where there is one"
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="of the model's numbers")
    batch_size: int = Field(32, ge=1, le=4096, description="pictures or texts embedded at a time")

    def check(self) -> None:
        """Finds a user's mistake before anything starts. Loads no weights and does not reach for the network.

        Raises:
            UserError: unknown architecture or tag, or a path that is not there (`clip.model`, `clip.weights`).
        """
        folder = self.folder()
        if folder is not None or self.model.startswith(_HUB):
            if self.weights is not None:
                raise UserError(
                    f"weights {self.weights!r} beside {self.model!r}, which brings its own",
                    field="clip.weights",
                    remedy="Leave clip.weights out, or name an open_clip architecture in clip.model.",
                )
            if folder is not None:
                _check_folder(folder)
            elif not re.fullmatch(r"[\w.-]+/[\w.-]+", self.model.removeprefix(_HUB)):
                raise UserError(
                    f"{self.model!r} is not a hub id", field="clip.model", remedy='Write it as "hf-hub:org/name".'
                )
            return
        self._check_architecture()

    def folder(self) -> Path | None:
        """The folder the model is read from, or None when it is an architecture name or a hub id."""
        if self.model == "embedded":
            return EMBEDDED
        looks_like_path = "/" in self.model or self.model.startswith(("~", "."))
        path = Path(self.model).expanduser()
        return path if not self.model.startswith(_HUB) and (looks_like_path or path.is_dir()) else None

    def name(self) -> str:
        """The name that manifests carry, with the weights' sha256 (8 hex) where they are a file. Loads no weights."""
        return _name(self, self.folder())

    def image_size(self) -> int:
        """Side of the square that the model takes, in pixels, without loading its weights where that can be helped."""
        folder = self.folder()
        if folder is not None:
            told = json.loads((folder / _CONFIG_FILE).read_text())
            size = told.get("preprocess_cfg", {}).get("size") or told["model_cfg"]["vision_cfg"]["image_size"]
        elif self.model.startswith(_HUB):
            return self.build().image_size  # its description is on the hub, and open_clip reads it with the weights
        else:
            size = _open_clip().get_model_config(self.model)["vision_cfg"]["image_size"]
        return int(size if isinstance(size, int) else size[0])

    def calibrated(self) -> dict[str, float]:
        """The model's own thresholds by safety concept: the cosines from which on a picture counts as showing one.

        Only of concepts that there were enough positives to calibrate; empty where the model ships none.
        """
        thresholds = _read_thresholds(self.folder())
        return {name: float(known["threshold"]) for name, known in thresholds.items() if known.get("calibrated", True)}

    def build(self) -> Clip:
        """Loads the model onto its device.

        Raises:
            UserError: as `check`, or CUDA asked for where there is none (`clip.device`).
        """
        self.check()
        return Clip(self)

    def _check_architecture(self) -> None:
        open_clip = _open_clip()
        if self.model not in open_clip.list_models():
            near = [name for name in open_clip.list_models() if name.lower().startswith(self.model.lower()[:5])]
            known = ", ".join(near[:6]) or "ViT-B-32, ViT-L-14"
            raise UserError(
                f"no CLIP is called {self.model!r}",
                field="clip.model",
                remedy=f'Use "embedded", a folder with {_CONFIG_FILE}, "{_HUB}org/name", or one of: {known}, ...',
            )
        tags = open_clip.list_pretrained_tags_by_model(self.model)
        if self.weights is None:
            raise UserError(
                f"{self.model} without weights would be random",
                field="clip.weights",
                remedy=f"Name a path or one of: {', '.join(tags) or 'no tag is known, give a path'}.",
            )
        if self.weights not in tags and not Path(self.weights).expanduser().is_file():
            raise UserError(
                f"{self.model} has no weights {self.weights!r}, neither a tag nor a file",
                field="clip.weights",
                remedy=f"Name an existing file or one of: {', '.join(tags) or '(no tags)'}.",
            )


class Clip:
    """A loaded CLIP. Images and texts go to unit vectors of one space; equal input gives equal bits.

    Attributes:
        name: what stands in manifests, e.g. "embedded@1a2b3c4d" (first 8 hex of the weights' sha256 for local files) or
            "ViT-L-14/datacomp_xl_s13b_b90k".
        dim: width of the embedding.
        image_size: side of the square that `prepare` cuts.
        logit_scale: what the model was trained to multiply cosines by before a softmax.
    """

    name: str
    dim: int
    image_size: int
    logit_scale: float

    def __init__(self, config: ClipConfig) -> None:
        import torch

        open_clip = _open_clip()
        self._config = config
        self._device = _device(config.device)
        self._dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[config.precision]
        folder = config.folder()
        source, weights = config.model, config.weights
        if folder is not None:
            source = f"local-dir:{folder}"
        elif weights is not None and Path(weights).expanduser().is_file():
            weights = str(Path(weights).expanduser())
        try:
            self._model: Any = open_clip.create_model(
                source,
                pretrained=weights,
                precision=config.precision,
                device=self._device,
                pretrained_text=False,  # never half a model: base weights of a tower are no CLIP
                require_pretrained=True,
            ).eval()
        except pickle.UnpicklingError:
            raise UserError(
                f"the weights of {config.model} are a pickle that wants to run something",
                field="clip.weights",
                remedy="Get them as safetensors.",
            ) from None
        # Read after loading: get_tokenizer needs the same name, and its config says how wide the space is.
        self._architecture: dict[str, Any] = open_clip.get_model_config(source)
        self._tokenizer: Any = open_clip.get_tokenizer(source)
        self._thresholds = _read_thresholds(folder)
        self._concepts: dict[str, np.ndarray] = {}

        preprocess = open_clip.model.get_model_preprocess_cfg(self._model)
        size = preprocess.get("size", self._model.visual.image_size)
        self.image_size = int(size if isinstance(size, int) else size[0])
        self.dim = int(self._architecture["embed_dim"])
        self.name = config.name()
        # pixel / 255 -> (x - mean) / std, as one multiplication and one addition on the device
        mean = torch.tensor(preprocess["mean"], dtype=torch.float32)
        std = torch.tensor(preprocess["std"], dtype=torch.float32)
        self._scale = (1 / (255 * std)).view(1, 3, 1, 1).to(self._device)
        self._shift = (-mean / std).view(1, 3, 1, 1).to(self._device)
        self.logit_scale = float(self._model.logit_scale.detach().exp())
        if hasattr(self._model.visual, "trunk"):
            _fuse_batch_norm(self._model.visual.trunk)
        self._model.visual.to(memory_format=torch.channels_last)

    def prepare(self, image: Image.Image | np.ndarray) -> np.ndarray:
        """An image (or its RGB pixels) as uint8 (image_size, image_size, 3): the centre square, resized.

        The model's own mean and standard deviation are applied later, in `embed_images`.
        """
        pixels = image if isinstance(image, np.ndarray) else np.asarray(image.convert("RGB"))
        return centre(pixels, self.image_size)

    def embed_images(self, pixels: np.ndarray) -> np.ndarray:
        """Embeds uint8 (N, image_size, image_size, 3) as float32 (N, dim), L2-normalised.

        Runs in batches of exactly `batch_size` (the last one is filled up with black pictures), because convolutions
        round differently at different batch sizes: so a picture has the same bits whatever came before and after it, on
        one machine and thread count. A caller that embeds one picture at a time sets `batch_size` to 1.

        Raises:
            ValueError: pixels of another shape or type.
        """
        import torch

        expected = (self.image_size, self.image_size, 3)
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1:] != expected:
            raise ValueError(f"pixels must be uint8 (N, {expected}), not {pixels.dtype} {pixels.shape}")
        rows = []
        size = self._config.batch_size
        with torch.inference_mode():
            for start in range(0, len(pixels), size):
                chunk = pixels[start : start + size]
                batch = torch.from_numpy(np.pad(chunk, ((0, size - len(chunk)), (0, 0), (0, 0), (0, 0))))
                # NHWC bytes seen as NCHW are already channels-last in memory
                x = batch.to(self._device).permute(0, 3, 1, 2).float() * self._scale + self._shift
                rows.append(_unit(self._model.encode_image(x.to(self._dtype)))[: len(chunk)])
        return np.concatenate(rows) if rows else np.zeros((0, self.dim), np.float32)

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Embeds N texts as float32 (N, dim), L2-normalised. What exceeds the context length is cut off.

        In batches of exactly `batch_size`, as images are: a text's bits do not depend on how many others there are.
        """
        import torch

        rows, size = [], self._config.batch_size
        with torch.inference_mode():
            for start in range(0, len(texts), size):
                chunk = list(texts[start : start + size])
                tokens = self._tokenizer([*chunk, *[""] * (size - len(chunk))]).to(self._device)
                rows.append(_unit(self._model.encode_text(tokens))[: len(chunk)])
        return np.concatenate(rows) if rows else np.zeros((0, self.dim), np.float32)

    def concept(self, name: str) -> np.ndarray:
        """A safety concept as a unit vector (dim,).

        Prompts come from the model's `thresholds.json` when it names the concept, else from two plain templates.
        """
        known = self._thresholds.get(name)
        if name not in self._concepts:
            prompts = known["prompts"] if known else [f"a picture of {name}", name]
            mean = self.embed_texts(prompts).mean(axis=0)
            self._concepts[name] = (mean / np.linalg.norm(mean)).astype(np.float32)
        return self._concepts[name]

    def export_text_tower(self, folder: Path) -> None:
        """Writes the text tower alone, for conditioning a diffusion model without curation or an image tower.

        `open_clip_text.json` holds `embed_dim`, `text_cfg` (open_clip's), `quick_gelu`, `tokenizer` (architecture or
        Hugging Face name, context length, options) and `clip` (this model's name). `model.safetensors` holds the
        tower under the names of `open_clip.transformer.TextTransformer.state_dict()`: `token_embedding.weight`,
        `positional_embedding`, `transformer.resblocks.{i}.*`, `ln_final.*`, `text_projection`. Both kinds of open_clip
        model, `CustomTextCLIP` and the classic `CLIP`, come out alike. fp16 where that loses nothing, else fp32.

        Raises:
            UserError: the text tower is a Hugging Face model, which is not an open_clip text transformer.
        """
        from safetensors.torch import save_file

        text_cfg = dict(self._architecture["text_cfg"])
        if text_cfg.get("hf_model_name"):
            raise UserError(
                f"the text tower of {self.name} is the Hugging Face model {text_cfg['hf_model_name']}",
                field="clip.model",
                remedy="Choose a CLIP whose text tower is open_clip's own, such as embedded or ViT-L-14.",
            )
        tower = getattr(self._model, "text", None)
        state = self._model.state_dict() if tower is None else tower.state_dict()
        if tower is None:
            state = {key: value for key, value in state.items() if key.startswith(_CLASSIC_TEXT)}
        exact = all(bool((value.half().to(value.dtype) == value).all()) for value in state.values())
        state = {key: (value.half() if exact else value.float()).cpu().contiguous() for key, value in state.items()}
        blocks = (self._model if tower is None else tower).transformer.modules()
        description = {
            "embed_dim": self.dim,
            "text_cfg": text_cfg,
            "quick_gelu": any(type(module).__name__ == "QuickGELU" for module in blocks),
            "tokenizer": {
                "architecture": None if self._config.folder() else self._config.model,
                "hf_tokenizer_name": text_cfg.get("hf_tokenizer_name"),
                "tokenizer_mode": text_cfg.get("tokenizer_mode"),
                "tokenizer_kwargs": text_cfg.get("tokenizer_kwargs") or {},
                "context_length": text_cfg.get("context_length", 77),
            },
            "clip": self.name,
        }
        folder.mkdir(parents=True, exist_ok=True)
        save_file(state, str(folder / "model.safetensors"))
        (folder / "open_clip_text.json").write_text(json.dumps(description, indent=2) + "\n")


def _open_clip() -> Any:
    """open_clip, imported in the one way that works beside a CPU build of torch."""
    from curation import torchvision_ops

    torchvision_ops.declare()
    import open_clip

    return open_clip


def _check_folder(folder: Path) -> None:
    if not (folder / _CONFIG_FILE).is_file():
        raise UserError(
            f"{folder} holds no {_CONFIG_FILE}",
            field="clip.model",
            remedy="Name a folder that an open_clip model was saved to, an architecture, or a hub id.",
        )
    if not any(path.suffix in _WEIGHT_SUFFIXES for path in folder.iterdir()):
        raise UserError(
            f"{folder} holds a configuration but no weights",
            field="clip.model",
            remedy="Put the model's .safetensors beside its open_clip_config.json.",
        )
    _refuse_foreign(folder)


def _refuse_foreign(folder: Path) -> None:
    """Raises UserError where a folder's description would have more loaded than what lies in it, or code of its own."""
    try:
        about = json.loads((folder / _CONFIG_FILE).read_text(encoding="utf-8"))["model_cfg"]
        names = [about.get(tower, {}).get(key) for tower, key in _NAMED]
        options = set(about.get("text_cfg", {}).get("tokenizer_kwargs") or ())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{folder / _CONFIG_FILE} is damaged ({type(error).__name__})", field="clip.model", remedy="Restore it."
        ) from None
    odd = [name for name in names if name and not (isinstance(name, str) and HUB_ID.fullmatch(name))]
    if odd or not options <= TOKENIZER_OPTIONS:
        raise UserError(
            f"{folder / _CONFIG_FILE} asks for {', '.join(map(repr, [*odd, *sorted(options - TOKENIZER_OPTIONS)]))}",
            field="clip.model",
            remedy="Take it out: a model's folder may name models of the hub, and neither paths nor code of its own.",
        )


def _device(wanted: str) -> torch.device:
    import torch

    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(
            f"{wanted} was asked for, but torch sees no GPU", field="clip.device", remedy="Use auto or cpu."
        )
    return torch.device(wanted)


def _name(config: ClipConfig, folder: Path | None) -> str:
    if folder is not None:
        weights = sorted(path for path in folder.iterdir() if path.suffix in _WEIGHT_SUFFIXES)
        # open_clip prefers safetensors, and sorts, as here; one weights file is the rule
        chosen = next((path for path in weights if path.suffix == ".safetensors"), weights[0])
        return f"{config.model if config.model == 'embedded' else folder.resolve().name}@{_digest(chosen)}"
    if config.weights is None:
        return config.model
    path = Path(config.weights).expanduser()
    return f"{config.model}@{_digest(path)}" if path.is_file() else f"{config.model}/{config.weights}"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:8]


def _read_thresholds(folder: Path | None) -> dict[str, Any]:
    path = folder / "thresholds.json" if folder is not None else None
    if path is None or not path.is_file():
        return {}
    concepts: dict[str, Any] = json.loads(path.read_text())["concepts"]
    return concepts


def _unit(features: torch.Tensor) -> np.ndarray:
    features = features.float()
    unit: np.ndarray = (features / features.norm(dim=-1, keepdim=True).clamp_min(1e-12)).cpu().numpy()
    return unit


def _fuse_batch_norm(trunk: torch.nn.Module) -> None:
    """Folds every batch norm of a timm EfficientNet into the convolution before it: same function, fewer passes."""
    import torch
    from timm.layers import BatchNormAct2d
    from timm.models import EfficientNet

    if not isinstance(trunk, EfficientNet):
        return
    for module in list(trunk.modules()):
        previous: torch.nn.Module | None = None
        for name, child in list(module.named_children()):
            # In timm's EfficientNet blocks a norm always directly follows its convolution, in order of registration.
            if isinstance(child, BatchNormAct2d) and isinstance(previous, torch.nn.Conv2d):
                scale = child.weight / torch.sqrt(child.running_var + child.eps)
                bias = child.bias - child.running_mean * scale
                previous.weight = torch.nn.Parameter(previous.weight * scale.view(-1, 1, 1, 1), requires_grad=False)
                previous.bias = torch.nn.Parameter(bias, requires_grad=False)
                setattr(module, name, torch.nn.Sequential(child.drop, child.act))
            previous = child
