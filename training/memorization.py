"""Does a model redraw its training pictures? Nearest neighbours of its samples, in pixels and in a CLIP's space.

A distance means nothing by itself: a flat drawing is near to many others, and a photograph to none. So each is divided
by the mean distance of the nearest training picture to its own nearest others (the ratio of Carlini et al. 2023, arXiv
2301.13188, section 5.1, whose neighbours are the sample's; the training picture's do not depend on what a model draws).
Copies within the training set count as one picture, which was shown as often as all of them together; otherwise the
pictures most likely to be known by heart would have the smallest distances to their neighbours, and would never be
found. Held-out pictures, which no model has seen, are asked the same: what is flagged of them are false positives.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw
from pydantic import BaseModel, ConfigDict, Field

from training.distances import Interval, distances, mean_interval

Embed = Callable[[np.ndarray], np.ndarray]
"""uint8 (N, H, W, 3) to unit vectors (N, D)."""

Space = Literal["pixel", "clip"]
SPACES: tuple[Space, ...] = ("pixel", "clip")
# Below these two pictures are one. Pixels: root mean square in [0, 1]; a JPEG of quality 90 or a rescaling lies below.
_SAME: dict[Space, float] = {"pixel": 0.03, "clip": 0.1}
_NEIGHBOURS = 10
_BLOCK = 512
_SIDE = 32  # pictures are compared at this size; larger ones are averaged down to it
_TILE, _GAP, _TITLE = 96, 8, 14


class MemorizationConfig(BaseModel):
    """The limit of a job, and how samples are judged by it."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    ratio: float = Field(
        0.35, gt=0, lt=1, description="a sample is a copy when its nearest training picture is nearer than this share "
        "of that picture's mean distance to its own nearest others"
    )  # fmt: skip
    max_share: float = Field(
        0.01, ge=0, le=1, description="of samples that may be copies, beyond what held-out pictures are taken for"
    )
    max_false_positives: float = Field(
        0.1, ge=0, le=1, description="of held-out pictures; where more are taken for copies, nothing is decided"
    )
    probes: int = Field(
        64, ge=0, le=10_000, description="further samples, of captions of the pictures shown most often"
    )


class Copied(BaseModel):
    """A training picture that samples are copies of."""

    model_config = ConfigDict(frozen=True)
    id: str
    drawn: int  # samples
    copies: int  # of it in the training set, itself included
    seen: int  # samples of the training that showed any of them


class Memorization(BaseModel):
    """What the samples of a model come to.

    Attributes:
        samples, held_out, pictures: how many were asked, and of how many training pictures.
        share: of samples that are copies, in any space, with its 95 % interval.
        weighted: the same, where the copy of a picture counts 1 + log2 of how many times as often as the median one
            it was trained on; at most 1.
        false_positives: share of held-out pictures that are taken for copies; None where there are none.
        excess: `weighted` without the false positives, which the limit is about.
        by_space: `share`, by space alone.
        withheld: pairs of the worst that are not in the figure, since they show what was revoked.
    """

    model_config = ConfigDict(frozen=True)
    verdict: Literal["passed", "over", "undecided"]
    why: str
    samples: int
    held_out: int
    pictures: int
    share: float
    interval: Interval
    weighted: float
    false_positives: float | None
    excess: float
    limit: MemorizationConfig
    by_space: dict[Space, float]
    copied: list[Copied]
    withheld: int = 0


@dataclass(frozen=True)
class Training:
    """What a model was trained on.

    Attributes:
        ids: M of them.
        pictures: uint8 (M, H, W, 3).
        seen: int64 (M,), how often each was trained on.
    """

    ids: Sequence[str]
    pictures: np.ndarray
    seen: np.ndarray


@dataclass(frozen=True)
class Nearest:
    """Of each of N pictures the nearest training picture in one space: its place and the normalised distance (N,)."""

    place: np.ndarray
    ratio: np.ndarray


class Gate:
    """A training set that samples are held against.

    Raises:
        ValueError: fewer than three training pictures.
    """

    def __init__(self, training: Training, embed: Embed) -> None:
        if len(training.ids) < 3:
            raise ValueError(f"{len(training.ids)} pictures have no neighbours to be measured by")
        self._training = training
        self._embed = embed
        self._known = {space: self._vectors(space, training.pictures) for space in SPACES}
        self._turned = pixels(training.pictures[:, :, ::-1])  # training may mirror a picture
        self._groups: dict[tuple[Space, int], tuple[np.ndarray, float]] = {}

    def nearest(self, pictures: np.ndarray) -> dict[Space, Nearest]:
        """The nearest training picture of each of uint8 (N, H, W, 3), by space."""
        return {space: self._nearest(space, self._vectors(space, pictures)) for space in SPACES}

    def copies_of(self, place: int) -> np.ndarray:
        """The places of a training picture and its copies, in any space."""
        return np.unique(np.concatenate([self._group(space, place)[0] for space in SPACES]))

    def judge(
        self, samples: np.ndarray, held_out: np.ndarray, config: MemorizationConfig
    ) -> tuple[Memorization, dict[Space, Nearest]]:
        """The verdict on samples, uint8 (N, H, W, 3), and what is nearest to each."""
        near = self.nearest(samples)
        copied = {space: near[space].ratio < config.ratio for space in SPACES}
        either = copied["pixel"] | copied["clip"]
        found = self._copied(near, copied)
        share = float(either.mean())
        weighted = min(1.0, float(self._weights(near, copied).sum()) / len(samples))
        false = self._false_positives(held_out, config)
        excess = max(0.0, weighted - (false or 0.0))
        verdict: Literal["passed", "over", "undecided"] = "over" if excess > config.max_share else "passed"
        why = (
            f"{share:.1%} of samples are copies; weighted by how often they were trained on, less false positives, "
            f"{excess:.1%}, and at most {config.max_share:.1%} may be"
        )
        if false is not None and false > config.max_false_positives:
            verdict = "undecided"
            why = f"{false:.1%} of pictures that it has never seen are taken for copies: nothing can be told apart"
        made = Memorization(
            verdict=verdict,
            why=why,
            samples=len(samples),
            held_out=len(held_out),
            pictures=len(self._training.ids),
            share=share,
            interval=mean_interval(either.astype(float)),
            weighted=weighted,
            false_positives=false,
            excess=excess,
            limit=config,
            by_space={space: float(copied[space].mean()) for space in SPACES},
            copied=found,
        )
        return made, near

    def _false_positives(self, held_out: np.ndarray, config: MemorizationConfig) -> float | None:
        if not len(held_out):
            return None
        near = self.nearest(held_out)
        return float(((near["pixel"].ratio < config.ratio) | (near["clip"].ratio < config.ratio)).mean())

    def _copied(self, near: dict[Space, Nearest], copied: dict[Space, np.ndarray]) -> list[Copied]:
        """The training pictures that samples are copies of, those drawn most often first; copies as one."""
        drawn: dict[int, int] = {}
        for row in range(len(copied["pixel"])):
            space = _closer(near, copied, row)
            if space is not None:
                first = int(self.copies_of(int(near[space].place[row]))[0])
                drawn[first] = drawn.get(first, 0) + 1
        made = [
            Copied(id=self._training.ids[place], drawn=count, copies=len(group), seen=int(self._seen(group)))
            for place, count in drawn.items()
            for group in [self.copies_of(place)]
        ]
        return sorted(made, key=lambda picture: (-picture.drawn, picture.id))

    def _weights(self, near: dict[Space, Nearest], copied: dict[Space, np.ndarray]) -> np.ndarray:
        """What each sample counts (N,): nothing where it is no copy."""
        median = max(1.0, float(np.median(self._training.seen)))
        weights = np.zeros(len(copied["pixel"]))
        for row in range(len(weights)):
            space = _closer(near, copied, row)
            if space is not None:
                times = self._seen(self.copies_of(int(near[space].place[row]))) / median
                weights[row] = 1 + np.log2(max(1.0, times))
        return weights

    def _seen(self, group: np.ndarray) -> float:
        return float(self._training.seen[group].sum())

    def _vectors(self, space: Space, pictures: np.ndarray) -> np.ndarray:
        return pixels(pictures) if space == "pixel" else self._embed(pictures)

    def _nearest(self, space: Space, vectors: np.ndarray) -> Nearest:
        place = np.zeros(len(vectors), np.int64)
        ratio = np.zeros(len(vectors))
        for start in range(0, len(vectors), _BLOCK):
            block = slice(start, start + _BLOCK)
            apart = self._distances(space, vectors[block])
            place[block] = apart.argmin(axis=1)
            ratio[block] = apart.min(axis=1)
        self._fill(space, place)
        spread = np.array([self._group(space, int(p))[1] for p in place])
        return Nearest(place, ratio / np.maximum(spread, 1e-12))

    def _distances(self, space: Space, vectors: np.ndarray) -> np.ndarray:
        apart = distances(vectors, self._known[space])
        return np.minimum(apart, distances(vectors, self._turned)) if space == "pixel" else apart

    def _group(self, space: Space, place: int) -> tuple[np.ndarray, float]:
        """The copies of a training picture in one space, itself too, and its mean distance to its nearest others.

        A set of nothing but copies has no others: then every picture is near.
        """
        if (space, place) not in self._groups:
            self._fill(space, np.array([place]))
        return self._groups[space, place]

    def _fill(self, space: Space, places: np.ndarray) -> None:
        """Looks up `_group` of training pictures, those that are not known yet."""
        new = np.array([p for p in np.unique(places).tolist() if (space, p) not in self._groups], np.int64)
        for start in range(0, len(new), _BLOCK):
            block = new[start : start + _BLOCK]
            for place, apart in zip(block.tolist(), self._distances(space, self._known[space][block]), strict=True):
                same = apart <= _SAME[space]
                same[place] = True
                others = apart[~same]
                nearest = np.partition(others, _NEIGHBOURS)[:_NEIGHBOURS] if len(others) > _NEIGHBOURS else others
                spread = float(nearest.mean()) if len(others) else np.inf
                self._groups[space, place] = (np.flatnonzero(same), spread)


def _closer(near: dict[Space, Nearest], copied: dict[Space, np.ndarray], row: int) -> Space | None:
    """In which space a sample is the closer copy; None where it is none."""
    found: list[tuple[float, Space]] = [(float(near[s].ratio[row]), s) for s in SPACES if copied[s][row]]
    return min(found)[1] if found else None


def pixels(pictures: np.ndarray) -> np.ndarray:
    """uint8 (N, H, W, 3) as float32 vectors whose distance is the root mean square of pixels in [0, 1]."""
    side = min(_SIDE, pictures.shape[1])
    if pictures.shape[1] != side:
        size = (side, side)
        pictures = np.stack([np.asarray(Image.fromarray(p).resize(size, Image.Resampling.BOX)) for p in pictures])
    flat: np.ndarray = pictures.reshape(len(pictures), -1).astype(np.float32) / 255
    scaled: np.ndarray = flat / np.sqrt(max(flat.shape[1], 1))
    return scaled


def pairs(
    samples: np.ndarray, training: Training, near: dict[Space, Nearest], revoked: Collection[str], most: int = 24
) -> tuple[Image.Image, int]:
    """The samples nearest to the training set, each beside its nearest picture; and how many pairs are left out.

    What was revoked is not shown, and neither is a sample that may be a copy of it.
    """
    pixel_closer = near["pixel"].ratio <= near["clip"].ratio
    place = np.where(pixel_closer, near["pixel"].place, near["clip"].place)
    ratio = np.minimum(near["pixel"].ratio, near["clip"].ratio)
    gone = set(revoked)
    order = np.argsort(ratio, kind="stable")
    # either space's nearest: a sample may be nearest to one picture by pixels and a copy of another
    hidden = [any(training.ids[int(near[space].place[row])] in gone for space in SPACES) for row in order]
    shown = [int(row) for row, hide in zip(order, hidden, strict=True) if not hide][:most]
    withheld = sum(hidden[:most])
    columns = max(1, min(6, len(shown)))
    rows = -(-len(shown) // columns)
    width, height = 2 * _TILE + _GAP, _TILE + _TITLE + _GAP
    page = Image.new("RGB", (columns * width + _GAP, max(1, rows) * height + _GAP), "white")
    draw = ImageDraw.Draw(page)
    for number, row in enumerate(shown):
        left, top = _GAP + number % columns * width, _GAP + number // columns * height
        for offset, picture in ((0, samples[row]), (_TILE, training.pictures[place[row]])):
            tile = Image.fromarray(picture).resize((_TILE, _TILE), Image.Resampling.NEAREST)
            page.paste(tile, (left + offset, top))
        draw.text((left, top + _TILE + 1), f"{ratio[row]:.2f} {training.ids[place[row]][:12]}", fill="black")
    return page, withheld
