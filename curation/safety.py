"""Zero-shot safety concepts: how close a picture's CLIP embedding comes to the words for what is not wanted."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator

from curation.clip import Clip
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

    def build(self, clip: Clip) -> SafetyScorer:
        """Embeds the concepts.

        Raises:
            UserError: when a concept has no threshold, in the job or in the model's calibration.
        """
        return SafetyScorer(self, clip)


class SafetyScorer:
    """Scores embeddings against the concepts of a config.

    Attributes:
        names: the C concepts, in name order.
        thresholds: (C,) float32, cosine at which a concept counts as present.
    """

    def __init__(self, config: SafetyConfig, clip: Clip) -> None:
        self.names = sorted(config.concepts)
        vectors = np.zeros((len(self.names), clip.dim), np.float32)
        self.thresholds = np.zeros(len(self.names), np.float32)
        for i, name in enumerate(self.names):
            vectors[i], calibrated = clip.concept(name)
            chosen = config.concepts[name]
            threshold = chosen if chosen is not None else calibrated
            if threshold is None:
                raise UserError(
                    f"{clip.name} has no calibrated threshold for {name}",
                    field=f"safety.concepts.{name}",
                    remedy="give a cosine between -1 and 1",
                )
            self.thresholds[i] = threshold
        self._vectors = vectors

    def scores(self, embeddings: np.ndarray) -> np.ndarray:
        """(N, dim) unit vectors to (N, C) float32 cosines, each row computed alone so that neighbours change no bit."""
        return np.stack([self._vectors @ e for e in embeddings]) if len(embeddings) else np.zeros((0, len(self.names)))
