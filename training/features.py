"""Named feature extractors: from pictures to the vectors that distances are taken of.

A distance says by whose features it is, for values of different extractors have nothing in common. `efficientnet_lite0`
is there offline; Inception's, whose distances alone are called FID and KID, only where the user has its weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from curation import torchvision_ops
from curation.errors import UserError

_LITE0_SIDE = 224
_BATCH = 32


class EfficientNetLite0:
    """The pooled features, 1280 of them, of timm's `tf_efficientnet_lite0` with its ImageNet weights.

    Pictures are resized to 224 x 224 by Pillow's bicubic filter, which smooths where it shrinks (Parmar et al. 2022,
    arXiv 2104.11222), and scaled to [-1, 1].

    Args:
        weights: safetensors whose tensors `visual.trunk.*` are the network's, such as the embedded CLIP's: its image
            tower is this network, untouched and rounded to float16.
    """

    def __init__(self, weights: Path, device: str = "cpu") -> None:
        torchvision_ops.declare()
        import timm
        from safetensors.torch import load_file

        prefix = "visual.trunk."
        found = {k.removeprefix(prefix): v.float() for k, v in load_file(weights).items() if k.startswith(prefix)}
        network = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0)
        network.load_state_dict(found)
        self._network: Any = network.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)
        self._device = device
        self.name = "efficientnet_lite0"
        self.digest = _digest(weights)

    def __call__(self, pictures: np.ndarray) -> np.ndarray:
        """uint8 (N, H, W, 3) to float32 (N, 1280)."""

        def embed(batch: np.ndarray) -> Tensor:
            resized = np.stack([_resized(picture, _LITE0_SIDE) for picture in batch])
            pixels = torch.from_numpy(resized).to(self._device).permute(0, 3, 1, 2)
            found: Tensor = self._network(pixels.float() / 127.5 - 1)
            return found

        return _in_batches(pictures, embed)


class Inception:
    """The pool features of the Inception network that FID is defined by, as TorchScript.

    Args:
        path: a module that takes uint8 pictures (N, 3, H, W) of any size and, with `return_features=True`, answers with
            (N, 2048): NVIDIA's `inception-2015-12-05.pt` is one. It is code that runs, so take it from where you trust.

    Raises:
        UserError: no such file, or no such module.
    """

    def __init__(self, path: str, device: str = "cpu") -> None:
        try:
            self._network: Any = torch.jit.load(path, map_location=device).eval()
            self.digest = _digest(Path(path))
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(
                f"{path} is no TorchScript module: {str(error).splitlines()[0]}",
                field="inception",
                remedy="give the path of inception-2015-12-05.pt, or leave it out: then there is no FID",
            ) from None
        self._device = device
        self.name = "inception"

    def __call__(self, pictures: np.ndarray) -> np.ndarray:
        """uint8 (N, H, W, 3) to float32 (N, D)."""

        def embed(batch: np.ndarray) -> Tensor:
            pixels = torch.from_numpy(np.ascontiguousarray(batch)).to(self._device).permute(0, 3, 1, 2)
            found: Tensor = self._network(pixels, return_features=True)
            return found

        return _in_batches(pictures, embed)


def _in_batches(pictures: np.ndarray, embed: Callable[[np.ndarray], Tensor]) -> np.ndarray:
    with torch.inference_mode():
        parts = [embed(pictures[start : start + _BATCH]).float().cpu() for start in range(0, len(pictures), _BATCH)]
    return torch.cat(parts).numpy() if parts else np.zeros((0, 0), np.float32)


def _resized(picture: np.ndarray, side: int) -> np.ndarray:
    return np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:8]
