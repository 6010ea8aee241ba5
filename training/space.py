"""The space that a network works in: patches of pixels, nothing lost and nothing learned; or `training.latents`.

A picture (3, H, W) enters as (3 p^2, H/p, W/p): no autoencoder, no lost pixel, and 32 pixels cost what 16 would. The
stem has no weights, so the saved network is a plain diffusers model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle


class Space(Protocol):
    """Where clean pictures lie for a network.

    Attributes:
        channels: C of a picture in it.
        factor: pixels of a side that one position stands for.
        clip: the range [-clip, clip] of clean pictures, to which samplers hold them; None where there is none.
        frames: F of films; None for pictures.
    """

    channels: int
    factor: int
    clip: float | None
    frames: int | None

    def encode(self, pictures: Tensor) -> Tensor:
        """uint8 (N, 3, H, W) to float32 (N, C, H / factor, W / factor), on the pictures' device."""
        ...

    def decode(self, x0: Tensor) -> np.ndarray:
        """The inverse, as far as there is one: uint8 (N, H, W, 3)."""
        ...


class PatchSpace:
    """Space to depth: patches of `patch_size` x `patch_size` pixels, with values in [-1, 1]."""

    clip: float | None = 1.0
    frames: int | None = None

    def __init__(self, patch_size: int) -> None:
        self.channels = 3 * patch_size**2
        self.factor = patch_size

    def encode(self, pictures: Tensor) -> Tensor:
        """uint8 (N, 3, H, W) to float32 (N, 3 p^2, H/p, W/p)."""
        return pixel_unshuffle(pictures.float() / 127.5 - 1, self.factor)

    def decode(self, x0: Tensor) -> np.ndarray:
        """Clean patches, (N, 3 p^2, H/p, W/p), as uint8 pictures (N, H, W, 3)."""
        pixels = ((pixel_shuffle(x0.float(), self.factor).clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        array: np.ndarray = pixels.permute(0, 2, 3, 1).cpu().numpy()
        return array


class FilmSpace:
    """Films, frame by frame in a space of pictures: uint8 (N, F, 3, H, W) to float32 (N, C, F, h, w) and back."""

    def __init__(self, space: Space, frames: int) -> None:
        self.of_frames = space
        self.channels = space.channels
        self.factor = space.factor
        self.clip = space.clip
        self.frames: int | None = frames

    def encode(self, pictures: Tensor) -> Tensor:
        """uint8 (N, F, 3, H, W) to float32 (N, C, F, h, w)."""
        flat = self.of_frames.encode(pictures.flatten(0, 1))
        return flat.view(*pictures.shape[:2], *flat.shape[1:]).transpose(1, 2).contiguous()

    def decode(self, x0: Tensor) -> np.ndarray:
        """Clean films to uint8 (N, F, H, W, 3)."""
        flat = self.of_frames.decode(x0.transpose(1, 2).flatten(0, 1))
        return flat.reshape(len(x0), x0.shape[2], *flat.shape[1:])


def build(
    patch_size: int, autoencoder: Path | None = None, device: torch.device | str = "cpu", *, frames: int | None = None
) -> Space:
    """The space of a job.

    Args:
        autoencoder: folder of the one whose latents are denoised; None: pixels are.
        frames: of films; None for pictures.

    Raises:
        UserError: an autoencoder that cannot be used.
    """
    space: Space
    if autoencoder is None:
        space = PatchSpace(patch_size)
    else:
        from training.latents import LatentSpace

        space = LatentSpace(autoencoder, patch_size, device)
    return space if frames is None else FilmSpace(space, frames)


def geometry(patch_size: int, autoencoder: Path | None) -> tuple[int, int]:
    """Channels and factor of such a space, without loading anything."""
    if autoencoder is None:
        return 3 * patch_size**2, patch_size
    from training import latents

    channels, factor = latents.geometry(autoencoder)
    return channels * patch_size**2, factor * patch_size


def shape(space: Space, size: int | tuple[int, int]) -> tuple[int, ...]:
    """(C, h, w) of a picture of (width, height) pixels, or of so many a side; (C, F, h, w) of a film."""
    width, height = (size, size) if isinstance(size, int) else size
    frames = () if space.frames is None else (space.frames,)
    return (space.channels, *frames, height // space.factor, width // space.factor)
