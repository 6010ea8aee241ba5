"""Pages: what a browser takes for a meta, a link or a script, and what it does not (HTML standard, section 13.2)."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.rights.page import LIMIT, Page

META = '<meta name="a" content="b">'

METAS: list[tuple[str, str, list[tuple[str, str]]]] = [
    ("plain", META, [("a", "b")]),
    ("by property", '<meta property="og:A" content="B">', [("og:a", "B")]),
    ("by both", "<meta name=a property=b content=c>", [("a", "c"), ("b", "c")]),
    ("13.2.5.33: any case, single quotes", "<META NaMe='A' CONTENT='B'>", [("a", "B")]),
    ("13.2.5.38: unquoted", "<meta name=a content=b/>", [("a", "b/")]),
    ("13.2.5.40: self-closing", "<meta name='a' content='b'/>", [("a", "b")]),
    ("13.2.5.32: no space between", "<meta name='a'content='b'>", [("a", "b")]),
    ("13.2.5.32: slashes between", "<meta/name='a'/content='b'>", [("a", "b")]),
    ("13.2.5.33: lines and spaces", "<meta\n name \t= 'a'\r\n content\n=\n'b'\n>", [("a", "b")]),
    ("13.2.5.33: the first of a name counts", "<meta name=a name=x content=b content=y>", [("a", "b")]),
    ("13.2.5.36: > inside quotes", '<meta name="a" content="x > y">', [("a", "x > y")]),
    ("13.2.5.72: character references", "<meta name=a content='&lt;&#98;&gt;&amp;c'>", [("a", "<b>&c")]),
    ("a reference of 5,000 digits", f"<meta name=a content='&#{'9' * 5000};'>", [("a", f"&#{'9' * 5000};")]),
    ("13.2.5.43: comments", f"<!-- {META} -->{META.replace('b', 'c')}", [("a", "c")]),
    ("13.2.5.43: <!--> is a whole comment", f"<!-->{META}", [("a", "b")]),
    ("13.2.5.44: <!---> is a whole comment", f"<!--->{META}", [("a", "b")]),
    ("13.2.5.51: --!> ends one, too", f"<!-- x --!>{META}", [("a", "b")]),
    ("13.2.5.45: one that does not end", f"<!-- {META}", []),
    ("13.2.5.41: bogus comments", f"<?xml {META[1:]}{META}<!x>{META}</ x>", [("a", "b"), ("a", "b")]),
    ("13.2.5.6: < in text", f"1 < 2 <{META}", [("a", "b")]),
    ("13.2.5.15: inside a script", f"<script>'{META}'</script>{META}", [("a", "b")]),
    ("13.2.5.14: inside a style", f"<style>{META}</STYLE >{META}", [("a", "b")]),
    ("13.2.5.2: inside a title", f"<title>{META}</title>", []),
    ("13.2.5.2: inside a textarea", f"<textarea>{META}</textareas>{META}</textarea>{META}", [("a", "b")]),
    ("13.2.5.5: behind plaintext", f"<plaintext>{META}", []),
    ("a script that does not end", f"<script>{META}", []),
    ("13.2.5.32: a tag that does not end", "<meta name=a content=b", []),
    ("13.2.5.36: a quote that does not end", "<meta name=a content='b>", []),
    ("inside noscript, which we see", f"<noscript>{META}</noscript>", [("a", "b")]),
    ("end tags have no attributes", "</meta name=a content=b>", []),
    ("another element", "<metal name=a content=b>", []),
    ("no content", "<meta name=a>", [("a", "")]),
    ("<![CDATA[ is no more than a bogus comment", f"<![CDATA[ {META}]]>{META}", [("a", "b")]),
]


@pytest.mark.parametrize(("what", "html", "metas"), METAS, ids=[c[0] for c in METAS])
def test_metas(what: str, html: str, metas: list[tuple[str, str]]) -> None:
    assert Page(html.encode(), None).metas == metas, what


def test_links_scripts_and_base() -> None:
    page = Page(
        b"""<head><base href="/x/"><base href="/y/">
        <link rel="License NoFollow" href=" l.xml " type="application/rsl+xml"><link rel=icon href=i.png>
        <script>code()</script><script TYPE="application/RSL+xml"><rsl/></script><script type=module></script>""",
        "text/html",
    )
    assert page.base == "/x/"
    assert page.links == [("license nofollow", "l.xml", "application/rsl+xml"), ("icon", "i.png", "")]
    assert page.scripts == [("application/rsl+xml", "<rsl/>"), ("module", "")]


E_ACUTE = '<meta name="a" content="é">'


@pytest.mark.parametrize(
    ("data", "content_type"),
    [
        (E_ACUTE.encode(), None),
        (E_ACUTE.encode(), "text/html; charset=utf-8"),
        (E_ACUTE.encode("latin-1"), "text/html; charset=iso-8859-1"),
        (E_ACUTE.encode("latin-1"), 'text/html; Charset="windows-1252"'),
        (b'<meta charset="iso-8859-1">' + E_ACUTE.encode("latin-1"), None),
        (b'<meta http-equiv="Content-Type" content="text/html; charset=latin1">' + E_ACUTE.encode("latin-1"), None),
        (b'<meta charset="iso-8859-1">' + E_ACUTE.encode(), "text/html; charset=utf-8"),
        (b"\xef\xbb\xbf" + E_ACUTE.encode(), "text/html; charset=iso-8859-1"),
        (E_ACUTE.encode("utf-16"), None),
        (b'<meta charset="utf-16">' + E_ACUTE.encode(), None),  # 13.2.3.2: it would not have been found
        (b'<meta charset="rot13">' + E_ACUTE.encode(), None),
        (b'<meta charset="unicode_escape">' + E_ACUTE.encode(), "text/html; charset=zip"),
    ],
)
def test_charsets(data: bytes, content_type: str | None) -> None:
    assert ("a", "é") in Page(data, content_type).metas


def test_bytes_that_are_no_text_are_replaced() -> None:
    assert Page(b'<meta name="a" content="\xff\xfe">', None).metas == [("a", "��")]


def test_only_the_beginning_is_read() -> None:
    page = Page(META.encode() + b" " * LIMIT + META.encode(), None)
    assert page.metas == [("a", "b")]


@settings(max_examples=300, deadline=None)
@given(
    st.binary(max_size=300) | st.text("<>!-/='\" &#;ametscriplnk", max_size=200).map(str.encode), st.text(max_size=60)
)
def test_nothing_stops_it(data: bytes, content_type: str) -> None:
    page = Page(data, content_type)
    assert len(page.metas) <= 2 * data.lower().count(b"m")


@settings(max_examples=200, deadline=None)
@given(st.text("<>!-/='\" &#;abc", max_size=80))
def test_what_stands_behind_a_meta_does_not_undo_it(text: str) -> None:
    assert Page((META + text).encode(), None).metas[:1] == [("a", "b")]


PIECES = [
    "<",
    "<a ",
    "<a b=",
    "<!--",
    "<!",
    "<?",
    "</",
    "</a",
    "<![CDATA[",
    "<script>",
    '<a b="',
    "<a '",
    "<a /",
    "<a =",
]
PIECES += ["&", "&#", "<b>", "<textarea>", "<title><!--", "<a a=&#x", "=", "/", " ", '"', "<meta name=a content=b>"]


@pytest.mark.parametrize("before", ["", "<script>", "<!--", "<a b='", "<title>"])
def test_hostile_pages_take_no_time(before: str) -> None:
    begun = time.process_time()
    for piece in PIECES:
        Page((before + piece * (LIMIT // 4 // len(piece))).encode(), None)
    assert time.process_time() - begun < 8
