"""Captions that somebody stated: the source's own words, and sentences with its fields put in."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, field_validator

from curation.captions.captioner import CaptionInput, Named, Said
from curation.clip import Clip, ClipConfig

# What cameras and programs write into a file's description by themselves, and what galleries show for want of a title.
_NOBODY = re.compile(
    r"olympus digital camera|(konica )?minolta (dsc|digital camera)|(sony )?dsc|samsung camera pictures|"
    r"exif_jpeg_picture|"
    r"kodak digital still camera|digital camera|created with (the )?\w+|image description|default|untitled|no title|"
    r"screenshot|file written by adobe photoshop.*|dcim.*|<.*>|\(null\)|null|none|n/?a|[\W_]*",
    re.IGNORECASE,
)


class MetadataCaptions(Named):
    """The source's own words: the first of `fields` that the row has.

    What cameras and programs put there by themselves ("OLYMPUS DIGITAL CAMERA", "Untitled") counts as absent.
    """

    kind: Literal["metadata"] = "metadata"
    fields: tuple[str, ...] = Field(
        ("caption", "alt", "description", "embedded.description", "embedded.title"),
        min_length=1,
        description="columns of the metadata; with `embedded.` in front, fields found inside the file",
    )

    def check(self, clip: ClipConfig | None) -> None:
        """Nothing of it can be wrong beyond its form."""

    def identity(self) -> dict[str, Any]:
        return self.model_dump(mode="json")

    def build(self, clip: Clip | None) -> MetadataCaptions:
        return self

    def __call__(self, rows: Sequence[CaptionInput]) -> list[Said]:
        return [self._first(row) for row in rows]

    def _first(self, row: CaptionInput) -> str | None:
        texts = (row.text(name) for name in self.fields)
        return next((text for text in texts if text and not _NOBODY.fullmatch(text)), None)


class TemplateCaptions(Named):
    """A sentence with fields of the row in braces; silent where one of them is missing."""

    kind: Literal["template"] = "template"
    text: str = Field(description='such as "a drawing of {title}"; {embedded.title} is a field found inside the file')

    @field_validator("text")
    @classmethod
    def _fields_are_plain(cls, text: str) -> str:
        for _, name, form, conversion in string.Formatter().parse(text):
            if name is not None and (form or conversion or not name.removeprefix("embedded.").isidentifier()):
                raise ValueError("only plain fields such as {title} or {embedded.title} may stand in braces")
        return text

    def check(self, clip: ClipConfig | None) -> None:
        """Nothing of it can be wrong beyond its form."""

    def identity(self) -> dict[str, Any]:
        return self.model_dump(mode="json")

    def build(self, clip: Clip | None) -> TemplateCaptions:
        return self

    def __call__(self, rows: Sequence[CaptionInput]) -> list[Said]:
        return [self._filled(row) for row in rows]

    def _filled(self, row: CaptionInput) -> str | None:
        pieces = []
        for literal, name, _, _ in string.Formatter().parse(self.text):
            pieces.append(literal)
            if name is not None:
                pieces.append(row.text(name))
                if not pieces[-1]:
                    return None
        return "".join(pieces)
