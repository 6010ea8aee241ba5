"""From which normalised distance on a picture counts as a copy: what real pictures, that are none, say about it."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from training.neighbours.spaces import Space

MOST = 1000
"""Pictures that an index is calibrated with at most."""
_Z = 1.645  # of a normal distribution, 95 % below


class Thresholds(NamedTuple):
    """What is nearer than these is a copy.

    Attributes:
        ratio: of each space.
        false_positives: share of the pictures calibrated with that are taken for copies.
        at_most: of which the share of all such pictures is, with 95 % confidence (Wilson's bound).
    """

    ratio: dict[Space, float]
    false_positives: float
    at_most: float


class Calibration(BaseModel):
    """The normalised distances of real pictures to the nearest training picture.

    Leave-one-out stands in for held-out pictures where there are none: each training picture against the others. Either
    way what is a copy of a training picture, and so no false positive, is left out.
    """

    model_config = ConfigDict(frozen=True)
    kind: Literal["held_out", "leave_one_out"]
    copies: int = Field(description="pictures that were left out, since they are copies")
    ratios: tuple[tuple[float, float], ...] = Field(description="of each picture, in pixels and to CLIP")

    def thresholds(self, false_positives: float, *, most: float) -> Thresholds:
        """The largest of equal rank in both spaces that take no more than a share of the pictures for copies.

        Args:
            most: what a threshold is at most: a picture that is no nearer than this is none, however rare that is.
        """
        found = np.array(self.ratios, np.float64).reshape(-1, 2)
        if not len(found):
            return Thresholds({"pixel": most, "clip": most}, math.nan, 1.0)
        ordered = np.minimum(np.sort(found, axis=0), most)
        best = ordered[0]
        for bound in ordered[1:]:
            if _share(found, bound) > false_positives:
                break
            best = bound
        share = _share(found, best)
        return Thresholds({"pixel": float(best[0]), "clip": float(best[1])}, share, _upper(share, len(found)))


def _share(ratios: np.ndarray, bound: np.ndarray) -> float:
    return float((ratios < bound).any(axis=1).mean())


def _upper(share: float, count: int) -> float:
    """Wilson's upper 95 % bound of a share (Wilson 1927, equation 3)."""
    z2 = _Z**2 / count
    root = _Z * math.sqrt(share * (1 - share) / count + z2 / (4 * count))
    return min(1.0, (share + z2 / 2 + root) / (1 + z2))
