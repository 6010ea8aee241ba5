"""Aesthetic scores: linear heads on CLIP embeddings that others trained on people's ratings of pictures.

Two layouts of LAION's are read, both for OpenAI's ViT-L/14 (768 numbers), with ratings on a scale of 1 to 10:
`sac+logos+ava1-l14-linearMSE.pth` of improved-aesthetic-predictor, whose five layers have nothing but dropout between
them, and `sa_0_4_vit_l_14_linear.pth` of aesthetic-predictor, a single layer. A head fits the CLIP it was trained on
and no other, also where the widths agree; the job's author has to know that, a file does not say it.

No head for the embedded CLIP is here: there are no rated pictures to train one on honestly.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from curation import storage
from curation.clip import Clip
from curation.errors import UserError

NAME = "aesthetic"  # as which the score stands in the manifest's `scores`
_FIELD = "aesthetic.weights"


class AestheticConfig(BaseModel):
    """Where the head's weights lie. `check()` on the driver, `build()` on the worker."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weights: str = Field(description="a .pth or .safetensors file of LAION's layouts, local or on s3://")

    def check(self) -> None:
        """Reads the weights.

        Raises:
            UserError: no such file, or not such weights (`aesthetic.weights`).
        """
        _read(self.weights)

    def name(self) -> str:
        """`aesthetic@` and the first 8 hex of the weights' sha256.

        Raises:
            UserError: no such file.
        """
        return f"{NAME}@{hashlib.sha256(_bytes(self.weights)).hexdigest()[:8]}"

    def build(self, clip: Clip) -> Aesthetic:
        """Loads the head.

        Raises:
            UserError: as `check`, or a head of another width than the CLIP's.
        """
        weight, bias = _read(self.weights)
        if len(weight) != clip.dim:
            raise UserError(
                f"the aesthetic head takes embeddings of {len(weight)} numbers, {clip.name} makes {clip.dim}",
                field=_FIELD,
                remedy="choose the CLIP that the head was trained on (LAION's: clip.model ViT-L-14, weights openai)",
            )
        return Aesthetic(self.name(), weight, bias)


class Aesthetic:
    """A head: the scores of unit vectors.

    Attributes:
        name: with the weights' hash, for the stage's fingerprint.
    """

    def __init__(self, name: str, weight: np.ndarray, bias: float) -> None:
        self.name = name
        self._weight, self._bias = weight.astype(np.float32), np.float32(bias)

    def scores(self, embeddings: np.ndarray) -> np.ndarray:
        """(N, dim) unit vectors to float32 (N,). Each row alone: its neighbours change no bit."""
        return np.array([self._weight @ row.astype(np.float32) + self._bias for row in embeddings], np.float32)


def _bytes(path: str) -> bytes:
    try:
        return storage.read_bytes(path if storage.is_remote(path) else str(Path(path).expanduser()))
    except OSError:
        raise UserError(
            f"no weights at {path}",
            field=_FIELD,
            remedy="give the path of a head, such as sac+logos+ava1-l14-linearMSE.pth, or set aesthetic to null",
        ) from None


def _read(path: str) -> tuple[np.ndarray, float]:
    """The head as one affine function, float64 (dim,) and a number: layers with nothing between them are one layer."""
    data = _bytes(path)
    try:
        state = _state(path, data)
        layers = _layers(state)
        weight, bias = layers[0]
        for following, offset in layers[1:]:
            weight, bias = following @ weight, following @ bias + offset
        if weight.shape[0] != 1 or not (np.isfinite(weight).all() and np.isfinite(bias).all()):
            raise ValueError("they do not end in one finite number")
    except Exception as error:
        # torch answers a file that is not its own with errors of many kinds.
        raise UserError(
            f"{path} holds no weights of a known aesthetic head: {(str(error) or repr(error)).splitlines()[0][:200]}",
            field=_FIELD,
            remedy="use LAION's .pth (layers.0, 2, 4, 6, 7, or weight and bias), or the same names in .safetensors",
        ) from None
    return weight[0], float(bias[0])


def _state(path: str, data: bytes) -> Mapping[str, Any]:
    if path.endswith(".safetensors"):
        from safetensors.numpy import load

        return load(data)
    import torch

    state: Mapping[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    return {name: tensor.double().numpy() for name, tensor in state.items()}


def _layers(state: Mapping[str, Any]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Weights (out, in) and biases (out,) in order; every entry of the file must be one of them."""
    numbers = {int(m[1]) for name in state if (m := re.fullmatch(r"layers\.(\d+)\.weight", name))}
    names = [f"layers.{number}." for number in sorted(numbers)] or [""]
    if set(state) != {name + kind for name in names for kind in ("weight", "bias")}:
        raise ValueError(f"the entries are {', '.join(sorted(state))[:120]}")
    return [
        (np.asarray(state[name + "weight"], np.float64), np.asarray(state[name + "bias"], np.float64)) for name in names
    ]
