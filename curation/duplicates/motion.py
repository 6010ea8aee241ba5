"""Moving pictures among copies: two films are copies when all of their frames are, and an opt-out reaches any frame."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_COLOURS = 48


@dataclass(frozen=True)
class Motion:
    """The frames of N pictures, the same number F of each; a still is the same F times over."""

    phashes: np.ndarray  # (N, F) uint64
    layouts: np.ndarray  # (N, F, 48) uint8, colour layouts

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]], phashes: np.ndarray, colours: np.ndarray, count: int) -> Motion:
        """Of rows with `frame_phashes` and `frame_layouts`, as far as they have them.

        Args:
            phashes, colours: (N,) uint64 and (N, 48) uint8 of the rows themselves.
            count: F; rows with another number of frames are sampled to it.
        """
        moving = np.repeat(phashes[:, None], count, axis=1)
        layouts = np.repeat(colours[:, None], count, axis=1)
        for i, row in enumerate(rows):
            if hashes := row.get("frame_phashes"):
                taken = [j * len(hashes) // count for j in range(count)]
                moving[i] = [hashes[j] for j in taken]
                layouts[i] = [np.frombuffer(row["frame_layouts"][j], np.uint8) for j in taken]
        return cls(moving, layouts)

    def alike(self, row: int, others: np.ndarray, radius: int, colour: float) -> np.ndarray:
        """(M,) bool: which of the rows `others` show the same as `row`, frame by frame."""
        apart = np.bitwise_count(self.phashes[others] ^ self.phashes[row]).max(axis=1, initial=0)
        theirs, own = self.layouts[others].astype(np.int16), self.layouts[row].astype(np.int16)
        tinted = np.abs(theirs - own).mean(axis=2).max(axis=1, initial=0) / 255
        found: np.ndarray = (apart <= radius) & (tinted <= colour)
        return found


@dataclass(frozen=True)
class Frames:
    """Frames of pictures as pictures of their own."""

    owners: np.ndarray  # (V,) int64: the picture that each is a frame of
    phashes: np.ndarray  # (V,) uint64
    colours: np.ndarray  # (V, 48) uint8

    def pixel_hashes(self, ids: np.ndarray) -> np.ndarray:
        """(V,) S64: stand-ins that equal those of no other picture; what has the same pixels looks alike, too.

        Args:
            ids: (N,) S64 of the pictures.
        """
        told = zip(ids[self.owners], self.phashes.tolist(), range(len(self.owners)), strict=True)
        return np.array([hashlib.sha256(id_ + f":{phash}:{i}".encode()).hexdigest() for id_, phash, i in told], "S64")


def other_frames(phashes: np.ndarray, motion: Motion) -> Frames:
    """The frames that look different from the one before, and from the one that stands for their picture.

    Blank frames are left out: every film that fades to black has one, and it is nobody's.
    """
    new = (motion.phashes != 0) & (motion.phashes != phashes[:, None])
    same = (motion.phashes[:, 1:] == motion.phashes[:, :-1]) & (motion.layouts[:, 1:] == motion.layouts[:, :-1]).all(2)
    new[:, 1:] &= ~same
    owners, places = np.nonzero(new)
    return Frames(owners, motion.phashes[owners, places], motion.layouts[owners, places].reshape(-1, _COLOURS))
