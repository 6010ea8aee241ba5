"""Decoding: original bytes to oriented pixels once, and everything that is read off those pixels.

One decode serves the hashes, the CLIP input, the pixel classifiers and the training-size picture. JPEGs are decoded by
libjpeg-turbo at the smallest DCT scale that still covers what is asked of the pixels, which is several times faster
than decoding whole and resizing; everything else, and every JPEG that is odd in some way, goes through Pillow.

Pixels are uint8 arrays (height, width, 3), RGB.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from typing import Literal

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, Field

from curation.manifest import Reason
from curation.metadata import Embedded, scan

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "AVIF", "HEIF")
_WORKING_SIDE = 256
_JPEG_QUALITY = 95


class ImageConfig(BaseModel):
    """What is accepted as an image, and how the training-size picture is made."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_pixels: int = Field(100_000_000, ge=1, description="by the header, before anything is decoded")
    min_side: int = Field(1, ge=1, description="a picture with a shorter side is dropped as too_small, in pixels")
    fit: Literal["crop", "pad"] = Field("crop", description="centre crop, or pad with the background, to a square")
    background: str = Field("#ffffff", pattern="^#[0-9a-fA-F]{6}$", description="behind transparent pixels and pads")
    encoding: Literal["auto", "png", "jpeg"] = Field(
        "auto",
        description="of the training-size picture: PNG is lossless, JPEG of quality 95 several times smaller and "
        "faster; auto writes JPEG for what came as JPEG, and PNG for the rest",
    )


class ImageError(Exception):
    """Bytes that are no acceptable image: `reason` for the row, and a word more in `detail`."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Decoded:
    """An image's oriented pixels (at the working scale) and what its header said."""

    pixels: np.ndarray
    format: str
    width: int  # of the original, after EXIF orientation
    height: int
    orientation: int = 1  # EXIF's, which has been applied


def decode(data: bytes, config: ImageConfig, min_side: int = _WORKING_SIDE, about: Embedded | None = None) -> Decoded:
    """Decodes the first frame: oriented, over the background, RGB.

    Args:
        data: the original bytes.
        config: limits and background.
        min_side: the shorter side that is still needed; a JPEG may come out larger than this but not smaller, unless
            it is smaller.
        about: what `metadata.scan` found in the bytes; they are scanned here when it is not given.

    Raises:
        ImageError: when the bytes are not an image that is accepted.
    """
    if not data:
        raise ImageError(Reason.EMPTY, "zero bytes")
    about = about or scan(data)
    found = _turbo(data, about, config, min_side)
    if found is not None:
        return found
    with judging(data):
        return _decode(data, config, min_side)


@contextmanager
def judging(data: bytes) -> Iterator[None]:
    """Makes whatever Pillow says of the bytes an `ImageError`."""
    _openers()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise _unidentified(data) from None
    except Exception as error:
        # Pillow's decoders answer damaged files with errors of a dozen kinds, struct.error among them.
        text = str(error) or type(error).__name__
        cut = isinstance(error, EOFError) or any(word in text.lower() for word in _CUT)
        raise ImageError(Reason.TRUNCATED if cut else Reason.CORRUPT, text[:200]) from None


_CUT = ("truncated", "incomplete", "unexpected end", "premature end", "end of file", "not enough data")


@lru_cache(maxsize=1)
def _openers() -> None:
    """Settings of Pillow that hold for the whole process, and HEIC where its wheel is installed."""
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    Image.MAX_IMAGE_PIXELS = None  # the limit is the job's, and it is checked on the header
    if "heif" in decoders():
        import pillow_heif

        pillow_heif.register_heif_opener(thumbnails=False)


def decoders() -> list[str]:
    """What can be decoded here beside what always can: another machine may be able to decode more."""
    return ["heif"] if find_spec("pillow_heif") is not None else []


def _decode(data: bytes, config: ImageConfig, min_side: int) -> Decoded:
    with Image.open(io.BytesIO(data)) as image:
        kind = "JPEG" if image.format == "MPO" else str(image.format)
        if kind not in FORMATS:
            raise ImageError(Reason.UNSUPPORTED_FORMAT, kind)
        width, height = image.size
        check_size(width, height, config)
        if kind == "JPEG":
            scale = max(1.0, min(width, height) / min_side)
            image.draft(None, (int(width / scale), int(height / scale)))
        image.load()
        if kind != "JPEG":
            width, height = image.size  # of a TIFF, loading has turned it upright
        try:
            orientation = image.getexif().get(0x0112, 1)  # behind `load`, whose errors are not to be taken for EXIF's
        except Exception:  # a damaged block of metadata is no reason to lose the picture
            orientation = 1
        pixels = flatten(image, config.background)
    return upright(pixels, kind, width, height, orientation)


def check_size(width: int, height: int, config: ImageConfig) -> None:
    if width * height > config.max_pixels:
        raise ImageError(Reason.TOO_MANY_PIXELS, f"{width}x{height}")


def upright(pixels: np.ndarray, kind: str, width: int, height: int, orientation: int) -> Decoded:
    if orientation in _TURNS:
        pixels = np.ascontiguousarray(_TURNS[orientation](pixels))
        if orientation >= 5:
            width, height = height, width
    return Decoded(pixels, kind, width, height, orientation)


# By EXIF orientation, what makes the stored pixels upright (EXIF 2.32, table 6).
_TURNS = {
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.swapaxes(0, 1),
    6: lambda p: p[::-1].swapaxes(0, 1),
    7: lambda p: p[::-1, ::-1].swapaxes(0, 1),
    8: lambda p: p[:, ::-1].swapaxes(0, 1),
}


_SCAN = b"\xff\xda"
_MOST_SCANNED = 10**10  # pixels times scans: a progressive JPEG has some ten scans, a hostile one as many as fit


def _turbo(data: bytes, about: Embedded, config: ImageConfig, min_side: int) -> Decoded | None:
    """A plain JPEG by libjpeg-turbo; None where it finds anything to complain of, for Pillow to judge."""
    import simplejpeg

    header = about.jpeg
    if header is None or header.components not in (1, 3) or header.precision != 8 or not header.width * header.height:
        return None
    check_size(header.width, header.height, config)
    if header.progressive and data.count(_SCAN) * header.width * header.height > _MOST_SCANNED:
        raise ImageError(Reason.CORRUPT, f"{data.count(_SCAN)} scans: each is decoded over all of the picture")
    side = min(min_side, header.width, header.height)
    try:
        pixels = simplejpeg.decode_jpeg(data, "RGB", min_height=side, min_width=side)
    except ValueError as error:
        if "premature end" in str(error).lower():  # where an end marker follows, Pillow would paint the rest grey
            raise ImageError(Reason.TRUNCATED, str(error)) from None
        return None
    return upright(np.asarray(pixels), "JPEG", header.width, header.height, about.orientation)


def flatten(image: Image.Image, background: str) -> np.ndarray:
    """RGB pixels: palettes expanded, 16 bits scaled to 8, transparency composited over the background."""
    if image.mode in ("I;16", "I;16B", "I;16L", "I"):
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    elif image.mode == "F":
        image = Image.fromarray(np.nan_to_num(np.asarray(image)).clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        picture = image.convert("RGBA")
        base = Image.new("RGBA", picture.size, background)
        base.alpha_composite(picture)
        image = base
    return np.array(image.convert("RGB"))


def resize(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """Resizes to uint8 (height, width, 3): averaging over areas where it shrinks by much, else bicubic."""
    import cv2

    if pixels.shape[:2] == (height, width):
        return pixels
    shrinks = min(width / pixels.shape[1], height / pixels.shape[0])
    kind = cv2.INTER_AREA if shrinks < _AREA_BELOW else cv2.INTER_CUBIC
    resized: np.ndarray = cv2.resize(pixels, (width, height), interpolation=kind)
    return resized


_AREA_BELOW = 0.7  # above it, four taps of bicubic see every pixel, and cost a fifth


def centre(pixels: np.ndarray, side: int) -> np.ndarray:
    """The centre square, (side, side, 3)."""
    return cover(pixels, side, side)


def cover(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """The largest middle part of the shape asked for, (height, width, 3).

    Only it is resized: all of a 1 x 100,000 picture would take gigabytes.
    """
    tall, wide = pixels.shape[:2]
    high = min(tall, max(1, round(wide * height / width)))
    broad = min(wide, max(1, round(tall * width / height)))
    top, left = (tall - high) // 2, (wide - broad) // 2
    return resize(pixels[top : top + high, left : left + broad], width, height)


def square(pixels: np.ndarray, side: int, config: ImageConfig) -> np.ndarray:
    """The training-size picture, (side, side, 3), cropped or padded as the job says."""
    if config.fit == "crop":
        return centre(pixels, side)
    height, width = pixels.shape[:2]
    scale = side / max(height, width)
    inner = resize(pixels, max(1, round(width * scale)), max(1, round(height * scale)))
    colour = [int(config.background[i : i + 2], 16) for i in (1, 3, 5)]
    padded = np.empty((side, side, 3), np.uint8)
    padded[:] = colour
    top, left = (side - inner.shape[0]) // 2, (side - inner.shape[1]) // 2
    padded[top : top + inner.shape[0], left : left + inner.shape[1]] = inner
    return padded


def encoding_of(config: ImageConfig, source: str) -> Literal["png", "jpeg"]:
    """How the training-size picture of a file of a format (`Decoded.format`) is encoded."""
    if config.encoding == "auto":
        return "jpeg" if source == "JPEG" else "png"
    return config.encoding


def encode(pixels: np.ndarray, kind: Literal["png", "jpeg"] = "png") -> bytes:
    """The pixels as a file's bytes, the same for the same pixels."""
    if kind == "jpeg":
        import simplejpeg

        return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), _JPEG_QUALITY, "RGB", "420"))
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


# Signatures of images that nothing here decodes: they are images all the same, and their row says so.
_FOREIGN = ((b"II*\0", "TIFF"), (b"MM\0*", "TIFF"), (b"\0\0\0\x0cJXL ", "JPEG XL"), (b"\xff\x0a", "JPEG XL"))


def _unidentified(data: bytes) -> ImageError:
    for signature, name in _FOREIGN:
        if data.startswith(signature):
            return ImageError(Reason.UNSUPPORTED_FORMAT, f"a kind of {name} that cannot be decoded")
    if data[4:8] == b"ftyp" and data[8:12] in (b"heic", b"heix", b"mif1", b"msf1", b"avif", b"avis"):
        if "HEIF" in Image.OPEN or data[8:11] == b"avi":
            return ImageError(Reason.CORRUPT, "a damaged HEIC or AVIF")
        return ImageError(Reason.UNSUPPORTED_FORMAT, "HEIC: pip install pillow-heif")
    head = data[:512].lstrip().lower()
    if head.startswith((b"<!doctype", b"<html")):
        return ImageError(Reason.NOT_AN_IMAGE, "looks like an HTML page")
    if head.startswith((b"<svg", b"<?xml")):
        return ImageError(Reason.NOT_AN_IMAGE, "looks like SVG or XML")
    return ImageError(Reason.NOT_AN_IMAGE, "no known image signature")
