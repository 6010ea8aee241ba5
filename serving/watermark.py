"""An invisible mark in a picture's pixels: keyed, found without the original, with a known false-positive rate.

Spread spectrum (Cox et al. 1997) in the picture's own cosine transform. The key draws one standard normal carrier for
each low coefficient, and the mark is their sum, added to the luma. The detector takes the picture's own structure down
(what is left of edges would drown the mark), transforms, and asks how far what is there points along the carriers:

    z = <carriers, v> / ||v||,    v = the clipped coefficients of the flattened picture.

**Of a picture that was not marked with this key, z is standard normal: exactly, whatever the picture**, since the
carriers are independent of it and normal, and v is any vector. So the chance of a false alarm is a tail of the normal
distribution times the number of hypotheses that were tried (a union bound), and a threshold needs no calibration.

A cosine transform's coefficient k is the same wave at every size, so resizing needs no search, and turns and mirrors
are signs and a transposition. A crop does: `detect` slides the carriers' picture over what is left, for originals of
usual sizes, and pays for each place it tried.

Half of the coefficients say that there is a mark. The others carry a payload, eight bits to a symbol of 128
groups of coefficients: one of 128 Walsh functions and a sign, decoded by likelihood.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.fft import dctn, irfft2, rfft2  # type: ignore[import-untyped]
from scipy.special import ndtri  # type: ignore[import-untyped]

from curation.images import resize
from serving.carriers import (
    BANDS,
    Band,
    Carriers,
    band_of,
    clipped,
    coefficients,
    flattened,
    in_band,
    luma_of,
    picture_of,
    weights,
)  # fmt: skip

FALSE_POSITIVE_RATE = 1e-6
"""Of all that `detect` tries on one picture together."""
MIN_SIDE = 32
"""The shorter side of the smallest picture that can be marked, in pixels."""

_ROUNDS = 4  # of finding out how strong each part has to be
_SCALINGS = 3  # of finding out how strong the mark is that is left of one


# Whole pictures that a crop may be of: the sizes that models are trained at.
_WHOLES = (32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
_MOST_PIXELS = max(_WHOLES) ** 2  # a larger picture is made smaller before it is looked at
_LEAST_KEPT = 0.25  # of a picture's area: of less, no crop is looked for
_CANDIDATES = 16
_MOST_WHOLE = 2 * 8 * len(BANDS)  # hypotheses of how a picture that was not cropped lies, twice: see `_best`
_ORIENTATIONS = (
    *("as it was", "mirrored", "upside down, mirrored", "turned by 180°"),
    *("transposed", "turned by 90° to the left", "turned by 90° to the right", "transposed, turned by 180°"),
)


@dataclass(frozen=True)
class Marked:
    """A marked picture or film.

    Attributes:
        pixels: uint8, of the shape that was given.
        statistic: z as the detector would find it before anything is done to the picture; of a film, its worst frame's.
        psnr: dB, against what was given; of a film, its worst frame's.
    """

    pixels: np.ndarray
    statistic: float
    psnr: float

    @property
    def readable(self) -> bool:
        """Whether the detector finds it: a busy picture of a few pixels may have no room."""
        return self.statistic >= threshold(_MOST_WHOLE)


@dataclass(frozen=True)
class Detection:
    """What was found of a key's mark.

    Attributes:
        present: whether `p_value` is at or below `false_positive_rate`.
        statistic: z of the best hypothesis.
        hypotheses: how many were tried up to there.
        p_value: the chance, at most, that a picture without this key's mark gives such a statistic for any of them.
        payload: the bits as hexadecimal digits; None where there is no mark, or where they cannot be read for sure.
        where: how the picture lies to the one that was marked, in words; empty where there is no mark.
    """

    present: bool
    statistic: float
    hypotheses: int
    p_value: float
    payload: str | None
    where: str
    false_positive_rate: float = FALSE_POSITIVE_RATE


def threshold(hypotheses: int = 1, rate: float = FALSE_POSITIVE_RATE) -> float:
    """The statistic that an unmarked picture exceeds with the probability `rate` at most, in that many tries."""
    return float(-ndtri(rate / hypotheses))


def payload_bits(height: int, width: int) -> int | None:
    """How many bits a picture of this size carries beside the mark itself; None: it is too small for a mark."""
    band = band_of(min(height, width))
    return None if band is None else 8 * band.symbols


class Watermark:
    """One key's mark.

    Args:
        key: the secret. Who has it can find the mark, forge it and take it away.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._drawn: dict[int, Carriers] = {}

    def embed(self, pixels: np.ndarray, payload: bytes) -> Marked:
        """The picture with the mark: the same for the same pixels, key and payload.

        Args:
            pixels: uint8 (H, W, 3), or of a film (F, H, W, 3): every frame is marked.
            payload: four bytes or more; as many bits are written as `payload_bits` says, from the first on.

        Raises:
            ValueError: for a picture whose shorter side is under `MIN_SIDE`.
        """
        if pixels.ndim == 4:
            frames = [self.embed(frame, payload) for frame in pixels]
            whole = np.stack([frame.pixels for frame in frames])
            return Marked(whole, min(frame.statistic for frame in frames), min(frame.psnr for frame in frames))
        height, width = pixels.shape[:2]
        band = band_of(min(height, width))
        if band is None:
            raise ValueError(f"a picture of {width}x{height} is too small for a mark")
        carriers = self._carriers(band)
        signed = carriers.normal * carriers.chips(payload)
        strengths, psnr = np.ones(1 + band.symbols), sum(band.psnr) / 2
        marked = pixels
        for _ in range(_ROUNDS):
            mark = picture_of(signed * strengths[carriers.part], band.radius, height, width)
            marked = _added(pixels, mark, psnr)
            # What the picture itself contributes is known here: weak parts get more of the energy, busy pictures more
            # of the mark, and flat ones, in which it is found and seen most easily, less.
            found = np.maximum(carriers.statistics(coefficients(luma_of(marked), band.radius), signed), 0.5)
            strengths *= np.clip(found.mean() / found, 0.5, 2.0) ** 0.7
            strengths /= strengths.mean()
            psnr = float(np.clip(psnr + 20 * math.log10(found.mean() / band.aim), *band.psnr))
        return Marked(marked, float(found[0]), _psnr(marked, pixels))

    def detect(self, pixels: np.ndarray, *, search: bool = True) -> Detection:
        """Looks for this key's mark.

        Args:
            pixels: uint8 (H, W, 3), or of a film (F, H, W, 3), whose frames are looked at together.
            search: whether to look for crops as well, which takes some time.
        """
        frames = pixels if pixels.ndim == 4 else pixels[None]
        luma = np.stack([luma_of(_shrunk(frame)) for frame in frames])
        whole = self._best(self._as_a_whole(luma))
        if whole.present or not search:
            return whole
        crop = self._cropped(luma)
        return min(whole, crop, key=lambda found: found.p_value)

    def _as_a_whole(self, luma: np.ndarray) -> Iterator[_Try]:
        """The picture as a resized, turned or mirrored one of each band."""
        side = min(luma.shape[1:])
        for band in BANDS:
            if side < band.radius // 2:
                continue
            plain = np.mean([coefficients(frame, band.radius) for frame in luma], axis=0)
            for name, turned in zip(_ORIENTATIONS, _orientations(plain, band.radius), strict=True):
                yield _Try(band, turned, name, 1)

    def _cropped(self, luma: np.ndarray) -> Detection:
        """The picture as a part of a larger one, which lies where the carriers' picture fits best."""
        return self._best(found for size in _WHOLES for found in self._in_whole(luma, size))

    def _in_whole(self, luma: np.ndarray, size: int) -> Iterator[_Try]:
        height, width = luma.shape[1:]
        band = band_of(size)
        if band is None or max(height, width) > size or height * width < _LEAST_KEPT * size * size:
            return
        if (height, width) == (size, size):
            return
        carriers = self._carriers(band)
        scale = (height / size, width / size)
        flat = np.mean([flattened(frame, band.radius, scale) for frame in luma], axis=0)
        pilots = np.where(carriers.part == 0, carriers.normal * weights(band.radius), 0.0)
        pattern = rfft2(picture_of(pilots, band.radius, size, size))
        places = (size - height + 1) * (size - width + 1)
        for mirrored in (False, True):
            piece = flat[:, ::-1] if mirrored else flat
            spectrum = pattern * np.conj(rfft2(piece, s=(size, size)))
            fit = irfft2(spectrum, s=(size, size))[: size - height + 1, : size - width + 1]
            best = np.argsort(fit, axis=None)[::-1][:_CANDIDATES]
            tries = places
            for top, left in zip(*np.unravel_index(best, fit.shape), strict=True):
                canvas = np.zeros((size, size))
                canvas[top : top + height, left : left + width] = piece
                name = f"cut from {size}x{size} at {left},{top}" + (", mirrored" if mirrored else "")
                yield _Try(band, clipped(dctn(canvas, norm="ortho"), band.radius), name, tries)
                tries = 0  # all places are paid for by the first of them

    def _best(self, tries: Iterator[_Try]) -> Detection:
        hypotheses, best, highest = 0, None, -math.inf
        for attempt in tries:
            hypotheses += attempt.hypotheses
            statistic = self._carriers(attempt.band).presence(attempt.values)
            if statistic > highest:
                best, highest = attempt, statistic
        if best is None:
            return Detection(False, 0.0, 0, 1.0, None, "")
        # Two rounds may be played, each of which may take half of the false alarms.
        chance = min(1.0, 2 * hypotheses * _tail(highest))
        present = chance <= FALSE_POSITIVE_RATE
        payload = self._carriers(best.band).read(best.values) if present else None
        return Detection(present, float(highest), hypotheses, chance, payload, best.where if present else "")

    def _carriers(self, band: Band) -> Carriers:
        if band.radius not in self._drawn:
            self._drawn[band.radius] = Carriers(self._key, band)
        return self._drawn[band.radius]


@dataclass(frozen=True)
class _Try:
    """A hypothesis of how a picture lies to the marked one."""

    band: Band
    values: np.ndarray  # of the coefficients that carry the mark
    where: str
    hypotheses: int


def _orientations(values: np.ndarray, radius: int) -> Iterator[np.ndarray]:
    """The coefficients that a picture would have in each of the eight orientations, in the order of their names."""
    square = np.zeros((radius, radius))
    square[in_band(radius)] = values
    sign = 1.0 - 2.0 * (np.arange(radius) % 2)
    for base in (square, square.T):
        for turned in (base, base * sign, base * sign[:, None], base * sign * sign[:, None]):
            yield turned[in_band(radius)]


def _added(pixels: np.ndarray, mark: np.ndarray, psnr: float) -> np.ndarray:
    """The picture with a mark of that strength, also where part of it is lost in white and black."""
    wanted = 255.0**2 / 10 ** (psnr / 10)
    strength = math.sqrt(wanted / float(np.mean(mark * mark)))
    marked = pixels
    for _ in range(_SCALINGS):
        marked = np.clip(np.rint(pixels + (strength * mark)[..., None]), 0, 255).astype(np.uint8)
        strength *= 10 ** ((min(_psnr(marked, pixels), 80.0) - psnr) / 20)
    return marked


def _psnr(changed: np.ndarray, pixels: np.ndarray) -> float:
    error = float(np.mean((changed.astype(np.float64) - pixels) ** 2))
    return math.inf if error == 0 else 10 * math.log10(255.0**2 / error)


def _shrunk(pixels: np.ndarray) -> np.ndarray:
    """A picture with no more pixels than it takes to find a mark: the marked waves are long ones there."""
    height, width = pixels.shape[:2]
    scale = math.sqrt(_MOST_PIXELS / (height * width))
    return pixels if scale >= 1 else resize(pixels, max(1, round(width * scale)), max(1, round(height * scale)))


def _tail(statistic: float) -> float:
    """The chance that a standard normal number is larger."""
    return 0.5 * math.erfc(statistic / math.sqrt(2))
