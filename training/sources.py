"""Where a training set's pictures come from while it is trained on: memory, or shards (`training.shard_reader`)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from training.kept_latents import KeptLatents
from training.order import Order
from training.space import Space

Stats = tuple[tuple[float, float, float], tuple[float, float, float]]
"""Mean and standard deviation of each colour channel, in [-1, 1]."""


class Source(Protocol):
    """The pictures of N rows.

    Attributes:
        image_size: the side, in pixels, that a network is built for.
    """

    image_size: int

    def clean(self, rows: Tensor, mirrored: Tensor | None, space: Space, device: torch.device) -> Tensor:
        """Rows (N,), all of one shape, as the network sees them without noise: float32 (N, C, h, w) on the device.

        Args:
            mirrored: bool (N,), which of them from right to left; None: none.
        """
        ...

    def reached(self, order: Order, sample: int) -> None:
        """Tells that the samples of an order before this one were taken, so that the next ones may be got ready."""
        ...

    def digests(self) -> Iterator[bytes]:
        """What tells a row's picture from any other, row by row."""
        ...

    def channel_stats(self) -> Stats:
        """Of all pixels of all rows."""
        ...


class InMemory:
    """Pictures that all have one shape: uint8 (N, 3, H, W); or films, (N, F, 3, H, W)."""

    def __init__(self, pictures: Tensor, image_size: int | None = None) -> None:
        self.pictures = pictures
        self.image_size = int(pictures.shape[-1]) if image_size is None else image_size
        self._latents: KeptLatents | None = None

    def keep_latents(self, space: Space, *, flip: bool) -> None:
        """Has `clean` encode each picture once for this space of latents."""
        self._latents = KeptLatents(self.pictures, space, flip=flip)

    def clean(self, rows: Tensor, mirrored: Tensor | None, space: Space, device: torch.device) -> Tensor:
        if self._latents is not None and self._latents.space is space:
            return self._latents.of(rows, mirrored, device)
        pictures = self.pictures[rows]
        if mirrored is not None:
            pictures = torch.where(mirrored.view(-1, *[1] * (pictures.ndim - 1)), pictures.flip(-1), pictures)
        return space.encode(pictures.to(device))

    def reached(self, order: Order, sample: int) -> None:
        pass

    def digests(self) -> Iterator[bytes]:
        for picture in self.pictures.flatten(1).numpy():
            yield picture.tobytes()

    def channel_stats(self) -> Stats:
        return stats([torch.bincount(self.pictures.select(-3, c).flatten(), minlength=256).double() for c in range(3)])


class ShapedInMemory:
    """Pictures of several shapes, those of each together.

    Attributes:
        shape_of: int64 (N,), which shape a row's picture has.
    """

    def __init__(self, pictures: list[Tensor], shape_of: Tensor, image_size: int) -> None:
        """Args:
        pictures: by shape, uint8 (N_s, 3, H, W), in the order of the rows.
        """
        self._parts = [InMemory(of_shape, image_size) for of_shape in pictures]
        self.shape_of = shape_of
        self.image_size = image_size
        self._place = torch.empty_like(shape_of)
        for number, of_shape in enumerate(pictures):
            self._place[shape_of == number] = torch.arange(len(of_shape))

    def keep_latents(self, space: Space, *, flip: bool) -> None:
        """See `InMemory.keep_latents`."""
        for part in self._parts:
            part.keep_latents(space, flip=flip)

    def clean(self, rows: Tensor, mirrored: Tensor | None, space: Space, device: torch.device) -> Tensor:
        return self._parts[int(self.shape_of[rows[0]])].clean(self._place[rows], mirrored, space, device)

    def reached(self, order: Order, sample: int) -> None:
        pass

    def digests(self) -> Iterator[bytes]:
        for number, place in zip(self.shape_of.tolist(), self._place.tolist(), strict=True):
            picture = self._parts[number].pictures[place]
            yield hashlib.sha256(repr(tuple(picture.shape)).encode() + picture.numpy().tobytes()).digest()

    def channel_stats(self) -> Stats:
        return stats([torch.cat([p.pictures[:, c].flatten() for p in self._parts]).bincount(minlength=256).double()
                      for c in range(3)])  # fmt: skip


def stats(histograms: list[Tensor]) -> Stats:
    """Of three channels' counts (256,) of values 0 to 255."""
    values = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    means = [float((h * values).sum() / h.sum()) for h in histograms]
    stds = [float(((h * (values - m) ** 2).sum() / h.sum()).sqrt()) for h, m in zip(histograms, means, strict=True)]
    return (means[0], means[1], means[2]), (stds[0], stds[1], stds[2])


def base_side(sizes: tuple[tuple[int, int], ...]) -> int:
    """The side that a network is built for where pictures are of several shapes (width, height): the square one's, else
    the shorter one of the shape that is nearest to a square."""
    width, height = min(sizes, key=lambda size: (max(size) / min(size), size))
    return min(width, height)
