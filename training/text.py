"""The frozen text tower: captions to the token states that the U-Net attends to.

A tower is a folder that curation exported from its CLIP: `open_clip_text.json` (how to build it and its tokenizer) and
`model.safetensors`. open_clip builds it; nothing here knows the image tower.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from curation import torchvision_ops
from curation.errors import UserError

CONFIG_FILE = "open_clip_text.json"
WEIGHTS_FILE = "model.safetensors"


class TextEncoder:
    """A text tower in evaluation mode on one device.

    Attributes:
        width: W, the width of a token state; the U-Net's `cross_attention_dim`.
        length: L, the number of token positions.
        name: the CLIP that the tower was taken from.
        folder: where it was loaded from.
    """

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

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], *, chunk: int = 1) -> tuple[Tensor, Tensor]:
        """Token states after the tower's last layer norm, before pooling.

        Prompts go through the tower `chunk` at a time, the last chunk filled up with empty ones. One at a time, the
        states of a prompt depend on nothing but the prompt, to the bit; larger chunks are for encoding a training set.

        Returns:
            states: float32 (N, L, W) on the tower's device; zero where the mask is False.
            mask: bool (N, L), True for the prompt's own tokens (with its start and end marks), False for padding.
        """
        states, masks = [], []
        for start in range(0, len(prompts), chunk):
            part = list(prompts[start : start + chunk])
            ids = self._tokenizer(part + [""] * (chunk - len(part))).to(self.device)
            _, tokens = self._tower(ids)
            mask = _own_tokens(ids, self._pad)
            states.append((tokens.float() * mask[:, :, None])[: len(part)])
            masks.append(mask[: len(part)])
        if not states:
            empty = torch.zeros(0, self.length, self.width, device=self.device)
            return empty, empty[..., 0].bool()
        return torch.cat(states), torch.cat(masks)


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
    except FileNotFoundError:
        raise _no_tower(folder, CONFIG_FILE) from None
    except ValueError as error:
        raise UserError(f"{folder / CONFIG_FILE} is damaged: {error}", field="text_encoder") from None
    return config


def _build_tower(folder: Path, config: dict[str, Any]) -> Any:
    torchvision_ops.declare()
    from open_clip.model import _build_text_tower
    from safetensors import SafetensorError
    from safetensors.torch import load_file

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
