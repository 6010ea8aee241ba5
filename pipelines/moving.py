"""Moving pictures to try things with: OpenMoji drawings that move, turn and grow, as GIFs and as folders of frames.

Every loop has sixteen frames and says in words what happens in it, "rocket moving left"; the same drawing in the same
place is in loops of different words, so that only its motion tells them apart. `write` writes the same bytes each time.
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from pipelines.pictures import CREATOR, LICENCE, LICENCE_URL, rendered, title, write_bytes, write_table

MOVING, METADATA = "moving", "moving.csv"
FRAMES = 16
SIZE = 64
_FOLDERS = 8  # of so many loops one is a folder of frames
_DRAWINGS = "🍎🌵🚀🐙⛵🍔🍄☂"
_SPRITE = 36  # pixels of a drawing that is neither small nor large

_Place = tuple[float, float]  # of a sprite's middle, on a frame of side 1
_Draw = Callable[[Image.Image, float, _Place], Image.Image]  # at a time from 0 to 1


def _shifted(across: int, down: int) -> _Draw:
    """Goes once around: what leaves the frame on one side comes back on the other."""

    def draw(sprite: Image.Image, time: float, at: _Place) -> Image.Image:
        frame = _blank()
        x, y = (at[0] + across * time) % 1, (at[1] + down * time) % 1
        for dx in (-1, 0, 1) if across else (0,):
            for dy in (-1, 0, 1) if down else (0,):
                _paste(frame, sprite, (x + dx, y + dy))
        return frame

    return draw


def _turned(way: int) -> _Draw:
    def draw(sprite: Image.Image, time: float, at: _Place) -> Image.Image:
        frame = _blank()
        _paste(frame, sprite.rotate(-way * 360 * time, Image.Resampling.BICUBIC), at)
        return frame

    return draw


def _scaled(small: float, large: float) -> _Draw:
    def draw(sprite: Image.Image, time: float, at: _Place) -> Image.Image:
        frame = _blank()
        side = round(_SPRITE * (small + (large - small) * time))
        _paste(frame, sprite.resize((side, side), Image.Resampling.LANCZOS), at)
        return frame

    return draw


MOTIONS: dict[str, _Draw] = {
    "moving left": _shifted(-1, 0),
    "moving right": _shifted(1, 0),
    "moving up": _shifted(0, -1),
    "moving down": _shifted(0, 1),
    "turning clockwise": _turned(1),
    "turning counterclockwise": _turned(-1),
    "growing": _scaled(0.3, 1.6),
    "shrinking": _scaled(1.6, 0.3),
}
"""What happens in a loop, by the words for it."""


def write(folder: Path, count: int = 64, seed: int = 0) -> int:
    """Writes loops into `folder/moving`, and `moving.csv` beside it with what each shows and whose it is.

    Every drawing with every motion comes once before any comes again, at another place.

    Args:
        folder: where to write; made when absent.
        count: how many loops.
        seed: of their order and places.

    Returns:
        The number of loops.
    """
    (folder / MOVING).mkdir(parents=True, exist_ok=True)
    sprites = {symbol: _sprite(symbol) for symbol in _DRAWINGS}
    rows = []
    for number, (symbol, motion, at) in enumerate(plan(count, seed)):
        frames = [MOTIONS[motion](sprites[symbol], i / FRAMES, at) for i in range(FRAMES)]
        path = _as_frames(folder, number, frames) if number % _FOLDERS == 7 else _as_gif(folder, number, frames)
        about = {"creator": CREATOR, "licence": LICENCE, "licence_url": LICENCE_URL}
        rows.append({"path": path, "title": f"{title(symbol)} {motion}", **about})
    write_table(folder / METADATA, rows)
    return len(rows)


def plan(count: int, seed: int) -> list[tuple[str, str, _Place]]:
    """What is to be drawn: the drawing, its motion, and where its middle is at first."""
    chance = random.Random(seed)
    every = [(symbol, motion) for symbol in _DRAWINGS for motion in MOTIONS]
    found = []
    for number in range(count):
        if number % len(every) == 0:
            chance.shuffle(every)
        symbol, motion = every[number % len(every)]
        found.append((symbol, motion, (chance.uniform(0.42, 0.58), chance.uniform(0.42, 0.58))))
    return found


def _as_gif(folder: Path, number: int, frames: list[Image.Image]) -> str:
    name = f"{number:04d}.gif"
    buffer = io.BytesIO()
    first, *others = (frame.quantize(64, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE) for frame in frames)
    first.save(buffer, "GIF", save_all=True, append_images=others, duration=60, loop=0)
    write_bytes(folder / MOVING / name, buffer.getvalue())
    return name


def _as_frames(folder: Path, number: int, frames: list[Image.Image]) -> str:
    name = f"{number:04d}"
    (folder / MOVING / name).mkdir(exist_ok=True)
    for i, frame in enumerate(frames):
        buffer = io.BytesIO()
        frame.save(buffer, "PNG")
        write_bytes(folder / MOVING / name / f"frame-{i:02d}.png", buffer.getvalue())
    return name


def _sprite(symbol: str) -> Image.Image:
    with Image.open(io.BytesIO(rendered(f"{ord(symbol):X}", _SPRITE))) as image:
        return image.convert("RGBA")


def _blank() -> Image.Image:
    return Image.new("RGB", (SIZE, SIZE), "white")


def _paste(frame: Image.Image, sprite: Image.Image, at: _Place) -> None:
    corner = round(at[0] * SIZE - sprite.width / 2), round(at[1] * SIZE - sprite.height / 2)
    frame.paste(sprite, corner, sprite)
