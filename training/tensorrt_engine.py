"""A TensorRT engine of the denoiser: built from the ONNX graph on the GPU that will run it, and run through torch.

An engine fits one kind of GPU and one version of TensorRT, so it is made where it is used. TensorRT 10 or newer.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from curation.errors import UserError
from training.onnx_denoiser import INPUTS, OUTPUT, Rows


def require() -> Any:
    """The library.

    Raises:
        UserError: it is not installed, or there is no GPU to build for.
    """
    remedy = "run it on a machine with an NVIDIA GPU, CUDA's torch and `pip install tensorrt`, or leave tensorrt out"
    if not torch.cuda.is_available():
        raise UserError(
            "TensorRT builds for the GPU that it finds, and torch sees none here", field="tensorrt", remedy=remedy
        )
    try:
        tensorrt = importlib.import_module("tensorrt")  # on no machine that checks types
    except ImportError:
        raise UserError("the library tensorrt is not installed", field="tensorrt", remedy=remedy) from None
    return tensorrt


def build_engine(source: Path, target: Path, example: Rows, *, half: bool, max_batch: int) -> None:
    """Builds an engine for batches of 1 to `max_batch` rows.

    Args:
        example: rows of the shapes that the graph takes.
        half: lets TensorRT compute in half precision where that is faster.

    Raises:
        UserError: no library, no GPU, or a graph that this TensorRT cannot build.
    """
    trt = require()
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(source)):
        raise _refused(trt, "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors)))
    config = builder.create_builder_config()
    if half and not hasattr(trt.BuilderFlag, "FP16"):
        raise _refused(trt, "it has no switch for half precision; set half: false")
    if half:
        config.set_flag(trt.BuilderFlag.FP16)
    profile = builder.create_optimization_profile()
    for name, array in example.feed().items():
        least, usual, most = ((rows, *array.shape[1:]) for rows in (1, min(2, max_batch), max_batch))
        profile.set_shape(name, least, usual, most)
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise _refused(trt, "its messages stand above")
    target.write_bytes(bytes(engine))


def _refused(trt: Any, why: str) -> UserError:
    return UserError(
        f"TensorRT {trt.__version__} does not build the graph: {why}", field="tensorrt", remedy="try another version"
    )


class TensorRtDenoiser:
    """An engine on this machine's GPU; larger batches go through it in parts."""

    def __init__(self, path: str | Path) -> None:
        """Raises UserError: no library, no GPU, or an engine for another one."""
        trt = require()
        self._logger = trt.Logger(trt.Logger.WARNING)  # must outlive the engine
        self._runtime = trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(Path(path).read_bytes())
        if self._engine is None:
            raise UserError(
                f"{path} is an engine for another GPU or another TensorRT than {trt.__version__}",
                field="tensorrt",
                remedy="export it again on this machine",
            )
        self._context = self._engine.create_execution_context()
        self._most = int(self._engine.get_tensor_profile_shape("x", 0)[2][0])

    def predict(self, rows: Rows) -> np.ndarray:
        parts = [self._run(rows[start : start + self._most]) for start in range(0, len(rows), self._most)]
        return np.concatenate(parts)

    def _run(self, rows: Rows) -> np.ndarray:
        given = {name: torch.from_numpy(np.ascontiguousarray(rows.feed()[name])).cuda() for name in INPUTS}
        output = torch.empty(rows.x.shape, dtype=torch.float32, device="cuda")
        for name, tensor in given.items():
            self._context.set_input_shape(name, tuple(tensor.shape))
            self._context.set_tensor_address(name, tensor.data_ptr())
        self._context.set_tensor_address(OUTPUT, output.data_ptr())
        stream = torch.cuda.current_stream()
        if not self._context.execute_async_v3(stream_handle=stream.cuda_stream):
            raise RuntimeError("TensorRT did not run the engine")
        stream.synchronize()
        array: np.ndarray = output.cpu().numpy()
        return array
