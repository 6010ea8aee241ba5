"""Folders of weights that may come from elsewhere: nothing in them is run, and nothing outside them is read.

Weights are safetensors and descriptions are JSON, so what is left to refuse is what the libraries would do with a
description: diffusers builds any class of its own by name, fetches quantisers, and falls back to pickles; open_clip
hands a tokenizer's options on to transformers, of which one is `trust_remote_code`.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from curation import storage
from curation.hub import HUB_ID, TOKENIZER_OPTIONS

NETWORKS = ("UNet2DConditionModel", "UNet3DConditionModel", "PixArtTransformer2DModel")
"""What a bundle's network may be: those of `training.network`."""
_CONFIG_FILE = "config.json"
_SHARDS_FILE = "diffusion_pytorch_model.safetensors.index.json"
_NEVER = ("quantization_config", "auto_map", "quantization_config_dict")
_PROGRAMS = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth", ".py", ".pyc", ".so")


def refuse_programs(folder: Path) -> None:
    """Looks at every file of a bundle.

    Raises:
        ValueError: a pickle, a program, a link that leads out of the folder, or what is no file.
    """
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.suffix.lower() in _PROGRAMS:
            raise ValueError(f"{name} is a program or a pickle, which no bundle holds")
        if path.is_symlink() and not storage.inside(str(folder), str(path)):
            raise ValueError(f"{name} is a link that leads out of it")
        if not path.is_dir() and not stat.S_ISREG(os.stat(path).st_mode):
            raise ValueError(f"{name} is no regular file")


def class_of(folder: Path, classes: Collection[str]) -> str:
    """The name of the class of diffusers that a model's folder is to be loaded with.

    Raises:
        OSError: no description there.
        ValueError: it is of none of the classes, or wants more done than building one and filling in its weights.
    """
    config = json.loads((folder / _CONFIG_FILE).read_text(encoding="utf-8"))
    found = config.get("_class_name") if isinstance(config, Mapping) else None
    if not isinstance(found, str) or found not in classes:
        raise ValueError(f"{_CONFIG_FILE} names the class {found!r}, not one of {', '.join(classes)}")
    for name in _NEVER:
        if name in config:
            raise ValueError(f"{_CONFIG_FILE} has {name}, which would run more than the network")
    if (folder / _SHARDS_FILE).is_file():
        for name in set(json.loads((folder / _SHARDS_FILE).read_text(encoding="utf-8"))["weight_map"].values()):
            if "/" in storage.plain_name(name) or not name.endswith(".safetensors"):
                raise ValueError(f"{_SHARDS_FILE} names {name[:200]!r}, which is no file of weights beside it")
    return found


def refuse_text(text_cfg: Mapping[str, Any], tokenizer: Mapping[str, Any]) -> None:
    """Looks at what describes a text tower.

    Args:
        text_cfg: open_clip's `text_cfg`.
        tokenizer: as `Clip.export_text_tower` describes it.

    Raises:
        ValueError: a model of another library, or a tokenizer that is read from a path or with code of its own.
    """
    if text_cfg.get("hf_model_name"):
        raise ValueError(f"it is the Hugging Face model {text_cfg['hf_model_name']!r}, not a tower of open_clip's")
    for name in (tokenizer.get("architecture"), tokenizer.get("hf_tokenizer_name")):
        if name is not None and (not isinstance(name, str) or not HUB_ID.fullmatch(name) or os.path.exists(name)):
            raise ValueError(f"its tokenizer {name!r} is neither an architecture nor a model of the hub")
    if more := set(tokenizer.get("tokenizer_kwargs") or ()) - TOKENIZER_OPTIONS:
        raise ValueError(f"its tokenizer has the options {', '.join(sorted(more))}")
