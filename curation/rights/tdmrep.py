"""TDMRep: the W3C TDM Reservation Protocol (community group's final report, 10 May 2024).

A rightsholder states `tdm-reservation` 1 (reserved) or 0 (not reserved) in a file of the site, in headers of the answer
and in the page. Any other value is a protocol error and leaves the reservation unset (section "tdm-reservation").
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from curation.manifest import Verdict
from curation.places import is_url, origin
from curation.rights.evidence import SiteFile
from curation.rights.page import Page
from curation.rights.raw import shown
from curation.rights.robots_txt import Pattern, target
from curation.rights.verdict import Observation

SIGNAL = "tdmrep"
_STATED = {"1": Verdict.DENY, "0": Verdict.ALLOW}


class _Rule(NamedTuple):
    """One object of the file; `pattern` is None where it cannot be told what it is about."""

    host: str | None  # where the location is a whole URL
    pattern: Pattern | None
    text: str
    verdict: Verdict


class TdmRep:
    """A site's `/.well-known/tdmrep.json`, ready to be asked about URLs (section "TDM File on the Origin Server").

    A site without the file says nothing, and neither does one that answers with a page of HTML: it then "does not
    implement this protocol". What is JSON in part, is no array, or did not come at all is an error.
    """

    def __init__(self, file: SiteFile) -> None:
        self._file = file
        self._rules: list[_Rule] = []
        self._fixed: list[Observation] | None = None  # the answer to every URL, where there are no rules
        if file.is_absent:
            self._fixed = []
        elif file.status != 200:
            self._fixed = [self._observation(file.detail or f"status {file.status}", Verdict.ERROR)]
        elif _is_page(file):
            self._fixed = [self._observation("a page of HTML, no tdmrep.json", Verdict.UNKNOWN)]
        elif file.truncated:
            self._fixed = [self._observation("too long to be read whole", Verdict.ERROR)]
        else:
            try:
                self._rules = _rules(file.body)
            except (ValueError, RecursionError) as error:
                self._fixed = [self._observation(f"malformed: {error}", Verdict.ERROR)]

    def observe(self, url: str) -> list[Observation]:
        """What the first rule that matches says; an empty list where none does.

        A rule whose location cannot be read might have been about this URL: it is an error where no rule before it
        matches, unless a later one denies.
        """
        if self._fixed is not None:
            return self._fixed
        path, host, unread = target(url), _host(url), None
        for rule in self._rules:
            if rule.pattern is None:
                unread = unread or rule
            elif (rule.host is None or rule.host == host) and rule.pattern.matches(path):
                if unread is None or rule.verdict is Verdict.DENY:
                    return [self._observation(rule.text, rule.verdict)]
                break
        return [] if unread is None else [self._observation(f"malformed rule: {unread.text}", Verdict.ERROR)]

    def _observation(self, value: str, verdict: Verdict) -> Observation:
        return Observation(SIGNAL, shown(value), self._file.url, verdict, self._file.observed_at)


def observe_headers(headers: Mapping[str, Sequence[str]], where: str) -> list[Observation]:
    """What an answer's `tdm-reservation` and `tdm-policy` say (section "TDM Header Field in HTTP Responses")."""
    stated = [part for line in headers.get("tdm-reservation", ()) for part in line.split(",")]
    return _observed(stated, list(headers.get("tdm-policy", ())), where)


def observe_page(page: Page, where: str) -> list[Observation]:
    """What a page's metas say (section "TDM Metadata in HTML Content").

    That is said of the page itself; by the protocol's notes on the technique it does not reach the pictures on it.
    """
    stated = [content for name, content in page.metas if name == "tdm-reservation"]
    return _observed(stated, [content for name, content in page.metas if name == "tdm-policy"], where)


def resolve(
    file: Sequence[Observation], header: Sequence[Observation], page: Sequence[Observation], *, of_page: bool = True
) -> list[Observation]:
    """The three steps in the protocol's order: a later one supersedes the earlier (section "Processing priority").

    Every observation is kept. Only those of the last step that states a valid 0 or 1 keep their verdict; what came
    before becomes `unknown`, its value begun with "overridden: ". So a denial that a later step takes back by an
    explicit 0 denies no more, which is the protocol's own rule. A step that says nothing resets nothing.

    Args:
        file: of `TdmRep.observe`.
        header: of `observe_headers`.
        page: of `observe_page`.
        of_page: whether the page is the resource itself. A page that only shows it takes nothing back: its 1 counts,
            its 0 does not.
    """
    steps = [list(file), list(header), list(page)]
    if not of_page:
        steps[2] = [_without_effect(o, "of the page alone: ") if o.verdict is Verdict.ALLOW else o for o in page]
    last = max((n for n, step in enumerate(steps[: 2 + of_page]) if any(_is_stated(o) for o in step)), default=0)
    return [
        _without_effect(observation, "overridden: ") if number < last else observation
        for number, step in enumerate(steps)
        for observation in step
    ]


def _is_stated(observation: Observation) -> bool:
    return observation.verdict in _STATED.values()


def _without_effect(observation: Observation, why: str) -> Observation:
    return observation._replace(value=shown(why + (observation.value or "")), verdict=Verdict.UNKNOWN)


def _observed(stated: Sequence[str], policies: Sequence[str], where: str) -> list[Observation]:
    """One observation of a step; of values that contradict each other the reservation counts."""
    values = {value.strip() for value in stated}
    if not values:
        return []
    verdict = Verdict.DENY if "1" in values else Verdict.ALLOW if values == {"0"} else Verdict.UNKNOWN
    return [Observation(SIGNAL, shown(_words(", ".join(sorted(values)), policies)), where, verdict)]


def _words(reservation: str, policies: Sequence[str]) -> str:
    policy = "".join(f"; tdm-policy: {p.strip()}" for p in policies[:2])
    return f"tdm-reservation: {reservation}{policy}"


def _is_page(file: SiteFile) -> bool:
    start = file.body[:1024].removeprefix(b"\xef\xbb\xbf").lstrip()
    return start.startswith(b"<") and "html" in (file.content_type or "html").lower()


def _rules(body: bytes) -> list[_Rule]:
    """The rules in the file's order. Raises ValueError or RecursionError when the file is no array in JSON."""
    found = json.loads(body, object_pairs_hook=_object)
    if not isinstance(found, list):
        raise ValueError("no array of rules")
    return [_rule(item) for item in found]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any] | None:
    """None for an object that names a thing twice: there is no telling which is meant."""
    named = dict(pairs)
    return named if len(named) == len(pairs) else None


def _rule(item: Any) -> _Rule:
    location = item.get("location") if isinstance(item, dict) else None
    if not isinstance(location, str) or not location.strip():
        seen = repr(item)[:1000] if isinstance(item, dict) else "no object, or one that names a thing twice"
        return _Rule(None, None, seen, Verdict.ERROR)
    location = location.strip()
    value, policy = item.get("tdm-reservation"), item.get("tdm-policy")
    text = "true" if value is True else "false" if value is False else str(value).strip()[:100]
    reservation = text.removesuffix(".0") if isinstance(value, float) else text
    words = f"{location[:200]}: {_words(text, [policy] if isinstance(policy, str) else [])}"
    path = location.partition("://")[2].partition("/")[2] if is_url(location) else location
    # `robots_txt` compares octets, one character each.
    pattern = Pattern(path.encode("utf-8", "replace").decode("latin-1") or "/")
    host = _host(location) if is_url(location) else None
    return _Rule(host, pattern, words, _STATED.get(reservation, Verdict.UNKNOWN))


def _host(url: str) -> str:
    """Host and port; not the scheme, since who writes http:// of a site means it by https://, too."""
    return (origin(url) or "").partition("://")[2]
