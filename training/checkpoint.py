"""Checkpoints: the weights, their average and the optimizer's state, whole or not at all, and without a pickle.

A checkpoint is a folder `images-<images seen>` with one safetensors file per part, or one per worker where the state is
split over workers (`training.pieces`), and `checkpoint.json`, which holds the sha256 of each. Locally the folder is
renamed into place; on S3 `checkpoint.json` is written last. What follows from the images seen (learning rate, data
position, all randomness) is not stored.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import uuid
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from curation import storage
from curation.errors import UserError
from curation.manifest import FileName
from training import pieces
from training.progress import Leg, Point
from training.sharding import whole

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
    """The contents of `checkpoint.json`.

    Attributes:
        topology: what the last bits depend on: workers, accumulation, whether captions were resident, whether it ran
            on GPUs, and, where they were, whether it was compiled and split over the workers (1 or 0); as it was when
            the checkpoint was written.
        legs: all topologies since the first image, in order; empty in an older one.
        points: all that the run has measured so far.
        milestone: whether it is kept for ever.
        base_digest, removed_digest: of the run's roster.
        seen_sha256: hash of all samples that the state depends on (`retraining.Seen`); None in an older one.
        loss: mean of the points since the checkpoint before; None where there is none.
    """

    model_config = ConfigDict(frozen=True)
    images_seen: int
    identity: Identity
    topology: dict[str, int]
    legs: tuple[Leg, ...] = ()
    libraries: dict[str, str]
    points: tuple[Point, ...]
    milestone: bool = False
    base_digest: str | None = None
    removed_digest: str | None = None
    seen_sha256: str | None = None
    loss: float | None = None
    files: dict[FileName, str] = {}

    def legs_of(self, topology: dict[str, int]) -> tuple[Leg, ...]:
        """The legs of a run that goes on from here at a topology."""
        before = self.legs or (Leg(images=0, topology=self.topology),)
        if before[-1].topology == topology:
            return before
        logger.warning("goes on at another topology: the same samples, not the same bits")
        return (*before, Leg(images=self.images_seen, topology=topology))


def state_sha256(state: State) -> str:
    """sha256 over the names, types, shapes and bytes of all tensors, in sorted order. Of a split state all workers have
    to ask."""
    h = hashlib.sha256()
    for part in sorted(state):
        for name in sorted(state[part]):
            tensor = whole(state[part][name].detach()).cpu().contiguous()
            h.update(f"{part}/{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
            h.update(tensor.flatten().view(torch.uint8).numpy().data)
    return h.hexdigest()


@dataclass(frozen=True)
class Standing:
    """How checkpoints stand by what is measured of them elsewhere.

    Attributes:
        scores: by images seen; the lowest is the best.
        busy: images seen of those that are being measured, which stay.
    """

    scores: Mapping[int, float]
    busy: Collection[int] = ()


def save(
    folder: str,
    state: State,
    info: CheckpointInfo,
    *,
    keep: int,
    keep_best: int = 0,
    standing: Callable[[], Standing] | None = None,
) -> str:
    """Writes a checkpoint into a folder of checkpoints and returns its path.

    All but the newest `keep` and the `keep_best` best are removed; milestones stay, and are not counted.

    Args:
        standing: says which are the best; None: those of lowest loss.
    """
    target, staging = places(folder, info.images_seen)
    files = {}
    try:
        for part, tensors in state.items():
            data = safetensors.torch.save({key: value.detach().cpu().contiguous() for key, value in tensors.items()})
            files[f"{part}.safetensors"] = hashlib.sha256(data).hexdigest()
            storage.write_bytes(storage.join(staging, f"{part}.safetensors"), data)
        publish(target, staging, info.model_copy(update={"files": files}))
    finally:
        if staging != target:
            storage.remove_tree(staging)
    remove_old(folder, keep, keep_best, None if standing is None else standing())
    return target


def places(folder: str, images_seen: int) -> tuple[str, str]:
    """Where a checkpoint will lie, and where it is written; in a bucket they are the same."""
    name = f"{_PREFIX}{images_seen:012d}"
    target = storage.join(folder, name)
    staging = target if storage.is_remote(folder) else storage.join(folder, f".{name}.{uuid.uuid4().hex[:8]}.partial")
    return target, staging


def publish(target: str, staging: str, info: CheckpointInfo) -> None:
    """Makes what was written a checkpoint, by `checkpoint.json` and a rename."""
    storage.write_bytes(storage.join(staging, INFO_FILE), info.model_dump_json(indent=1).encode())
    if staging == target:
        return
    try:
        storage.move_tree(staging, target)
    except FileExistsError:
        # An earlier attempt of this run got as far. Training is deterministic: it holds the same, unless it is damaged.
        if problem(target) is not None:
            storage.remove_tree(target)
            storage.move_tree(staging, target)


def paths(folder: str) -> list[str]:
    """Checkpoints in ascending order of images seen; a folder without its `checkpoint.json` is none."""
    parts = (info.path.split("/") for info in storage.list_files(folder, recursive=True))
    names = {part[-2] for part in parts if part[-1] == INFO_FILE and part[-2].startswith(_PREFIX)}
    return [storage.join(folder, name) for name in sorted(names)]


def remove_old(folder: str, keep: int, keep_best: int, standing: Standing | None = None) -> None:
    """Removes what `save` does not keep.

    Only whole ones are counted: a damaged one is worth nothing and must not push a good one out.
    """
    told = {path: _told(path) for path in paths(folder)}
    passing = [path for path, info in told.items() if info is None or not info.milestone]
    whole = [path for path in passing if problem(path) is None]
    ranked = _ranked({path: info for path in whole if (info := told[path]) is not None}, standing)
    busy = {path for path in whole if standing is not None and images_of(path) in standing.busy}
    for old in set(passing) - set(whole[-keep:]) - set(ranked[:keep_best]) - busy:
        storage.remove_tree(old)


def best(folder: str, standing: Standing | None = None) -> str | None:
    """The best whole checkpoint, milestones among them; None where nothing is known of any."""
    told = {path: info for path in paths(folder) if (info := _told(path)) is not None and problem(path) is None}
    return next(iter(_ranked(told, standing)), None)


def _ranked(told: Mapping[str, CheckpointInfo], standing: Standing | None) -> list[str]:
    """Those of which it is known how good they are, the best first; of equal ones the newer."""
    scores = {
        path: info.loss if standing is None else standing.scores.get(images_of(path)) for path, info in told.items()
    }
    known = [(score, -images_of(path), path) for path, score in scores.items() if score is not None]
    return [path for *_, path in sorted(known)]


def images_of(path: str) -> int:
    """Images seen, by a checkpoint's name."""
    return int(path.rpartition(_PREFIX)[2])


def _told(path: str) -> CheckpointInfo | None:
    """What a checkpoint says about itself; None for one that cannot be read."""
    try:
        return _read_info(path)
    except (FileNotFoundError, ValueError):
        return None


def sweep(folder: str) -> None:
    """Removes what a killed process left half-written. To be called by the one process that writes this folder."""
    if not storage.is_remote(folder):
        for leftover in Path(storage.filesystem(folder)[1]).glob(f".{_PREFIX}*.partial"):
            shutil.rmtree(leftover, ignore_errors=True)


def latest(folder: str, refused: Callable[[str, str], None] = lambda path, why: None) -> str | None:
    """The newest whole checkpoint, or None. A damaged one is passed over, and what came after the one before redone.

    Args:
        refused: is told of a damaged one and of what is wrong with it.
    """
    for path in reversed(paths(folder)):
        found = problem(path)
        if found is None:
            return path
        logger.warning("checkpoint %s is passed over: %s", path, found)
        refused(path, found)
    return None


def problem(path: str) -> str | None:
    """Why a checkpoint is not whole; None for one that is. Reads all of it."""
    try:
        return problem_of(path, _read_info(path).files)
    except FileNotFoundError as error:
        return f"a file is missing: {error}"
    except ValueError as error:
        return f"{INFO_FILE} is damaged: {error}"


def problem_of(path: str, files: Mapping[str, str]) -> str | None:
    """What is wrong with some of a checkpoint's files, given their sha256; None where nothing is."""
    try:
        for name, expected in files.items():
            if hashlib.sha256(storage.read_bytes(storage.join(path, name))).hexdigest() != expected:
                return f"{name} is not what was written"
    except FileNotFoundError as error:
        return f"a file is missing: {error}"
    return None


def _read_info(path: str) -> CheckpointInfo:
    """Raises FileNotFoundError, or ValueError (of which pydantic's is one)."""
    return CheckpointInfo.model_validate(json.loads(storage.read_bytes(storage.join(path, INFO_FILE))))


def read_info(path: str) -> CheckpointInfo:
    """What a checkpoint says about itself.

    Raises:
        UserError: no checkpoint there, or a damaged one.
    """
    try:
        return _read_info(path)
    except FileNotFoundError:
        raise UserError(
            f"no checkpoint at {path}",
            field="resume_from",
            remedy=f"give a folder `{_PREFIX}…` of a run's `checkpoints`, or leave the field out",
        ) from None
    except ValueError as error:
        raise damaged(path, f"{INFO_FILE}: {error}") from None


def damaged(path: str, found: str) -> UserError:
    """The refusal of a checkpoint."""
    return UserError(
        f"the checkpoint {path} is damaged: {found}", field="output", remedy="remove it; an older one is used then"
    )


def read_state(path: str, info: CheckpointInfo) -> State:
    """All of a checkpoint's tensors, each whole, however many workers wrote it.

    Raises:
        UserError: a damaged checkpoint.
    """
    found = problem_of(path, info.files)
    if found is not None:
        raise damaged(path, found)
    if pieces.INDEX_FILE in info.files:
        return pieces.read_whole(path, tuple(info.files))
    try:
        return {
            name.removesuffix(".safetensors"): safetensors.torch.load(storage.read_bytes(storage.join(path, name)))
            for name in info.files
        }
    except safetensors.SafetensorError as error:
        raise damaged(path, str(error)) from None


Read = Callable[[str, CheckpointInfo], State]


def load(path: str, identity: Identity, read: Read = read_state) -> tuple[CheckpointInfo, State]:
    """Reads a checkpoint that belongs to this run.

    Raises:
        UserError: a damaged checkpoint, or one of another manifest, text encoder or configuration.
    """
    info = read_info(path)
    _refuse_another(path, info.identity, identity)
    return info, read(path, info)


def load_for_retraining(path: str, identity: Identity, read: Read = read_state) -> tuple[CheckpointInfo, State]:
    """Reads a checkpoint of another run, whatever its manifest; what it has seen is for the caller to check.

    Raises:
        UserError: a damaged checkpoint, or one of another text encoder or configuration.
    """
    info = read_info(path)
    refuse_other_ways(path, info.identity, identity.config, identity.text_encoder_sha256)
    return info, read(path, info)


def read_part(path: str, part: str) -> tuple[CheckpointInfo, Mapping[str, Tensor]]:
    """What a checkpoint says about itself, and one part of its state, whatever run it is of.

    Raises:
        FileNotFoundError: there is none, or none any more.
        ValueError: it is damaged.
    """
    info = _read_info(path)
    file = f"{part}.safetensors"
    if file in info.files:
        data = storage.read_bytes(storage.join(path, file))
        if hashlib.sha256(data).hexdigest() != info.files[file]:
            raise ValueError(f"{file} of {path} is not what was written")
        return info, safetensors.torch.load(data)
    found = problem_of(path, info.files)
    if found is not None:
        raise ValueError(f"{path} is damaged: {found}")
    return info, pieces.read_whole(path, tuple(info.files), part)[part]


def _refuse_another(path: str, stored: Identity, wanted: Identity) -> None:
    for field in ("manifest_id", "training_set_digest"):
        _refuse(path, "manifest", getattr(stored, field), getattr(wanted, field))
    refuse_other_ways(path, stored, wanted.config, wanted.text_encoder_sha256)


def refuse_other_ways(path: str, stored: Identity, config: Mapping[str, Any], text_encoder: str | None = None) -> None:
    """Refuses a checkpoint of a run that trained in another way.

    Args:
        config: the job's `identity`.
        text_encoder: its text encoder's sha256; None where it is not known yet.

    Raises:
        UserError: another text encoder or configuration.
    """
    if text_encoder is not None:
        _refuse(path, "text_encoder", stored.text_encoder_sha256, text_encoder)
    for key in sorted({*stored.config, *config}):
        if stored.config.get(key) != config.get(key):
            raise UserError(
                f"the checkpoint {path} was written with {key} = {stored.config.get(key)}, "
                f"the job says {config.get(key)}",
                field=key,
                remedy="train under another name or output, or set it back",
            )


def _refuse(path: str, what: str, theirs: str, ours: str) -> None:
    if ours != theirs:
        raise UserError(
            f"the checkpoint {path} belongs to another {what} ({theirs[:12]}… instead of {ours[:12]}…)",
            field=what,
            remedy="train under another name or output, or give back what the run was started with",
        )
