"""A row's captions and the policy: which are good enough, which one is trained on, and what if none is.

Choosing runs no model: it reads captions as they are stored, so that a changed policy decides anew from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from curation.captions.language import LANGUAGES, UNKNOWN
from curation.errors import UserError

Action = Literal["keep", "hold", "drop"]


@dataclass(frozen=True)
class Caption:
    """A caption and what was measured of it.

    Attributes:
        text: one line.
        source: the name of the captioner that wrote it, or its kind.
        language: ISO 639-1; None where it cannot be known.
        words: see `language.words`.
        score: cosine of CLIP's embeddings of text and picture; None without CLIP or picture.
    """

    text: str
    source: str
    language: str | None
    words: int
    score: float | None


class CaptionPolicy(BaseModel):
    """Which captions are good enough, how many are kept, and what becomes of an image that has none.

    Captioners that run a model are asked only while an image has fewer than `keep` good captions: so a caption with a
    low score is followed by the next captioner's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    keep: int = Field(1, ge=1, le=100, description="how many captions are kept of an image, for training to mix")
    min_score: float | None = Field(
        None, ge=-1, le=1, description="cosine of text and picture from which on a caption is good; depends on the CLIP"
    )
    min_words: int = Field(1, ge=0, description="words that a good caption has at least")
    max_words: int | None = Field(None, ge=1, description="words that a good caption has at most")
    languages: tuple[str, ...] | None = Field(
        None, description='ISO 639-1 codes of good captions; "und" stands for those too short to know'
    )
    low: Action = Field("keep", description="what becomes of an image whose captions are none of them good")
    missing: Action = Field("keep", description="what becomes of an image without a caption")

    @model_validator(mode="after")
    def _least_below_most(self) -> CaptionPolicy:
        if self.max_words is not None and self.max_words < self.min_words:
            raise ValueError("max_words is below min_words")
        return self

    def check(self, *, scored: bool) -> None:
        """Finds a user's mistake before anything starts.

        Args:
            scored: whether there is a CLIP to score captions with.

        Raises:
            UserError: a score is asked for that nothing measures, or a language that nothing tells.
        """
        if self.min_score is not None and not scored:
            raise UserError(
                "captions are scored by CLIP, and the job has none",
                field="caption_policy.min_score",
                remedy="set clip, or leave min_score out",
            )
        for code in self.languages or ():
            if code not in LANGUAGES and code != UNKNOWN:
                raise UserError(
                    f"no language that can be told is called {code!r}",
                    field="caption_policy.languages",
                    remedy=f"use {UNKNOWN} or some of: {', '.join(LANGUAGES)}",
                )

    def accepts(self, caption: Caption) -> bool:
        """Whether a caption is good enough."""
        return (
            (self.min_score is None or (caption.score is not None and caption.score >= self.min_score))
            and self.min_words <= caption.words
            and (self.max_words is None or caption.words <= self.max_words)
            and (self.languages is None or (caption.language or UNKNOWN) in self.languages)
        )


@dataclass(frozen=True)
class Choice:
    """What the policy makes of an image's captions.

    Attributes:
        caption: the one that training reads by default, the first of `kept`; None where there is none at all.
        kept: at most `keep` captions, in order of preference: the good ones, or where there is none of those, the
            others by their score.
        action: what is to become of the image.
        found: how many captions there were to choose from.
    """

    caption: Caption | None
    kept: tuple[Caption, ...]
    action: Action
    found: int


def choose(captions: Sequence[Caption], policy: CaptionPolicy) -> Choice:
    """Applies the policy to the captions of an image, given in order of preference."""
    good = [caption for caption in captions if policy.accepts(caption)]
    poor = sorted(captions, key=lambda caption: -1.0 if caption.score is None else caption.score, reverse=True)
    kept = tuple((good or poor)[: policy.keep])
    action: Action = "keep" if good else policy.low if captions else policy.missing
    return Choice(kept[0] if kept else None, kept, action, len(captions))
