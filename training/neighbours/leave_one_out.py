"""Calibrating an index without held-out pictures: each training picture against the others."""

from __future__ import annotations

import numpy as np

from training.neighbours.calibration import MOST, Calibration
from training.neighbours.index import Index
from training.neighbours.spaces import NEIGHBOURS, SAME, SIDE, SPACES, Space, distances, mirrored, smallest


def leave_one_out(index: Index) -> Calibration:
    """As if a picture had not been trained on: it counts neither among the neighbours nor in their spreads.

    Those that differ by no more than copies do are no others. The picture itself is not there any more, only its
    vector: it is moved by whole pixels of that.
    """
    step = max(1, len(index.owners) // MOST)
    ratios: list[tuple[float, float]] = []
    for row in range(0, len(index.owners), step)[:MOST]:
        told: dict[Space, float] = {}
        for space in SPACES:
            apart = _apart(index, space, row, _moved(index.vectors[space][row]) if space == "pixel" else None)
            for near in smallest(apart, 1).tolist():
                told[space] = float(apart[near]) / max(_spread_without(index, space, near, row), 1e-12)
        if len(told) == len(SPACES):
            ratios.append((told["pixel"], told["clip"]))
    return Calibration(kind="leave_one_out", copies=0, ratios=tuple(ratios))


def _apart(index: Index, space: Space, row: int, views: np.ndarray | None = None) -> np.ndarray:
    """Distances (N,) of a vector to those of other pictures; infinite to its own picture's and to copies of it."""
    own = index.vectors[space][row : row + 1].astype(np.float32)
    if views is None:
        views = np.concatenate([own, mirrored(own)]) if space == "pixel" else own
    apart = distances(index.vectors[space], views)
    apart[(apart <= SAME[space]) | (index.owners == index.owners[row])] = np.inf
    return apart


def _spread_without(index: Index, space: Space, row: int, gone: int) -> float:
    apart = _apart(index, space, row)
    apart[index.owners == index.owners[gone]] = np.inf
    nearest = smallest(apart, NEIGHBOURS)
    return float(apart[nearest].mean()) if len(nearest) else np.inf


def _moved(vector: np.ndarray) -> np.ndarray:
    """A pixel vector (DIM,), mirrored and moved by a pixel: float32 (18, DIM), each centred and as long as before."""
    padded = np.pad(vector.astype(np.float32).reshape(SIDE, SIDE, 3), ((1, 1), (1, 1), (0, 0)), mode="edge")
    views = np.stack([padded[y : y + SIDE, x : x + SIDE] for y in range(3) for x in range(3)])
    views = views - views.mean(axis=(1, 2), keepdims=True)
    flat = views.reshape(len(views), -1)
    length = float(np.linalg.norm(vector.astype(np.float32)))
    flat = flat * (length / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12))
    return np.concatenate([flat, mirrored(flat)])
