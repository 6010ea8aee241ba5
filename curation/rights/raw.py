"""Text of strangers as evidence: short, on one line, and such that it can be stored and printed."""

from __future__ import annotations

import re

LIMIT = 500
_UNFIT = re.compile(r"[\x00-\x20\x7f-\xa0\u2028\u2029\ud800-\udfff]+")


def shown(text: str) -> str:
    """The text without control characters, line ends and half surrogates, cut at `LIMIT` characters."""
    line = _UNFIT.sub(" ", text[: 4 * LIMIT]).strip()
    return line if len(line) <= LIMIT else line[: LIMIT - 2] + " …"
