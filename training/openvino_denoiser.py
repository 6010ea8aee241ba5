"""The denoiser's ONNX graph in OpenVINO on the CPU, in the precision that is asked for."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from curation.errors import UserError
from training.onnx_denoiser import INPUTS, OUTPUT, Rows

Precision = Literal["fp32", "bf16", "int8"]
# An int8 graph says itself what is quantised; the rest of it stays in single precision.
_HINTS: dict[Precision, str] = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}


class OpenVinoDenoiser:
    """A graph in OpenVINO, on as many threads as torch has unless told otherwise."""

    def __init__(self, path: str | Path, precision: Precision = "fp32", threads: int | None = None) -> None:
        """Raises UserError: openvino is missing, it cannot read what lies there, or it is no graph of ours."""
        try:
            openvino = importlib.import_module("openvino")
        except ImportError:
            raise UserError(
                "openvino is not installed",
                field="engine.backend",
                remedy="pip install 'cleanplate[openvino]', or use backend: onnx",
            ) from None
        core = openvino.Core()
        settings = {
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            "INFERENCE_NUM_THREADS": threads or torch.get_num_threads(),
            "NUM_STREAMS": 1,  # one pass at a time, on all threads
        }
        try:
            model = core.read_model(str(path))
            names = {given.any_name for given in model.inputs}
            compiled = core.compile_model(model, "CPU", settings)
        except RuntimeError as error:
            raise UserError(
                f"OpenVINO cannot read {path}: {error}", field="model", remedy="export the model again"
            ) from None
        if names != set(INPUTS):
            raise UserError(
                f"{path} takes {', '.join(sorted(names))}, not {', '.join(INPUTS)}",
                field="model",
                remedy="export it again",
            )
        self._request = compiled.create_infer_request()

    def predict(self, rows: Rows) -> np.ndarray:
        output: np.ndarray = self._request.infer(rows.feed())[OUTPUT]
        return output.copy()  # the next pass writes into the same memory
