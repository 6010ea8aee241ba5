"""What becomes of a drawn picture before it leaves: it is decoded, looked at and encoded.

All of it concerns one picture by itself, so that what becomes of it depends on nothing else in its request. What
looks at pixels comes before what marks them, and encoding comes last: nothing may touch the file after that.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from serving.admission import Plan
from serving.api import FinishReason, ImageDatum, ImageFormat, Moderation
from serving.guard import PASSED, Guard, Verdict
from serving.marking import MarkedPicture, Marker, pixels_sha256
from training.bundle import DiffusionModel
from training.films import encoded


@dataclass(frozen=True)
class Picture:
    """One encoded picture, what the guard left of it, or none when it was withheld."""

    data: bytes | None
    seed: int
    verdict: Verdict
    id: str = ""
    pixels_sha256: str | None = None
    credentials: bool = False
    watermark: str | None = None
    """The payload in its pixels, hexadecimal, empty where they have no room for one; None: no mark."""
    of_prompt: tuple[Moderation, ...] = ()
    """What is to be said of its prompt."""

    def datum(self) -> ImageDatum:
        """The picture as it goes over the wire."""
        reason: FinishReason = "stop" if self.verdict.action in (None, "flag") else "content_filtered"
        return ImageDatum(
            id=self.id,
            pixels_sha256=self.pixels_sha256,
            credentials=self.credentials,
            watermark=self.watermark is not None,
            b64_json=None if self.data is None else base64.b64encode(self.data).decode(),
            seed=self.seed,
            finish_reason=reason,
            safety=self.verdict.scores,
            moderation=[*self.of_prompt, *self.verdict.moderation],
        )


@dataclass(frozen=True)
class Finished:
    """A plan's pictures, and where the time went, in seconds."""

    pictures: tuple[Picture, ...]
    decode_s: float
    guard_s: float
    encode_s: float


class Finisher:
    """Takes pictures from the model's space to files. Not for two threads at once.

    Args:
        model: whose space they are in.
        guard: looks at them; None lets all pass.
        marker: marks their pixels and signs their files; None leaves them as they are.
    """

    def __init__(self, model: DiffusionModel, guard: Guard | None, marker: Marker | None = None) -> None:
        self._model = model
        self._guard = guard
        self._marker = marker

    def finish(self, plan: Plan, clean: Sequence[Tensor]) -> Finished:
        """A plan's pictures.

        Args:
            clean: float32 (1, C, h, w) of each, in the model's space; of a film (1, C, F, h, w).
        """
        begun = time.perf_counter()
        images = [self._pixels(picture) for picture in clean]
        decoded = time.perf_counter()
        judged = [(pixels, PASSED) if self._guard is None else self._guard.judge(pixels) for pixels in images]
        guarded = time.perf_counter()
        pictures = tuple(self._picture(plan, index, left, verdict) for index, (left, verdict) in enumerate(judged))
        return Finished(pictures, decoded - begun, guarded - decoded, time.perf_counter() - guarded)

    def _picture(self, plan: Plan, index: int, left: np.ndarray | None, verdict: Verdict) -> Picture:
        """One picture of a plan as it leaves."""
        name, seed, said = plan.ids[index], plan.seeds[index], plan.moderation
        if left is None:
            return Picture(None, seed, verdict, id=name, of_prompt=said)
        marker = self._marker
        marked = MarkedPicture(left, None) if marker is None else marker.pixels(plan, index, left)
        digest = pixels_sha256(marked.pixels)
        data = encode(marked.pixels, plan.output_format, plan.compression)
        if marker is not None:
            data = marker.file(plan, index, data, digest, marked.watermark)
        signed = marker is not None and marker.signs
        return Picture(data, seed, verdict, name, digest, signed, marked.watermark, said)

    def preview(self, plan: Plan, clean: Tensor, index: int = 0) -> bytes | None:
        """Picture `index` as it looks so far, marked and encoded; None where the guard would withhold it.

        Not signed: credentials are of the picture that the request ends with.
        """
        pixels = self._pixels(clean)
        left = pixels if self._guard is None else self._guard.preview(pixels)
        if left is None:
            return None
        if self._marker is not None:
            left = self._marker.pixels(plan, index, left).pixels
        return encode(left, plan.output_format, plan.compression)

    @torch.inference_mode()
    def _pixels(self, clean: Tensor) -> np.ndarray:
        """uint8 (H, W, 3), of a film (F, H, W, 3)."""
        pixels: np.ndarray = self._model.space.decode(clean.to(self._model.device))[0]
        return pixels


def encode(pixels: np.ndarray, output_format: ImageFormat, compression: int) -> bytes:
    """A picture, uint8 (H, W, 3), or a film, (F, H, W, 3), as a file; equal pixels give equal bytes.

    Args:
        compression: JPEG's or WebP's quality, 0 to 100; WebP at 100 is lossless. PNG always is.
    """
    settings: dict[str, Any] = {
        "png": {"compress_level": 6},
        # Small drawings have hard edges in colour: subsampling it would smear them.
        "jpeg": {"quality": compression, "subsampling": 0},
        "webp": {"quality": compression, "lossless": compression == 100, "method": 4},
    }[output_format]
    return encoded(pixels, output_format, **settings)
