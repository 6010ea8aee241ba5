"""All that is read off a picture's pixels, so that the pixels themselves can be let go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from curation.hashes import Perceptual, perceptual, pixel_hash
from curation.images import Decoded, centre, resize
from curation.quality import measure as quality

NSFW_SIDE = 256


@dataclass(frozen=True)
class Sight:
    """One picture, or one frame of a moving one."""

    format: str
    width: int  # of the original
    height: int
    hashes: Perceptual
    pixel_hash: str
    scores: dict[str, float]  # by measure of quality
    picture: np.ndarray | None  # of training size, uint8 (height, width, 3)
    clip: np.ndarray | None  # uint8 (side, side, 3), what CLIP sees
    nsfw: np.ndarray | None  # uint8 (NSFW_SIDE, NSFW_SIDE, 3): the classifier looks at all of a picture, squeezed

    @property
    def is_blank(self) -> bool:
        """Whether nothing is on it but one colour: such frames of different films are alike and are no copies."""
        return self.hashes.phash == 0


@dataclass(frozen=True)
class Eye:
    """What is to be read off pixels."""

    picture: Callable[[Decoded], np.ndarray] | None  # how the training-size picture is cut; None for none
    clip_side: int | None
    nsfw: bool
    quality: tuple[str, ...]
    turned: bool  # whether the hashes of all orientations are wanted

    def __call__(self, found: Decoded) -> Sight:
        return Sight(
            format=found.format,
            width=found.width,
            height=found.height,
            hashes=perceptual(found, turned=self.turned),
            pixel_hash=pixel_hash(found.pixels),
            scores=quality(found.pixels, self.quality) if self.quality else {},
            picture=None if self.picture is None else self.picture(found),
            clip=None if self.clip_side is None else centre(found.pixels, self.clip_side),
            nsfw=resize(found.pixels, NSFW_SIDE, NSFW_SIDE) if self.nsfw else None,
        )


def shown(frames: Sequence[Sight]) -> Sight:
    """The frame that stands for all: the first that is not blank, or else the first."""
    return next((frame for frame in frames if not frame.is_blank), frames[0])
