"""Cloudflare's Content Signals (contentsignals.org): `Content-Signal: ai-train=no, search=yes` in robots.txt.

The lines stand in the groups of robots.txt and may begin with a path. Nobody has specified them to the letter: keys and
values are read in any case, a refusal in any plain wording, a permission only as `yes`. `use` says how far a use may go
at most (`immediate`, `reference`, `full`); a permission to train that stands beside less than `full` is none.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from curation.manifest import Verdict
from curation.rights.robots import Robots, longest
from curation.rights.robots_txt import shown
from curation.rights.verdict import Observation

SIGNAL = "content_signal"
_PAIR = re.compile(r"\s*([a-z][a-z0-9_-]*)\s*=\s*([a-z0-9_-]+)\s*")
_REFUSED = re.compile(r"ai[-_]?train\s*[=:]\s*\"?(?:no|n|false|0|none|deny|disallow)\b")
_REFUSALS = frozenset({"no", "n", "false", "0", "none", "deny", "denied", "disallow", "disallowed"})


def observe(robots: Robots, url: str) -> list[Observation]:
    """What robots.txt signals for a URL.

    Of the lines that say something about training, those with the longest path count: a line that leaves training out
    neither grants nor restricts it, so it takes nothing back.
    """
    file = robots.file
    if robots.unreachable is not None:
        return [Observation(SIGNAL, robots.unreachable, file.url, Verdict.ERROR, file.observed_at)]
    stated = robots.stated("content-signal", url)
    telling = [s for s in stated if signalled(s.text) != Verdict.UNKNOWN]
    return robots.heard(SIGNAL, longest(telling or stated), signalled, url)


def observe_headers(values: Sequence[str], where: str) -> list[Observation]:
    """What an answer's `Content-Signal` lines say, which Cloudflare sends with pages that it turns into Markdown."""
    field = ", ".join(value.strip() for value in values if value.strip()).encode("utf-8", "replace").decode("latin-1")
    return [Observation(SIGNAL, shown(field), where, signalled(field))] if field else []


@lru_cache(maxsize=4096)
def signalled(text: str) -> Verdict:
    """The verdict of one line's signals. Of several about training the most restrictive counts.

    A line with anything in it that is not `key=value` is an error, unless a refusal can be read in it all the same.
    """
    text = text.lower()
    pairs = [_PAIR.fullmatch(part) for part in re.split("[,;]", text) if part.strip()]
    if not all(pairs):
        return Verdict.DENY if _REFUSED.search(text) else Verdict.ERROR
    signals = [(pair[1].replace("_", "-"), pair[2]) for pair in pairs if pair]
    train = {value for key, value in signals if key in ("ai-train", "aitrain")}
    if train & _REFUSALS:
        return Verdict.DENY
    if train - {"yes"}:
        return Verdict.ERROR
    if not train or any(key == "use" and value != "full" for key, value in signals):
        return Verdict.UNKNOWN
    return Verdict.ALLOW
