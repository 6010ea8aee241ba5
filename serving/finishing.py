"""What becomes of a drawn picture before it leaves: it is decoded, looked at and encoded.

All of it concerns one picture by itself, so that what becomes of it depends on nothing else in its request. What
looks at pixels comes before what marks them, and encoding comes last: nothing may touch the file after that.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from serving.admission import Plan
from serving.api import Attributed, FinishReason, ImageDatum, ImageFormat, Moderation, NearCopy
from serving.guard import PASSED, Guard, Verdict
from serving.marking import MarkedPicture, Marker, pixels_sha256
from serving.neighbours import Near, Neighbours, reseeded
from training.bundle import DiffusionModel
from training.films import encoded


@dataclass(frozen=True)
class Picture:
    """One encoded picture, what the guard left of it, or none when it was withheld."""

    data: bytes | None
    seed: int
    verdict: Verdict
    id: str = ""
    pixels_sha256: str | None = None
    credentials: bool = False
    watermark: str | None = None
    """The payload in its pixels, hexadecimal, empty where they have no room for one; None: no mark."""
    of_prompt: tuple[Moderation, ...] = ()
    """What is to be said of its prompt."""
    near_copy: NearCopy | None = None
    attribution: tuple[Attributed, ...] | None = None

    @property
    def finish_reason(self) -> FinishReason:
        """What became of it."""
        if self.near_copy is not None and self.near_copy.action == "block":
            return "near_copy"
        return "stop" if self.verdict.action in (None, "flag") else "content_filtered"

    @property
    def moderation(self) -> tuple[Moderation, ...]:
        """What was found in its prompt and in itself."""
        return (*self.of_prompt, *self.verdict.moderation)

    def datum(self) -> ImageDatum:
        """The picture as it goes over the wire."""
        return ImageDatum(
            id=self.id,
            pixels_sha256=self.pixels_sha256,
            credentials=self.credentials,
            watermark=self.watermark is not None,
            watermark_payload=self.watermark or None,
            b64_json=None if self.data is None else base64.b64encode(self.data).decode(),
            seed=self.seed,
            finish_reason=self.finish_reason,
            safety=self.verdict.scores,
            moderation=list(self.moderation),
            near_copy=self.near_copy,
            attribution=None if self.attribution is None else list(self.attribution),
        )


@dataclass(frozen=True)
class Seen:
    """A picture that was decoded and looked at.

    Attributes:
        left: what the guard left of its pixels, uint8 (H, W, 3), of a film (F, H, W, 3); None: nothing.
        near: the training pictures near to it; None where there is no index, or where the guard left it not as it was.
        copies: the near copies that it stands for, since it was drawn in their place.
        decode_s, guard_s: what decoding and looking took, in seconds.
    """

    seed: int
    left: np.ndarray | None
    verdict: Verdict
    near: Near | None
    decode_s: float
    guard_s: float
    copies: tuple[NearCopy, ...] = ()

    def near_copy(self) -> NearCopy | None:
        """What is told of it."""
        now = None if self.near is None else self.near.copy
        if now is not None:
            action = "block" if now.action == "reseed" else now.action
            return now.model_copy(update={"action": action, "redrawn": len(self.copies)})
        return self.copies[0].model_copy(update={"redrawn": len(self.copies)}) if self.copies else None


@dataclass(frozen=True)
class Redraw:
    """Pictures of a plan that are to be drawn again: which, and the plan of them alone."""

    places: tuple[int, ...]
    plan: Plan

    def into(self, seen: Sequence[Seen], again: Sequence[Seen]) -> list[Seen]:
        """All of the plan's pictures, some of them drawn again."""
        made = list(seen)
        for place, picture in zip(self.places, again, strict=True):
            before = made[place]
            assert before.near is not None
            assert before.near.copy is not None
            made[place] = replace(picture, copies=(*before.copies, before.near.copy))
        return made


@dataclass(frozen=True)
class Finished:
    """A plan's pictures, and where the time went, in seconds."""

    pictures: tuple[Picture, ...]
    decode_s: float
    guard_s: float
    encode_s: float


class Finisher:
    """Takes pictures from the model's space to files. Not for two threads at once.

    Args:
        model: whose space they are in.
        guard: looks at them; None lets all pass.
        marker: marks their pixels and signs their files; None leaves them as they are.
        neighbours: knows the training pictures near to them; None: nobody does.
    """

    def __init__(
        self,
        model: DiffusionModel,
        guard: Guard | None,
        marker: Marker | None = None,
        neighbours: Neighbours | None = None,
    ) -> None:
        self._model = model
        self._guard = guard
        self._marker = marker
        self._neighbours = neighbours

    def look(self, plan: Plan, clean: Sequence[Tensor]) -> list[Seen]:
        """A plan's pictures, decoded and looked at.

        Args:
            clean: float32 (1, C, h, w) of each, in the model's space; of a film (1, C, F, h, w).
        """
        return [self._seen(seed, picture) for seed, picture in zip(plan.seeds, clean, strict=True)]

    def again(self, plan: Plan, seen: Sequence[Seen]) -> Redraw | None:
        """Those of a plan's pictures that are to be drawn again, with seeds that follow from the plan's; None: none."""
        if self._neighbours is None:
            return None
        most = self._neighbours.policy.max_reseeds
        places = tuple(
            place
            for place, one in enumerate(seen)
            if one.near is not None
            and one.near.copy is not None
            and one.near.copy.action == "reseed"
            and len(one.copies) < most
        )
        if not places:
            return None
        seeds = tuple(reseeded(plan.seeds[place], len(seen[place].copies) + 1) for place in places)
        return Redraw(places, replace(plan, seeds=seeds, ids=tuple(plan.ids[place] for place in places)))

    def finish(self, plan: Plan, seen: Sequence[Seen]) -> Finished:
        """A plan's pictures as they leave; what marks them is told the seeds that they were drawn with."""
        begun = time.perf_counter()
        drawn = replace(plan, seeds=tuple(one.seed for one in seen))
        pictures = tuple(self._picture(drawn, index, one) for index, one in enumerate(seen))
        encoded_s = time.perf_counter() - begun
        return Finished(pictures, sum(one.decode_s for one in seen), sum(one.guard_s for one in seen), encoded_s)

    def _seen(self, seed: int, clean: Tensor) -> Seen:
        begun = time.perf_counter()
        pixels = self._pixels(clean)
        decoded = time.perf_counter()
        left, verdict = (pixels, PASSED) if self._guard is None else self._guard.judge(pixels)
        near = self._neighbours.look(pixels) if self._neighbours is not None and left is pixels else None
        return Seen(seed, left, verdict, near, decoded - begun, time.perf_counter() - decoded)

    def _picture(self, plan: Plan, index: int, seen: Seen) -> Picture:
        """One picture of a plan as it leaves."""
        name, said, copy = plan.ids[index], plan.moderation, seen.near_copy()
        left = None if seen.near is not None and seen.near.withheld else seen.left
        if left is None:
            return Picture(None, seen.seed, seen.verdict, id=name, of_prompt=said, near_copy=copy)
        marker = self._marker
        marked = MarkedPicture(left, None) if marker is None else marker.pixels(plan, index, left)
        digest = pixels_sha256(marked.pixels)
        data = encode(marked.pixels, plan.output_format, plan.compression)
        if marker is not None:
            data = marker.file(plan, index, data, digest, marked.watermark)
        signed = marker is not None and marker.signs
        named = self._named(plan, seen.near)
        return Picture(data, seen.seed, seen.verdict, name, digest, signed, marked.watermark, said, copy, named)

    def _named(self, plan: Plan, near: Near | None) -> tuple[Attributed, ...] | None:
        """What is told of the training pictures near to one that leaves; the credit log is told in any case."""
        if near is None or self._neighbours is None:
            return None
        self._neighbours.served(near)
        return near.attribution if plan.attribution else None

    def preview(self, plan: Plan, clean: Tensor, index: int = 0) -> bytes | None:
        """Picture `index` as it looks so far, marked and encoded; None where it would be withheld.

        Not signed: credentials are of the picture that the request ends with.
        """
        pixels = self._pixels(clean)
        left = pixels if self._guard is None else self._guard.preview(pixels)
        if left is None or (self._neighbours is not None and self._neighbours.withholds(left)):
            return None
        if self._marker is not None:
            left = self._marker.pixels(plan, index, left).pixels
        return encode(left, plan.output_format, plan.compression)

    @torch.inference_mode()
    def _pixels(self, clean: Tensor) -> np.ndarray:
        """uint8 (H, W, 3), of a film (F, H, W, 3)."""
        pixels: np.ndarray = self._model.space.decode(clean.to(self._model.device))[0]
        return pixels


def encode(pixels: np.ndarray, output_format: ImageFormat, compression: int) -> bytes:
    """A picture, uint8 (H, W, 3), or a film, (F, H, W, 3), as a file; equal pixels give equal bytes.

    Args:
        compression: JPEG's or WebP's quality, 0 to 100; WebP at 100 is lossless. PNG always is.
    """
    settings: dict[str, Any] = {
        "png": {"compress_level": 6},
        # Small drawings have hard edges in colour: subsampling it would smear them.
        "jpeg": {"quality": compression, "subsampling": 0},
        "webp": {"quality": compression, "lossless": compression == 100, "method": 4},
    }[output_format]
    return encoded(pixels, output_format, **settings)
