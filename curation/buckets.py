"""Aspect-ratio buckets: pictures that are not square are trained on as they are, in a few shapes of about one area.

A picture goes to the shape whose ratio of sides is nearest to its own, is resized to cover it, and loses what juts out
on two sides. How much that is depends on its shape alone, so that the policy can refuse pictures which would lose more.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import NamedTuple, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from curation.images import Decoded, cover

_LONGEST = 16_384  # pixels of a side


class Placed(NamedTuple):
    """The bucket of a picture, and the share of its area that is cut off."""

    width: int
    height: int
    lost: float


class BucketsConfig(BaseModel):
    """The shapes that pictures are cut to, instead of a square: given as a list, or all of about one area."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    area: int = Field(65536, ge=64, le=4096 * 4096, description="pixels of a bucket, at most")
    step: int = Field(32, ge=1, le=512, description="every side is a multiple of this, in pixels")
    max_ratio: float = Field(2.0, ge=1, le=16, description="of the long side to the short one, at most")
    sizes: tuple[tuple[int, int], ...] | None = Field(
        None, description="[width, height] of each bucket, instead of area, step and max_ratio"
    )
    max_crop: float = Field(
        0.25, ge=0, le=1, description="a picture that would lose a larger share of its area is dropped as odd_shape"
    )

    @model_validator(mode="after")
    def _there_are_some(self) -> Self:
        if self.sizes is not None and (not self.sizes or any(not 8 <= s <= _LONGEST for wh in self.sizes for s in wh)):
            raise ValueError(f"sizes must be a list of [width, height], each from 8 to {_LONGEST}")
        if self.sizes is None and self.step**2 > self.area:
            raise ValueError(f"no multiple of step ({self.step}) fits into an area of {self.area} pixels")
        return self

    @cached_property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """(width, height) of every bucket, the narrowest first.

        Of each width the greatest height that the area has room for, and the same lying down.
        """
        if self.sizes is not None:
            return tuple(sorted(set(self.sizes), key=_shape))
        side = math.isqrt(self.area) // self.step * self.step
        found = {(side, side)}
        for wide in range(side, self.area // self.step + 1, self.step):
            high = self.area // wide // self.step * self.step
            if high and max(wide, high) <= self.max_ratio * min(wide, high):
                found |= {(wide, high), (high, wide)}
        return tuple(sorted(found, key=_shape))

    def place(self, width: int, height: int) -> Placed:
        """The bucket whose ratio is nearest to that of a picture of `width` x `height`, by logarithm."""
        ratio = math.log(width / height)
        wide, high = min(self.shapes, key=lambda size: abs(math.log(size[0] / size[1]) - ratio))
        apart = abs(math.log(wide / high) - ratio)
        return Placed(wide, high, 1 - math.exp(-apart))

    def cut(self, found: Decoded) -> np.ndarray:
        """The training-size picture, uint8 (height, width, 3) of its bucket."""
        placed = self.place(found.width, found.height)  # by the original: decoded small, its ratio is a rounded one
        return cover(found.pixels, placed.width, placed.height)

    @property
    def side(self) -> int:
        """The shorter side that a picture must be decoded with, so that none is enlarged that need not be."""
        return max(max(size) for size in self.shapes)


def _shape(size: tuple[int, int]) -> tuple[float, int]:
    return size[0] / size[1], size[0]
