"""What a captioner is: it is shown rows and says a text for each, or nothing, or that it failed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from curation.manifest import Name


@dataclass(frozen=True)
class CaptionInput:
    """All of a row that a captioner may look at.

    Attributes:
        metadata: what the source states (title, creator, …) and every other column of its metadata, as text.
        embedded: what was found inside the file: title, description, creator, …
        picture: the training-size picture, encoded as PNG or JPEG; None where there is none.
        embedding: CLIP image embedding, float32 (dim,); None without CLIP or without a picture.
    """

    metadata: Mapping[str, str] = field(default_factory=dict)
    embedded: Mapping[str, str] = field(default_factory=dict)
    picture: bytes | None = None
    embedding: np.ndarray | None = None

    def text(self, name: str) -> str:
        """A field of the metadata, or with `embedded.` in front, of what the file says; "" where there is none."""
        prefix, _, inner = name.partition(".")
        found = self.embedded.get(inner, "") if prefix == "embedded" else self.metadata.get(name, "")
        return one_line(found)


@dataclass(frozen=True)
class Failed:
    """A captioner did not get to say anything about a row.

    Attributes:
        reason: `timeout`, `connection`, `http_500`, `content_filter`, …
        detail: a line for people.
    """

    reason: str
    detail: str = ""

    @property
    def may_pass(self) -> bool:
        """Whether asking another time may help: the server or the way was at fault, not the picture."""
        return self.reason in ("timeout", "connection", "http_429") or self.reason.startswith("http_5")


Said = str | Failed | None


class Captioner(Protocol):
    """A loaded captioner. What it says of a row depends on that row alone, not on its neighbours."""

    def __call__(self, rows: Sequence[CaptionInput]) -> list[Said]: ...


class Named(BaseModel):
    """What all captioners' configurations have in common."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name | None = Field(None, description="what its captions are marked with; null: its kind")


_NOT_TEXT = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def one_line(text: str) -> str:
    """The text with every run of white space, line breaks, control characters and half surrogates as one space."""
    return " ".join(_NOT_TEXT.sub(" ", text).split())
