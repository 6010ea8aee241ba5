"""Filters: bounds on what was measured, as the job file sets them. They run no model.

A measure that a row with a picture should have and has not, or that is not a number, is no pass: the row is held.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from curation.aesthetic import NAME as AESTHETIC
from curation.errors import UserError
from curation.quality import MEASURES


class FilterConfig(BaseModel):
    """The bounds of one measure, both inclusive, and what becomes of a picture outside of them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min: float | None = Field(None, allow_inf_nan=False, description="least value that passes")
    max: float | None = Field(None, allow_inf_nan=False, description="greatest value that passes")
    action: Literal["drop", "hold"] = Field("drop", description="what becomes of what lies outside")

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.min is None and self.max is None:
            raise ValueError("a filter needs min, max or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"nothing is at least {self.min} and at most {self.max}")
        return self


class Filtered(NamedTuple):
    """What a filter found: `value` of measure `name` is beyond `bound`.

    `value` and `bound` are None where the measure is not there; then `action` is `hold`. `rule` is the field of the job
    file.
    """

    name: str
    value: float | None
    bound: float | None
    action: Literal["drop", "hold"]
    rule: str


class Filters:
    """The job's filters, ready to be asked about a row."""

    def __init__(self, filters: Mapping[str, FilterConfig]) -> None:
        # Those that drop come first, so that a row is not held for one thing that is dropped for another.
        self._filters = dict(sorted(filters.items(), key=lambda item: (item[1].action != "drop", item[0])))

    def check(self, measured: Collection[str]) -> None:
        """Refuses filters on what the job does not measure.

        Args:
            measured: names that will stand in `scores`: the job's quality measures, and `aesthetic` where it has one.

        Raises:
            UserError: naming the filter (`filters.<name>`).
        """
        for name in self._filters:
            if name in measured or name in COLUMNS:
                continue
            if name in MEASURES:
                remedy = f"add {name} to quality"
            elif name == AESTHETIC:
                remedy = "give the head's weights under aesthetic"
            else:
                known = sorted({*MEASURES, AESTHETIC, *COLUMNS})
                raise UserError(
                    f"there is no measure called {name!r}", field=f"filters.{name}", remedy=f"use {', '.join(known)}"
                )
            raise UserError(f"the job does not measure {name}", field=f"filters.{name}", remedy=remedy)

    def rule(self, row: Mapping[str, Any]) -> Filtered | None:
        """The first filter that a row with a picture does not pass, or None.

        Args:
            row: `scores`, `width`, `height`, `bytes`, `caption` and `captions` of the manifest, as far as filters ask.
        """
        scores = {entry["name"]: entry["score"] for entry in row.get("scores") or ()}
        unmeasured = None
        for name, bounds in self._filters.items():
            value = COLUMNS[name](row) if name in COLUMNS else scores.get(name)
            rule = f"filters.{name}"
            if value is None or math.isnan(value):
                unmeasured = unmeasured or Filtered(name, None, None, "hold", rule)
            elif bounds.min is not None and value < bounds.min:
                return Filtered(name, value, bounds.min, bounds.action, f"{rule}.min")
            elif bounds.max is not None and value > bounds.max:
                return Filtered(name, value, bounds.max, bounds.action, f"{rule}.max")
        return unmeasured


def _number(column: str) -> Callable[[Mapping[str, Any]], float | None]:
    return lambda row: row.get(column)


def _pixels(row: Mapping[str, Any]) -> float | None:
    width, height = row.get("width"), row.get("height")
    return width * height if width and height else None


def _aspect(row: Mapping[str, Any]) -> float | None:
    width, height = row.get("width"), row.get("height")
    return max(width, height) / min(width, height) if width and height else None


def _words(row: Mapping[str, Any]) -> float | None:
    """Of the caption that was chosen; a row without one has none."""
    chosen = row.get("caption")
    if not chosen:
        return 0
    counted = (entry["words"] for entry in row.get("captions") or () if entry["text"] == chosen)
    return next((words for words in counted if words is not None), len(chosen.split()))


COLUMNS: Mapping[str, Callable[[Mapping[str, Any]], float | None]] = {
    "aspect": _aspect,  # long side over short side
    "bytes": _number("bytes"),
    "height": _number("height"),
    "pixels": _pixels,
    "width": _number("width"),
    "words": _words,
}
"""Measures that are read off the manifest's columns and need not be asked for."""
