"""Looks at finished pictures: CLIP's zero-shot concepts, the same that curation drops inputs by, and a second opinion.

Fails closed: a picture that could not be judged, and a score that is no number, count as what is to be withheld.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from curation.clip import Clip, ClipConfig
from curation.nsfw import CONCEPT
from curation.safety import SafetyScorer
from serving.api import ConceptScore, Moderation
from serving.safety import OutputSafety, PictureAction

_SEVERITY: tuple[PictureAction, ...] = ("flag", "blur", "block")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Verdict:
    """What the guard saw in one picture, and what is to be done with it; action None: nothing."""

    action: PictureAction | None
    scores: list[ConceptScore]
    moderation: tuple[Moderation, ...] = ()

    @property
    def withheld(self) -> bool:
        return self.action == "block"


PASSED = Verdict(None, [])


class Scorer(Protocol):
    """Scores pictures by one or more concepts."""

    @property
    def thresholds(self) -> Mapping[str, float]:
        """The concepts, each with the score from which on it counts."""

    def __call__(self, pixels: np.ndarray) -> Sequence[float]:
        """A score for each concept, of a picture uint8 RGB (H, W, 3), by itself."""


class ClipConcepts:
    """CLIP's concepts."""

    def __init__(self, scorer: SafetyScorer, clip: Clip) -> None:
        self.thresholds = scorer.thresholds
        self._scorer = scorer
        self._clip = clip

    def __call__(self, pixels: np.ndarray) -> Sequence[float]:
        scores: list[float] = self._scorer.scores(self._clip.embed_images(self._clip.prepare(pixels)[None]))[0].tolist()
        return scores


class Guard:
    """Judges pictures by the operator's concepts, and does what the policy says.

    Args:
        scorers: who is asked.
        safety: what is done about what they say.
    """

    def __init__(self, scorers: Sequence[Scorer], safety: OutputSafety) -> None:
        self._scorers = scorers
        self._safety = safety

    def judge(self, pixels: np.ndarray) -> tuple[np.ndarray | None, Verdict]:
        """What may leave of a picture, uint8 RGB (H, W, 3), or of a film, (F, H, W, 3), by its worst frame.

        Returns:
            the very pixels, others that nobody can recognise, or None; and why.
        """
        verdict = self.verdict(pixels)
        if verdict.action == "block":
            return None, verdict
        if verdict.action != "blur":
            return pixels, verdict
        # Of what is flagged only because it is blurred there is no point in asking: the blurred one has to pass.
        unseen = blurred(pixels)
        again = self.verdict(unseen)
        if again.action in (None, "flag"):
            return unseen, verdict
        blocked = tuple(
            entry.model_copy(update={"action": "block"}) if entry.action == "blur" else entry
            for entry in verdict.moderation
        )
        return None, Verdict("block", verdict.scores, blocked)

    def preview(self, pixels: np.ndarray) -> np.ndarray | None:
        """As much of an unfinished picture as may leave: it, if it stays clear of every limit, by a margin."""
        verdict = self.verdict(pixels, self._safety.preview_margin)
        return pixels if verdict.action in (None, "flag") else None

    def verdict(self, pixels: np.ndarray, margin: float = 0.0) -> Verdict:
        """Of a picture or a film; limits are lower by `margin`."""
        frames = pixels if pixels.ndim == 4 else pixels[None]
        try:
            return worst([self._of_frame(np.ascontiguousarray(frame), margin) for frame in frames])
        except Exception:
            _log.exception("a picture could not be judged, and is withheld")
            failed = Moderation(stage="picture", category="unjudged", rule="failed", action="block")
            return Verdict("block", [], (failed,))

    def _of_frame(self, frame: np.ndarray, margin: float) -> Verdict:
        scores: list[ConceptScore] = []
        found: list[Moderation] = []
        for scorer in self._scorers:
            for (concept, threshold), score in zip(scorer.thresholds.items(), scorer(frame), strict=True):
                scores.append(
                    ConceptScore(concept=concept, score=round(float(score), 4), threshold=round(threshold, 4))
                )
                if not score < threshold - margin:  # nan is no acquittal
                    found.append(self._found(concept, float(score)))
        return Verdict(sternest(entry.action for entry in found), scores, tuple(found))

    def _found(self, concept: str, score: float) -> Moderation:
        known = math.isfinite(score)
        return Moderation(
            stage="picture",
            category="sexual" if concept == CONCEPT else concept,
            rule=CONCEPT if concept == CONCEPT else f"clip:{concept}",
            action=self._safety.action_of(concept),
            score=round(score, 4) if known else None,
        )


class Nsfw:
    """The second opinion, asked as the others are."""

    def __init__(self, safety: OutputSafety) -> None:
        assert safety.nsfw is not None
        self.thresholds = {CONCEPT: safety.nsfw.threshold}
        self._classifier = safety.nsfw.classifier().build()

    def __call__(self, pixels: np.ndarray) -> Sequence[float]:
        scores: list[float] = self._classifier(pixels[None]).tolist()
        return scores


def worst(verdicts: Sequence[Verdict]) -> Verdict:
    """Of a film's frames: the sternest action, each concept's highest score and what goes with it; a score that is no
    number wins."""
    if len(verdicts) == 1:
        return verdicts[0]
    by_concept = zip(*(verdict.scores for verdict in verdicts), strict=True)
    highest = [max(scores, key=lambda s: math.inf if math.isnan(s.score) else s.score) for scores in by_concept]
    found: dict[str, Moderation] = {}
    for entry in (entry for verdict in verdicts for entry in verdict.moderation):
        before = found.get(entry.rule)
        if before is None or (before.score is not None and (entry.score is None or entry.score > before.score)):
            found[entry.rule] = entry
    return Verdict(sternest(verdict.action for verdict in verdicts), highest, tuple(found.values()))


def sternest(actions: Iterable[PictureAction | None]) -> PictureAction | None:
    """Of several actions the one that leaves least of a picture."""
    return max((action for action in actions if action is not None), key=_SEVERITY.index, default=None)


def blurred(pixels: np.ndarray) -> np.ndarray:
    """A picture or a film, uint8 (…, H, W, 3), of which only the mean colours of at most 8 x 8 cells are left, smoothly
    put together again. Pictures with the same means come out the same: there is no way back."""
    from PIL import Image

    if pixels.ndim == 4:
        return np.stack([blurred(frame) for frame in pixels])
    height, width = pixels.shape[:2]
    cells = [min(8, max(2, side // 16)) for side in (width, height)]
    small = Image.fromarray(np.ascontiguousarray(pixels)).resize((cells[0], cells[1]), Image.Resampling.BOX)
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


def build(safety: OutputSafety, clip: ClipConfig) -> Guard | None:
    """The guard of a job; None, and no model loaded, when the job names neither a concept nor the classifier.

    Raises:
        UserError: a CLIP model or a package that cannot be loaded, or a concept without a threshold.
    """
    scorers: list[Scorer] = []
    if safety.concepts:
        thresholds = safety.thresholds(clip)
        # One picture at a time: a picture's score, and so its fate, must not depend on its neighbours in the request.
        loaded = clip.model_copy(update={"batch_size": 1}).build()
        scorers.append(ClipConcepts(SafetyScorer(thresholds, loaded), loaded))
    if safety.nsfw is not None:
        scorers.append(Nsfw(safety))
    return Guard(scorers, safety) if scorers else None
