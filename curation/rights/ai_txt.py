"""Spawning's ai.txt: which kinds of media of a site data sets may take, in the grammar of robots.txt.

The generator (spawning.ai/ai-txt) writes one group for `*` with a line for each file type, `Disallow: *.jpg`, and ends
with `Disallow: /` and `Disallow: *` where everything is opted out. Several other proposals share the file's name, as do
error pages: what holds no such lines states nothing.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from curation.manifest import Verdict
from curation.rights.evidence import SiteFile
from curation.rights.robots_txt import SHOWN, Groups, Line, Pattern, Target, shown, target
from curation.rights.verdict import Observation

SIGNAL = "ai_txt"
_FILE_TYPE = re.compile(r"\*\.([a-z0-9]{1,10})\$?", re.IGNORECASE)
_REFUSAL = re.compile(rb"dis+al+ow[ \t]*:", re.IGNORECASE)
_CONTROLS = re.compile(rb"[\x00-\x08\x0e-\x1f\x7f]")


class _Rule(NamedTuple):
    line: Line
    pattern: Pattern
    file_type: str | None
    allow: bool

    def matches(self, at: Target) -> bool:
        if self.file_type is None:
            return self.pattern.matches(at)
        if self.allow:
            return at[0].partition("?")[0].lower().endswith(f".{self.file_type}")
        # A refusal also where the type is named in a query, or stands before a further suffix.
        return any(re.search(rf"\.{self.file_type}(?![a-z0-9])", form.lower()) is not None for form in at)

    @property
    def rank(self) -> tuple[int, bool]:
        return self.pattern.length, not self.allow


class AiTxt:
    """A site's ai.txt, parsed once.

    Args:
        file: what the site answered with.
        product: our product token, for a group of our own; else those for `*` apply.
    """

    def __init__(self, file: SiteFile, product: str = "*") -> None:
        self._file = file
        known = file.status in (200, 204)
        self._damage: str | None = None
        self._rules: list[_Rule] = []
        if not known and not file.is_absent:
            reason = file.status if file.status is not None else file.detail or "no answer"
            self._damage = f"unreachable: {reason}"[:SHOWN]
        elif known and _is_something_else(file.body):
            # Lines to refuse by that stand in a page or among garbage: nobody can tell whether they are meant.
            refusing = _REFUSAL.search(file.body.replace(b"\0", b""))
            self._damage = "damaged: no plain text, but Disallow lines in it" if refusing else None
        elif known:
            groups = Groups(file.body, file.truncated)
            lines = [line for block in groups.crawl(product) for line in block]
            # A refusal above all groups is meant for all; a permission there is for nobody.
            lines += [line for line in groups.outside if line.field == "disallow"]
            rules = [_rule(line) for line in lines if line.value[:1] in ("/", "*") or line.field == "disallow"]
            self._rules = sorted((r for r in rules if r.line.value), key=lambda r: r.rank, reverse=True)

    def observe(self, url: str) -> list[Observation]:
        """What the file says about a URL of its site: the rule with the longest path, a refusal before a permission."""
        if self._damage is not None:
            return [self._observation(self._damage, self._file.url, Verdict.ERROR)]
        if not self._rules:
            return []
        at = target(url)
        rule = next((rule for rule in self._rules if rule.matches(at)), None)
        if rule is None:
            return [self._observation("no rule applies", self._file.url, Verdict.UNKNOWN)]
        verdict = Verdict.ALLOW if rule.allow else Verdict.DENY
        return [self._observation(shown(rule.line.text), f"{self._file.url}:{rule.line.number}", verdict)]

    def _observation(self, value: str, where: str, verdict: Verdict) -> Observation:
        return Observation(SIGNAL, value, where, verdict, self._file.observed_at)


def _rule(line: Line) -> _Rule:
    file_type = _FILE_TYPE.fullmatch(line.value)
    return _Rule(line, Pattern(line.value), file_type[1].lower() if file_type else None, line.field == "allow")


def _is_something_else(body: bytes) -> bool:
    """A page, or no text at all."""
    text = body.removeprefix(b"\xef\xbb\xbf").lstrip()
    return text.startswith(b"<") or (
        _CONTROLS.search(body) is not None and not body.startswith((b"\xff\xfe", b"\xfe\xff"))
    )
