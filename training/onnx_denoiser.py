"""The denoiser outside torch: what goes in and comes out, the ONNX graph of it, and onnxruntime in torch's place.

The graph's contract, for whoever runs it without our code (`onnx/export.json` repeats it with the sizes filled in):

    x           float32 (batch, C, H, W)   noisy patches, C = 3 p^2: `pixel_unshuffle(picture in [-1, 1], p)`
    timestep    int64   (batch,)           of each row by itself, 0 is the cleanest; float32 where the model is a flow
    states      float32 (batch, L, D)      token states as `training.text` standardises them; zero where `mask` is False
    mask        bool    (batch, L)         the prompt's own tokens
    pooled      float32 (batch, D)         the state at the prompt's end
    prediction  float32 (batch, C, H, W)   the output: noise, v or the clean patches, as `prediction` says there

Of films `x` and `prediction` are (batch, C, F, H, W), and `states` and `mask` count for nothing. `batch` is free and
rows do not know of each other. Guidance is the caller's: he asks with and without the prompt.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from curation.errors import UserError
from training import network
from training.sampling import SamplingParams, sample
from training.text import Conditioning

if TYPE_CHECKING:
    from training.bundle import DiffusionModel

OUTPUT = "prediction"
OPSET = 20
_UPSAMPLES = 64
_INLINE_BYTES = 1 << 30  # a protobuf ends at 2 GiB; larger networks keep their weights in a file beside the graph


@dataclass(frozen=True)
class Rows:
    """The inputs of one forward pass under the graph's names; see above for their shapes."""

    x: np.ndarray
    timestep: np.ndarray
    states: np.ndarray
    mask: np.ndarray
    pooled: np.ndarray

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, which: np.ndarray | slice) -> Rows:
        return Rows(**{name: array[which] for name, array in self.feed().items()})

    def feed(self) -> dict[str, np.ndarray]:
        """As onnxruntime takes them."""
        return {name: getattr(self, name) for name in INPUTS}

    @classmethod
    def join(cls, parts: Sequence[Rows]) -> Rows:
        return cls(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in INPUTS})


INPUTS = tuple(field.name for field in fields(Rows))


class Denoiser(Protocol):
    """A network that predicts, by whatever library."""

    def predict(self, rows: Rows) -> np.ndarray:
        """float32 (batch, C, H, W)."""
        ...


class TorchDenoiser:
    """The U-Net itself."""

    def __init__(self, model: DiffusionModel) -> None:
        self._unet = model.unet
        self._device = model.device

    @torch.inference_mode()
    def predict(self, rows: Rows) -> np.ndarray:
        given = {name: torch.from_numpy(array).to(self._device) for name, array in rows.feed().items()}
        output: np.ndarray = _forward(self._unet, **given).float().cpu().numpy()
        return output


class OnnxDenoiser:
    """A graph in onnxruntime on the CPU, on as many threads as torch has unless told otherwise."""

    def __init__(self, path: str | Path, threads: int | None = None) -> None:
        """Raises UserError: onnxruntime is missing, or what lies there is no graph of ours."""
        try:
            import onnxruntime
            from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidGraph, InvalidProtobuf, NoSuchFile
        except ImportError:
            raise missing("onnxruntime") from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # its warnings are about its own rewrites of the graph
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except (Fail, InvalidGraph, InvalidProtobuf, NoSuchFile) as error:
            raise UserError(f"{path} is no ONNX graph: {error}", field="model", remedy="export it again") from None
        names = tuple(given.name for given in self._session.get_inputs())
        if names != INPUTS:
            raise UserError(
                f"{path} takes {', '.join(names)}, not {', '.join(INPUTS)}", field="model", remedy="export it again"
            )

    def predict(self, rows: Rows) -> np.ndarray:
        output: np.ndarray = self._session.run([OUTPUT], rows.feed())[0]
        return output


class AsUnet:
    """A denoiser in the place of a U-Net, as `training.sampling` calls it."""

    def __init__(self, denoiser: Denoiser) -> None:
        self._denoiser = denoiser

    def __call__(
        self, x: Tensor, timestep: Tensor, states: Tensor, *, class_labels: Tensor, encoder_attention_mask: Tensor,
        return_dict: bool = False,
    ) -> tuple[Tensor]:  # fmt: skip
        rows = _rows(x, timestep, states, encoder_attention_mask, class_labels)
        return (torch.from_numpy(self._denoiser.predict(rows)).to(x.device),)


def with_unet(model: DiffusionModel, unet: Any) -> DiffusionModel:
    """The same model with another network in it."""
    changed = copy.copy(model)
    changed.unet = unet
    return changed


def record(model: DiffusionModel, prompts: Sequence[str], seeds: Sequence[int], params: SamplingParams) -> list[Rows]:
    """What the sampler asks the network while it draws some pictures: `Rows` for each timestep, noisiest first."""
    recorder = _Recorder(model.unet)
    sample(with_unet(model, recorder), prompts, seeds, params, exact=False)
    return recorder.calls


class _Recorder:
    def __init__(self, unet: Any) -> None:
        self._unet = unet
        self.calls: list[Rows] = []

    def __call__(
        self, x: Tensor, timestep: Tensor, states: Tensor, *, class_labels: Tensor, encoder_attention_mask: Tensor,
        return_dict: bool = False,
    ) -> tuple[Tensor]:  # fmt: skip
        self.calls.append(_rows(x.clone(), timestep, states, encoder_attention_mask, class_labels))
        return (_forward(self._unet, x, timestep, states, encoder_attention_mask, class_labels),)


def _rows(x: Tensor, timestep: Tensor, states: Tensor, mask: Tensor, pooled: Tensor) -> Rows:
    return Rows(*(tensor.cpu().numpy() for tensor in (x, timestep, states, mask, pooled)))


def _forward(unet: Any, x: Tensor, timestep: Tensor, states: Tensor, mask: Tensor, pooled: Tensor) -> Tensor:
    return network.predict(unet, x, timestep, Conditioning(states, mask, pooled))


class _Graph(torch.nn.Module):
    def __init__(self, unet: torch.nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, timestep: Tensor, states: Tensor, mask: Tensor, pooled: Tensor) -> Tensor:
        for other in (timestep, states, mask, pooled):
            torch._check(other.shape[0] == x.shape[0])  # or the exporter takes them for five different sizes
        return _forward(self.unet, x, timestep, states, mask, pooled)


def write_graph(
    model: DiffusionModel, example: Rows, path: Path, *, about: Mapping[str, str], inline_bytes: int = _INLINE_BYTES
) -> None:
    """Writes the U-Net as an ONNX file; the same network gives the same bytes.

    Args:
        example: at least two rows: of one, the exporter would make a graph for one row only.
        about: becomes the file's `metadata_props`.
        inline_bytes: weights of more go to `<path>.data`.

    Raises:
        UserError: onnx or onnxscript is missing.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401 - the exporter needs it
    except ImportError as error:
        raise missing(str(error.name)) from None
    if len(example) < 2:
        raise ValueError("an example of two rows or more is needed")
    given = tuple(torch.from_numpy(array) for array in example[:2].feed().values())
    batch = _batch(model.space.frames)
    with quiet():
        program = torch.onnx.export(
            _Graph(model.unet).eval(), given, dynamo=True, opset_version=OPSET, verbose=False,
            dynamic_shapes=tuple({0: batch} for _ in given), input_names=INPUTS, output_names=[OUTPUT],
        )  # fmt: skip
    if program is None:
        raise AssertionError("torch.onnx.export gave nothing")
    size = sum(weight.numel() * weight.element_size() for weight in model.unet.parameters())
    program.save(str(path), external_data=size > inline_bytes)
    proto = onnx.load(str(path), load_external_data=False)
    _clean(proto)
    for key, value in sorted(about.items()):
        proto.metadata_props.add(key=key, value=value)
    path.write_bytes(proto.SerializeToString(deterministic=True))
    onnx.checker.check_model(str(path), full_check=True)


def _batch(frames: int | None) -> Any:
    """The size that the exporter is to keep free.

    diffusers' Upsample2D asks whether there are 64 pictures, which changes nothing but their layout. Where it can ask
    that of batch x frames, the exporter wants the answer to be the same for all sizes that it is told of; the graph
    takes others as well.
    """
    if frames is None:
        return torch.export.Dim("batch", min=1, max=1 << 16)
    few = 2 * frames < _UPSAMPLES  # the example has two rows
    return torch.export.Dim(
        "batch", min=1 if few else -(-_UPSAMPLES // frames), max=(_UPSAMPLES - 1) // frames if few else 1 << 16
    )


def _clean(proto: Any) -> None:
    """Without the exporter's notes: they hold this machine's paths and lines of its code."""
    proto.ClearField("metadata_props")
    for part in (proto.graph, *proto.graph.node, *proto.graph.value_info, *proto.graph.initializer,
                 *proto.graph.input, *proto.graph.output):  # fmt: skip
        part.ClearField("doc_string")
        part.ClearField("metadata_props")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the exporters' talk."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def missing(package: str) -> UserError:
    """What a user is told who lacks a library of the export."""
    return UserError(f"{package} is not installed", field="export", remedy="pip install 'cleanplate[onnx]'")
