"""The two spaces in which pictures are near to each other, and distances in them.

`pixel`: the picture at 16 x 16, less its mean colour, as a unit vector. So brightness and contrast do not count, and a
distance is sqrt(2 - 2 r) with r the correlation. What is looked for is held against the training pictures mirrored and
moved by up to a tenth of its side, too: a copy may be. `clip`: unit vectors of a CLIP.

A distance means nothing by itself, so each is divided by the training picture's spread: its mean distance to its own
ten nearest others, copies of it left out (`training.memorization` does the same, and says why).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from PIL import Image

Space = Literal["pixel", "clip"]
SPACES: tuple[Space, ...] = ("pixel", "clip")
SAME: dict[Space, float] = {"pixel": 0.1, "clip": 0.1}
"""At or below this distance two training pictures are one."""
SIDE = 16
DIM = SIDE * SIDE * 3
_SHIFTS = (-0.1, -0.05, 0.0, 0.05, 0.1)
_FLAT = 0.02  # contrast, as a standard deviation, below which a picture is not stretched to a unit vector
NEIGHBOURS = 10
_BLOCK = 2048  # vectors that are held as float32 at a time


def pixel_vector(picture: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3) as float32 (DIM,), no longer than 1."""
    small = Image.fromarray(np.ascontiguousarray(picture)).resize((SIDE, SIDE), Image.Resampling.BOX)
    values = np.asarray(small, np.float32) / 255
    centred = (values - values.mean(axis=(0, 1))).ravel()
    vector: np.ndarray = centred / max(float(np.linalg.norm(centred)), _FLAT * DIM**0.5)
    return vector


def pixel_views(picture: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3) as it is, mirrored, and moved in both axes: float32 (50, DIM). Its edges go on where it ends."""
    height, width = picture.shape[:2]
    steps = [(round(y * height), round(x * width)) for y in _SHIFTS for x in _SHIFTS]
    most = (max(abs(y) for y, _ in steps), max(abs(x) for _, x in steps))
    padded = np.pad(picture, ((most[0], most[0]), (most[1], most[1]), (0, 0)), mode="edge")
    # mirrored once: a mirrored view would be copied whole each time that it is made small
    shown = (padded, np.ascontiguousarray(padded[:, ::-1]))
    moved = [whole[most[0] + y :, most[1] + x :][:height, :width] for whole in shown for y, x in steps]
    return np.stack([pixel_vector(view) for view in moved])


def mirrored(vectors: np.ndarray) -> np.ndarray:
    """Of pixel vectors (N, DIM) those of the mirrored pictures."""
    turned: np.ndarray = vectors.reshape(-1, SIDE, SIDE, 3)[:, :, ::-1].reshape(len(vectors), DIM)
    return turned


def distances(known: np.ndarray, views: np.ndarray) -> np.ndarray:
    """Euclidean, of each known vector (N, D) to the nearest of some views (V, D): float32 (N,). Exact, in blocks.

    By torch, which turns halves into floats ten times as fast as numpy does.
    """
    of = torch.from_numpy(views.astype(np.float32))
    lengths = (of**2).sum(dim=1)
    found = np.empty(len(known), np.float32)
    for start in range(0, len(known), _BLOCK):
        block = torch.from_numpy(known[start : start + _BLOCK]).float()
        nearest = torch.addmm(lengths[None], block, of.T, alpha=-2).amin(dim=1)
        found[start : start + len(block)] = (nearest + (block**2).sum(dim=1)).clamp(min=0).sqrt().numpy()
    return found


def smallest(values: np.ndarray, k: int) -> np.ndarray:
    """The places of the k smallest of values (N,), the smallest first and equal ones in their order; infinite ones
    are left out."""
    k = min(k, int(np.isfinite(values).sum()))
    if k == 0:
        return np.zeros(0, np.int64)
    bound = np.partition(values, k - 1)[k - 1]
    near = np.flatnonzero(values <= bound)
    chosen: np.ndarray = near[np.argsort(values[near], kind="stable")][:k]
    return chosen


def spreads(space: Space, vectors: np.ndarray, owners: np.ndarray, device: str = "cpu") -> np.ndarray:
    """Of vectors (N, D) the mean distance to the ten nearest others: float32 (N,); infinite where all are copies.

    Each is held against all others, so that it takes N squared: of 10,000 pictures some seconds, of a million a GPU.

    Args:
        owners: int64 (N,), the picture that each is of: a film's own frames are no others.
        device: of torch.
    """
    own, of = torch.from_numpy(vectors).to(device), torch.from_numpy(owners).to(device)
    turned = torch.from_numpy(mirrored(vectors)).to(device) if space == "pixel" else None
    found = []
    for rows in torch.arange(len(own), device=device).split(_BLOCK // 2):
        best = torch.full((len(rows), NEIGHBOURS), torch.inf, device=device)
        for others in torch.arange(len(own), device=device).split(_BLOCK):
            apart = _between(own[rows], own[others])
            if turned is not None:  # training may mirror a picture
                apart = torch.minimum(apart, _between(own[rows], turned[others]))
            apart[(apart <= SAME[space]) | (of[rows, None] == of[None, others])] = torch.inf
            best = torch.cat([best, apart], dim=1).topk(NEIGHBOURS, dim=1, largest=False).values
        there = best.isfinite()
        mean = best.where(there, torch.zeros((), device=device)).sum(dim=1) / there.sum(dim=1).clamp(min=1)
        found.append(mean.where(there.any(dim=1), torch.full((), torch.inf, device=device)).cpu().numpy())
    result: np.ndarray = np.concatenate(found)
    return result


def _between(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    one, other = a.float(), b.float()
    lengths = (one**2).sum(dim=1)[:, None] + (other**2).sum(dim=1)[None]
    return torch.addmm(lengths, one, other.T, alpha=-2).clamp(min=0).sqrt()


def similarity(ratio: float) -> float:
    """Of a normalised distance: 1 for the picture itself, 1/2 for what is as near to it as its own nearest others are,
    and half of that again for each time as far."""
    return float(2.0**-ratio)
