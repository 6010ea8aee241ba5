"""What tells copies apart: a hash of the pixels, and a perceptual one of what they look like."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from curation.images import Decoded

_HASH_SIDE = 32
_HASH_MARGIN = 0.05  # of the mean magnitude of the coefficients
_COLOUR_SIDE = 4
_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601


def pixel_hash(pixels: np.ndarray) -> str:
    """sha256 of size and RGB pixels, hex: the same for a copy with other metadata or in another lossless format."""
    h = hashlib.sha256(f"{pixels.shape[1]}x{pixels.shape[0]};".encode())
    h.update(np.ascontiguousarray(pixels).data)
    return h.hexdigest()


@dataclass(frozen=True)
class Perceptual:
    """What tells near copies."""

    phash: int  # 64 bits
    turned: tuple[int, ...]  # hashes of the seven other orientations; empty when they were not asked for
    colour_layout: bytes  # mean RGB of a 4x4 grid: tells a red circle from a blue one, which luma hashes cannot


def perceptual(picture: Decoded | np.ndarray, *, turned: bool = False) -> Perceptual:
    """Perceptual hash and colour layout of a decoded picture, or of pixels that are all of one.

    The hash: the 8x8 lowest DCT-II coefficients of luma against their median (Zauner 2010). The constant term, which
    says how bright the picture is and not what is on it, counts neither as a bit nor in the median. A coefficient must
    exceed the median by a margin: symmetric drawings have many that are zero but for noise, and without the margin a
    JPEG of such a drawing lies up to 22 bits away.

    A mirrored picture has the same coefficients with the signs of odd frequencies turned, and a transposed one has them
    transposed: the hashes of all eight orientations come from one transform.
    """
    import cv2

    if isinstance(picture, Decoded):
        small = _of_decoded(picture)
    else:
        small = _means(picture, picture.shape[1], picture.shape[0])
    basis = _dct_basis()
    low = basis @ (small @ _LUMA) @ basis.T
    means = cv2.resize(small, (_COLOUR_SIDE, _COLOUR_SIDE), interpolation=cv2.INTER_AREA)
    orientations = _orientations(low) if turned else low[None]
    first, *others = _hash_bits(orientations.reshape(-1, 64))
    return Perceptual(first, tuple(others), means.tobytes())


def _of_decoded(picture: Decoded) -> np.ndarray:
    """What the hash is taken of: the means of a picture that may have been decoded at a smaller DCT scale.

    Its last stored row and column then stand for less than a whole pixel: 333 pixels at an eighth are 42, of which 41.6
    are picture. Copies of different size would lie askew by what is too much, and their hashes apart.
    """
    height, width = picture.pixels.shape[:2]
    for eighths in (8, *range(1, 8)):
        wide, high = picture.width * eighths / 8, picture.height * eighths / 8
        if math.ceil(wide) == width and math.ceil(high) == height:
            break
    else:
        wide, high = width, height
    if (wide, high) == (width, height):
        return _means(picture.pixels, width, height)
    # Where orientation has brought what was stored last to the left or to the top, the picture is looked at from there.
    across = -1 if picture.orientation in (2, 3, 6, 7) else 1
    down = -1 if picture.orientation in (3, 4, 7, 8) else 1
    small = _means(picture.pixels[::down, ::across], wide, high)
    return np.ascontiguousarray(small[::down, ::across])


def _means(pixels: np.ndarray, wide: float, high: float) -> np.ndarray:
    """The means of a grid of 32 x 32 over the first `wide` columns and `high` rows, which may be fractions."""
    import cv2

    pixels = np.ascontiguousarray(pixels)
    height, width = pixels.shape[:2]
    if min(height, width) < 2 * _HASH_SIDE:
        enlarges = min(height, width) < _HASH_SIDE
        kind = cv2.INTER_LINEAR if enlarges else cv2.INTER_AREA
        return np.asarray(cv2.resize(pixels, (_HASH_SIDE, _HASH_SIDE), interpolation=kind), np.uint8)
    while min(height, width) >= 4 * _HASH_SIDE:  # halving is several times faster than averaging over a fraction
        if height % 2 or width % 2:
            pixels = cv2.copyMakeBorder(pixels, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
        height, width, high, wide = (height + 1) // 2, (width + 1) // 2, high / 2, wide / 2
        pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    # Given factors, OpenCV averages by them; given a size, it would stretch what is there to it.
    small = cv2.resize(pixels, None, fx=_HASH_SIDE / wide, fy=_HASH_SIDE / high, interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(small[:_HASH_SIDE, :_HASH_SIDE], np.uint8)


def _orientations(low: np.ndarray) -> np.ndarray:
    """(8, 8, 8): the coefficients of the picture itself and of its seven other orientations."""
    sign = 1.0 - 2.0 * (np.arange(8) % 2)
    mirrored = [low, low * sign, low * sign[:, None], low * sign * sign[:, None]]
    return np.stack([*mirrored, *(m.T for m in mirrored)])


def _hash_bits(low: np.ndarray) -> list[int]:
    rest = low[:, 1:]
    median = np.sort(rest, axis=1)[
        :, rest.shape[1] // 2
    ]  # 63 of them: np.median does the same in eighty times the time
    bits = low > (median + _HASH_MARGIN * np.abs(rest).mean(axis=1))[:, None]
    bits[:, 0] = False
    return [int(value) for value in np.packbits(bits, axis=1).view(">u8")[:, 0]]


@lru_cache(maxsize=1)
def _dct_basis() -> np.ndarray:
    n = np.arange(_HASH_SIDE)
    return np.cos(np.pi * np.arange(8)[:, None] * (2 * n + 1) / (2 * _HASH_SIDE))
