"""Averages of any length, made after training from a few that were stored on the way.

What is stored are `PowerEma`s of two or more lengths, at several times of the run: each is a known weighted sum of the
weights of all steps. The sum that is nearest to the profile asked for, by least squares, is taken (Karras et al. 2024,
arXiv 2312.02696, section 3.2 and appendix C.2). The paper takes profiles as continuous; here they are what the updates
make them, step by step, so that short runs come out as well.

    <run>/averages/images-<images seen>/   ema_<sigma_rel>.safetensors of each length, in the form of a checkpoint
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
from torch import Tensor

from curation import storage
from curation.errors import UserError
from training import checkpoint
from training.bundle import BundleInfo, load_bundle, write_bundle
from training.checkpoint import Identity
from training.ema import PREFIX, exponent
from training.retraining import Seen

_BINS = 20_000  # of steps, over which profiles are compared; up to so many steps the comparison is exact
_FIRMLY = 1e4  # how much more a sum of 1 counts than the profile
_MISFIT = 0.1  # of the profile: above, what comes out is not the average that was asked for


@dataclass(frozen=True)
class Snapshot:
    """One stored average.

    Attributes:
        step: optimizer steps that it had seen.
        sigma_rel: its length.
        file: where its weights lie, a safetensors file.
        sha256: of that file.
    """

    step: int
    sigma_rel: float
    file: str
    sha256: str


def folder_of(run: str) -> str:
    """Where the snapshots of a run's folder lie."""
    return storage.join(run, "averages")


def snapshots(run: str) -> list[Snapshot]:
    """Those in a run's folder, in ascending order of steps.

    Raises:
        UserError: none there, or of runs of different configurations.
    """
    found: list[Snapshot] = []
    configs = []
    for path in checkpoint.paths(folder_of(run)):
        info = checkpoint.read_info(path)
        configs.append(info.identity.config)
        step = info.images_seen // int(info.identity.config["batch_size"])
        for name, sha256 in info.files.items():
            length = float(name.removeprefix(PREFIX).removesuffix(".safetensors"))
            found.append(Snapshot(step, length, storage.join(path, name), sha256))
    if not found:
        raise UserError(
            f"no averages in {run}",
            field="ema.profiles",
            remedy="train with ema.profiles, e.g. [0.05, 0.1]: they cannot be made up afterwards",
        )
    if any(config != configs[0] for config in configs):
        raise UserError(
            f"the averages in {run} are of different runs", field="output", remedy="remove those of the older one"
        )
    return found


def reconstruct(stored: Sequence[Snapshot], sigma_rel: float, *, step: int | None = None) -> dict[str, Tensor]:
    """The weights averaged over another length, float32, by name.

    Args:
        step: after how many steps; None: after the last one that was stored.

    Raises:
        UserError: a length that cannot be made from these, or a damaged file.
    """
    step = max(snapshot.step for snapshot in stored) if step is None else step
    stored = [snapshot for snapshot in stored if snapshot.step <= step]
    factors, misfit = coefficients([(s.step, s.sigma_rel) for s in stored], sigma_rel, step)
    if misfit > _MISFIT:
        raise UserError(
            f"no average of length {sigma_rel:g} at step {step} can be made from {len(stored)} stored ones: "
            f"the nearest is {misfit:.0%} away",
            field="sigma_rel",
            remedy="ask for a length nearer to those of ema.profiles, or train with more ema.snapshots",
        )
    total: dict[str, Tensor] = {}
    for snapshot, factor in zip(stored, factors.tolist(), strict=True):
        for name, tensor in _read(snapshot).items():
            total[name] = total.get(name, 0) + factor * tensor.double()
    return {name: tensor.float() for name, tensor in total.items()}


def rebundle(run: str, sigma_rel: float, target: str | Path) -> BundleInfo:
    """Writes a run's bundle again, to a local folder, with its weights averaged over another length.

    Args:
        run: the run's folder, with its bundle and the averages that it stored.

    Raises:
        UserError: no bundle, no averages, or a length that cannot be made from them.
    """
    weights = reconstruct(snapshots(run), sigma_rel)
    model = load_bundle(storage.join(run, "bundle"))
    model.unet.load_state_dict(weights)
    return write_bundle(target, model, model.info.model_copy(update={"ema_sigma_rel": sigma_rel}))


def _read(snapshot: Snapshot) -> dict[str, Tensor]:
    data = storage.read_bytes(snapshot.file)
    if hashlib.sha256(data).hexdigest() != snapshot.sha256:
        raise UserError(
            f"{snapshot.file} is not what was written", field="output", remedy="remove its folder and try again"
        )
    return safetensors.torch.load(data)


def coefficients(stored: Sequence[tuple[int, float]], sigma_rel: float, step: int) -> tuple[np.ndarray, float]:
    """The factors (N,) of averages (step, sigma_rel) whose sum is nearest to the average of another length at `step`.

    They sum to 1, so that weights that stand still are averaged to themselves; the paper leaves that to chance.

    Returns:
        The factors, and how far the sum's profile is from the one asked for, relative to its norm.
    """
    edges = np.unique(np.linspace(0, step, min(step, _BINS) + 1).round())
    # the root of the bin's width makes a scalar product of bins that of steps, for profiles that are even within a bin
    root = np.sqrt(np.diff(edges))
    matrix = np.stack([_profile(edges, at, length) / root for at, length in stored], axis=1)
    wanted = _profile(edges, step, sigma_rel) / root
    norm = np.linalg.norm(wanted)
    firmly = _FIRMLY * norm
    factors = np.linalg.lstsq(np.vstack([matrix, np.full(len(stored), firmly)]), np.append(wanted, firmly), rcond=None)[
        0
    ]
    return factors, float(np.linalg.norm(matrix @ factors - wanted) / norm)


def _profile(edges: np.ndarray, step: int, sigma_rel: float) -> np.ndarray:
    """The share of an average at `step` that the steps between each two edges have, (bins,): they sum to 1."""
    share: np.ndarray = np.diff(np.minimum(edges / step, 1.0) ** exponent(sigma_rel))
    return share


def take_over(resumed_from: str, run: str, identity: Identity, seen: Seen) -> None:
    """Copies to a retraining what the run that it starts from had stored by then.

    Args:
        resumed_from: that run's checkpoint.
        seen: of the retraining, from its first sample on: a snapshot that has seen anything else is left behind.
    """
    images = checkpoint.read_info(resumed_from).images_seen
    for path in _beside(resumed_from):
        info = checkpoint.read_info(path)
        if info.images_seen > images or info.identity.config != identity.config or checkpoint.problem(path):
            continue
        if info.seen_sha256 == seen.upto(info.images_seen):
            target = storage.join(folder_of(run), path.rpartition("/")[2])
            for name in (*info.files, checkpoint.INFO_FILE):  # what makes it a snapshot comes last
                storage.write_bytes(storage.join(target, name), storage.read_bytes(storage.join(path, name)))


def _beside(resumed_from: str) -> Iterator[str]:
    run = resumed_from.rstrip("/").rpartition("/")[0].rpartition("/")[0]
    yield from checkpoint.paths(folder_of(run)) if run and storage.is_dir(folder_of(run)) else ()
