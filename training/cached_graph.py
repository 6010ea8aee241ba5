"""An ONNX graph of a bundle that was not exported: made once on a machine, in seconds, and kept in its cache.

torch's older exporter needs a fortieth of the newer one's time and its graph runs as fast, which is what counts where a
server starts. What is published with a bundle is made by `training.export`, and compared at length.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from curation import storage
from curation.errors import UserError
from training import network
from training.bundle import INFO_FILE
from training.folders import cache_root
from training.onnx_denoiser import INPUTS, OUTPUT, OnnxDenoiser, Rows, TorchDenoiser, missing, quiet
from training.space import shape
from training.text import Conditioning

if TYPE_CHECKING:
    from training.bundle import DiffusionModel

_log = logging.getLogger(__name__)
_OPSET = 17
_MOST_BYTES = 1 << 30  # a protobuf ends at 2 GiB
_MOST_ERROR = 1e-4  # relative, of a prediction against torch's: as `export_job.FormatLimits` has it


def cached_graph(bundle: Path, model: DiffusionModel) -> Path:
    """The graph's file; the same bundle and torch give the same.

    Raises:
        UserError: the libraries are missing, the network is too large for one file, or its graph is not the network.
    """
    path = path_of(bundle)
    if path.is_file():
        return path
    size = sum(weight.numel() * weight.element_size() for weight in model.unet.parameters())
    if size > _MOST_BYTES:
        raise UserError(f"a network of {size >> 20} MiB is too large for a cached graph", field="model", remedy=_REMEDY)
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{uuid.uuid4().hex}.onnx")  # replicas may start together
    try:
        rows = random_rows(model, 3)
        _write(model, rows[:2], staging)
        wanted, got = TorchDenoiser(model).predict(rows), OnnxDenoiser(staging).predict(rows)
        if not float(np.abs(got - wanted).max()) <= _MOST_ERROR * float(np.abs(wanted).max()):
            raise UserError("the network's graph computes something else", field="model", remedy=_REMEDY)
        os.replace(staging, path)
    finally:
        staging.unlink(missing_ok=True)
    return path


def path_of(bundle: Path) -> Path:
    """Where a bundle's graph is kept, whether it was made yet or not."""
    return cache_root() / "graphs" / f"{storage.sha256_of(bundle / INFO_FILE)}-{torch.__version__}-{_OPSET}.onnx"


def make_apart(bundle: Path) -> bool:
    """Makes the graph in a process of its own, of low priority: for who draws meanwhile and must not be held up.

    The exporter is Python for seconds, and would take half of them from every other thread. Returns whether the graph
    is there now; where it is not, `cached_graph` says why.
    """
    if not path_of(bundle).is_file():
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "training.cached_graph", str(bundle)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            _log.warning("the graph of %s was not made apart: %s", bundle, done.stderr[-1000:])
    return path_of(bundle).is_file()


_REMEDY = "export the model: `cleanplate export MODEL`; or set engine.backend: torch"


def random_rows(model: DiffusionModel, count: int, seed: int = 0) -> Rows:
    """Inputs as a model may meet them: noise, every row at a timestep of its own, two prompts in turn."""
    generator = np.random.default_rng(seed)
    told = model.text.encode(["", model.text.classes[0] if model.text.classes else "a picture"])
    which = np.arange(count) % 2
    flow = model.prediction == "flow"
    return Rows(
        x=generator.standard_normal((count, *shape(model.space, model.image_size)), dtype=np.float32),
        timestep=generator.integers(0, len(model.betas), count).astype(np.float32 if flow else np.int64),
        states=told.states.cpu().numpy()[which],
        mask=told.mask.cpu().numpy()[which],
        pooled=told.pooled.cpu().numpy()[which],
    )


class _Graph(torch.nn.Module):
    def __init__(self, unet: torch.nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, timestep: Tensor, states: Tensor, mask: Tensor, pooled: Tensor) -> Tensor:
        return network.predict(self.unet, x, timestep, Conditioning(states, mask, pooled))


def _write(model: DiffusionModel, example: Rows, path: Path) -> None:
    try:
        import onnx  # noqa: F401 - the exporter needs it
    except ImportError:
        raise missing("onnx") from None
    given = tuple(torch.from_numpy(array) for array in example.feed().values())
    with quiet():
        torch.onnx.export(
            _Graph(model.unet).eval(), given, str(path), dynamo=False, opset_version=_OPSET, input_names=list(INPUTS),
            output_names=[OUTPUT], dynamic_axes={name: {0: "batch"} for name in (*INPUTS, OUTPUT)},
        )  # fmt: skip


def main() -> None:
    """`python -m training.cached_graph BUNDLE`: what `make_apart` runs. Of films there is no graph."""
    from curation import torchvision_ops

    torchvision_ops.declare()  # before diffusers, which imports torchvision where that is installed
    from training.bundle import load_bundle

    os.nice(10)
    model = load_bundle(sys.argv[1])
    if model.space.frames is None:
        cached_graph(Path(sys.argv[1]), model)


if __name__ == "__main__":
    main()
