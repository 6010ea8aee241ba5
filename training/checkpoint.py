"""Checkpoints: the weights, their average and the optimizer's state, whole or not at all, and without a pickle.

A checkpoint is a folder `images-<images seen>` with one safetensors file per part and `checkpoint.json`, which holds
the sha256 of each. Locally the folder is renamed into place; on S3 `checkpoint.json` is written last. What follows from
the images seen (learning rate, data position, all randomness) is not stored.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from curation import storage
from curation.errors import UserError
from training.progress import Point

logger = logging.getLogger(__name__)

INFO_FILE = "checkpoint.json"
_PREFIX = "images-"
# part -> tensor name -> tensor
State = Mapping[str, Mapping[str, Tensor]]


class Identity(BaseModel):
    """What a checkpoint belongs to. A run continues only from a checkpoint of its own."""

    model_config = ConfigDict(frozen=True)
    manifest_id: str
    training_set_digest: str
    text_encoder_sha256: str
    config: dict[str, Any]


class CheckpointInfo(BaseModel):
    """The contents of `checkpoint.json`. `points` are all that the run has measured so far."""

    model_config = ConfigDict(frozen=True)
    images_seen: int
    identity: Identity
    topology: dict[str, int]
    libraries: dict[str, str]
    points: list[Point]
    files: dict[str, str] = {}


def state_sha256(state: State) -> str:
    """sha256 over the names, types, shapes and bytes of all tensors, in sorted order."""
    h = hashlib.sha256()
    for part in sorted(state):
        for name in sorted(state[part]):
            tensor = state[part][name].detach().cpu().contiguous()
            h.update(f"{part}/{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
            h.update(tensor.flatten().view(torch.uint8).numpy().data)
    return h.hexdigest()


def save(folder: str, state: State, info: CheckpointInfo, *, keep: int) -> str:
    """Writes a checkpoint into a folder of checkpoints and removes all but the newest `keep`; returns its path."""
    name = f"{_PREFIX}{info.images_seen:012d}"
    target = storage.join(folder, name)
    staging = target if storage.is_remote(folder) else storage.join(folder, f".{name}.{uuid.uuid4().hex[:8]}.partial")
    files = {}
    try:
        for part, tensors in state.items():
            data = safetensors.torch.save({key: value.detach().cpu().contiguous() for key, value in tensors.items()})
            files[f"{part}.safetensors"] = hashlib.sha256(data).hexdigest()
            storage.write_bytes(storage.join(staging, f"{part}.safetensors"), data)
        text = info.model_copy(update={"files": files}).model_dump_json(indent=1)
        storage.write_bytes(storage.join(staging, INFO_FILE), text.encode())
        if staging != target:
            storage.move_tree(staging, target)
    except FileExistsError:
        # An earlier attempt of this run got as far. Training is deterministic: it holds the same, unless it is damaged.
        if _problem(target) is not None:
            storage.remove_tree(target)
            storage.move_tree(staging, target)
    finally:
        if staging != target:
            storage.remove_tree(staging)
    # the newest whole ones stay; a damaged one is worth nothing and must not push a good one out
    whole = [name for name in _names(folder) if _problem(storage.join(folder, name)) is None]
    for old in set(_names(folder)) - set(whole[-keep:]):
        storage.remove_tree(storage.join(folder, old))
    return target


def _names(folder: str) -> list[str]:
    """Checkpoints in ascending order of images seen; a folder without its `checkpoint.json` is none."""
    paths = (info.path.split("/") for info in storage.list_files(folder, recursive=True))
    return sorted({path[-2] for path in paths if path[-1] == INFO_FILE and path[-2].startswith(_PREFIX)})


def sweep(folder: str) -> None:
    """Removes what a killed process left half-written. To be called by the one process that writes this folder."""
    if not storage.is_remote(folder):
        for leftover in Path(storage.filesystem(folder)[1]).glob(f".{_PREFIX}*.partial"):
            shutil.rmtree(leftover, ignore_errors=True)


def latest(folder: str) -> str | None:
    """The newest whole checkpoint, or None. A damaged one is passed over, and what came after the one before redone."""
    for name in reversed(_names(folder)):
        path = storage.join(folder, name)
        problem = _problem(path)
        if problem is None:
            return path
        logger.warning("checkpoint %s is passed over: %s", path, problem)
    return None


def _problem(path: str) -> str | None:
    try:
        info = CheckpointInfo.model_validate(json.loads(storage.read_bytes(storage.join(path, INFO_FILE))))
        for name, expected in info.files.items():
            if hashlib.sha256(storage.read_bytes(storage.join(path, name))).hexdigest() != expected:
                return f"{name} is not what was written"
    except FileNotFoundError as error:
        return f"a file is missing: {error}"
    except (ValueError, ValidationError) as error:
        return f"{INFO_FILE} is damaged: {error}"
    return None


def load(path: str, identity: Identity) -> tuple[CheckpointInfo, dict[str, dict[str, Tensor]]]:
    """Reads a checkpoint that belongs to this run.

    Raises:
        UserError: a damaged checkpoint, or one of another manifest, text encoder or configuration.
    """
    problem = _problem(path)
    if problem is not None:
        raise UserError(
            f"the checkpoint {path} is damaged: {problem}",
            field="output",
            remedy="remove it; an older one is used then",
        )
    info = CheckpointInfo.model_validate(json.loads(storage.read_bytes(storage.join(path, INFO_FILE))))
    _refuse_another(path, info.identity, identity)
    state = {
        name.removesuffix(".safetensors"): safetensors.torch.load(storage.read_bytes(storage.join(path, name)))
        for name in info.files
    }
    return info, state


def _refuse_another(path: str, stored: Identity, wanted: Identity) -> None:
    for field, what in (
        ("manifest_id", "manifest"),
        ("training_set_digest", "manifest"),
        ("text_encoder_sha256", "text_encoder"),
    ):
        ours, theirs = getattr(wanted, field), getattr(stored, field)
        if ours != theirs:
            raise UserError(
                f"the checkpoint {path} belongs to another {what} ({theirs[:12]}… instead of {ours[:12]}…)",
                field=what,
                remedy="train under another name or output, or give back what the run was started with",
            )
    for key in sorted({*stored.config, *wanted.config}):
        if stored.config.get(key) != wanted.config.get(key):
            raise UserError(
                f"the checkpoint {path} was written with {key} = {stored.config.get(key)}, "
                f"the job says {wanted.config.get(key)}",
                field=key,
                remedy="train under another name or output, or set it back",
            )
