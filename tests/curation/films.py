"""Short films drawn by the tests."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

SIDE = 64


def dot(x: float, colour: str = "red", y: float = 0.5) -> Image.Image:
    """A disc on a striped ground, at a place from 0 to 1."""
    image = Image.new("RGB", (SIDE, SIDE), "white")
    pen = ImageDraw.Draw(image)
    pen.rectangle((0, 50, SIDE, SIDE), fill="#80a0c0")
    pen.ellipse((x * 44, y * 44, x * 44 + 20, y * 44 + 20), fill=colour)
    return image


def moving(frames: int, *, back: bool = False, colour: str = "red") -> list[Image.Image]:
    """A disc that goes from left to right, or back."""
    found = [dot(i / (frames - 1), colour) for i in range(frames)]
    return found[::-1] if back else found


def film(frames: Sequence[Image.Image], kind: str = "GIF", **settings: object) -> bytes:
    """The frames as a file's bytes: a GIF, an animated PNG or a lossless WebP."""
    buffer = io.BytesIO()
    if kind == "WEBP":
        settings = {"lossless": True, "method": 0, **settings}
    frames[0].save(buffer, kind, save_all=True, append_images=list(frames[1:]), duration=60, loop=0, **settings)
    return buffer.getvalue()


def spread_out(folder: Path, frames: Sequence[Image.Image]) -> None:
    """Writes the frames as files of a folder, numbered without zeros in front."""
    folder.mkdir(parents=True)
    for number, frame in enumerate(frames, 1):
        frame.save(folder / f"frame {number}.png")
