"""Films as files: a PNG that moves, which every viewer shows the first frame of at least."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

FRAME_MS = 125
"""How long each frame is shown."""


def png(pixels: np.ndarray) -> bytes:
    """A picture, uint8 (H, W, 3), or a film, (F, H, W, 3), as PNG; a film repeats for ever."""
    return encoded(pixels, "PNG")


def encoded(pixels: np.ndarray, kind: str, **settings: object) -> bytes:
    """A picture or a film in one of Pillow's formats that can hold it.

    Args:
        kind: PNG, WEBP or GIF; of pictures also others.
        settings: of Pillow's encoder.
    """
    frames = [Image.fromarray(np.ascontiguousarray(frame)) for frame in (pixels if pixels.ndim == 4 else pixels[None])]
    if len(frames) > 1:
        settings |= {"save_all": True, "append_images": frames[1:], "duration": FRAME_MS, "loop": 0}
    buffer = io.BytesIO()
    frames[0].save(buffer, format=kind, **settings)
    return buffer.getvalue()
