"""AIPREF: the preference about training that a `Content-Usage` rule in robots.txt or a response header states.

Read from draft-ietf-aipref-attach-05 (August 2026) and draft-ietf-aipref-vocab-08 (September 2026), which are no RFCs
yet. The value is a dictionary of structured fields (RFC 9651): `train-ai=n` refuses, `train-ai=y` permits, anything
else leaves it open. Where we depart from the drafts, it is towards the refusal:

- what does not parse is an error, not unknown: it might have been a refusal;
- the labels of earlier drafts refuse (`genai`, `train-genai`, `ai`, `tdm`, `all`, `bots`), but never permit;
- a refusal counts also for a path that robots.txt disallows, and above all groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from http_sf import StructuredFieldError, Token, parse

from curation.manifest import Verdict
from curation.rights.robots import Robots, longest
from curation.rights.robots_txt import shown
from curation.rights.verdict import Observation

SIGNAL = "aipref"
_LABEL = "train-ai"
# The narrower category of drafts 01 to 03: to train generative models is what we do, whatever `train-ai` says.
_NARROWER = ("train-genai", "genai")
# The categories that held `train-ai` in drafts 00 to 04; a narrower statement overrode them.
_BROADER = ("ai", "tdm", "all", "bots")


def observe_robots(robots: Robots, url: str) -> list[Observation]:
    """What robots.txt prefers for a URL: the rules with the longest path.

    Rules with the same path that contradict each other apply separately (attach-05, section 3.1): their combination
    is the most restrictive.
    """
    file = robots.file
    if robots.unreachable is not None:
        return [Observation(SIGNAL, robots.unreachable, file.url, Verdict.ERROR, file.observed_at)]
    return robots.heard(SIGNAL, longest(robots.stated("content-usage", url)), preference, url)


def observe_headers(values: Sequence[str], where: str) -> list[Observation]:
    """What an answer's `Content-Usage` lines prefer: together they are one dictionary (RFC 9651, section 4.2)."""
    field = ", ".join(value.strip() for value in values if value.strip()).encode("utf-8", "replace").decode("latin-1")
    return [Observation(SIGNAL, shown(field), where, preference(field))] if field else []


@lru_cache(maxsize=4096)
def preference(field: str) -> Verdict:
    """The verdict of one dictionary, as Latin-1; of a label that stands twice, the last counts (vocab-08, 6.5.1)."""
    try:
        members = parse(field.encode("latin-1"), tltype="dictionary")
    except (StructuredFieldError, ValueError, OverflowError):
        return Verdict.ERROR
    stated = {label: _choice(member) for label, member in members.items()} if isinstance(members, dict) else {}
    if _LABEL not in stated and any(stated.get(label) == "n" for label in _BROADER):
        return Verdict.DENY
    if "n" in (stated.get(label) for label in (_LABEL, *_NARROWER)):
        return Verdict.DENY
    return Verdict.ALLOW if stated.get(_LABEL) == "y" else Verdict.UNKNOWN


def _choice(member: object) -> str | None:
    """A member's value where it is a token, its parameters disregarded (vocab-08, sections 6.2 and 6.5.2)."""
    value = member[0] if isinstance(member, tuple) else member
    return str(value) if isinstance(value, Token) else None
