"""X-Robots-Tag and robots metas: the grammar by Google's specification, `noai` as DeviantArt and others use it.

Sections are those of developers.google.com/search/docs/crawling-indexing/robots-meta-tag.
"""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.manifest import Verdict
from curation.rights.page import Page
from curation.rights.robots_tags import observe_headers, observe_page

DENY, UNKNOWN = Verdict.DENY, Verdict.UNKNOWN
WHERE = "https://a.example/1.jpg"

HEADERS: list[tuple[str, list[str], list[Verdict]]] = [
    # what it is, header lines, verdicts
    ("noai", ["noai"], [DENY]),
    ("DeviantArt: both", ["noai, noimageai"], [DENY]),
    ("noimageai alone", ["noimageai"], [DENY]),
    ("noml (Noml.info)", ["noml"], [DENY]),
    ("Using the tag: rules are case-insensitive", ["NoAI"], [DENY]),
    ("upper case", ["NOIMAGEAI"], [DENY]),
    ("among others", ["noarchive, noai, nosnippet"], [DENY]),
    ("no space", ["noarchive,noai"], [DENY]),
    ("space around it", ["  noai\t"], [DENY]),
    ("X-Robots-Tag: several lines", ["noimageindex", "noai"], [UNKNOWN, DENY]),
    ("X-Robots-Tag: an agent's name, ours", ["cleanplate: noai"], [DENY]),
    ("ours in another case", ["CleanPlate: NOAI"], [DENY]),
    ("ours with a version", ["cleanplate/1.0: noai"], [DENY]),
    ("ours, a later rule", ["cleanplate: noindex, noai"], [DENY]),
    ("X-Robots-Tag: everybody", ["*: noai"], [DENY]),
    ("X-Robots-Tag: googlebot: nofollow", ["googlebot: nofollow"], [UNKNOWN]),
    ("X-Robots-Tag: another agent", ["otherbot: noai"], [UNKNOWN]),
    ("X-Robots-Tag: another agent's list", ["otherbot: noindex, noai"], [UNKNOWN]),
    ("before an agent's name", ["noai, otherbot: noindex"], [DENY]),
    ("several agents, ours among them", ["otherbot: noindex, cleanplate: noai"], [DENY]),
    ("datadiligence's example", ["demobot: noai, examplebot: noai, spawningbot: all"], [UNKNOWN]),
    ("a line for another, a line for all", ["otherbot: noai", "noai"], [UNKNOWN, DENY]),
    ("Rules: all", ["all"], [UNKNOWN]),
    ("Rules: index, follow", ["index, follow"], [UNKNOWN]),
    ("Rules: noindex is of indexing", ["noindex"], [UNKNOWN]),
    ("Rules: none is of indexing", ["none"], [UNKNOWN]),
    ("Rules: max-snippet:-1 names no agent", ["max-snippet:-1, noai"], [DENY]),
    ("Rules: max-image-preview", ["max-image-preview:large,noai"], [DENY]),
    ("Rules: max-video-preview", ["max-video-preview: -1, noai"], [DENY]),
    ("X-Robots-Tag: unavailable_after", ["unavailable_after: 25 Jun 2010 15:00:00 PST"], [UNKNOWN]),
    ("a date with a comma", ["unavailable_after: Friday, 25-Jun-10 15:00:00 PST, noai"], [DENY]),
    ("a time behind a comma names no agent", ["unavailable_after: Fri, 25 Jun 2010, 15:00:00, noai"], [DENY]),
    ("an ISO date", ["unavailable_after: 2030-01-01T00:00:00, noai"], [DENY]),
    ("behind an agent's date", ["otherbot: unavailable_after: Fri, 1 Jan 2030 00:00:00, noai"], [UNKNOWN]),
    ("inside a longer word", ["noairplanes, sonoai, noai2, noai-x"], [UNKNOWN]),
    ("a refusal with a value", ["noai: true"], [DENY]),
    ("a refusal with a value, of another agent", ["otherbot: noai: true"], [UNKNOWN]),
    ("a rule's name with a colon names no agent", ["noindex: , noai"], [DENY]),
    ("as a value", ["max-snippet: noai"], [UNKNOWN]),
    ("lists with spaces", ["noindex noai"], [DENY]),
    ("lists with semicolons", ["noindex; noai"], [DENY]),
    ("empty", [""], []),
    ("commas only", [",,,"], [UNKNOWN]),
    ("no header", [], []),
]


@pytest.mark.parametrize(("what", "values", "verdicts"), HEADERS, ids=[c[0] for c in HEADERS])
def test_what_headers_say(what: str, values: list[str], verdicts: list[Verdict]) -> None:
    found = observe_headers(values, WHERE, "cleanplate")
    assert [o.verdict for o in found] == verdicts, what
    assert [o.value for o in found] == [v.strip() for v in values if v.strip()]
    assert all(o.signal == "x_robots_tag" and o.where == WHERE for o in found)


@pytest.mark.parametrize("rule", ["noindex", "NOINDEX", "noimageindex", "none", "follow, none"])
def test_indexing_counts_where_the_job_says_so(rule: str) -> None:
    assert [o.verdict for o in observe_headers([rule], WHERE, "cleanplate")] == [UNKNOWN]
    assert [o.verdict for o in observe_headers([rule], WHERE, "cleanplate", indexing=True)] == [DENY]
    page = Page(f'<meta name="robots" content="{rule}">'.encode(), None)
    assert [o.verdict for o in observe_page(page, WHERE, "cleanplate")] == [UNKNOWN]
    assert [o.verdict for o in observe_page(page, WHERE, "cleanplate", indexing=True)] == [DENY]


METAS: list[tuple[str, str, list[Verdict]]] = [
    ("DeviantArt's", '<meta name="robots" content="noai, noimageai">', [DENY]),
    ("Using the tag: names are case-insensitive", '<META NAME="Robots" CONTENT="NOAI">', [DENY]),
    ("Using the tag: googlebot", '<meta name="googlebot" content="noai">', [DENY]),
    ("our product", '<meta name="CleanPlate" content="noai">', [DENY]),
    (
        "Using the tag: several",
        '<meta name="robots" content="all"><meta name="robots" content="noml">',
        [UNKNOWN, DENY],
    ),
    ("another agent", '<meta name="otherbot" content="noai">', []),
    ("all", '<meta name="robots" content="all">', [UNKNOWN]),
    ("values", '<meta name="robots" content="max-image-preview:large, noai">', [DENY]),
    ("unquoted", "<meta name=robots content=noai>", [DENY]),
    ("the content first", '<meta content="noai" name="robots"/>', [DENY]),
    ("a longer word", '<meta name="robots" content="noairplanes">', [UNKNOWN]),
    ("a comment", '<!-- <meta name="robots" content="noai"> -->', []),
    ("no content", '<meta name="robots">', []),
    ("a character reference", '<meta name="robots" content="no&#97;i">', [DENY]),
]


@pytest.mark.parametrize(("what", "html", "verdicts"), METAS, ids=[c[0] for c in METAS])
def test_what_metas_say(what: str, html: str, verdicts: list[Verdict]) -> None:
    found = observe_page(Page(html.encode(), None), WHERE, "CleanPlate")
    assert [o.verdict for o in found] == verdicts, what
    assert all(o.signal == "meta_robots" for o in found)


def test_evidence_of_a_long_line_still_names_the_refusal() -> None:
    (found,) = observe_headers(["x" * 900 + ", noai"], WHERE, "cleanplate")
    assert found.verdict == DENY
    assert (found.value or "").startswith("noai in x")
    assert len(found.value or "") <= 500


RULES = st.lists(st.sampled_from(["all", "noindex", "noai", "NoML", "max-snippet:-1", "noarchive", "x"]), max_size=6)


@settings(deadline=None)
@given(RULES)
def test_how_rules_are_split_over_lines_does_not_matter(rules: list[str]) -> None:
    denied = any(rule.lower() in ("noai", "noml") for rule in rules)
    for lines in (rules, [", ".join(rules)], [",".join(rules[:2]), ", ".join(rules[2:])]):
        assert any(o.verdict == DENY for o in observe_headers(lines, WHERE, "cleanplate")) == denied


@settings(deadline=None)
@given(RULES, st.booleans())
def test_another_refusal_denies_and_nothing_permits(rules: list[str], indexing: bool) -> None:
    found = observe_headers([*rules, "noai"], WHERE, "cleanplate", indexing)
    assert any(o.verdict == DENY for o in found)
    assert all(o.verdict in (DENY, UNKNOWN) for o in found)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text(max_size=80), max_size=4), st.text(max_size=10))
def test_garbage_never_permits(values: list[str], product: str) -> None:
    found = observe_headers(values, WHERE, product, indexing=True)
    assert all(o.verdict in (DENY, UNKNOWN) for o in found)
    for o in found:
        (o.value or "").encode()  # can be stored


@pytest.mark.parametrize("piece", ["a:", ",", "noai,", "a: b,", ": ", "unavailable_after:", "a" * 50, " "])
def test_hostile_lines_take_no_time(piece: str) -> None:
    before = time.process_time()
    observe_headers([piece * (2**20 // len(piece))], WHERE, "cleanplate")
    assert time.process_time() - before < 3
