"""`X-Robots-Tag` headers and robots metas: `noai`, `noimageai` (DeviantArt, 2022), `noml`, and the indexing rules.

The grammar is the one that Google documents ("Robots meta tag, data-nosnippet, and X-Robots-Tag specifications"): lists
with commas, any case, repeatable, and in headers an agent's name before the rules that are for it alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from curation.manifest import Verdict
from curation.rights.page import Page
from curation.rights.raw import LIMIT, shown
from curation.rights.verdict import Observation

_OF_AI = frozenset({"noai", "noimageai", "noml"})
_OF_INDEXING = frozenset({"noindex", "noimageindex", "none"})
# Rules that have a value, which is not to be taken for an agent's.
_VALUED = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})
# A refusal with a value that no grammar has, `noai: true`, is one all the same, and no agent's name.
_RULES = _OF_AI | _OF_INDEXING
_BEFORE_COLON = re.compile(r"\s*([A-Za-z*_][^\s:,]*)\s*:")


def observe_headers(values: Sequence[str], where: str, product: str, indexing: bool = False) -> list[Observation]:
    """What an answer's `X-Robots-Tag` headers say, an observation for every line.

    Rules for another agent are kept as evidence and decide nothing. No rule is ever a permission: `all` says that a
    picture may be shown in results.

    Args:
        values: of every header line.
        where: the URL that answered.
        product: our product token.
        indexing: whether `noindex`, `noimageindex` and `none` refuse training, too.
    """
    denying = _OF_AI | _OF_INDEXING if indexing else _OF_AI
    return [
        _observation("x_robots_tag", line, where, sorted(set(_words_for(product, line)) & denying))
        for line in values
        if line.strip()
    ]


def observe_page(page: Page, where: str, product: str, indexing: bool = False) -> list[Observation]:
    """What a page's metas named `robots`, `googlebot` or after our product say; see `observe_headers`.

    What is said to Googlebot about AI counts, since it has no such rule of its own: whoever writes it means all.
    """
    denying = _OF_AI | _OF_INDEXING if indexing else _OF_AI
    names = {"robots", "googlebot", product.lower()}
    return [
        _observation("meta_robots", content, where, sorted(set(_words(content)) & denying), f"{name}: ")
        for name, content in page.metas
        if name in names and content.strip()
    ]


def _observation(signal: str, line: str, where: str, refusals: list[str], prefix: str = "") -> Observation:
    text = prefix + line
    if refusals and len(text) > LIMIT:
        text = f"{', '.join(refusals)} in {text}"
    return Observation(signal, shown(text), where, Verdict.DENY if refusals else Verdict.UNKNOWN)


def _words_for(product: str, line: str) -> Iterator[str]:
    """The rules of a header line that are for us: those before any agent's name, and those behind ours or `*`."""
    ours = True
    for part in line.split(","):
        name = _BEFORE_COLON.match(part)
        if name and name[1].lower() not in _VALUED | _RULES:
            ours = name[1].partition("/")[0].lower() in ("*", product.lower())
            part = part[name.end() :]
        if ours:
            yield from _words(part)


def _words(rules: str) -> Iterator[str]:
    """The single rules of a list; those that have a value are left out with it, unless they refuse."""
    for rule in rules.split(","):
        name, valued, _ = rule.lower().partition(":")
        if not valued:
            yield from name.replace(";", " ").split()
        elif name.strip() in _RULES:
            yield name.strip()
