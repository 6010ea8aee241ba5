"""int8 by static quantisation: weights per channel, the ranges of activations measured beforehand.

Ranges are fixed, not taken from each batch, so rows do not know of each other here either. Convolutions and products
with weights become int8; the convolutions at the picture's two ends, norms, softmax and the timestep's embedding stay.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from training.export_job import Calibration
from training.onnx_denoiser import OUTPUT, Rows, missing

_ROWS = 16  # a calibration keeps what a pass computes: this bounds it


def quantize(source: Path, target: Path, calls: Sequence[Rows], calibration: Calibration) -> None:
    """Writes `source`, an fp32 graph of ours, as int8 with quantise-dequantise pairs (QDQ) around what is quantised.

    Args:
        calls: what the sampler asked, all timesteps that it visits.

    Raises:
        UserError: onnx or onnxruntime is missing.
    """
    try:
        import onnx
        from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ImportError as error:
        raise missing(str(error.name)) from None
    external = source.with_name(source.name + ".data").exists()
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(sys.stderr):
        prepared = Path(scratch) / "prepared.onnx"
        # The exporter wrote the shapes already, and onnxruntime's symbolic pass does not get through its reshapes.
        quant_pre_process(
            str(source), str(prepared), skip_symbolic_shape=True, skip_optimization=external,
            save_as_external_data=external, all_tensors_to_one_file=external,
        )  # fmt: skip
        nodes = onnx.load(str(prepared), load_external_data=False).graph.node
        quantize_static(
            str(prepared),
            str(target),
            _feeds(calls),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "MatMul", "Gemm"],
            nodes_to_exclude=[node.name for node in nodes if node.op_type == "Conv" and _at_an_end(node)],
            per_channel=True,
            activation_type=QuantType.QUInt8,  # with QInt8 the x86 kernels took twice as long
            weight_type=QuantType.QInt8,
            use_external_data_format=external,
            calibrate_method=CalibrationMethod.MinMax
            if calibration.method == "minmax"
            else CalibrationMethod.Percentile,
            extra_options={"MatMulConstBOnly": True, "CalibPercentile": calibration.percentile},
        )


def _at_an_end(node: Any) -> bool:
    return "x" in node.input or OUTPUT in node.output


def _feeds(calls: Sequence[Rows]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Feeds(CalibrationDataReader):
        def __init__(self) -> None:
            self._feeds: Iterator[dict[str, Any]] = (
                call[start : start + _ROWS].feed() for call in calls for start in range(0, len(call), _ROWS)
            )

        def get_next(self) -> dict[str, Any] | None:
            return next(self._feeds, None)

    return Feeds()
