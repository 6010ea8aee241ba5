"""Looks at finished pictures: CLIP's zero-shot safety concepts, the same that curation drops inputs by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from curation.clip import Clip, ClipConfig
from curation.errors import UserError
from curation.safety import SafetyConfig, SafetyScorer
from serving.api import ConceptScore

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class Verdict:
    """What the guard saw in one picture, and whether the picture may leave."""

    withheld: bool
    scores: list[ConceptScore]


class Guard:
    """Scores pictures by the operator's concepts and withholds what reaches a threshold.

    With the policy's action `flag` nothing is withheld and the scores stand in the answer; `drop` and `hold` both
    withhold, since an answer has nowhere to hold a picture.
    """

    def __init__(self, scorer: SafetyScorer, clip: Clip, *, withholds: bool = True) -> None:
        self._clip = clip
        self._scorer = scorer
        self._withholds = withholds

    def check(self, pictures: Sequence[Image.Image]) -> list[Verdict]:
        """One verdict for each RGB picture, in order; a score that is not a number withholds."""
        pixels = np.stack([self._clip.prepare(picture) for picture in pictures])
        return [self._verdict(row) for row in self._scorer.scores(self._clip.embed_images(pixels))]

    def _verdict(self, row: np.ndarray) -> Verdict:
        thresholds = self._scorer.thresholds
        clean = all(score < threshold for score, threshold in zip(row, thresholds.values(), strict=True))
        scores = [
            ConceptScore(concept=name, score=round(float(score), 4), threshold=round(threshold, 4))
            for score, (name, threshold) in zip(row, thresholds.items(), strict=True)
        ]
        return Verdict(withheld=self._withholds and not clean, scores=scores)


def worst(verdicts: Sequence[Verdict]) -> Verdict:
    """Of a film's frames: withheld where one is, with each concept's highest score; a score that is no number wins."""
    if len(verdicts) == 1:
        return verdicts[0]
    by_concept = zip(*(verdict.scores for verdict in verdicts), strict=True)
    highest = [max(scores, key=lambda s: math.inf if math.isnan(s.score) else s.score) for scores in by_concept]
    return Verdict(any(verdict.withheld for verdict in verdicts), highest)


def build(safety: SafetyConfig, clip: ClipConfig) -> Guard | None:
    """The guard of a job; None, and no CLIP model loaded, when the job names no concept.

    Raises:
        UserError: a CLIP model that cannot be loaded, a concept without a threshold, or a classifier that is asked for.
    """
    if safety.nsfw is not None:
        raise UserError(
            "the endpoint's guard knows CLIP's concepts only", field="safety.nsfw", remedy="leave it out of serve jobs"
        )
    if not safety.concepts:
        return None
    thresholds = safety.resolve(clip)
    # One picture at a time: a picture's score, and so its fate, must not depend on its neighbours in the request.
    loaded = clip.model_copy(update={"batch_size": 1}).build()
    return Guard(SafetyScorer(thresholds, loaded), loaded, withholds=safety.action != "flag")
