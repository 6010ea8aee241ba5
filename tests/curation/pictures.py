"""Small pictures drawn by the tests."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageDraw

COLOURS = {"red": "#d03030", "green": "#30a030", "blue": "#3050d0", "yellow": "#e0c020"}


def drawing(shape: str, colour: str, size: int = 128) -> Image.Image:
    """A shape in a colour on white: `circle`, `square` or `stripes`."""
    image = Image.new("RGB", (size, size), "white")
    pen = ImageDraw.Draw(image)
    box = (size // 6, size // 6, size - size // 6, size - size // 6)
    if shape == "circle":
        pen.ellipse(box, fill=COLOURS[colour])
    elif shape == "square":
        pen.rectangle(box, fill=COLOURS[colour])
    else:
        for x in range(0, size, size // 4):
            pen.rectangle((x, 0, x + size // 8, size), fill=COLOURS[colour])
    return image


def noise(seed: int, size: tuple[int, int] = (96, 64)) -> Image.Image:
    """Smooth random blobs: a picture unlike any other seed's."""
    values = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(values).resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "PNG", **settings: object) -> bytes:
    """The picture as a file's bytes."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()
