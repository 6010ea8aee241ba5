"""Decoding: original bytes to oriented pixels once, and everything that is read off those pixels.

One decode serves the hashes, the CLIP input and the training-size picture. JPEGs are decoded at the smallest DCT scale
that still covers what is asked of the pixels, which is several times faster than decoding whole and resizing.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, Field

from curation.manifest import Reason

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
_WORKING_SIDE = 256  # the hashes and the CLIP inputs of today want no more than this
_HASH_SIDE = 32
_HASH_MARGIN = 0.05  # of the mean magnitude of the coefficients
_COLOUR_SIDE = 4


class ImageConfig(BaseModel):
    """What is accepted as an image, and how the training-size picture is cut."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_pixels: int = Field(100_000_000, ge=1, description="by the header, before anything is decoded")
    min_side: int = Field(1, ge=1, description="a picture with a shorter side is dropped as too_small, in pixels")
    fit: Literal["crop", "pad"] = Field("crop", description="centre crop, or pad with the background, to a square")
    background: str = Field("#ffffff", pattern="^#[0-9a-fA-F]{6}$", description="behind transparent pixels and pads")


class ImageError(Exception):
    """Bytes that are no acceptable image: `reason` for the row, and a word more in `detail`."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Decoded:
    """An image's oriented pixels (at the working scale) and what its header said."""

    image: Image.Image  # RGB
    format: str
    width: int  # of the original, after EXIF orientation
    height: int


def decode(data: bytes, config: ImageConfig, min_side: int = _WORKING_SIDE) -> Decoded:
    """Decodes the first frame: oriented, over the background, RGB.

    Args:
        data: the original bytes.
        config: limits and background.
        min_side: the shorter side that is still needed; a JPEG may come out larger than this but not smaller, unless
            it is smaller.

    Raises:
        ImageError: when the bytes are not an image that is accepted.
    """
    if not data:
        raise ImageError(Reason.EMPTY, "zero bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _decode(data, config, min_side)
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(Reason.NOT_AN_IMAGE, _looks_like(data)) from None
    except Exception as error:
        # Pillow's decoders answer damaged files with errors of a dozen kinds, struct.error among them.
        text = str(error) or type(error).__name__
        cut = isinstance(error, EOFError) or "truncated" in text or "incomplete" in text or "unexpected end" in text
        raise ImageError(Reason.TRUNCATED if cut else Reason.CORRUPT, text[:200]) from None


def _decode(data: bytes, config: ImageConfig, min_side: int) -> Decoded:
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    Image.MAX_IMAGE_PIXELS = None  # the limit below is the job's, and it is checked on the header
    with Image.open(io.BytesIO(data)) as image:
        if image.format not in FORMATS:
            raise ImageError(Reason.UNSUPPORTED_FORMAT, str(image.format))
        width, height = image.size
        if width * height > config.max_pixels:
            raise ImageError(Reason.TOO_MANY_PIXELS, f"{width}x{height}")
        kind = image.format
        if kind == "JPEG":
            scale = max(1.0, min(width, height) / min_side)
            image.draft(None, (int(width / scale), int(height / scale)))
        turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
        image.load()
        oriented = ImageOps.exif_transpose(image)
        flat = _flatten(oriented, config.background)
    if turned:
        width, height = height, width
    return Decoded(flat, kind, width, height)


def _flatten(image: Image.Image, background: str) -> Image.Image:
    """RGB pixels: palettes expanded, 16 bits scaled to 8, transparency composited over the background."""
    if image.mode in ("I;16", "I;16B", "I;16L", "I"):
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    elif image.mode == "F":
        image = Image.fromarray(np.nan_to_num(np.asarray(image)).clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        picture = image.convert("RGBA")
        base = Image.new("RGBA", picture.size, background)
        base.alpha_composite(picture)
        return base.convert("RGB")
    return image.convert("RGB")


def square(image: Image.Image, side: int, config: ImageConfig) -> Image.Image:
    """The training-size picture: `side` x `side` pixels, cropped or padded as the job says."""
    if config.fit == "pad":
        return ImageOps.pad(image, (side, side), Image.Resampling.LANCZOS, color=config.background)
    return ImageOps.fit(image, (side, side), Image.Resampling.LANCZOS)


def encode(image: Image.Image) -> bytes:
    """PNG bytes: lossless, and the same for the same pixels."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def pixel_hash(image: Image.Image) -> str:
    """sha256 of size and RGB pixels, hex: the same for a copy with other metadata or in another lossless format."""
    h = hashlib.sha256(f"{image.width}x{image.height};".encode())
    h.update(image.tobytes())
    return h.hexdigest()


def phash(image: Image.Image) -> int:
    """64-bit perceptual hash: the 8x8 lowest DCT-II coefficients of luma against their median (Zauner 2010).

    The constant term, which says how bright the picture is and not what is on it, counts neither as a bit nor in the
    median. A coefficient must exceed the median by a margin: symmetric drawings have many that are zero but for noise,
    and without the margin a JPEG of such a drawing lies up to 22 bits away.
    """
    luma = np.asarray(image.convert("L").resize((_HASH_SIDE, _HASH_SIDE), Image.Resampling.BILINEAR), dtype=np.float64)
    basis = _dct_basis()
    low = (basis @ luma @ basis.T).ravel()
    bits = low > np.median(low[1:]) + _HASH_MARGIN * np.abs(low[1:]).mean()
    bits[0] = False
    return int(np.packbits(bits).view(">u8")[0])


def colour_layout(image: Image.Image) -> bytes:
    """Mean RGB of a 4x4 grid, 48 bytes: tells a red circle from a blue one, which luma hashes cannot."""
    return image.resize((_COLOUR_SIDE, _COLOUR_SIDE), Image.Resampling.BOX).tobytes()


@lru_cache(maxsize=1)
def _dct_basis() -> np.ndarray:
    n = np.arange(_HASH_SIDE)
    return np.cos(np.pi * np.arange(8)[:, None] * (2 * n + 1) / (2 * _HASH_SIDE))


def _looks_like(data: bytes) -> str:
    head = data[:512].lstrip().lower()
    if head.startswith((b"<svg", b"<?xml")):
        return "looks like SVG or XML"
    if head.startswith((b"<!doctype", b"<html")):
        return "looks like an HTML page"
    return "no known image signature"
