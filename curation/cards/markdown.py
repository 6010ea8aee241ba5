"""A document as Markdown. Every text is escaped: what a stranger wrote is neither markup nor HTML."""

from __future__ import annotations

import re
from collections.abc import Iterable

from curation.cards.document import ORIGINS, Answer, Cell, Document, Table, cell

_SPECIAL = re.compile(r"([\\`*_\[\]{}|#~!])")
# A line that begins so would be a heading, a list or a rule.
_LEADING = re.compile(r"^([-+>=]|\d+[.)])")


def render(document: Document) -> str:
    """GitHub's Markdown, with headings by the depth of sections."""
    lines = [f"# {escape(document.title)}", "", line(document.about), ""]
    lines += _grid(("", ""), document.basis)
    for section in document.sections:
        lines += ["", f"{'#' * min(section.depth + 1, 6)} {section.label}{escape(section.title)}", ""]
        if section.about:
            lines += [line(section.about), ""]
        for item in section.items:
            lines += _answer(item) if isinstance(item, Answer) else _table(item)
    return "\n".join(lines).rstrip() + "\n"


def escape(text: str) -> str:
    """Plain text within a line of Markdown, whatever characters it has."""
    line = " ".join(text.split())
    return _SPECIAL.sub(r"\\\1", line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"))


def line(text: str) -> str:
    """Plain text that a line of Markdown begins with."""
    return _LEADING.sub(lambda m: m[1][:-1] + "\\" + m[1][-1], escape(text))


def _answer(item: Answer) -> list[str]:
    lines = [f"**{escape(item.question)}**", ""]
    if len(item.text) == 1:
        lines += [line(item.text[0]), ""]
    else:
        lines += [f"- {line(paragraph)}" for paragraph in item.text] + [""]
    return [*lines, f"*{ORIGINS[item.origin]}*", ""]


def _table(item: Table) -> list[str]:
    if not item.rows:
        return [f"**{escape(item.title)}**", "", "None.", ""]
    numbers = [all(isinstance(row[i], int) or row[i] is None for row in item.rows) for i in range(len(item.columns))]
    rows: list[Iterable[Cell]] = [*item.rows]
    lines = [f"**{escape(item.title)}**", "", *_grid(item.columns, rows, numbers, total=item.total)]
    return [*lines, "", *([line(item.note), ""] if item.note else [])]


def _grid(
    columns: tuple[str, ...], rows: Iterable[Iterable[Cell]], numbers: list[bool] | None = None,
    total: tuple[Cell, ...] | None = None,
) -> list[str]:  # fmt: skip
    right = numbers or [False] * len(columns)
    lines = [
        "| " + " | ".join(escape(name) for name in columns) + " |",
        "|" + "|".join("---:" if r else "---" for r in right) + "|",
        *("| " + " | ".join(escape(cell(value)) for value in row) + " |" for row in rows),
    ]
    if total is not None:
        filled = [*total, *[None] * (len(columns) - len(total))]
        lines.append("| " + " | ".join(f"**{escape(cell(v))}**" if v not in (None, "") else "" for v in filled) + " |")
    return lines
