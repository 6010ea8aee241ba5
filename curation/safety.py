"""Zero-shot safety concepts: how close a picture's CLIP embedding comes to the words for what is not wanted."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator

from curation.clip import Clip, ClipConfig
from curation.errors import UserError


class SafetyConfig(BaseModel):
    """Concepts with their thresholds, and what is done to a picture that reaches one.

    A score is the cosine between the picture's and the concept's embedding. Thresholds belong to the CLIP model they
    were calibrated for; null takes the model's own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    concepts: dict[str, float | None] = Field({}, description="concept: threshold in (-1, 1), or null for the model's")
    action: Literal["drop", "hold", "flag"] = Field("drop", description="flag keeps the picture and its scores")

    @field_validator("concepts")
    @classmethod
    def _thresholds_are_cosines(cls, concepts: dict[str, float | None]) -> dict[str, float | None]:
        for name, threshold in concepts.items():
            if not name.strip():
                raise ValueError("a concept needs a name")
            if threshold is not None and not (math.isfinite(threshold) and -1 < threshold < 1):
                raise ValueError(f"the threshold of {name} is {threshold}; a cosine lies between -1 and 1")
        return concepts

    def resolve(self, clip: ClipConfig) -> dict[str, float]:
        """Every concept with its threshold: the job's, or else the one the model was calibrated with.

        Raises:
            UserError: when a concept has neither.
        """
        calibrated = clip.calibrated()
        resolved = {}
        for name, threshold in sorted(self.concepts.items()):
            if threshold is None and name not in calibrated:
                raise UserError(
                    f"{clip.name()} has no calibrated threshold for {name}",
                    field=f"safety.concepts.{name}",
                    remedy="give a cosine between -1 and 1",
                )
            resolved[name] = calibrated[name] if threshold is None else threshold
        return resolved


class SafetyScorer:
    """Scores embeddings against concepts.

    Attributes:
        thresholds: the C concepts in name order, each with the cosine at which it counts as present.
    """

    def __init__(self, thresholds: dict[str, float], clip: Clip) -> None:
        self.thresholds = thresholds
        self._vectors = np.array([clip.concept(name) for name in thresholds], np.float32).reshape(-1, clip.dim)

    def scores(self, embeddings: np.ndarray) -> np.ndarray:
        """(N, dim) unit vectors to (N, C) float32 cosines, each row alone so that its neighbours change no bit."""
        return np.array([self._vectors @ e for e in embeddings], np.float32).reshape(len(embeddings), -1)
