"""A key's carriers in a picture's cosine transform, and the coefficients that they are looked for in.

The transform's part of `serving.watermark`, which says what it is for.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy.fft import dctn, idctn  # type: ignore[import-untyped]
from scipy.special import ndtri  # type: ignore[import-untyped]

_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
_LOWEST = 4  # coefficients whose indices sum to less are left alone: they are the picture's light and shade
_PILOT_SHARE = 0.5
_GROUPS = 128
_SURE = 0.99


class Band(NamedTuple):
    """How pictures of some size are marked."""

    min_side: int
    radius: int  # coefficients up to this index carry the mark
    psnr: tuple[float, float]  # of the marked picture against the unmarked one, in dB: between these
    aim: float  # a statistic of which no more is wanted, for a higher PSNR's sake
    symbols: int  # of eight bits


BANDS = (
    Band(32, 16, (34.0, 42.0), 9.0, 0),
    Band(64, 32, (36.0, 42.0), 11.0, 2),
    Band(128, 48, (39.0, 44.0), 14.0, 4),
    Band(256, 96, (42.0, 45.0), 22.0, 4),
)


class Carriers:
    """What a key draws for a band: a normal number for each coefficient, and what each is for.

    Attributes:
        normal: float64 (n,).
        part: int (n,); 0 says that there is a mark, k carries the payload's symbol k.
        group: int (n,); of a symbol's coefficients, which of its Walsh function's values they have.
    """

    def __init__(self, key: bytes, band: Band) -> None:
        count = int(in_band(band.radius).sum())
        # Not numpy's generators, whose numbers may be others in a later version: marks outlive versions.
        drawn = hashlib.shake_256(b"cleanplate watermark 1\0%d\0" % band.radius + key).digest(16 * count)
        numbers = (np.frombuffer(drawn, ">u8") >> 11) + 0.5
        self.normal: np.ndarray = ndtri(numbers[:count] / 2**53)
        order = np.argsort(numbers[count:], kind="stable")
        pilots = int(count * _PILOT_SHARE) if band.symbols else count
        self.part, self.group = np.zeros(count, int), np.zeros(count, int)
        rest = np.arange(count - pilots)
        self.part[order[pilots:]] = 1 + rest % max(1, band.symbols)
        self.group[order[pilots:]] = rest // max(1, band.symbols) % _GROUPS
        self._symbols = band.symbols

    def presence(self, values: np.ndarray) -> float:
        """The statistic, standard normal without a mark."""
        of = self.part == 0
        length = float(np.linalg.norm(values[of]))
        return float(self.normal[of] @ values[of]) / length if length else 0.0

    def statistics(self, values: np.ndarray, signed: np.ndarray) -> np.ndarray:
        """(1 + symbols,): how well each part's own mark is found."""
        parts = range(1 + self._symbols)
        dots = np.array([float(signed[self.part == k] @ values[self.part == k]) for k in parts])
        lengths = np.array([float(np.linalg.norm(values[self.part == k])) for k in parts])
        found: np.ndarray = dots / np.maximum(lengths, 1e-9)
        return found

    def chips(self, payload: bytes) -> np.ndarray:
        """The sign of each coefficient's carrier for a payload."""
        signs = np.ones(len(self.normal))
        for k in range(self._symbols):
            of = self.part == 1 + k
            row, negative = divmod(payload[k], 2)
            signs[of] = _walsh()[row][self.group[of]] * (1 - 2 * negative)
        return signs

    def read(self, values: np.ndarray) -> str | None:
        """The payload; None where another one is not much less likely."""
        digits, sure = "", 1.0
        for k in range(self._symbols):
            of = self.part == 1 + k
            sums = np.bincount(self.group[of], (self.normal * values)[of], _GROUPS)
            length = float(np.linalg.norm(values[of]))
            found = _walsh() @ sums / max(length, 1e-9)
            scores = np.stack([found, -found], axis=1).ravel()
            symbol = int(scores.argmax())
            # Of normal statistics, one of which has the mean that the best one shows: Bayes' rule.
            sure /= float(np.exp(scores[symbol] * (scores - scores[symbol])).sum())
            digits += f"{symbol:02x}"
        return digits if digits and sure >= _SURE else None


def band_of(side: int) -> Band | None:
    fitting = [band for band in BANDS if side >= band.min_side]
    return fitting[-1] if fitting else None


@lru_cache(maxsize=len(BANDS))
def in_band(radius: int) -> np.ndarray:
    """bool (radius, radius): which coefficients carry the mark."""
    index = np.arange(radius)
    chosen: np.ndarray = index[:, None] + index >= _LOWEST
    return chosen


@lru_cache(maxsize=len(BANDS))
def weights(radius: int) -> np.ndarray:
    """Of the coefficients in a band: pictures have less of their own where the waves are short."""
    index = np.arange(radius) / radius
    weights: np.ndarray = np.sqrt(np.hypot(index[:, None], index))[in_band(radius)]
    return weights


@lru_cache(maxsize=1)
def _walsh() -> np.ndarray:
    """(128, 128): the Walsh functions, +1 and -1 (Sylvester's construction)."""
    functions = np.ones((1, 1))
    while len(functions) < _GROUPS:
        functions = np.block([[functions, functions], [functions, -functions]])
    return functions


def luma_of(pixels: np.ndarray) -> np.ndarray:
    luma: np.ndarray = pixels @ _LUMA
    return luma


def _smoothed(values: np.ndarray, cut: float, scale: tuple[float, float]) -> np.ndarray:
    """Without the waves much shorter than index `cut` of the whole picture, of which `values` are a part."""
    down = np.arange(values.shape[0]) / scale[0]
    across = np.arange(values.shape[1]) / scale[1]
    kept = np.exp(-((down / cut) ** 2))[:, None] * np.exp(-((across / cut) ** 2))
    smooth: np.ndarray = idctn(dctn(values, norm="ortho") * kept, norm="ortho")
    return smooth


def flattened(luma: np.ndarray, radius: int, scale: tuple[float, float] = (1.0, 1.0)) -> np.ndarray:
    """What is left of a picture when light and shade are taken away and edges are taken down.

    Divided by the local variance, as a matched filter in noise of that variance is.
    """
    detail = luma - _smoothed(luma, 0.4 * radius, scale)
    energy = np.maximum(_smoothed(detail * detail, float(radius), scale), 0.0)
    flat: np.ndarray = detail / (np.sqrt(energy) + 3.0) ** 2
    return flat


def coefficients(luma: np.ndarray, radius: int) -> np.ndarray:
    """A band's coefficients of a flattened picture; where it is too small to have one, zero."""
    return clipped(dctn(flattened(luma, radius), norm="ortho"), radius)


def clipped(transformed: np.ndarray, radius: int) -> np.ndarray:
    """A band's coefficients, so that a few large ones do not outweigh all others."""
    square = np.zeros((radius, radius))
    low = transformed[:radius, :radius]
    square[: low.shape[0], : low.shape[1]] = low
    values: np.ndarray = square[in_band(radius)] * weights(radius)
    there = np.abs(values[values != 0])
    if there.size:
        most = 3.0 * float(np.median(there))
        np.clip(values, -most, most, out=values)
    return values


def picture_of(values: np.ndarray, radius: int, height: int, width: int) -> np.ndarray:
    """float64 (height, width): the picture whose coefficients these are."""
    square = np.zeros((radius, radius))
    square[in_band(radius)] = values
    whole = np.zeros((height, width))
    whole[:radius, :radius] = square
    picture: np.ndarray = idctn(whole, norm="ortho")
    return picture
