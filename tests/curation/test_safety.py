"""Safety limits: thresholds, the second opinion, and scores that are not there."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from curation.clip import ClipConfig
from curation.errors import UserError
from curation.nsfw import CONCEPT
from curation.safety import Exceeded, Limit, Limits, SafetyConfig, SafetyScorer, cosines

CLIP = ClipConfig(device="cpu")


def config(**given: Any) -> SafetyConfig:
    return SafetyConfig.model_validate(given)


def scored(**scores: float | None) -> list[dict[str, Any]]:
    return [{"concept": name, "score": score} for name, score in scores.items()]


def test_thresholds_are_the_jobs_or_the_models() -> None:
    calibrated = CLIP.calibrated()
    known = next(iter(calibrated))
    assert config(concepts={known: None, "haggis": 0.3}).resolve(CLIP) == {known: calibrated[known], "haggis": 0.3}
    with pytest.raises(UserError) as caught:
        config(concepts={"haggis": None}).limits(CLIP)
    assert caught.value.field == "safety.concepts.haggis"


def test_concepts_need_a_clip_and_the_second_opinion_does_not() -> None:
    with pytest.raises(UserError) as caught:
        config(concepts={"weapon": 0.3}).limits(None)
    assert caught.value.field == "safety.concepts"
    alone = config(nsfw={"threshold": 0.7}).limits(None)
    assert alone.exceeded(scored(opennsfw=0.7)) == Exceeded(CONCEPT, 0.7, Limit(0.7, "drop", "safety.nsfw.threshold"))
    assert alone.exceeded(scored(opennsfw=0.69)) is None


def test_the_classifiers_name_is_no_concept() -> None:
    with pytest.raises(ValidationError, match="not a concept"):
        config(concepts={CONCEPT: 0.5})


def test_the_second_opinion_has_an_action_of_its_own() -> None:
    both = config(concepts={"weapon": 0.3}, action="hold", nsfw={"threshold": 0.7, "action": "drop"}).limits(CLIP)
    found = both.exceeded(scored(weapon=0.9, opennsfw=0.9))
    assert found is not None
    assert (found.concept, found.limit.action) == (CONCEPT, "drop")  # the sterner of the two
    turned = config(concepts={"weapon": 0.3}, nsfw={"threshold": 0.7, "action": "hold"}).limits(CLIP)
    found = turned.exceeded(scored(weapon=0.9, opennsfw=0.9))
    assert found is not None
    assert (found.concept, found.limit.action) == ("weapon", "drop")
    found = both.exceeded(scored(weapon=0.3, opennsfw=0.1))
    assert found == Exceeded("weapon", 0.3, Limit(0.3, "hold", "safety.concepts.weapon"))
    flagged = config(concepts={"weapon": 0.3}, action="flag", nsfw={"threshold": 0.7}).limits(CLIP)
    assert flagged.exceeded(scored(weapon=0.9, opennsfw=0.1)) is None


@pytest.mark.parametrize("safety", [None, [], scored(weapon=math.nan), scored(weapon=None), scored(other=0.1)])
def test_a_score_that_is_not_there_is_no_acquittal(safety: Any) -> None:
    limit = Limit(0.3, "drop", "safety.concepts.weapon")
    assert Limits({"weapon": limit}).exceeded(safety) == Exceeded("weapon", None, limit)


def test_a_score_that_is_there_speaks_before_one_that_is_not() -> None:
    limits = Limits({"a": Limit(0.3, "drop", "a"), "b": Limit(0.3, "hold", "b")})
    found = limits.exceeded(scored(b=0.5))
    assert found is not None
    assert (found.concept, found.score) == ("b", 0.5)


@given(st.floats(-1, 1), st.floats(-0.99, 0.99))
def test_a_limit_is_inclusive(score: float, threshold: float) -> None:
    found = Limits({"x": Limit(threshold, "drop", "x")}).exceeded(scored(x=score))
    assert (found is not None) == (score >= threshold)


def test_cosines_of_a_row_do_not_depend_on_its_neighbours() -> None:
    rng = np.random.default_rng(0)
    vectors, rows = rng.normal(size=(5, 257)).astype(np.float32), rng.normal(size=(31, 257)).astype(np.float32)
    together = cosines(vectors, rows)
    assert together.tobytes() == b"".join(cosines(vectors, rows[i : i + 1]).tobytes() for i in range(31))
    assert together == pytest.approx(rows @ vectors.T, abs=1e-3)
    assert cosines(vectors[:0], rows).shape == (31, 0)


def test_the_scorer_measures_what_the_concepts_vectors_say() -> None:
    clip = CLIP.build()
    scorer = SafetyScorer({"weapon": 0.3, "cat": 0.2}, clip)
    rows = clip.embed_texts(["a rifle", "the sea"])
    expected = rows @ np.stack([clip.concept("weapon"), clip.concept("cat")]).T
    assert scorer.scores(rows) == pytest.approx(expected, abs=1e-6)
