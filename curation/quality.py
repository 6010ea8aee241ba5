"""Quality measures: plain numbers read off the pixels, none of them a judgement before the job file sets a bound.

All are taken at one scale (the area of 256 x 256 pixels, or less where the picture is smaller), so that they compare
between pictures of any size and cost the same. Sides and bytes stand in columns of their own.

Neither watermarks nor text are measured. No package ships weights of a watermark detector. Of two text heuristics that
were tried (strokes by top-hat, rows of MSER regions) the better told 360 generated pictures with text from 360 without
at an AUROC of 0.84, and crops of photographs at 0.69: it would drop the wrong ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import numpy as np

_AREA = 256 * 256
_NOISE_ENERGY = 0.116061  # of the 7 x 7 kernel that blur's two filters make together
_UNIFORM = 12  # grey levels by which the pixels of a border may differ: JPEG's ringing, but no texture


def blur(pixels: np.ndarray) -> float:
    """Sharpness: energy of the Laplacian of Gaussian of luma over the variance of luma, in units of white noise's.

    The higher the sharper: 0 for a flat picture, 1 for white noise. Two photographs of 427 pixels had 0.12 and 0.13,
    0.04 and 0.05 blurred by 2 pixels, 0.01 by 4. The Laplacian's variance is Pech-Pacheco et al. 2000; dividing by
    luma's makes it blind to contrast, and the Gaussian (sigma 1 pixel) to how a file was resized.
    """
    import cv2

    luma = _luma(pixels)
    gaussian = cv2.getGaussianKernel(5, 1, cv2.CV_32F)
    smooth = cv2.sepFilter2D(luma, cv2.CV_32F, gaussian, gaussian)
    energy = cv2.norm(cv2.Laplacian(smooth, cv2.CV_32F), cv2.NORM_L2SQR) / luma.size
    variance = float(cv2.meanStdDev(luma)[1][0, 0]) ** 2
    # A grey level in the denominator: the rounding of a flat picture is no sharpness.
    return float(energy / (_NOISE_ENERGY * (variance + 1)))


def entropy(pixels: np.ndarray) -> float:
    """Shannon entropy of the histogram of luma, in bits: 0 for a flat picture, at most 8."""
    counts = _histogram(pixels)
    shares = counts[counts > 0] / counts.sum()
    return max(0.0, float(-(shares * np.log2(shares)).sum()))


def luminance(pixels: np.ndarray) -> float:
    """Mean luma, 0 black to 1 white."""
    return float(_luma(pixels).mean() / 255)


def contrast(pixels: np.ndarray) -> float:
    """Root-mean-square contrast: the standard deviation of luma on 0 to 1, so at most 0.5 (Peli 1990)."""
    import cv2

    return float(cv2.meanStdDev(_luma(pixels))[1][0, 0] / 255)


def colourfulness(pixels: np.ndarray) -> float:
    """Colourfulness of Hasler & Süsstrunk 2003, equation 4: 0 for grey, some 15 slightly, 45 quite, above 82 highly."""
    import cv2

    red, green, blue = cv2.split(pixels)
    rg = cv2.subtract(red, green, dtype=cv2.CV_16S)
    sums, twice = cv2.add(red, green, dtype=cv2.CV_16S), cv2.add(blue, blue, dtype=cv2.CV_16S)
    doubled = cv2.subtract(sums, twice)  # 2 (R + G) / 2 - 2 B, in integers
    moments = [[float(m[0, 0]) for m in cv2.meanStdDev(axis)] for axis in (rg, doubled)]
    (mean_rg, spread_rg), (mean_yb, spread_yb) = moments
    return math.hypot(spread_rg, spread_yb / 2) + 0.3 * math.hypot(mean_rg, mean_yb / 2)


def saturation(pixels: np.ndarray) -> float:
    """Mean saturation of HSV, 0 grey to 1."""
    import cv2

    return float(cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV)[:, :, 1].mean() / 255)


def border(pixels: np.ndarray) -> float:
    """Share of the area in rows and columns of one colour along the edges: letterboxes, frames; 1 for a flat picture.

    A row counts when its pixels, and those of all rows between it and the edge, are within 12 levels of the corner's.
    """
    import cv2

    height, width = pixels.shape[:2]
    top, left = _like_corner(pixels)
    bottom, right = _like_corner(cv2.flip(pixels, -1))
    if top + bottom >= height or left + right >= width:
        return 1.0
    return float(1 - (height - top - bottom) * (width - left - right) / (height * width))


def _like_corner(pixels: np.ndarray) -> tuple[int, int]:
    """How many rows from the top and columns from the left have the colour of the first pixel."""
    import cv2

    corner = pixels[0, 0].astype(np.float64)
    low, high = np.clip(corner - _UNIFORM, 0, 255), np.clip(corner + _UNIFORM, 0, 255)
    alike = cv2.inRange(pixels, low, high)
    return _leading(alike.min(axis=1)), _leading(alike.min(axis=0))


def _leading(alike: np.ndarray) -> int:
    """How many of the first values are not 0."""
    first = int(np.argmin(alike))
    return first if alike[first] == 0 else len(alike)


MEASURES: Mapping[str, Callable[[np.ndarray], float]] = {
    "blur": blur,
    "border": border,
    "colourfulness": colourfulness,
    "contrast": contrast,
    "entropy": entropy,
    "luminance": luminance,
    "saturation": saturation,
}
"""By name, each from uint8 RGB pixels (H, W, 3) at the working scale to a number."""


def measure(pixels: np.ndarray, names: Iterable[str]) -> dict[str, float]:
    """Takes the named measures of a picture, uint8 RGB (H, W, 3) of any size."""
    working = working_scale(pixels)
    return {name: MEASURES[name](working) for name in names}


def working_scale(pixels: np.ndarray) -> np.ndarray:
    """The pixels, averaged down to the area at which the measures are taken; smaller pictures as they are."""
    import cv2

    height, width = pixels.shape[:2]
    factor = math.sqrt(height * width / _AREA)
    if factor <= 1:
        return np.ascontiguousarray(pixels)
    whole = max(1, min(int(factor), height, width))
    if whole > 1:  # a whole factor is averaged several times faster than a fraction
        height, width = height // whole, width // whole
        cut = pixels[: height * whole, : width * whole]
        pixels = np.asarray(cv2.resize(cut, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
    factor = math.sqrt(height * width / _AREA)
    size = max(1, round(width / factor)), max(1, round(height / factor))
    if factor <= 1 or size == (width, height):
        return np.ascontiguousarray(pixels)
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_CUBIC), np.uint8)


def _luma(pixels: np.ndarray) -> np.ndarray:
    import cv2

    luma: np.ndarray = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    return luma


def _histogram(pixels: np.ndarray) -> np.ndarray:
    import cv2

    return np.asarray(cv2.calcHist([_luma(pixels)], [0], None, [256], [0, 256]), np.float64).ravel()
