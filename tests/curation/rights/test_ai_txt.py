"""Spawning's ai.txt: what its generator writes, what sites write by hand, and what else bears its name."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.manifest import Verdict
from curation.rights.ai_txt import AiTxt
from curation.rights.verdict import Observation
from tests.curation.rights.answers import AT, answer

ALLOW, DENY, UNKNOWN, ERROR = Verdict.ALLOW, Verdict.DENY, Verdict.UNKNOWN, Verdict.ERROR

# As generated, everything opted out (github.com/davewragg/davewragg.github.io), and images opted in.
HEAD = "# Spawning AI\n# Prevent datasets from using the following file types\n\nUser-Agent: *\n"
ALL_OUT = (
    HEAD
    + "Disallow: *.txt\nDisallow: *.html\nDisallow: *.jpg\nDisallow: *.c\nDisallow: *.h\nDisallow: /\nDisallow: *\n"
)
IMAGES_IN = HEAD + "Disallow: *.txt\nAllow: *.jpg\nAllow: *.png\nDisallow: *.mp3\nDisallow: *.c\nDisallow: *.h\n"
IMAGES_OUT = HEAD + "Disallow: *.jpg\nDisallow: *.png\nAllow: *.txt\nAllow: /\n"
SHORT = HEAD + "Disallow: /\nDisallow: *\n"
PAGE = "<!DOCTYPE html>\n<html><body>Not found. We disallow nothing.</body></html>"
MARKDOWN = "---\nname: Shop\n---\n# About us\nWe sell stamps: all of them.\n"
POLICY = "# ai.txt\nSpec-Version: 1.0\nSite-Name: My Blog\nTraining: deny\n"

CASES: list[tuple[str, str | bytes, str, list[Verdict]]] = [
    # what it is, file, path, verdicts
    ("generated, all out: a picture", ALL_OUT, "/a.jpg", [DENY]),
    ("generated, all out: a type not listed", ALL_OUT, "/a.avif", [DENY]),
    ("generated, all out: no type", ALL_OUT, "/picture", [DENY]),
    ("generated, images in: jpg", IMAGES_IN, "/a.jpg", [ALLOW]),
    ("generated, images in: in a folder", IMAGES_IN, "/x/y/a.png", [ALLOW]),
    ("generated, images in: any case", IMAGES_IN, "/A.JPG", [ALLOW]),
    ("generated, images in: with a query", IMAGES_IN, "/a.jpg?w=100", [ALLOW]),
    ("generated, images in: text is out", IMAGES_IN, "/a.txt", [DENY]),
    ("generated, images in: a type not listed", IMAGES_IN, "/a.gif", [UNKNOWN]),
    ("generated, images in: .jpg in the middle permits nothing", IMAGES_IN, "/a.jpg/b", [UNKNOWN]),
    ("generated, images in: .jpg in a query permits nothing", IMAGES_IN, "/get?file=a.jpg", [UNKNOWN]),
    ("generated, images in: *.c is not *.com", IMAGES_IN, "/x.com/a", [UNKNOWN]),
    ("generated, images in: *.h is not *.html", IMAGES_IN, "/a.html", [UNKNOWN]),
    ("generated, images out", IMAGES_OUT, "/a.jpg", [DENY]),
    ("generated, images out: any case", IMAGES_OUT, "/a.Jpg", [DENY]),
    ("generated, images out: the type in a query", IMAGES_OUT, "/get?file=a.jpg&w=1", [DENY]),
    ("generated, images out: what is left is in", IMAGES_OUT, "/a.gif", [ALLOW]),
    ("the short form", SHORT, "/a.jpg", [DENY]),
    ("a star", "User-Agent: *\nDisallow: *", "/a.jpg", [DENY]),
    ("a tie is a refusal", "User-Agent: *\nAllow: /\nDisallow: /", "/a.jpg", [DENY]),
    ("a tie is a refusal, types", "User-Agent: *\nAllow: *.jpg\nDisallow: *.jpg", "/a.jpg", [DENY]),
    ("the longest wins", "User-Agent: *\nDisallow: /\nAllow: /open/", "/open/a.jpg", [ALLOW]),
    ("the longest wins, in any order", "User-Agent: *\nAllow: /open/\nDisallow: /", "/open/a.jpg", [ALLOW]),
    ("a path", "User-Agent: *\nDisallow: /art/", "/art/a.jpg", [DENY]),
    ("another path", "User-Agent: *\nDisallow: /art/", "/b.jpg", [UNKNOWN]),
    ("all in", "User-Agent: *\nAllow: /\n", "/a.jpg", [ALLOW]),
    ("an empty rule", "User-Agent: *\nDisallow:\n", "/a.jpg", []),
    ("a path without its slash permits nothing", "User-Agent: *\nAllow: art", "/art", []),
    ("others are named", "User-Agent: GPTBot\nDisallow: /\n", "/a.jpg", []),
    ("above all groups, a refusal", "Disallow: /\n", "/a.jpg", [DENY]),
    ("above all groups, no permission", "Allow: /\n", "/a.jpg", []),
    ("several groups", "User-Agent: *\nAllow: /\n\nUser-Agent: *\nDisallow: *.jpg", "/a.jpg", [DENY]),
    ("CRLF", "User-Agent: *\r\nDisallow: *.jpg\r\n", "/a.jpg", [DENY]),
    ("a byte order mark", "\ufeffUser-Agent: *\nDisallow: *.jpg", "/a.jpg", [DENY]),
    ("UTF-16", "User-Agent: *\nDisallow: *.jpg".encode("utf-16"), "/a.jpg", [DENY]),
    ("Latin-1 in a comment", b"# \xe9\nUser-Agent: *\nDisallow: *.jpg", "/a.jpg", [DENY]),
    ("an error page", PAGE, "/a.jpg", []),
    ("Markdown, as aitxt.ing has it", MARKDOWN, "/a.jpg", []),
    ("keys and values, as draft-car-ai-txt has it", POLICY, "/a.jpg", []),
    ("JSON", '{"user-agent": "*", "allow": "/"}', "/a.jpg", []),
    ("empty", "", "/a.jpg", []),
    ("a page with rules in it", f"<html><pre>\nUser-Agent: *\nDisallow: /\n</pre>{PAGE}", "/a.jpg", [ERROR]),
    ("a page with a permission in it", "<html>\nUser-Agent: *\nAllow: /\n", "/a.jpg", []),
    ("garbage with refusals", b"\x00\x01User-Agent: *\nDisallow: /\n\xff\xfe", "/a.jpg", [ERROR]),
    ("garbage with permissions", b"\x00\x01\nUser-Agent: *\nAllow: /\n\xff\xfe", "/a.jpg", []),
    ("UTF-16 that does not say so", "User-Agent: *\nDisallow: /".encode("utf-16-le"), "/a.jpg", [ERROR]),
    ("a picture", b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR", "/a.jpg", []),
]


@pytest.mark.parametrize(("what", "body", "path", "verdicts"), CASES, ids=[c[0] for c in CASES])
def test_what_files_say(what: str, body: str | bytes, path: str, verdicts: list[Verdict]) -> None:
    found = AiTxt(answer(body, name="ai.txt")).observe(f"https://a.example{path}")
    assert [o.verdict for o in found] == verdicts, what
    assert all(o.signal == "ai_txt" and o.observed_at == AT for o in found)


@pytest.mark.parametrize(
    ("status", "detail", "found"),
    [
        (404, None, []),
        (403, None, []),
        (204, None, []),
        (500, None, [("unreachable: 500", ERROR)]),
        (429, None, [("unreachable: 429", ERROR)]),
        (302, None, [("unreachable: 302", ERROR)]),
        (None, "timeout", [("unreachable: timeout", ERROR)]),
    ],
)
def test_what_an_answer_means(status: int | None, detail: str | None, found: list[tuple[str, Verdict]]) -> None:
    file = AiTxt(answer(b"", status, name="ai.txt", detail=detail))
    assert [(o.value, o.verdict) for o in file.observe("https://a.example/a.jpg")] == found


def test_evidence_names_the_line() -> None:
    found = AiTxt(answer(IMAGES_IN, name="ai.txt")).observe("https://a.example/a.jpg")
    assert found == [Observation("ai_txt", "Allow: *.jpg", "https://a.example/ai.txt:6", ALLOW, AT)]


def test_a_group_of_our_own() -> None:
    body = "User-Agent: cleanplate\nAllow: /\n\nUser-Agent: *\nDisallow: /\n"
    assert AiTxt(answer(body), "cleanplate").observe("https://a.example/a.jpg")[0].verdict == ALLOW
    assert AiTxt(answer(body)).observe("https://a.example/a.jpg")[0].verdict == DENY


RULES = st.lists(
    st.tuples(st.sampled_from(["Allow", "Disallow"]), st.sampled_from(["/", "*", "*.jpg", "/a", "/a/*.jpg", "*.png"])),
    max_size=6,
).map(lambda rules: "\n".join(["User-Agent: *", *(f"{field}: {path}" for field, path in rules)]))
URLS = st.sampled_from(
    ["https://a.example/a.jpg", "https://a.example/a/b.jpg?x=.png", "https://a.example/", "https://a"]
)


@given(RULES, st.sampled_from(["/", "*", "*.jpg", "/a", "*.gif"]), URLS)
def test_another_refusal_never_permits(body: str, path: str, url: str) -> None:
    before = [o.verdict for o in AiTxt(answer(body)).observe(url)]
    after = [o.verdict for o in AiTxt(answer(f"{body}\nDisallow: {path}")).observe(url)]
    assert before == [ALLOW] or after != [ALLOW]


@settings(max_examples=400, deadline=None)
@given(st.binary(max_size=300), st.text(max_size=60))
def test_garbage_never_permits(body: bytes, url: str) -> None:
    if b"allow:" not in body.lower().replace(b"disallow:", b""):
        for prefix in (b"", b"User-Agent: *\n", b"User-Agent: *\nDisallow: /x\n"):
            assert all(o.verdict != ALLOW for o in AiTxt(answer(prefix + body)).observe(url))
