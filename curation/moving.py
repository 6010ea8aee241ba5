"""Moving pictures: animated files and folders of frames, sampled to a film strip of a few frames.

The strip is one picture, its frames below each other: whatever shows pictures shows it, and one decode gives them all.
The bytes of a frame folder are its files' bytes in order, packed so that no two lists of files give the same bytes
(`containers.pack`): their sha256 is the row's id.

Every sampled frame is looked at: a film is as unsafe as its worst frame, and an opt-out of what any of them shows
reaches it. What is not sampled is trained on by nobody, and only its bytes and what they say of themselves are read.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from PIL import Image

from curation.containers import unpack
from curation.images import Decoded, ImageConfig, ImageError, check_size, decode, encode, flatten, judging, upright
from curation.manifest import Reason
from curation.metadata import Embedded, scan
from curation.rights.config import RightsConfig
from curation.rights.statements import of_file
from curation.rights.verdict import Observation

MOST = 64
"""Frames of a strip, at most: what the models' stacks of pixels hold at a time."""

_KINDS = ("GIF", "PNG", "WEBP", "AVIF")  # those whose further pictures are frames: pages of a TIFF are none
_MOST_DECODED = 4 * 10**9  # pixels of all frames together: each is drawn over the ones before it

_Taken = TypeVar("_Taken")


def places(frames: int, count: int) -> list[int]:
    """Which frames of `frames` are taken: `count`, evenly spaced and the first among them; all where there are less.

    Frame i is number floor(i * frames / count). The step from one to the next, and from the last round to the first, is
    the same but for one frame: a loop stays a loop.
    """
    count = min(frames, count)
    return [i * frames // count for i in range(count)]


def scan_frames(data: bytes) -> Embedded:
    """What a file says about itself (`metadata.scan`); of a frame folder what any of its frames says."""
    frames = unpack(data)
    if frames is None:
        return scan(data)
    found: dict[str, dict[str, None]] = {}
    for frame in frames:
        for name, text in scan(frame).fields.items():
            # What one frame reserves is reserved, and what another of them says does not take it back.
            between = "," if name == "damaged" else "\n"
            found.setdefault(name, {}).update(dict.fromkeys(text.split(between)))
    joined = {name: ("," if name == "damaged" else "\n").join(texts) for name, texts in found.items()}
    return Embedded(joined)


def of_frames(data: bytes, config: RightsConfig) -> list[Observation]:
    """What C2PA manifests say (`statements.of_file`); of a frame folder those in any of its frames."""
    frames = unpack(data)
    return (
        of_file(data, config) if frames is None else list(dict.fromkeys(o for f in frames for o in of_file(f, config)))
    )


def look(
    data: bytes,
    config: ImageConfig,
    count: int,
    min_side: int,
    about: Embedded,
    take: Callable[[Decoded], _Taken],
) -> tuple[int, list[_Taken]]:
    """Decodes the sampled frames one by one; a still has one.

    Args:
        data: the original bytes, of a frame folder as `containers.pack` gives them.
        config: limits and background.
        count: how many frames are wanted.
        min_side, about: as of `images.decode`.
        take: what is made of each frame; its pixels are let go.

    Returns:
        How many frames there are, and what `take` made of the sampled ones, in order.

    Raises:
        ImageError: when a sampled frame is no image that is accepted, or they are not of one size.
    """
    files = unpack(data)
    if files is not None:
        sizes, taken = set(), []
        for i in places(len(files), count):
            found = decode(files[i], config, min_side)
            sizes.add((found.width, found.height))
            if len(sizes) > 1:
                told = " and ".join(f"{width}x{height}" for width, height in sorted(sizes))
                raise ImageError(Reason.FRAMES_DIFFER, f"frames of {told} pixels")
            taken.append(take(found))
        return len(files), taken
    if about.jpeg is None and data:
        animated = _animated(data, config, count, about.orientation, take)
        if animated is not None:
            return animated
    return 1, [take(decode(data, config, min_side, about))]


def _animated(
    data: bytes, config: ImageConfig, count: int, orientation: int, take: Callable[[Decoded], _Taken]
) -> tuple[int, list[_Taken]] | None:
    """The frames of an animated file as a viewer composes them; None for any other, which `decode` judges."""
    with judging(data), Image.open(io.BytesIO(data)) as image:
        kind = str(image.format)
        if kind not in _KINDS or not getattr(image, "is_animated", False):
            return None
        check_size(*image.size, config)
        # An APNG may begin with a picture for those that cannot play it, which is no frame.
        first = 1 if getattr(image, "default_image", False) else 0
        total = int(getattr(image, "n_frames", 1)) - first
        if total * image.width * image.height > _MOST_DECODED:
            raise ImageError(Reason.TOO_MANY_PIXELS, f"{total} frames of {image.width}x{image.height}")
        taken: list[_Taken] = []
        wanted = places(total, count)
        for i in range(wanted[-1] + 1):
            # One by one, also past those that are not taken: each is drawn over the one before it, and a frame of a GIF
            # that reaches beyond the picture makes it larger.
            _seek(image, first + i, config)
            if i not in wanted:
                continue
            image.load()
            pixels = flatten(image, config.background)
            taken.append(take(upright(pixels, kind, *image.size, orientation)))
        return total, taken


def _seek(image: Image.Image, number: int, config: ImageConfig) -> None:
    """Goes to the next frame, whose own size is held to the limit before Pillow makes room for it."""
    Image.MAX_IMAGE_PIXELS = config.max_pixels
    try:
        image.seek(number)
    except Image.DecompressionBombError as error:
        raise ImageError(Reason.TOO_MANY_PIXELS, str(error)[:200]) from None
    finally:
        Image.MAX_IMAGE_PIXELS = None  # as `images` has it, which checks headers
    check_size(*image.size, config)


def strip(frames: Sequence[np.ndarray]) -> np.ndarray:
    """The film strip of frames of one size, (F * height, width, 3)."""
    return np.concatenate(frames)


def middle_of(strip: bytes, frames: int) -> bytes:
    """The frame in the middle of an encoded strip, as a PNG: for who understands one picture only."""
    with Image.open(io.BytesIO(strip)) as image:
        height = image.height // frames
        top = frames // 2 * height
        return encode(np.asarray(image.convert("RGB").crop((0, top, image.width, top + height))))


def in_rows(strip: Image.Image, frames: int) -> Image.Image:
    """A strip's frames in rows of about as many as there are rows, in reading order; a single picture as it is."""
    if frames == 1:
        return strip
    across, height = math.ceil(math.sqrt(frames)), strip.height // frames
    sheet = Image.new("RGB", (across * strip.width, -(-frames // across) * height), "white")
    for i in range(frames):
        frame = strip.crop((0, i * height, strip.width, (i + 1) * height))
        sheet.paste(frame, (i % across * strip.width, i // across * height))
    return sheet


def size_of(data: bytes) -> int:
    """Bytes as they were received: of a frame folder, its files'."""
    frames = unpack(data)
    return len(data) if frames is None else sum(map(len, frames))
