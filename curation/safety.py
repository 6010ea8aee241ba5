"""Safety: how close a picture's CLIP embedding comes to the words for what is not wanted, and a second opinion.

`SafetyScorer` measures; `Limits` decides about what was measured and runs no model. A score that is missing or not a
number is no acquittal: it counts as one that reaches its limit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator

from curation.clip import Clip, ClipConfig
from curation.errors import UserError
from curation.nsfw import CONCEPT, NsfwConfig

Action = Literal["drop", "hold", "flag"]


class SafetyConfig(BaseModel):
    """Concepts with their thresholds, and what is done to a picture that reaches one.

    A score is the cosine between the picture's and the concept's embedding. Thresholds belong to the CLIP model they
    were calibrated for; null takes the model's own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    concepts: dict[str, float | None] = Field({}, description="concept: threshold in (-1, 1), or null for the model's")
    action: Action = Field("drop", description="flag keeps the picture and its scores")
    nsfw: NsfwConfig | None = Field(
        None, description="a second opinion by a classifier of its own, with a threshold and an action of its own"
    )

    @field_validator("concepts")
    @classmethod
    def _thresholds_are_cosines(cls, concepts: dict[str, float | None]) -> dict[str, float | None]:
        for name, threshold in concepts.items():
            if not name.strip():
                raise ValueError("a concept needs a name")
            if name == CONCEPT:
                raise ValueError(f"{CONCEPT} is the classifier under nsfw, not a concept of CLIP's")
            if threshold is not None and not (math.isfinite(threshold) and -1 < threshold < 1):
                raise ValueError(f"the threshold of {name} is {threshold}; a cosine lies between -1 and 1")
        return concepts

    def resolve(self, clip: ClipConfig | None) -> dict[str, float]:
        """Every concept of CLIP's with its threshold: the job's, or else the one the model was calibrated with.

        Raises:
            UserError: when a concept has neither, or there is no CLIP to measure it.
        """
        if clip is None:
            if self.concepts:
                raise UserError(
                    "safety concepts need a CLIP model, and the job has none",
                    field="safety.concepts",
                    remedy="set clip, or leave the concepts out",
                )
            return {}
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

    def limits(self, clip: ClipConfig | None) -> Limits:
        """What decides about the scores that are measured under this configuration.

        Raises:
            UserError: as `resolve`.
        """
        found = {
            name: Limit(threshold, self.action, f"safety.concepts.{name}")
            for name, threshold in self.resolve(clip).items()
        }
        if self.nsfw is not None:
            found[CONCEPT] = Limit(self.nsfw.threshold, self.nsfw.action, "safety.nsfw.threshold")
        return Limits(found)


class Limit(NamedTuple):
    """From which score on a concept counts as present, what is done then, and the job file's field that says so."""

    threshold: float
    action: Action
    rule: str


class Exceeded(NamedTuple):
    """A limit that a picture reached, with its score; None where a score is missing or not a number."""

    concept: str
    score: float | None
    limit: Limit


class Limits:
    """Limits by concept, ready to be asked about a row."""

    def __init__(self, limits: Mapping[str, Limit]) -> None:
        # The sternest speaks first, then the order of names: one picture, one rule.
        ranked = sorted(limits.items(), key=lambda item: (item[1].action != "drop", item[0]))
        self._limits = {name: limit for name, limit in ranked if limit.action != "flag"}

    def exceeded(self, safety: Iterable[Mapping[str, Any]] | None) -> Exceeded | None:
        """The first limit that a row's `safety` reaches; a concept without a usable score counts as reached.

        Of limits that are reached, one that a score reaches goes before one whose score is missing.
        """
        scores = {entry["concept"]: entry["score"] for entry in safety or ()}
        missing = None
        for name, limit in self._limits.items():
            score = scores.get(name)
            if score is None or math.isnan(score):
                missing = missing or Exceeded(name, None, limit)
            elif score >= limit.threshold:
                return Exceeded(name, score, limit)
        return missing


class SafetyScorer:
    """Scores embeddings against concepts.

    Attributes:
        thresholds: the C concepts in name order, each with the cosine at which it counts as present.
    """

    def __init__(self, thresholds: dict[str, float], clip: Clip) -> None:
        self.thresholds = thresholds
        self._vectors = concept_vectors(thresholds, clip)

    def scores(self, embeddings: np.ndarray) -> np.ndarray:
        """(N, dim) unit vectors to (N, C) float32 cosines, each row alone so that its neighbours change no bit."""
        return cosines(self._vectors, embeddings)


def concept_vectors(names: Iterable[str], clip: Clip) -> np.ndarray:
    """Concepts as unit vectors, float32 (C, dim)."""
    return np.array([clip.concept(name) for name in names], np.float32).reshape(-1, clip.dim)


def cosines(vectors: np.ndarray, embeddings: np.ndarray) -> np.ndarray:
    """Of unit vectors (C, dim) with unit vectors (N, dim): float32 (N, C), row by row."""
    return np.array([vectors @ e for e in embeddings], np.float32).reshape(len(embeddings), len(vectors))
