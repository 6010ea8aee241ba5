"""Cloudflare's Content Signals: the policy's text, its generator's forms, and what sites make of it."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.manifest import Verdict
from curation.rights.content_signals import observe, observe_headers, signalled
from curation.rights.robots import Robots
from curation.rights.verdict import combine
from tests.curation.rights.answers import AT, answer

ALLOW, DENY, UNKNOWN, ERROR = Verdict.ALLOW, Verdict.DENY, Verdict.UNKNOWN, Verdict.ERROR

SIGNALS = [
    # where it is from, the line's value, the verdict
    ("contentsignals.org example", "ai-train=no, search=yes, ai-input=no", DENY),
    ("blog.cloudflare.com, managed robots.txt", "search=yes,ai-train=no", DENY),
    ("policy (a): yes, you may", "ai-train=yes", ALLOW),
    ("policy (a): all three", "ai-train=yes, search=yes, ai-input=yes", ALLOW),
    ("policy (b): no, you may not", "ai-train=no", DENY),
    ("policy (c): left out, neither grants nor restricts", "search=yes, ai-input=yes", UNKNOWN),
    ("policy: search is not training", "search=no", UNKNOWN),
    ("policy: ai-input is not training", "ai-input=no", UNKNOWN),
    ("managed robots.txt of 2026, use", "search=yes,ai-train=no,use=reference", DENY),
    ("use: at most as a reference", "ai-train=yes, use=reference", UNKNOWN),
    ("use: at most at once", "ai-train=yes, use=immediate", UNKNOWN),
    ("use: in full", "ai-train=yes, use=full", ALLOW),
    ("use alone", "use=reference", UNKNOWN),
    ("in the wild: capitals", "AI-Train=NO", DENY),
    ("in the wild: capitals, permitting", "AI-TRAIN=YES, SEARCH=YES", ALLOW),
    ("in the wild: spaces", "search = yes , ai-train = no", DENY),
    ("in the wild: semicolons", "search=yes; ai-train=no", DENY),
    ("in the wild: underscore", "ai_train=no", DENY),
    ("in the wild: false", "ai-train=false", DENY),
    ("in the wild: true is not yes", "ai-train=true", ERROR),
    ("in the wild: n", "ai-train=n", DENY),
    ("in the wild: conditional", "ai-train=conditional", ERROR),
    ("no commas, a refusal to be read", "search=yes ai-train=no", DENY),
    ("no commas, no permission", "search=yes ai-train=yes", ERROR),
    ("a colon, a refusal to be read", "ai-train: no", DENY),
    ("a colon, no permission", "ai-train: yes", ERROR),
    ("a key alone", "ai-train", ERROR),
    ("a value alone", "=no", ERROR),
    ("no value", "ai-train=", ERROR),
    ("quoted", 'ai-train="no"', DENY),
    ("quoted, no permission", 'ai-train="yes"', ERROR),
    ("twice, the most restrictive", "ai-train=yes, ai-train=no", DENY),
    ("twice, in the other order", "ai-train=no, ai-train=yes", DENY),
    ("twice, one unreadable", "ai-train=yes, ai-train=maybe", ERROR),
    ("AIPREF's words", "train-ai=n", UNKNOWN),
    ("a longer word that begins with yes", "ai-train=yes-but", ERROR),
    ("empty", "", UNKNOWN),
    ("commas only", " , ,", UNKNOWN),
]


@pytest.mark.parametrize(("source", "text", "verdict"), SIGNALS, ids=[c[0] for c in SIGNALS])
def test_signals(source: str, text: str, verdict: Verdict) -> None:
    assert signalled(text) == verdict, source
    found = observe(Robots(answer(f"User-agent: *\nContent-Signal: {text}\nAllow: /"), "x"), "https://a.example/1.jpg")
    assert [(o.signal, o.where, o.verdict, o.observed_at) for o in found] == [
        ("content_signal", "https://a.example/robots.txt:2", verdict, AT)
    ]


MANAGED = """\
# As a condition of accessing this website, you agree to abide by the following content signals:
# Content-Signal: ai-train=yes
# BEGIN Cloudflare Managed content
User-agent: *
Content-Signal: search=yes,ai-train=no
Allow: /

User-agent: GPTBot
Disallow: /
# END Cloudflare Managed Content

User-agent: *
Disallow: /lp
"""
PATHS = (
    "User-Agent: *\nContent-Signal: /blog/ ai-train=no, search=yes\nContent-Signal: /blog/open ai-train=yes\nAllow: /\n"
)
KEPT = "User-agent: *\nContent-Signal: ai-train=no\nContent-Signal: /blog search=yes\n"
LINES = [
    # what it is, file, product token, path, verdicts
    ("Cloudflare's managed file", MANAGED, "x", "/lp", [DENY]),
    ("a path, below it", PATHS, "x", "/blog/1", [DENY]),
    ("a path, elsewhere", PATHS, "x", "/about", []),
    ("the longest path", PATHS, "x", "/blog/open/1", [ALLOW]),
    ("a longer path that leaves training out takes nothing back", KEPT, "x", "/blog/1", [DENY]),
    ("several lines", "User-agent: *\nContent-Signal: search=yes\nContent-Signal: ai-train=no", "x", "/", [DENY]),
    (
        "several that contradict",
        "User-agent: *\nContent-Signal: ai-train=yes\nContent-Signal: ai-train=no",
        "x",
        "/",
        [ALLOW, DENY],
    ),
    (
        "our own group",
        "User-agent: x\nContent-Signal: ai-train=no\n\nUser-agent: *\nContent-Signal: ai-train=yes",
        "x",
        "/",
        [DENY],
    ),
    ("our own group without it", "User-agent: x\nAllow: /\n\nUser-agent: *\nContent-Signal: ai-train=no", "x", "/", []),
    ("another's group", "User-agent: y\nContent-Signal: ai-train=no\nAllow: /", "x", "/", []),
    (
        "another's group of one line",
        "User-agent: y\nContent-Signal: ai-train=yes\nUser-agent: *\nAllow: /",
        "x",
        "/",
        [],
    ),
    ("above all groups, a refusal", "Content-Signal: ai-train=no\n\nUser-agent: *\nAllow: /", "x", "/", [DENY]),
    ("above all groups, no permission", "Content-Signal: ai-train=yes\n\nUser-agent: *\nAllow: /", "x", "/", [UNKNOWN]),
    (
        "permitted, but not to be crawled",
        "User-agent: *\nContent-Signal: ai-train=yes\nDisallow: /",
        "x",
        "/",
        [UNKNOWN],
    ),
    ("refused, and not to be crawled", "User-agent: *\nContent-Signal: ai-train=no\nDisallow: /", "x", "/", [DENY]),
    ("in a comment", "User-agent: *\n# Content-Signal: ai-train=no\nAllow: /", "x", "/", []),
    ("no such line", "User-agent: *\nAllow: /", "x", "/", []),
]


@pytest.mark.parametrize(("what", "body", "product", "path", "verdicts"), LINES, ids=[c[0] for c in LINES])
def test_lines_in_robots_txt(what: str, body: str, product: str, path: str, verdicts: list[Verdict]) -> None:
    found = observe(Robots(answer(body), product), f"https://a.example{path}")
    assert [o.verdict for o in found] == verdicts, what


@pytest.mark.parametrize(("status", "verdicts"), [(404, []), (500, [ERROR]), (None, [ERROR])])
def test_where_there_is_no_file(status: int | None, verdicts: list[Verdict]) -> None:
    found = observe(Robots(answer(MANAGED, status), "x"), "https://a.example/1.jpg")
    assert [o.verdict for o in found] == verdicts


def test_a_file_that_repeats_itself_is_heard_once() -> None:
    lines = ["Content-Signal: ai-train=yes", "Content-Signal: ai-train=no", "Disallow: /*x"] * 9000
    robots = Robots(answer("\n".join(["User-agent: *", *lines])), "x")
    begun = time.process_time()
    found = observe(robots, "https://a.example/")
    assert [(o.verdict, o.where) for o in found] == [
        (ALLOW, "https://a.example/robots.txt:2"),
        (DENY, "https://a.example/robots.txt:3"),
    ]
    assert time.process_time() - begun < 2


def test_the_header_of_pages_turned_into_markdown() -> None:
    found = observe_headers(["ai-train=yes, search=yes", "ai-input=yes"], "https://a.example/")
    assert found == [("content_signal", "ai-train=yes, search=yes, ai-input=yes", "https://a.example/", ALLOW, None)]
    assert observe_headers(["ai-train=yes", "ai-train=no"], "u")[0].verdict == DENY
    assert observe_headers([], "u") == []


LINE = st.lists(
    st.sampled_from(["ai-train=yes", "ai-train=no", "search=yes", "use=full", "ai-train=?", "nonsense"]), max_size=4
).map(", ".join)


@given(LINE)
def test_a_refusal_anywhere_denies(text: str) -> None:
    assert signalled(f"{text}, ai-train=no") == DENY
    assert signalled(f"ai-train=no, {text}") == DENY


@given(st.lists(LINE, max_size=4))
def test_another_refusal_in_robots_txt_never_permits(texts: list[str]) -> None:
    body = "\n".join(["User-agent: *", *(f"Content-Signal: {text}" for text in texts), "Content-Signal: ai-train=no"])
    assert combine(o.verdict for o in observe(Robots(answer(body), "x"), "https://a.example/")) == DENY


@settings(max_examples=400, deadline=None)
@given(st.binary(max_size=200))
def test_garbage_never_permits(data: bytes) -> None:
    squeezed = b"".join(data.lower().replace(b"_", b"-").split())
    if b"train=yes" not in squeezed:
        assert signalled(data.decode("latin-1")) != ALLOW
        body = b"User-agent: *\nContent-Signal: " + data
        assert all(o.verdict != ALLOW for o in observe(Robots(answer(body), "x"), "https://a.example/"))
