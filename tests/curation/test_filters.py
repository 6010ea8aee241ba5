"""Filters: bounds, what is missing, and filters on what nobody measures."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from curation.errors import UserError
from curation.filters import COLUMNS, FilterConfig, Filtered, Filters


def filters(**given: dict[str, Any]) -> Filters:
    return Filters({name: FilterConfig.model_validate(bounds) for name, bounds in given.items()})


def row(**changes: Any) -> dict[str, Any]:
    scores = [{"name": "blur", "score": 0.1}, {"name": "entropy", "score": 6.0}]
    return {
        "scores": scores,
        "width": 300,
        "height": 200,
        "bytes": 5000,
        "caption": "a red hen",
        "captions": [],
    } | changes


@pytest.mark.parametrize(
    ("bounds", "found"),
    [
        ({"blur": {"min": 0.1, "max": 0.1}}, None),
        ({"blur": {"min": 0.2}}, Filtered("blur", 0.1, 0.2, "drop", "filters.blur.min")),
        ({"blur": {"max": 0.05, "action": "hold"}}, Filtered("blur", 0.1, 0.05, "hold", "filters.blur.max")),
        ({"aspect": {"max": 1.5}}, None),
        ({"aspect": {"max": 1.4}}, Filtered("aspect", 1.5, 1.4, "drop", "filters.aspect.max")),
        ({"width": {"min": 301}}, Filtered("width", 300, 301, "drop", "filters.width.min")),
        ({"height": {"max": 199}}, Filtered("height", 200, 199, "drop", "filters.height.max")),
        ({"pixels": {"min": 60_001}}, Filtered("pixels", 60_000, 60_001, "drop", "filters.pixels.min")),
        ({"bytes": {"min": 5001}}, Filtered("bytes", 5000, 5001, "drop", "filters.bytes.min")),
        ({"words": {"min": 4}}, Filtered("words", 3, 4, "drop", "filters.words.min")),
        ({"aesthetic": {"min": 4.5}}, Filtered("aesthetic", None, None, "hold", "filters.aesthetic")),
        # what is dropped for one thing is not held for another
        (
            {"blur": {"min": 1, "action": "hold"}, "aesthetic": {"min": 1}, "entropy": {"max": 5}},
            Filtered("entropy", 6.0, 5, "drop", "filters.entropy.max"),
        ),
        ({"aesthetic": {"min": 1}, "blur": {"min": 1, "action": "hold"}},
         Filtered("blur", 0.1, 1, "hold", "filters.blur.min")),
    ],
)  # fmt: skip
def test_bounds(bounds: dict[str, dict[str, Any]], found: Filtered | None) -> None:
    assert filters(**bounds).rule(row()) == found


@pytest.mark.parametrize("scores", [None, [], [{"name": "blur", "score": math.nan}], [{"name": "blur", "score": None}]])
def test_a_measure_that_is_not_there_holds(scores: Any) -> None:
    found = filters(blur={"min": 0.1}).rule(row(scores=scores))
    assert found == Filtered("blur", None, None, "hold", "filters.blur")


@pytest.mark.parametrize("name", ["aspect", "width", "height", "pixels", "bytes"])
def test_a_column_that_is_not_there_holds(name: str) -> None:
    found = filters(**{name: {"min": 0}}).rule({})
    assert found == Filtered(name, None, None, "hold", f"filters.{name}")


def test_words_are_those_of_the_chosen_caption() -> None:
    few = filters(words={"min": 1})
    assert few.rule(row(caption=None)) == Filtered("words", 0, 1, "drop", "filters.words.min")
    counted = [{"text": "一只红母鸡", "words": 4}, {"text": "a red hen", "words": 3}]
    assert filters(words={"min": 4}).rule(row(caption="一只红母鸡", captions=counted)) is None


@given(st.floats(), st.floats(allow_nan=False, allow_infinity=False))
def test_whatever_passes_is_at_least_the_bound(value: float, bound: float) -> None:
    found = filters(blur={"min": bound}).rule(row(scores=[{"name": "blur", "score": value}]))
    assert (found is None) == (value >= bound)


@pytest.mark.parametrize(
    "bounds",
    [{}, {"min": 2, "max": 1}, {"min": math.nan}, {"max": math.inf}, {"min": 1, "action": "keep"}, {"least": 1}],
)
def test_bounds_that_make_no_sense_are_refused(bounds: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        FilterConfig.model_validate(bounds)


def test_filters_on_what_is_measured_are_accepted() -> None:
    filters(blur={"min": 1}, aesthetic={"min": 1}, **{name: {"min": 1} for name in COLUMNS}).check(
        ["blur", "aesthetic"]
    )


@pytest.mark.parametrize(
    ("name", "remedy"), [("blur", "add blur to quality"), ("aesthetic", "under aesthetic"), ("blurr", "use aesthetic")]
)
def test_filters_on_what_is_not_measured_are_refused(name: str, remedy: str) -> None:
    with pytest.raises(UserError) as caught:
        filters(**{name: {"min": 1}}).check(["entropy"])
    assert caught.value.field == f"filters.{name}"
    assert remedy in str(caught.value.remedy)
