"""RSL 1.0 (10 December 2025) and RFC 8288: the rules and examples of their sections."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.manifest import Verdict
from curation.rights.page import Page
from curation.rights.rsl import NAMESPACE, Rsl, links_of_headers, links_of_page, observe_page
from curation.rights.verdict import Observation
from tests.curation.rights.answers import AT, answer

ALLOW, DENY, UNKNOWN, ERROR = Verdict.ALLOW, Verdict.DENY, Verdict.UNKNOWN, Verdict.ERROR


def rsl(*contents: str, xmlns: str = f' xmlns="{NAMESPACE}"') -> str:
    return f"<rsl{xmlns}>{''.join(contents)}</rsl>"


def content(*licences: str, url: str = "/", more: str = "") -> str:
    return f'<content url="{url}"{more}>{"".join(f"<license>{each}</license>" for each in licences)}</content>'


def one(terms: str, **more: str) -> str:
    return rsl(content(terms, **more))


def permits(usage: str) -> str:
    return f'<permits type="usage">{usage}</permits>'


def prohibits(usage: str) -> str:
    return f'<prohibits type="usage">{usage}</prohibits>'


FREE = '<payment type="free"/>'
TRAIN = permits("ai-train")
PREFIXED = one(TRAIN).replace("<", "<r:").replace("<r:/", "</r:").replace("xmlns=", "xmlns:r=")
METADATA = (
    '<schema>{}</schema><copyright type="person">A</copyright><terms>u</terms><alternate type="a/b">u</alternate>'
)

CASES: list[tuple[str, str, str, list[Verdict]]] = [
    # section and what it is, document, path, verdicts
    ("3.4.1.1: ai-train", one(TRAIN), "/a.jpg", [ALLOW]),
    ("3.4.1.1: ai-all includes it", one(permits("ai-all")), "/a.jpg", [ALLOW]),
    ("3.4.1.1: all includes it", one(permits("all")), "/a.jpg", [ALLOW]),
    ("3.4.1.1: ai-input does not", one(permits("ai-input")), "/a.jpg", [DENY]),
    ("3.4.1.1: ai-index and search do not", one(permits("ai-index search")), "/a.jpg", [DENY]),
    ("3.5: values are separated by spaces", one(permits(" search \n ai-train ")), "/a.jpg", [ALLOW]),
    ("3.5: the list is closed", one(permits("search ai-input") + FREE), "/a.jpg", [DENY]),
    ("3.5: an empty list permits nothing", one(permits("")), "/a.jpg", [DENY]),
    ("3.5: a permission in another case is none", one(permits("AI-Train")), "/a.jpg", [DENY]),
    ("3.5: no list restricts nothing, and states nothing", one(FREE), "/a.jpg", [UNKNOWN]),
    ("3.5: an empty licence", one(""), "/a.jpg", [UNKNOWN]),
    ("3.6: ai-train", one(prohibits("ai-train")), "/a.jpg", [DENY]),
    ("3.6: ai-all", one(prohibits("ai-all")), "/a.jpg", [DENY]),
    ("3.6: all", one(prohibits("all")), "/a.jpg", [DENY]),
    ("3.6: in any case", one(prohibits("AI-TRAIN")), "/a.jpg", [DENY]),
    ("3.6: search alone says nothing of training", one(prohibits("search")), "/a.jpg", [UNKNOWN]),
    ("3.6: other uses of AI say nothing of training", one(prohibits("ai-input ai-index")), "/", [UNKNOWN]),
    ("drafts: ai-use", one(prohibits("ai-use")), "/a.jpg", [DENY]),
    ("3.6: it beats a permission", one(permits("ai-all") + prohibits("ai-train")), "/a.jpg", [DENY]),
    ("3.6: it beats a permission, other order", one(prohibits("ai-train") + permits("all")), "/a.jpg", [DENY]),
    ("park.fan's: search yes, training no", one(permits("search ai-input") + prohibits("ai-train")), "/", [DENY]),
    ("drafts: train-ai", one(prohibits("train-ai")), "/a.jpg", [DENY]),
    ("drafts: commas", one(prohibits("search,train-genai")), "/a.jpg", [DENY]),
    ("3.7: free", one(TRAIN + FREE), "/a.jpg", [ALLOW]),
    ("3.7: without a type and anything in it", one(TRAIN + "<payment/>"), "/a.jpg", [ALLOW]),
    *((f"3.7: {kind}", one(f'{TRAIN}<payment type="{kind}"/>'), "/a.jpg", [DENY]) for kind in (
        *("purchase", "subscription", "training", "crawl", "use", "contribution", "attribution", "later", "FREE", ""),
    )),
    ("3.7: an amount", one(TRAIN + '<payment><amount currency="USD">0.015</amount></payment>'), "/", [DENY]),
    ("3.7: a shared licence", one(TRAIN + "<payment type='free'><standard>u</standard></payment>"), "/", [DENY]),
    ("3.7: a licence of its own", one(TRAIN + "<payment><custom>u</custom></payment>"), "/", [DENY]),
    ("3.7: payment for all uses", one('<payment type="crawl"/>'), "/a.jpg", [DENY]),
    ("3.7: payment for another use", one(permits("search") + '<payment type="crawl"/>'), "/", [DENY]),
    ("the collective's royalty.xml", one(permits("ai-all") + '<payment type="use"><standard>u</standard></payment>',
        more=' server="https://api.rslcollective.org"'), "/", [DENY]),
    ("3.4.1.2: users", one(TRAIN + '<permits type="user">education</permits>'), "/", [DENY]),
    ("3.4.1.2: no commercial users", one(TRAIN + '<prohibits type="user">commercial</prohibits>'), "/", [DENY]),
    ("3.4.1.3: countries", one(TRAIN + '<permits type="geo">US EU</permits>'), "/", [DENY]),
    ("3.5: a type of later", one(TRAIN + '<permits type="moon">full</permits>'), "/", [DENY]),
    ("3.12: reporting", one(TRAIN + '<reporting type="audit" profile="u"/>'), "/", [DENY]),
    ("3.13: legal terms are no condition", one(TRAIN + '<legal type="warranty">ownership</legal>'), "/", [ALLOW]),
    ("3.3: a licence server", one(TRAIN, more=' server="https://l.example"'), "/a.jpg", [DENY]),
    ("3.3: encrypted", one(TRAIN, more=' encrypted="true"'), "/a.jpg", [DENY]),
    ("3.3: not encrypted", one(TRAIN, more=' encrypted="false" lastmod="2026-01-01T00:00:00Z"'), "/a.jpg", [ALLOW]),
    ("3.4: two offers, one of them free", rsl(content(permits("search"), TRAIN + FREE)), "/", [ALLOW]),
    ("3.4: two offers, training for credit", rsl(content(permits("search") + FREE,
        TRAIN + '<payment type="attribution"/>')), "/", [DENY]),
    ("3.4: two offers that contradict", rsl(content(TRAIN, prohibits("ai-train"))), "/", [DENY]),
    ("3.3: another path", one(TRAIN, url="/art/"), "/a.jpg", []),
    ("3.3: a path", one(prohibits("all"), url="/art/"), "/art/a.jpg", [DENY]),
    ("3.3: * and $ of RFC 9309", one(prohibits("all"), url="/*.jpg$"), "/art/a.jpg", [DENY]),
    ("3.3: $ is the end", one(prohibits("all"), url="/*.jpg$"), "/art/a.jpg?w=1", []),
    ("3.3: the URL may be empty", one(prohibits("all"), url=""), "/a.jpg", [DENY]),
    ("4.9: the more specific", rsl(content(prohibits("all")), content(TRAIN, url="/open/")), "/open/a", [ALLOW]),
    ("4.9: the broader elsewhere", rsl(content(prohibits("all")), content(TRAIN, url="/open/")), "/a", [DENY]),
    ("4.9: in any order", rsl(content(prohibits("all"), url="/art/"), content(TRAIN)), "/art/a", [DENY]),
    ("4.9: equally specific, most restrictive", rsl(content(TRAIN), content(prohibits("all"))), "/a", [DENY]),
    ("drafts: whole URLs", one(prohibits("all"), url="https://a.example/*"), "/a", [DENY]),
    ("drafts: whole URLs by the other scheme", one(prohibits("all"), url="http://A.example/"), "/a", [DENY]),
    ("drafts: of another host", one(prohibits("all"), url="https://b.example/"), "/a", []),
    ("3.1: extensions are passed over", one(TRAIN + '<y xmlns="u"><permits type="geo">US</permits></y>'), "/", [ALLOW]),
    ("3.1: also in a list", one(permits('search<x:y xmlns:x="u"> ai-train</x:y>')), "/", [DENY]),
    ("3.1: an element that is not known", one(TRAIN + "<moon/>"), "/", [ERROR]),
    ("3.1: it does not save a prohibition", one(prohibits("all") + "<moon/>"), "/", [DENY]),
    ("3.1: no namespace permits nothing", rsl(content(TRAIN), xmlns=""), "/", [ERROR]),
    ("3.1: no namespace still prohibits", rsl(content(prohibits("all")), xmlns=""), "/", [DENY]),
    ("3.1: prefixes", PREFIXED, "/", [ALLOW]),
    ("3.2: no content", rsl(), "/", [ERROR]),
    ("3.2: a content without a license", rsl('<content url="/"/>'), "/", [ERROR]),
    ("3.2: a license in no content", rsl(f"<license>{TRAIN}</license>"), "/", [ERROR]),
    ("3.2: a content without a url", one(TRAIN).replace('url="/"', ""), "/", [ERROR]),
    ("3.2: a url that is none prohibits", one(prohibits("all"), url="art/"), "/b", [DENY]),
    ("3.2: a url that is none permits nothing", one(TRAIN, url="art/"), "/art/b", [ERROR]),
    ("3.5: permits without a type", one("<permits>ai-train</permits>"), "/", [ERROR]),
    ("3.3: metadata is no condition", one(TRAIN).replace("<license>", METADATA + "<license>"), "/", [ALLOW]),
    ("XML: a DTD", f"<!DOCTYPE rsl [<!ENTITY a 'ai-train'>]>{one(permits('&a;'))}", "/", [ERROR]),
    ("XML: an unknown entity", one(permits("&train;")), "/", [ERROR]),
    ("XML: not well-formed", one(TRAIN)[:-1], "/", [ERROR]),
    ("XML: twice a root", one(TRAIN) * 2, "/", [ERROR]),
    ("XML: a declaration", f'<?xml version="1.0" encoding="UTF-8"?>\n{one(TRAIN)}', "/", [ALLOW]),
    ("XML: an encoding that is none", f'<?xml version="1.0" encoding="rot13"?>{one(TRAIN)}', "/", [ERROR]),
    ("XML: comments and CDATA", one(permits("<!-- all --><![CDATA[ai-train]]>")), "/", [ALLOW]),
    ("a page", "<!DOCTYPE html><title>Licence</title>", "/", [ERROR]),
    ("a feed", '<rss version="2.0"/>', "/", [ERROR]),
    ("nothing", "", "/", [ERROR]),
]  # fmt: skip


@pytest.mark.parametrize(("what", "body", "path", "verdicts"), CASES, ids=[c[0] for c in CASES])
def test_what_documents_say(what: str, body: str, path: str, verdicts: list[Verdict]) -> None:
    found = Rsl(answer(body, name="license.xml")).observe(f"https://a.example{path}")
    assert [o.verdict for o in found] == verdicts, what
    assert all(o.signal == "rsl" and o.observed_at == AT and len(o.value or "") <= 500 for o in found)


def test_evidence_names_what_decided() -> None:
    def said(terms: str) -> list[Observation]:
        return Rsl(answer(one(terms), name="l.xml")).observe("https://a.example/")

    where = "https://a.example/l.xml"
    assert said(TRAIN) == [Observation("rsl", "permits usage: ai-train", where, ALLOW, AT)]
    assert said(prohibits("search all")) == [Observation("rsl", "prohibits usage: all", where, DENY, AT)]
    paid = said(TRAIN + '<permits type="geo">US</permits><payment type="training"/>')
    assert paid == [Observation("rsl", "constrained: permits geo: US; payment training", where, DENY, AT)]


@pytest.mark.parametrize(
    ("status", "more"),
    [(404, {}), (500, {}), (None, {"detail": "timeout"}), (200, {"truncated": True}), (200, {"body": b" " * 600_000})],
)
def test_a_licence_that_cannot_be_had_is_an_error(status: int | None, more: dict[str, object]) -> None:
    found = Rsl(answer(one(TRAIN), status).model_copy(update=more)).observe("https://a.example/")
    assert [o.verdict for o in found] == [ERROR]


RSL_TYPE = 'type="application/rsl+xml"'
LINKS: list[tuple[str, list[str], list[str]]] = [
    ("RSL 4.5", [f'<https://a.example/license.xml>; rel="license"; {RSL_TYPE}'], ["https://a.example/license.xml"]),
    ("RSL 4.5: relative", [f"</rsl.xml>; rel=license; {RSL_TYPE}"], ["/rsl.xml"]),
    ("RSL 4.5: another type", ["</cc>; rel=license; type=text/html"], []),
    ("RSL 4.5: no type", ["<https://creativecommons.org/licenses/by/4.0/>; rel=license"], []),
    ("RSL 4.5: another relation", [f"</x>; rel=describedby; {RSL_TYPE}"], []),
    ("RFC 8288, 3: several in a line", [f"</a>; rel=describedby, </b>; rel=license; {RSL_TYPE}"], ["/b"]),
    ("RFC 8288, 3: several lines", [f"</a>;rel=license;{RSL_TYPE}", f"</b>;rel=license;{RSL_TYPE}"], ["/a", "/b"]),
    ("RFC 8288, 3: any order and case", ["</a>; TYPE=Application/RSL+XML; Rel=LICENSE"], ["/a"]),
    ("RFC 8288, 3.3: several relations", [f'</a>; rel="next license"; {RSL_TYPE}'], ["/a"]),
    ("RFC 8288, 3.3: a part of a relation's name", [f'</a>; rel="licenses nolicense"; {RSL_TYPE}'], []),
    ("RFC 8288, 3.3: the first rel counts", [f"</a>; rel=next; rel=license; {RSL_TYPE}"], []),
    ("RFC 8288, 3: a comma and > in a string", [f'</a>; title="x, <y>; rel=z"; rel=license; {RSL_TYPE}'], ["/a"]),
    ("RFC 8288, 3: an escaped quote", [f'</a>; title="x\\"; rel=z"; rel=license; {RSL_TYPE}'], ["/a"]),
    ("RFC 8288, 3: a comma in the target", [f"</a,b>; rel=license; {RSL_TYPE}"], ["/a,b"]),
    ("RFC 8288, 3: space", [f"  </a> ;\trel = license ; {RSL_TYPE} "], ["/a"]),
    ("RFC 8288, 3: a parameter without a value", [f"</a>; crossorigin; rel=license; {RSL_TYPE}"], ["/a"]),
    ("RFC 8288, 3: empty parameters and elements", [f",, </a>;; rel=license;; {RSL_TYPE},,"], ["/a"]),
    ("a media type's parameter", ['</a>; rel=license; type="application/rsl+xml; charset=utf-8"'], ["/a"]),
    ("twice the same", [f"</a>; rel=license; {RSL_TYPE}"] * 2, ["/a"]),
    ("nonsense before it", [f"nonsense; x, </a>; rel=license; {RSL_TYPE}"], ["/a"]),
    ("a string that does not end", [f'</a>; rel=license; {RSL_TYPE}; title="x, </b>; rel=license'], ["/a"]),
    ("a target that does not end", [f"</a; rel=license; {RSL_TYPE}"], []),
    ("an empty target", [f"<>; rel=license; {RSL_TYPE}"], []),
    ("brackets that hold no address", [f"<http://[x>; rel=license; {RSL_TYPE}"], ["http://%5Bx"]),
    ("an address in brackets", [f"<http://[::1]/a>; rel=license; {RSL_TYPE}"], ["http://[::1]/a"]),
]  # fmt: skip


@pytest.mark.parametrize(("what", "values", "urls"), LINKS, ids=[c[0] for c in LINKS])
def test_links_of_headers(what: str, values: list[str], urls: list[str]) -> None:
    assert links_of_headers(values) == urls, what


@pytest.mark.parametrize(
    ("html", "urls"),
    [
        # RSL 4.6
        (f'<link rel="license" {RSL_TYPE} href="https://b.example/l.xml">', ["https://b.example/l.xml"]),
        (f'<link rel="license" {RSL_TYPE} href="l.xml">', ["https://a.example/x/l.xml"]),
        (f'<base href="/y/"><link rel="license" {RSL_TYPE} href="l.xml">', ["https://a.example/y/l.xml"]),
        (f'<link REL="Canonical LICENSE" {RSL_TYPE.upper()} href="/l.xml">', ["https://a.example/l.xml"]),
        ('<link rel="license" href="/cc">', []),
        (f'<link rel="alternate" {RSL_TYPE} href="/l.xml">', []),
        (f'<link rel="license" {RSL_TYPE}>', []),
        (f'<!-- <link rel="license" {RSL_TYPE} href="/l.xml"> -->', []),
        (f'<link rel="license" {RSL_TYPE} href="http://[x">', ["http://%5Bx"]),
    ],
)
def test_links_of_pages(html: str, urls: list[str]) -> None:
    assert links_of_page(Page(html.encode(), None), "https://a.example/x/1.html") == urls


@pytest.mark.parametrize(
    ("documents", "verdicts"),
    [
        # RSL 4.6: `url` may be empty, or name where a syndicated copy comes from
        ([one(TRAIN, url="")], [ALLOW]),
        ([one(TRAIN)], [ALLOW]),
        ([one(prohibits("ai-train"), url="")], [DENY]),
        ([one(prohibits("ai-train"), url="https://b.example/article")], [DENY]),
        ([one(TRAIN, url="https://b.example/article")], [UNKNOWN]),
        ([one(TRAIN), one(prohibits("all"))], [ALLOW, DENY]),
        (["<rsl"], [ERROR]),
        ([], []),
    ],
)
def test_documents_inside_pages(documents: list[str], verdicts: list[Verdict]) -> None:
    scripts = "".join(f'<script type="application/rsl+xml">\n{each}\n</script>' for each in documents)
    found = observe_page(Page(f"<head>{scripts}<script>x</script>".encode(), None), "https://a.example/1.html")
    assert [o.verdict for o in found] == verdicts


TERMS = st.lists(
    st.sampled_from(
        [TRAIN, permits("all"), permits("search"), prohibits("search"), FREE, '<payment type="use"/>', "<z/>"]
    ),
    max_size=4,
).map("".join)
CONTENTS = st.lists(
    st.builds(
        lambda terms, url: content(*terms, url=url), st.lists(TERMS, max_size=3), st.sampled_from(["/", "", "/a*"])
    ),
    min_size=1,
    max_size=3,
)


@settings(deadline=None)
@given(CONTENTS, st.sampled_from(["all", "ai-all", "ai-train"]), st.data())
def test_another_prohibition_never_permits(contents: list[str], usage: str, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(contents)))
    more = [*contents[:at], content(prohibits(usage), url="/a*"), *contents[at:]]
    assert [o.verdict for o in Rsl(answer(rsl(*more))).observe("https://a.example/a.jpg")] == [DENY]


@settings(deadline=None)
@given(CONTENTS)
def test_the_order_of_elements_does_not_matter(contents: list[str]) -> None:
    ways = (contents, contents[::-1])
    verdicts = [[o.verdict for o in Rsl(answer(rsl(*way))).observe("https://a.example/a.jpg")] for way in ways]
    assert verdicts[0] == verdicts[1]


@settings(deadline=None)
@given(TERMS, st.sampled_from(['<permits type="user">education</permits>', '<payment type="crawl"/>', "<reporting/>"]))
def test_another_condition_never_permits(terms: str, condition: str) -> None:
    found = Rsl(answer(one(terms + condition))).observe("https://a.example/")
    assert all(o.verdict != ALLOW for o in found)


@settings(max_examples=300, deadline=None)
@given(
    st.binary(max_size=300) | st.text("<>/=\"' rslcontentpermits&;!-", max_size=200).map(str.encode),
    st.text(max_size=40),
)
def test_garbage_never_permits(body: bytes, url: str) -> None:
    assert all(o.verdict == ERROR for o in Rsl(answer(body)).observe(url))
    for link in links_of_headers([body.decode("latin-1")]):
        assert link.encode()


HOSTILE = {
    "deep": f'<rsl xmlns="{NAMESPACE}">' + "<content>" * 50_000,
    "deep licences": f'<rsl xmlns="{NAMESPACE}"><content url="/">' + "<license>" * 50_000,
    "lt": "<" * 500_000,
    "many contents": rsl(content(TRAIN, url="/*a*a*b") * 6_000),
    "many attributes": "<rsl " + " ".join(f'a{n}=""' for n in range(40_000)) + "/>",
    "many namespaces": "<rsl " + " ".join(f'xmlns:a{n}="{n}"' for n in range(20_000)) + "/>",
    "much text": one(permits("a " * 240_000)),
    "many permits": one(permits("a") * 13_000),
    "entities": one(permits("&amp;" * 90_000)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_documents_take_no_time(name: str) -> None:
    before = time.process_time()
    found = Rsl(answer(HOSTILE[name])).observe("https://a.example/" + "a" * 2000)
    assert time.process_time() - before < 2
    assert all(o.verdict != ALLOW for o in found)


@pytest.mark.parametrize(
    "line",
    [
        "<" * 2**20,
        "</a>" + ";x=y" * 2**18,
        "</a>" + '; x="' * 2**17,
        "</a>" + '; x="\\"' * 2**17,
        "</a>; rel=license," * 2**16,
        "</a>" + " " * 2**20 + "x",
        "</a>;" + "x" * 2**20,
        "</a" + "," * 2**20,
        '</a>; x="' + "\\" * 2**20,
    ],
    ids=["lt", "parameters", "quotes", "escaped", "links", "spaces", "a name", "commas", "backslashes"],
)
def test_hostile_headers_take_no_time(line: str) -> None:
    before = time.process_time()
    links_of_headers([line])
    assert time.process_time() - before < 2
