"""What runs the network in a replica, and whether requests may share its passes.

    onnx       ONNX Runtime on the CPU; the bundle's own export, or a graph made at the first start
    torch      the network itself: eager, or compiled, which is the default on a GPU
    openvino   OpenVINO on the CPU: fp32, bf16 or int8
    tensorrt   an engine that `cleanplate export` built on this machine's GPU

Requests may share passes where a row's answer is the same to the bit whatever else is in the pass. That is measured
when the replica starts, and where it is not so, every picture has passes of its own: slower, and the same bytes.

To add one: an opener in `OPENERS`, its name in `serving.job.EngineConfig`.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from curation.errors import UserError
from serving.job import BackendName, EngineConfig
from training.bundle import read_info
from training.cached_graph import cached_graph, make_apart, random_rows
from training.exported import FOLDER, REPORT_FILE, exported_file
from training.onnx_denoiser import AsUnet, Denoiser, OnnxDenoiser, Rows, TorchDenoiser, with_unet
from training.openvino_denoiser import OpenVinoDenoiser, Precision
from training.tensorrt_engine import TensorRtDenoiser

if TYPE_CHECKING:
    from training.bundle import DiffusionModel

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Backend:
    """A network ready for an engine.

    Attributes:
        denoiser: it.
        name: of the backend, with its precision: `onnx-fp32`.
        shares: whether pictures share passes.
        exact: whether a request's bytes depend on nothing but the request.
        max_rows: of a pass.
    """

    denoiser: Denoiser
    name: str
    shares: bool
    exact: bool
    max_rows: int

    @property
    def together(self) -> int:
        """Rows that a pass may have; 1 where every picture has passes of its own."""
        return self.max_rows if self.shares else 1


@dataclass(frozen=True)
class Padded:
    """A network that wants few sizes of passes: rows are added, copies of the first, and their answers dropped."""

    denoiser: Denoiser
    sizes: tuple[int, ...]

    def predict(self, rows: Rows) -> np.ndarray:
        count = len(rows)
        size = next((size for size in self.sizes if size >= count), count)
        which = np.concatenate([np.arange(count), np.zeros(size - count, np.int64)])
        return self.denoiser.predict(rows[which] if size > count else rows)[:count]


def plain(model: DiffusionModel) -> Backend:
    """The network as it was loaded, each picture by itself."""
    return Backend(TorchDenoiser(model), "torch-fp32", shares=False, exact=True, max_rows=1)


def build(config: EngineConfig, bundle: Path, model: DiffusionModel) -> Backend:
    """The backend of a job.

    Raises:
        UserError: a backend that this machine, this bundle or this precision has not.
    """
    name = _choose(config.backend, model.space.frames, model.info.sizes, model.device.type)
    if config.precision not in PRECISIONS[name]:
        raise UserError(
            f"backend {name} does not compute in {config.precision}",
            field="engine.precision",
            remedy=f"use {' or '.join(PRECISIONS[name])}",
        )
    try:
        denoiser = OPENERS[name](config, bundle, model)
    except UserError as error:
        if config.backend != "auto":
            raise
        _log.warning("ONNX Runtime cannot be used, torch is instead: %s", error)
        name, denoiser = "torch", OPENERS["torch"](config, bundle, model)
    exact = shares_exactly(denoiser, model, config.max_rows)
    shares = exact or config.sharing == "always"
    if not exact:
        done = "passes are shared all the same" if shares else "every picture has passes of its own"
        _log.warning("backend %s answers a row differently in other company: %s", name, done)
    return Backend(denoiser, f"{name}-{config.precision}", shares, exact or not shares, config.max_rows)


def prepare(config: EngineConfig, bundle: Path) -> None:
    """Does ahead, in another process, what would hold up those who draw while `build` does it."""
    info = read_info(bundle)
    name = _choose(config.backend, info.frames, info.sizes, "cpu")
    on_the_spot = config.precision != "int8" and not (bundle / FOLDER / REPORT_FILE).is_file()
    if name in ("onnx", "openvino") and on_the_spot and importlib.util.find_spec("onnx"):
        make_apart(bundle)


def drawn_by(model: DiffusionModel, backend: Backend) -> DiffusionModel:
    """The model as `training.sampling.sample` draws with this backend."""
    return with_unet(model, AsUnet(backend.denoiser))


def shares_exactly(denoiser: Denoiser, model: DiffusionModel, max_rows: int) -> bool:
    """Whether a row's answer is the same to the bit in passes of every size up to `max_rows`, at every place in them.

    A probe, no proof: it says no as soon as one bit differs, and yes if none did.
    """
    count = min(max_rows, 24)
    rows = random_rows(model, count)
    alone = [denoiser.predict(rows[i : i + 1])[0] for i in range(count)]
    generator = np.random.default_rng(1)
    for size in range(2, count + 1):
        which = generator.permutation(count)[:size]
        answers = denoiser.predict(rows[which])
        if not all(np.array_equal(answer, alone[i]) for answer, i in zip(answers, which, strict=True)):
            return False
    return True


def _choose(asked: str, frames: int | None, sizes: Sequence[tuple[int, int]], device: str) -> BackendName:
    if asked != "auto":
        return cast(BackendName, asked)
    if frames is not None or sizes:
        return "torch"  # a graph is of one shape; that of films takes minutes to make
    known = all(importlib.util.find_spec(package) for package in ("onnx", "onnxruntime"))
    return "onnx" if known and device == "cpu" else "torch"


def _onnx(config: EngineConfig, bundle: Path, model: DiffusionModel) -> Denoiser:
    return OnnxDenoiser(_graph(config.precision, bundle, model))


def _openvino(config: EngineConfig, bundle: Path, model: DiffusionModel) -> Denoiser:
    return OpenVinoDenoiser(_graph(config.precision, bundle, model), config.precision)


def _graph(precision: Precision, bundle: Path, model: DiffusionModel) -> Path:
    """The bundle's own export where there is one; single precision can be made on the spot."""
    if precision == "int8":
        return exported_file(bundle, "int8")
    if (bundle / FOLDER / REPORT_FILE).is_file():
        return exported_file(bundle)
    return cached_graph(bundle, model)


def _torch(config: EngineConfig, bundle: Path, model: DiffusionModel) -> Denoiser:
    compiled = model.device.type != "cpu" if config.compile is None else config.compile
    if not compiled:
        return TorchDenoiser(model)
    import torch

    # One compilation for each size of pass: the padding keeps them few.
    return Padded(TorchDenoiser(with_unet(model, torch.compile(model.unet))), sizes(config.max_rows))


def _tensorrt(config: EngineConfig, bundle: Path, model: DiffusionModel) -> Denoiser:
    return Padded(TensorRtDenoiser(exported_file(bundle, "tensorrt")), sizes(config.max_rows))


def sizes(most: int) -> tuple[int, ...]:
    """Powers of two up to what holds `most` rows."""
    return tuple(1 << power for power in range((most - 1).bit_length() + 1))


OPENERS: dict[BackendName, Callable[[EngineConfig, Path, DiffusionModel], Denoiser]] = {
    "onnx": _onnx,
    "torch": _torch,
    "openvino": _openvino,
    "tensorrt": _tensorrt,
}
PRECISIONS: dict[BackendName, Sequence[Precision]] = {
    "onnx": ("fp32", "int8"),
    "torch": ("fp32",),
    "openvino": ("fp32", "bf16", "int8"),
    "tensorrt": ("fp32",),
}
