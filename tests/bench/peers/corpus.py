"""The pictures every side is given: photograph-like JPEGs with planted near-copies, and a folder of difficult files.

All of it follows from a number: the same files, byte for byte, wherever the same libraries draw them.
"""

from __future__ import annotations

import io
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_image

SIDE, WIDTH, HEIGHT = 512, 960, 640
COPY_EVERY = 20  # one file in twenty is a recompressed copy of the one before it
_VERSION = 1


@dataclass(frozen=True)
class Corpus:
    """Two folders of the same pictures, one a part of the other."""

    small: Path
    large: Path
    small_count: int
    large_count: int

    def copies(self, folder: Path) -> int:
        """Planted near-copies in one of the folders."""
        return (self.small_count if folder == self.small else self.large_count) // COPY_EVERY


def photographs(cache: Path, small: int, large: int) -> Corpus:
    """Draws what is not there yet; the small folder links the first files of the large one."""
    root = cache / f"corpus-{_VERSION}-{SIDE}-{small}-{large}"
    corpus = Corpus(root / "small", root / "large", small, large)
    if not (root / "done").exists():
        shutil.rmtree(root, ignore_errors=True)
        corpus.small.mkdir(parents=True)
        corpus.large.mkdir()
        with ProcessPoolExecutor(2) as pool:
            list(pool.map(_write, [corpus.large] * large, range(large), chunksize=100))
        for index in range(small):
            os.link(corpus.large / _name(index), corpus.small / _name(index))
        (root / "done").touch()
    return corpus


def _name(index: int) -> str:
    return f"{index:06d}.jpg"


def _write(folder: Path, index: int) -> None:
    copied = index % COPY_EVERY == COPY_EVERY - 1
    picture = Image.fromarray(photograph(index - 1 if copied else index))
    if copied:
        picture = Image.open(io.BytesIO(_jpeg(picture, 90)))
    (folder / _name(index)).write_bytes(_jpeg(picture, 75 if copied else 90))


def photograph(index: int) -> np.ndarray:
    """A crop of one of two photographs, turned over or not, in a light of its own, with grain: uint8 (512, 512, 3).

    The light, smooth over the picture, is what tells the perceptual hashes of crops of one photograph apart.
    """
    chance = np.random.default_rng(index)
    whole = _frames()[int(chance.integers(2))]
    x, y = int(chance.integers(WIDTH - SIDE + 1)), int(chance.integers(HEIGHT - SIDE + 1))
    crop = whole[y : y + SIDE, x : x + SIDE]
    crop = crop[:, ::-1] if chance.integers(2) else crop
    coarse = Image.fromarray(chance.integers(0, 256, (8, 8), dtype=np.uint8))
    light = np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC), np.float32)[..., None] / 200 + 0.3
    light = light * chance.uniform(0.8, 1.2, 3).astype(np.float32)
    grain = chance.integers(-4, 5, (SIDE, SIDE, 1), dtype=np.int8)
    return np.clip(crop * light + grain, 0, 255).astype(np.uint8)


def _frames() -> list[np.ndarray]:
    if not _FRAMES:
        for name in ("china.jpg", "flower.jpg"):
            picture = Image.fromarray(load_sample_image(name))
            _FRAMES.append(np.asarray(picture.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS), np.float32))
    return _FRAMES


_FRAMES: list[np.ndarray] = []


def _jpeg(picture: Image.Image, quality: int, **more: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality, **more)
    return buffer.getvalue()


@dataclass(frozen=True)
class Difficult:
    """A file that asks something of a tool."""

    name: bytes
    what: str
    data: bytes
    shows: Image.Image | None = None  # what a person sees in it; none where there is no picture to be had
    twin: str | None = None  # a plain file that shows the same

    @property
    def text(self) -> str:
        """Its name as text, bytes that are not UTF-8 as escapes."""
        return self.name.decode(errors="backslashreplace")


def difficult() -> list[Difficult]:
    """Files of the kinds that a heap of images from anywhere has, and plain photographs, twins of some among them."""
    seen = [Image.fromarray(photograph(1_000_000 + index)) for index in range(9)]
    whole, cmyk, called, odd, reserved = seen[:5]
    wide = seen[5].resize((SIDE, SIDE * 3 // 4))
    grey = seen[6].convert("L")
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side: turn by 90 degrees clockwise to see it
    turned = _jpeg(wide.transpose(Image.Transpose.ROTATE_90), 90, exif=exif)
    deep = _png(Image.fromarray(np.asarray(grey, np.uint16) * 257))
    plain = {"plain1.jpg": wide, "plain2.jpg": cmyk, "plain3.jpg": grey, "plain4.jpg": seen[7], "plain5.jpg": seen[8]}
    return [
        Difficult(b"truncated.jpg", "JPEG cut off at 60 %", _jpeg(whole, 90)[:30_000]),
        Difficult(b"zero.jpg", "zero bytes", b""),
        Difficult(b"page.jpg", "HTML page called .jpg", b"<!DOCTYPE html><title>404 Not Found</title>"),
        Difficult(b"bomb.png", "196 megapixels in 190 KB", _png(Image.new("L", (14_000, 14_000)))),
        Difficult(b"called.jpg", "PNG called .jpg", _png(called), called),
        Difficult(b"caf\xe9.jpg", "name not in UTF-8", _jpeg(odd, 90), odd),
        Difficult(b"turned.jpg", "turned by EXIF", turned, wide, "plain1.jpg"),
        Difficult(b"cmyk.jpg", "CMYK JPEG", _jpeg(cmyk.convert("CMYK"), 90), cmyk, "plain2.jpg"),
        Difficult(b"deep.png", "16-bit PNG", deep, grey, "plain3.jpg"),
        Difficult(b"reserved.jpg", "reserved by XMP (PLUS)", _with_xmp(_jpeg(reserved, 90), _RESERVED), reserved),
        *(Difficult(name.encode(), "", _jpeg(picture, 85), picture) for name, picture in plain.items()),
    ]


_RESERVED = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description xmlns:plus="http://ns.useplus.org/ldf/xmp/1.0/" '
    'plus:DataMining="http://ns.useplus.org/ldf/vocab/DMI-PROHIBITED-AIMLTRAINING"/></rdf:RDF></x:xmpmeta>'
)


def _with_xmp(jpeg: bytes, packet: str) -> bytes:
    body = b"http://ns.adobe.com/xap/1.0/\0" + packet.encode()
    return jpeg[:2] + b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body + jpeg[2:]


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
