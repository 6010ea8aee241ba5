"""Latents of pictures in memory: each is encoded when it is first shown, and then kept.

They are the latents that shards hold (`training.shard_pictures`), to the bit: encoded in groups of one size, so that a
picture's do not depend on those beside it, and kept in half precision. A mirrored picture has latents of its own.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from training.space import FilmSpace, Space

logger = logging.getLogger(__name__)

CAP_BYTES = 8 << 30  # of latents kept by a worker; above it they are encoded on every showing
_TOGETHER = 16  # pictures that an autoencoder encodes at once


def steady(space: Space, pictures: Tensor) -> Tensor:
    """Pictures, or films, in a space of latents: `Space.encode` in half precision, on the pictures' device.

    They pass through the autoencoder by sixteen, the last ones filled up: its kernels, and so last bits, depend on how
    many pass at once, and not on which.
    """
    if isinstance(space, FilmSpace):
        flat = steady(space.of_frames, pictures.flatten(0, 1))
        return flat.view(*pictures.shape[:2], *flat.shape[1:]).transpose(1, 2).contiguous()
    found = []
    for part in pictures.split(_TOGETHER):
        fill = part[-1:].expand(_TOGETHER - len(part), *part.shape[1:])
        found.append(space.encode(torch.cat([part, fill]))[: len(part)].half())
    return torch.cat(found)


class KeptLatents:
    """Of some pictures, or films.

    Attributes:
        space: whose latents they are.
    """

    def __init__(self, pictures: Tensor, space: Space, *, flip: bool) -> None:
        """Args:
        pictures: uint8 (N, 3, H, W), or (N, F, 3, H, W).
        flip: whether mirrored ones will be asked for.
        """
        self.space = space
        self._pictures = pictures
        self._variants = 2 if flip else 1
        self._there = torch.zeros(self._variants * len(pictures), dtype=torch.bool)
        self._latents: Tensor | None = None
        self._fits: bool | None = None

    def of(self, rows: Tensor, mirrored: Tensor | None, device: torch.device) -> Tensor:
        """The latents of rows (N,), as `Source.clean` has them."""
        place = rows if mirrored is None else rows + len(self._pictures) * mirrored
        if self._fits is not False:
            missing = place[~self._there[place]].unique()
            if len(missing):
                self._keep(missing, self._encoded(missing, device))
        if self._latents is None:
            return self._encoded(place, device).float()
        return self._latents[place].to(device).float()

    def _keep(self, place: Tensor, latents: Tensor) -> None:
        if self._fits is None:
            needed = len(self._there) * latents[0].nbytes
            self._fits = needed <= CAP_BYTES
            if not self._fits:
                logger.warning(
                    "latents of %d pictures would take %.1f GiB of memory, so each is encoded whenever it is shown: "
                    "use `data: {kind: shards}`, which encodes it once",
                    len(self._pictures),
                    needed / 2**30,
                )
                return
            self._latents = torch.empty(len(self._there), *latents.shape[1:], dtype=torch.float16)
        assert self._latents is not None
        self._latents[place] = latents.cpu()
        self._there[place] = True

    def _encoded(self, place: Tensor, device: torch.device) -> Tensor:
        """float16, on the device."""
        pictures = self._pictures[place % len(self._pictures)]
        mirrored = (place >= len(self._pictures)).view(-1, *[1] * (pictures.ndim - 1))
        return steady(self.space, torch.where(mirrored, pictures.flip(-1), pictures).to(device))
