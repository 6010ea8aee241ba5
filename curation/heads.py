"""Heads: everything that is read off a CLIP embedding alone, in one stage that needs no picture.

Safety concepts, zero-shot groups and the aesthetic score. A new concept or another head runs this stage again on the
stored embeddings and nothing before it.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from curation import aesthetic
from curation.aesthetic import AestheticConfig
from curation.clip import Clip, ClipConfig
from curation.groups import GroupsConfig
from curation.safety import concept_vectors, cosines

_VERSION = 1  # to be raised when the same configuration comes to measure something else


class HeadsConfig(BaseModel):
    """Which heads run; built from the job, shipped as values."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    concepts: tuple[str, ...] = ()
    groups: GroupsConfig | None = None
    aesthetic: AestheticConfig | None = None

    def identity(self, clip: ClipConfig) -> dict[str, Any]:
        """What decides about the bits of the stage's results beside the embeddings: its fingerprint, JSON-able.

        Raises:
            UserError: when the weights of the aesthetic head are not there.
        """
        folder = clip.folder()
        prompts = folder / "thresholds.json" if folder is not None else None
        return {
            "version": _VERSION,
            "clip": [clip.name(), clip.precision],
            "prompts": _digest(prompts.read_bytes()) if prompts is not None and prompts.is_file() else None,
            "concepts": sorted(set(self.concepts)),
            "groups": self.groups and self.groups.model_dump(mode="json"),
            "aesthetic": self.aesthetic and self.aesthetic.name(),
        }

    def build(self, clip: Clip) -> Heads:
        """Embeds the words and loads the weights.

        Raises:
            UserError: when the aesthetic head cannot be read or is not for this CLIP.
        """
        return Heads(self, clip)


class Heads:
    """The loaded heads. A row's results depend on its embedding alone, to the bit."""

    def __init__(self, config: HeadsConfig, clip: Clip) -> None:
        self._concepts = sorted(set(config.concepts))
        self._vectors = concept_vectors(self._concepts, clip)
        self._groups = config.groups and config.groups.build(clip)
        self._aesthetic = config.aesthetic and config.aesthetic.build(clip)

    def __call__(self, embeddings: np.ndarray, present: np.ndarray) -> dict[str, list[list[dict[str, Any]] | None]]:
        """Runs all heads.

        Args:
            embeddings: float16 or float32 (N, dim), of length one; both give the same bits, those of float16, which
                is what is stored.
            present: bool (N,), which rows have a picture.

        Returns:
            Columns of the manifest, `safety`, `groups` and `scores`, a list for each row with a picture, else None.
        """
        rows = np.flatnonzero(present)
        units = _units(embeddings[rows])
        safety = cosines(self._vectors, units)
        groups = self._groups.assign(units) if self._groups else [{} for _ in rows]
        rated = self._aesthetic.scores(units) if self._aesthetic else None
        columns: dict[str, list[list[dict[str, Any]] | None]] = {
            name: [None] * len(embeddings) for name in ("safety", "groups", "scores")
        }
        for i, row in enumerate(rows):
            concepts = zip(self._concepts, safety[i], strict=True)
            columns["safety"][row] = [{"concept": name, "score": float(score)} for name, score in concepts]
            columns["groups"][row] = [{"set": name, **assigned._asdict()} for name, assigned in groups[i].items()]
            columns["scores"][row] = [] if rated is None else [{"name": aesthetic.NAME, "score": float(rated[i])}]
        return columns

    def worst(self, frames: np.ndarray) -> list[dict[str, Any]]:
        """A moving picture's `safety`: of each concept the score of the frame that comes closest to it.

        Args:
            frames: float16 (F, dim), the embeddings of its frames.
        """
        scores = cosines(self._vectors, _units(frames)).max(axis=0)  # a score that is no number stays none
        return [{"concept": name, "score": float(score)} for name, score in zip(self._concepts, scores, strict=True)]


def _units(embeddings: np.ndarray) -> np.ndarray:
    """float32 unit vectors of what float16 keeps of the embeddings."""
    kept = embeddings.astype(np.float16).astype(np.float32)
    lengths = np.array([np.linalg.norm(row) for row in kept], np.float32).reshape(-1, 1)
    units: np.ndarray = kept / np.maximum(lengths, 1e-12)
    return units


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:8]
