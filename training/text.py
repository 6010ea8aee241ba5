"""The frozen text tower: captions to what the U-Net is conditioned on.

A tower is a folder that curation exported from its CLIP: `open_clip_text.json` (how to build it and its tokenizer) and
`model.safetensors`. open_clip builds it; nothing here knows the image tower. A trained model's tower has a third file,
`statistics.safetensors`: states of different captions have most of their length in common, and a small network learns
several times faster from states that are standardised over training captions.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from curation import torchvision_ops
from curation.errors import UserError
from training import foreign

CONFIG_FILE = "open_clip_text.json"
WEIGHTS_FILE = "model.safetensors"
STATISTICS_FILE = "statistics.safetensors"
_STATISTICS_CAP = 4096  # captions that are enough to measure a mean by


@dataclass(frozen=True)
class Conditioning:
    """What the U-Net is told about N prompts.

    Attributes:
        states: float32 (N, L, W) token states, which it attends to; zero where the mask is False.
        mask: bool (N, L), True for the prompt's own tokens (with its start and end marks), False for padding.
        pooled: float32 (N, W), the state at the prompt's end, which is added to the timestep's embedding.
    """

    states: Tensor
    mask: Tensor
    pooled: Tensor

    def __getitem__(self, rows: Tensor) -> Conditioning:
        return Conditioning(self.states[rows], self.mask[rows], self.pooled[rows])

    def to(self, device: torch.device | str) -> Conditioning:
        return Conditioning(self.states.to(device), self.mask.to(device), self.pooled.to(device))

    def cropped(self, used: int | None = None) -> Conditioning:
        """Without the positions that no prompt uses: all but the first `used`, which is found out where not given."""
        if used is None:
            used = int(self.mask.sum(dim=1).max()) if len(self.mask) else 0
        return Conditioning(self.states[:, :used].contiguous(), self.mask[:, :used].contiguous(), self.pooled)


class TextEncoder:
    """A text tower in evaluation mode on one device.

    Attributes:
        width: W, the width of a token state; the U-Net's `cross_attention_dim`.
        length: L, the number of token positions.
        name: the CLIP that the tower was taken from.
        classes: none; see `training.conditioning`.
        folder: where it was loaded from.
        statistics: mean and standard deviation of the states and of the pooled states, each (W,), by which `encode`
            standardises; empty until `measure` was called or where the folder has none.
    """

    classes: tuple[str, ...] = ()

    def __init__(self, folder: str | Path, device: torch.device | str = "cpu") -> None:
        """Loads a tower.

        Raises:
            UserError: files missing or damaged, or weights that do not fit the configuration.
        """
        self.folder = Path(folder)
        config = _read_config(self.folder)
        self.device = torch.device(device)
        self.name = str(config.get("clip", "unnamed"))
        self._tower: Any = _build_tower(self.folder, config).to(self.device)
        self._pad = int(config["text_cfg"].get("pad_id", 0))
        self._tokenizer = _build_tokenizer(config)
        self.width = int(self._tower.width)
        self.length = int(self._tower.context_length)
        self.statistics: dict[str, Tensor] = {}
        if (self.folder / STATISTICS_FILE).is_file():
            self.statistics = load_file(self.folder / STATISTICS_FILE, device=str(self.device))

    def measure(self, captions: Sequence[str]) -> None:
        """Takes the statistics from a run's first captions: from all distinct ones, or evenly from very many."""
        distinct = sorted(set(captions))
        self.statistics = {}
        found = self.encode(distinct[:: -(-len(distinct) // _STATISTICS_CAP)], chunk=32)
        states = found.states[found.mask]
        self.statistics = {
            "mean": states.mean(dim=0),
            "std": _scale(states),
            "pooled_mean": found.pooled.mean(dim=0),
            "pooled_std": _scale(found.pooled),
        }

    def digest(self) -> str:
        """sha256 of the tower, without the statistics."""
        return digest(self.folder)

    def save(self, folder: Path) -> None:
        """Copies the tower's files to a folder and puts the statistics beside them."""
        shutil.copytree(self.folder, folder, dirs_exist_ok=True)
        if self.statistics:
            save_file(
                {name: value.cpu().contiguous() for name, value in self.statistics.items()}, folder / STATISTICS_FILE
            )

    def encode(self, prompts: Sequence[str], *, chunk: int = 1) -> Conditioning:
        """Token states after the tower's last layer norm, before pooling; standardised where there are statistics.

        Prompts go through the tower `chunk` at a time, the last chunk filled up with empty ones. One at a time, the
        states of a prompt depend on nothing but the prompt, to the bit; larger chunks are for encoding a training set.
        """
        return self.told(prompts, *self.tokens(prompts, chunk=chunk))

    @torch.no_grad()
    def tokens(self, prompts: Sequence[str], *, chunk: int = 1) -> tuple[Tensor, Tensor]:
        """As `encode`, before anything is standardised: states float32 (N, L, W) and mask bool (N, L)."""
        states, masks = [], []
        for start in range(0, len(prompts), chunk):
            part = list(prompts[start : start + chunk])
            ids = self._tokenizer(part + [""] * (chunk - len(part))).to(self.device)
            _, tokens = self._tower(ids)
            mask = _own_tokens(ids, self._pad)
            states.append(tokens.float()[: len(part)])
            masks.append(mask[: len(part)])
        if not states:
            empty = torch.zeros(0, self.length, self.width, device=self.device)
            return empty, empty[..., 0].bool()
        return torch.cat(states), torch.cat(masks)

    def caption_of(self, prompt: str) -> str:
        """What of a prompt the tower reads."""
        return prompt

    def told(self, prompts: Sequence[str], states: Tensor, mask: Tensor) -> Conditioning:
        """What `encode` makes of the states of N prompts' captions: float32 (N, l, W), mask (N, l), l at most L."""
        pooled = states[torch.arange(len(states), device=states.device), mask.sum(dim=1) - 1]
        if self.statistics:
            pooled = (pooled - self.statistics["pooled_mean"]) / self.statistics["pooled_std"]
            states = (states - self.statistics["mean"]) / self.statistics["std"]
        return Conditioning(states * mask[:, :, None], mask, pooled)


def _scale(values: Tensor) -> Tensor:
    """Standard deviation of each column (N, W); 1 where a column is all but constant, as for a single caption."""
    deviation = values.std(dim=0, correction=0)
    return torch.where(deviation > 1e-3, deviation, 1.0)


def dimensions(folder: str | Path) -> tuple[int, int]:
    """L and W of a tower, without loading it."""
    described = _read_config(Path(folder))["text_cfg"]
    return int(described.get("context_length", 77)), int(described.get("width", 512))


def digest(folder: str | Path) -> str:
    """sha256 of a tower's two files: which text encoder this is.

    Raises:
        UserError: a file is missing.
    """
    h = hashlib.sha256()
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        try:
            h.update(hashlib.sha256((Path(folder) / name).read_bytes()).digest())
        except OSError:
            raise _no_tower(Path(folder), name) from None
    return h.hexdigest()


def _no_tower(folder: Path, name: str) -> UserError:
    return UserError(
        f"no text tower at {folder}: {name} is missing",
        field="text_encoder",
        remedy="export it from the CLIP that made the manifest (cleanplate train does so by itself)",
    )


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads((folder / CONFIG_FILE).read_text())
        if not {"embed_dim", "text_cfg"} <= config.keys():
            raise ValueError("embed_dim or text_cfg is missing")
        foreign.refuse_text(config["text_cfg"], config.get("tokenizer") or {})
    except FileNotFoundError:
        raise _no_tower(folder, CONFIG_FILE) from None
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{folder / CONFIG_FILE} is damaged: {error}", field="text_encoder") from None
    return config


def _build_tower(folder: Path, config: dict[str, Any]) -> Any:
    torchvision_ops.declare()
    from open_clip.model import _build_text_tower
    from safetensors import SafetensorError

    # output_tokens is open_clip's own switch for the states beside the pooled vector
    text_cfg = {**config["text_cfg"], "output_tokens": True}
    try:
        tower: torch.nn.Module = _build_text_tower(
            config["embed_dim"], text_cfg, quick_gelu=bool(config.get("quick_gelu", False))
        )
        state = load_file(folder / WEIGHTS_FILE)
        tower.load_state_dict({name: value.float() for name, value in state.items()})
    except FileNotFoundError:
        raise _no_tower(folder, WEIGHTS_FILE) from None
    except (RuntimeError, TypeError, SafetensorError) as error:
        raise UserError(
            f"the text tower at {folder} does not load: {error}",
            field="text_encoder",
            remedy="export it again, or restore the folder",
        ) from None
    return tower.eval().requires_grad_(False)


def _build_tokenizer(config: dict[str, Any]) -> Any:
    torchvision_ops.declare()
    import open_clip

    chosen = config.get("tokenizer") or {}
    length = chosen.get("context_length") or config["text_cfg"].get("context_length", 77)
    options = chosen.get("tokenizer_kwargs") or {}
    if chosen.get("architecture"):
        return open_clip.get_tokenizer(chosen["architecture"], context_length=length)
    if chosen.get("hf_tokenizer_name"):
        return open_clip.HFTokenizer(
            chosen["hf_tokenizer_name"], context_length=length, tokenizer_mode=chosen.get("tokenizer_mode"), **options
        )
    return open_clip.SimpleTokenizer(context_length=length, **options)


def _own_tokens(ids: Tensor, pad: int) -> Tensor:
    """bool (N, L): every position up to the last one that is not padding. The pad id may also be a real token."""
    position = torch.arange(ids.shape[1], device=ids.device)
    last = torch.where(ids != pad, position, 0).amax(dim=1)
    return position[None, :] <= last[:, None]
