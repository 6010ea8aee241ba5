"""Captioners: where the text comes from that training reads. The first in the job's list that has one writes it."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator


class MetadataCaptions(BaseModel):
    """The source's own words: the first of `fields` that the row's metadata has."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["metadata"] = "metadata"
    fields: tuple[str, ...] = Field(("caption", "alt", "description"), min_length=1)

    def caption(self, metadata: Mapping[str, str]) -> str | None:
        return next((metadata[name].strip() for name in self.fields if metadata.get(name, "").strip()), None)


class TemplateCaptions(BaseModel):
    """A sentence with fields of the row's metadata in braces; silent where one of them is missing."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["template"] = "template"
    text: str = Field(description='such as "a drawing of {title}"')

    @field_validator("text")
    @classmethod
    def _fields_are_plain(cls, text: str) -> str:
        names = [name for _, name, _, _ in string.Formatter().parse(text) if name is not None]
        if not all(name.isidentifier() for name in names):
            raise ValueError("only plain fields such as {title} may stand in braces")
        return text

    def caption(self, metadata: Mapping[str, str]) -> str | None:
        names = [name for _, name, _, _ in string.Formatter().parse(self.text) if name is not None]
        if any(not metadata.get(name, "").strip() for name in names):
            return None
        return self.text.format(**{name: metadata[name].strip() for name in names})


CaptionerConfig = Annotated[MetadataCaptions | TemplateCaptions, Field(discriminator="kind")]


def caption(captioners: Sequence[CaptionerConfig], metadata: Mapping[str, str]) -> tuple[str | None, str | None]:
    """The caption of a row and the kind of captioner that wrote it; (None, None) when none had one.

    Args:
        captioners: in order of preference.
        metadata: the row's stated columns (title, creator, …) and every other column of its metadata, as text.
    """
    for captioner in captioners:
        text = captioner.caption(metadata)
        if text:
            return text, captioner.kind
    return None, None
