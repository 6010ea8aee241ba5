"""A document as data: numbered sections of answered questions and tables, whatever it is set in.

Texts are plain: whoever sets them escapes them. Each answer names its origin, so that a reader can tell what was
counted from what was claimed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Origin = Literal["manifest", "software", "model", "provider", "absent"]
ORIGINS: dict[Origin, str] = {
    "manifest": "from the manifest",
    "software": "how cleanplate works",
    "model": "read from the model's bundle",
    "provider": "stated by the provider",
    "absent": "not in the data",
}


class Size(int):
    """A number of bytes; set as kB, MB and so on, kept as a number in JSON."""


Cell = str | int | None


@dataclass(frozen=True)
class Answer:
    """A question of the template, and what is to be said to it, a paragraph each."""

    question: str
    text: tuple[str, ...]
    origin: Origin


@dataclass(frozen=True)
class Table:
    """Rows of cells; where there is a total, it is the sum of the rows above it."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    total: tuple[Cell, ...] | None = None
    note: str | None = None
    origin: Origin = "manifest"


@dataclass(frozen=True)
class Section:
    """A section with its number in the template it follows; the number's dots say how deep it lies."""

    number: str
    title: str
    items: tuple[Answer | Table, ...] = ()
    about: str | None = None

    @property
    def label(self) -> str:
        """The number as it stands before the title."""
        return f"{self.number}{'' if self.number.endswith(')') else '.'} " if self.number else ""

    @property
    def depth(self) -> int:
        return self.number.count(".") + 1 if self.number else 1


@dataclass(frozen=True)
class Document:
    """A whole document. `basis` is what it rests on, as pairs of a name and a value."""

    kind: str
    title: str
    about: str
    basis: tuple[tuple[str, str], ...]
    sections: tuple[Section, ...]
    facts: dict[str, Any] = field(default_factory=dict)  # the figures it rests on, for machines

    def absent(self) -> list[str]:
        """The questions that are not answered, by section."""
        return [
            f"{section.number} {item.question}".strip()
            for section in self.sections
            for item in section.items
            if isinstance(item, Answer) and item.origin == "absent"
        ]

    def as_json(self) -> dict[str, Any]:
        """Plain JSON: numbers stay numbers."""
        sections = []
        for section in self.sections:
            items = [
                {"type": "answer" if isinstance(item, Answer) else "table", **asdict(item)} for item in section.items
            ]
            sections.append({"number": section.number, "title": section.title, "about": section.about, "items": items})
        return {
            "kind": self.kind,
            "title": self.title,
            "about": self.about,
            "basis": dict(self.basis),
            "facts": self.facts,
            "sections": sections,
        }


def says(question: str, text: str | Iterable[str], origin: Origin = "manifest") -> Answer:
    """An answer of one paragraph or of several."""
    return Answer(question, (text,) if isinstance(text, str) else tuple(text), origin)


def absent(question: str, what: str, field: str) -> Answer:
    """The answer that there is none: what is lacking, and the field of the provider's file that it belongs in."""
    return Answer(question, (f"not in the data: {what}; give it in --provider ({field})",), "absent")


def stated(question: str, value: str | None, what: str, field: str) -> Answer:
    """What the provider states, or that it is absent."""
    return says(question, value, "provider") if value else absent(question, what, field)


def yes_no(question: str, value: bool | None, field: str) -> Answer:
    """What the provider states as true or false, or that it is absent."""
    if value is None:
        return absent(question, "the answer", field)
    return says(question, "Yes." if value else "No.", "provider")


def size(n: int) -> str:
    """A number of bytes for a person, in powers of a thousand."""
    value, unit = float(n), "bytes"
    for larger in ("kB", "MB", "GB", "TB", "PB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{n:,} bytes" if unit == "bytes" else f"{value:.3g} {unit}" if value < 999.5 else f"{value:,.0f} {unit}"


def cell(value: Cell) -> str:
    """A cell for a person."""
    if value is None:
        return "–"
    if isinstance(value, Size):
        return size(value)
    return f"{value:,}" if isinstance(value, int) else value
