"""`Link` header fields (RFC 8288, section 3)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

_PARAMETER = re.compile(r"[ \t]*;[ \t]*([^\s;,=\"<>]*)[ \t]*(=?)[ \t]*")
_PLAIN = re.compile(r"[^\s;,]*")
_QUOTED = re.compile(r'"([^"\\]*(?:\\.[^"\\]*)*)"', re.DOTALL)


class Link(NamedTuple):
    """One link; `rel` is a list of relation types in lower case."""

    href: str
    rel: list[str]
    type: str


def links(values: Sequence[str]) -> Iterator[Link]:
    """The links of header lines, in linear time; of a parameter that is repeated the first counts.

    What stands between links and is none is passed over: a mistake in one must not hide the next.
    """
    for line in values:
        at = 0
        while (start := line.find("<", at)) >= 0 and (end := line.find(">", start)) >= 0:
            parameters, at = _parameters(line, end + 1)
            yield Link(
                line[start + 1 : end].strip(), parameters.get("rel", "").lower().split(), parameters.get("type", "")
            )


def _parameters(line: str, at: int) -> tuple[dict[str, str], int]:
    found: dict[str, str] = {}
    while parameter := _PARAMETER.match(line, at):
        value, at = "", parameter.end()
        if parameter[2] and line.startswith('"', at):
            quoted = _QUOTED.match(line, at)
            # In a string that does not end, what is behind it cannot be told from what is in it.
            value = re.sub(r"\\(.)", r"\1", quoted[1]) if quoted else line[at + 1 :]
            at = quoted.end() if quoted else len(line)
        elif parameter[2] and (plain := _PLAIN.match(line, at)):
            value, at = plain[0], plain.end()
        found.setdefault(parameter[1].lower(), value)
    return found, at
