"""TDMRep: the examples and rules of the final report (10 May 2024), by the anchors of its sections."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.manifest import Verdict
from curation.rights.page import Page
from curation.rights.tdmrep import TdmRep, observe_headers, observe_page, resolve
from curation.rights.verdict import Observation, verdict
from tests.curation.rights.answers import AT, answer

ALLOW, DENY, UNKNOWN, ERROR = Verdict.ALLOW, Verdict.DENY, Verdict.UNKNOWN, Verdict.ERROR
POLICY = "https://provider.com/policies/policy.json"


def rules(*given: tuple[object, object] | tuple[object, object, object]) -> str:
    names = ("location", "tdm-reservation", "tdm-policy")
    return json.dumps([dict(zip(names, rule, strict=False)) for rule in given])


WHOLE_SITE = '[\n{\n"location": "/",\n"tdm-reservation": 1\n}\n]'
GROUPS = rules(("/directory-a/", 1), ("/directory-b/html/", 1, POLICY), ("/directory-b/images/*.jpg", 0))

CASES: list[tuple[str, str | bytes, str, list[Verdict]]] = [
    # section and what it is, file, path, verdicts
    ("sec-tdm-file, example 1: every file", WHOLE_SITE, "/", [DENY]),
    ("sec-tdm-file, example 1: every file, deep", WHOLE_SITE, "/a/b.jpg?c", [DENY]),
    ("sec-tdm-file, example 2: group 1", GROUPS, "/directory-a/report.pdf", [DENY]),
    ("sec-tdm-file, example 2: group 2", GROUPS, "/directory-b/html/page.html", [DENY]),
    ("sec-tdm-file, example 2: group 3", GROUPS, "/directory-b/images/1.jpg", [ALLOW]),
    ("sec-tdm-file, example 2: in none of them", GROUPS, "/directory-c/1.jpg", []),
    ("sec-tdm-file, example 2: no .jpg", GROUPS, "/directory-b/images/1.png", []),
    ("sec-tdm-file: the brackets are mandatory", '{"location": "/", "tdm-reservation": 1}', "/", [ERROR]),
    ("sec-tdm-file: the first in sequence", rules(("/a/", 0), ("/", 1)), "/a/1.jpg", [ALLOW]),
    ("sec-tdm-file: the first, not the longest", rules(("/", 1), ("/a/", 0)), "/a/1.jpg", [DENY]),
    ("sec-tdm-file: case counts", rules(("/Art/", 1)), "/art/1.jpg", []),
    ("sec-tdm-file: the reservation is mandatory", '[{"location": "/"}]', "/", [UNKNOWN]),
    ("sec-tdm-file: the location is mandatory", '[{"tdm-reservation": 1}]', "/", [ERROR]),
    ("sec-tdm-file: an empty location", rules(("", 0)), "/", [ERROR]),
    ("sec-tdm-file: percent-encoded is compared unencoded", rules(("/%61rt/", 1)), "/art/1.jpg", [DENY]),
    ("sec-tdm-file: also in the URL", rules(("/art/", 1)), "/%61rt/1.jpg", [DENY]),
    ("sec-tdm-file: reserved characters stay encoded", rules(("/a%2Fb", 1)), "/a/b", []),
    ("sec-tdm-file: what is not ASCII", rules(("/é/", 1)), "/%C3%A9/1.jpg", [DENY]),
    ("sec-tdm-file: an empty array says nothing", "[]", "/", []),
    ("sec-tdm-file-regexp: $ ends the path", rules(("/this/path/exactly$", 1)), "/this/path/exactly", [DENY]),
    ("sec-tdm-file-regexp: $ and more behind it", rules(("/this/path/exactly$", 1)), "/this/path/exactly/1", []),
    ("sec-tdm-file-regexp: * is anything", rules(("/this/*/then", 1)), "/this/or/that/then", [DENY]),
    ("sec-tdm-file-regexp: * is also nothing", rules(("/this/*/then", 1)), "/this//then", [DENY]),
    ("sec-tdm-file-regexp: %24 is the character", rules(("/path/foo-%24", 1)), "/path/foo-$", [DENY]),
    ("sec-tdm-file-regexp: %24 does not end the path", rules(("/path/foo-%24", 1)), "/path/foo-$/x", [DENY]),
    ("sec-tdm-file-regexp: Google's /*.php$", rules(("/*.php$", 1)), "/folder/filename.php", [DENY]),
    ("sec-tdm-file-regexp: Google's /*.php$, parameters", rules(("/*.php$", 1)), "/filename.php?parameters", []),
    ("sec-tdm-file-regexp: Google's /fish*", rules(("/fish*", 1)), "/fishheads/yummy.html?id=1", [DENY]),
    ("sec-tdm-file-regexp: a location without its slash", rules(("*.jpg", 1)), "/a/1.jpg", [DENY]),
    ("sec-tdm-reservation: 2 is unset", rules(("/", 2)), "/", [UNKNOWN]),
    ("sec-tdm-reservation: true is unset", '[{"location": "/", "tdm-reservation": true}]', "/", [UNKNOWN]),
    ("sec-tdm-reservation: false is no permission", '[{"location": "/", "tdm-reservation": false}]', "/", [UNKNOWN]),
    ("sec-tdm-reservation: null is unset", '[{"location": "/", "tdm-reservation": null}]', "/", [UNKNOWN]),
    ("sec-tdm-reservation: a list is unset", rules(("/", [0])), "/", [UNKNOWN]),
    ("sec-tdm-reservation: NaN is unset", '[{"location": "/", "tdm-reservation": NaN}]', "/", [UNKNOWN]),
    ("sec-tdm-reservation: 0.5 is unset", rules(("/", 0.5)), "/", [UNKNOWN]),
    ("sec-tdm-reservation: 1.0 is the number 1", rules(("/", 1.0)), "/", [DENY]),
    ("sec-tdm-reservation: 1 as text", rules(("/", "1")), "/", [DENY]),
    ("sec-tdm-reservation: an unset one ends the search, too", rules(("/", "no"), ("/", 1)), "/", [UNKNOWN]),
    ("sec-tdm-policy: with 0 it is no error", rules(("/", 0, POLICY)), "/", [ALLOW]),
    ("sec-tdm-policy: of a wrong type", rules(("/", 1, {"a": 1})), "/", [DENY]),
    ("whole URLs: of this host", rules(("https://a.example/art/", 1)), "/art/1.jpg", [DENY]),
    ("whole URLs: by the other scheme", rules(("http://a.example/art/", 1)), "/art/1.jpg", [DENY]),
    ("whole URLs: of another host", rules(("https://b.example/art/", 1)), "/art/1.jpg", []),
    ("whole URLs: without a path", rules(("https://a.example", 1)), "/art/1.jpg", [DENY]),
    ("a name twice", '[{"location": "/", "tdm-reservation": 1, "tdm-reservation": 0}]', "/", [ERROR]),
    ("an unreadable rule before a permission", '[7, {"location": "/", "tdm-reservation": 0}]', "/", [ERROR]),
    ("an unreadable rule before a refusal", '[7, {"location": "/", "tdm-reservation": 1}]', "/", [DENY]),
    ("an unreadable rule behind a permission", '[{"location": "/", "tdm-reservation": 0}, 7]', "/", [ALLOW]),
    ("a byte order mark", b"\xef\xbb\xbf" + WHOLE_SITE.encode(), "/", [DENY]),
    ("UTF-16", WHOLE_SITE.encode("utf-16"), "/", [DENY]),
    ("half a file", WHOLE_SITE[:-3], "/", [ERROR]),
    ("nothing", "", "/", [ERROR]),
    ("a comma too many", '[{"location": "/", "tdm-reservation": 0},]', "/", [ERROR]),
    ("a number of 5,000 digits", f'[{{"location": "/", "tdm-reservation": {"9" * 5000}}}]', "/", [ERROR]),
    ("brackets, 100,000 deep", "[" * 100_000, "/", [ERROR]),
    ("half a surrogate", '[{"location": "/\\ud800", "tdm-reservation": 0}]', "/", []),
    ("sec-tdm-file: a page is no such representation", "<!DOCTYPE html><p>Not here", "/", [UNKNOWN]),
]


@pytest.mark.parametrize(("what", "body", "path", "verdicts"), CASES, ids=[c[0] for c in CASES])
def test_what_files_say(what: str, body: str | bytes, path: str, verdicts: list[Verdict]) -> None:
    found = TdmRep(answer(body, name=".well-known/tdmrep.json")).observe(f"https://a.example{path}")
    assert [o.verdict for o in found] == verdicts, what
    assert all(o.signal == "tdmrep" and o.observed_at == AT and len(o.value or "") <= 500 for o in found)


def test_evidence_names_the_rule_and_the_policy() -> None:
    found = TdmRep(answer(GROUPS, name="t.json")).observe("https://a.example/directory-b/html/1")
    value = f"/directory-b/html/: tdm-reservation: 1; tdm-policy: {POLICY}"
    assert found == [Observation("tdmrep", value, "https://a.example/t.json", DENY, AT)]


@pytest.mark.parametrize(
    ("status", "more", "verdicts"),
    [
        (404, {}, []),
        (403, {}, []),
        (410, {}, []),
        (429, {}, [ERROR]),
        (500, {}, [ERROR]),
        (302, {}, [ERROR]),
        (None, {"detail": "timeout"}, [ERROR]),
        (200, {"truncated": True}, [ERROR]),
        (200, {"content_type": "text/html"}, [ALLOW]),  # what it is, not what it is called
    ],
)
def test_what_an_answer_means(status: int | None, more: dict[str, object], verdicts: list[Verdict]) -> None:
    found = TdmRep(answer(rules(("/", 0)), status, **more)).observe("https://a.example/")
    assert [o.verdict for o in found] == verdicts


def test_markup_that_says_it_is_json_is_malformed() -> None:
    file = answer("<rules><rule/></rules>", content_type="application/json")
    assert [o.verdict for o in TdmRep(file).observe("https://a.example/")] == [ERROR]


HEADERS: list[tuple[str, list[str], list[str], list[Verdict]]] = [
    # section and what it is, tdm-reservation, tdm-policy, verdicts
    ("sec-tdm-header, example 1", ["1"], [], [DENY]),
    ("sec-tdm-header, example 2: with a policy", ["1"], [POLICY], [DENY]),
    ("sec-tdm-reservation: not reserved", ["0"], [], [ALLOW]),
    ("sec-tdm-policy: with 0 it is no error", ["0"], [POLICY], [ALLOW]),
    ("sec-tdm-reservation: true is unset", ["true"], [], [UNKNOWN]),
    ("sec-tdm-reservation: 01 is unset", ["01"], [], [UNKNOWN]),
    ("sec-tdm-reservation: empty is unset", [""], [], [UNKNOWN]),
    ("sec-processing-priority: absent", [], [], []),
    ("a policy alone", [], [POLICY], []),
    ("twice the same", ["0", "0"], [], [ALLOW]),
    ("joined on the way", ["1, 1"], [], [DENY]),
    ("contradictions refuse", ["0", "1"], [], [DENY]),
    ("contradictions refuse, joined", ["0,1"], [], [DENY]),
    ("a permission beside nonsense", ["0", "x"], [], [UNKNOWN]),
    ("space around it", [" 1\t"], [], [DENY]),
]


@pytest.mark.parametrize(("what", "stated", "policies", "verdicts"), HEADERS, ids=[c[0] for c in HEADERS])
def test_what_headers_say(what: str, stated: list[str], policies: list[str], verdicts: list[Verdict]) -> None:
    found = observe_headers({"tdm-reservation": stated, "tdm-policy": policies}, "https://a.example/1.jpg")
    assert [o.verdict for o in found] == verdicts, what
    if DENY in verdicts and policies:
        assert POLICY in (found[0].value or "")


META = '<meta name="tdm-reservation" content="{}"><meta name="tdm-policy" content="https://provider.com/p.json">'


@pytest.mark.parametrize(
    ("html", "verdicts"),
    [
        # sec-tdm-html-meta
        (f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">{META.format(1)}<title>T</title>', [DENY]),
        (META.format(0), [ALLOW]),
        (META.format("yes"), [UNKNOWN]),
        (META.format(0) + META.format(1), [DENY]),
        ('<META NAME="TDM-Reservation" CONTENT=1>', [DENY]),
        ('<meta property="tdm-reservation" content="1">', [DENY]),
        ('<meta name="tdm-policy" content="https://provider.com/p.json">', []),
        ('<!-- <meta name="tdm-reservation" content="0"> -->', []),
        ("<p>tdm-reservation: 0", []),
        ('<script>"<meta name=tdm-reservation content=0>"</script>', []),
    ],
)
def test_what_pages_say(html: str, verdicts: list[Verdict]) -> None:
    assert [o.verdict for o in observe_page(Page(html.encode(), None), "https://a.example/")] == verdicts


def step(value: str | None) -> list[Observation]:
    return observe_headers({"tdm-reservation": [value]} if value is not None else {}, "w")


FAILED = TdmRep(answer(b"", 500)).observe("https://a.example/")


@pytest.mark.parametrize(
    ("file", "header", "page", "verdicts"),
    [
        # sec-processing-priority
        (step("1"), step("0"), [], [UNKNOWN, ALLOW]),
        (step("0"), step("1"), [], [UNKNOWN, DENY]),
        (step("1"), [], step("0"), [UNKNOWN, ALLOW]),
        (step("0"), step("0"), step("1"), [UNKNOWN, UNKNOWN, DENY]),
        (step("0"), step("1"), step("0"), [UNKNOWN, UNKNOWN, ALLOW]),
        (step("1"), [], [], [DENY]),
        (step("1"), step("x"), [], [DENY, UNKNOWN]),
        (step("1"), step("x"), step("no"), [DENY, UNKNOWN, UNKNOWN]),
        (step("x"), step("0"), [], [UNKNOWN, ALLOW]),
        (FAILED, step("0"), [], [UNKNOWN, ALLOW]),
        (FAILED, [], [], [ERROR]),
        (FAILED, step("x"), [], [ERROR, UNKNOWN]),
        ([], [], [], []),
    ],
)
def test_the_later_step_supersedes(
    file: list[Observation], header: list[Observation], page: list[Observation], verdicts: list[Verdict]
) -> None:
    found = resolve(file, header, page)
    assert [o.verdict for o in found] == verdicts
    before = [*file, *header, *page]
    for was, now in zip(before, found, strict=True):
        assert now == was or (now.value == f"overridden: {was.value}" and now.verdict == UNKNOWN)


def test_a_page_that_only_shows_the_picture_takes_nothing_back() -> None:
    assert [o.verdict for o in resolve(step("1"), [], step("0"), of_page=False)] == [DENY, UNKNOWN]
    assert [o.verdict for o in resolve([], step("0"), step("1"), of_page=False)] == [ALLOW, DENY]
    assert [o.verdict for o in resolve(step("1"), step("0"), step("0"), of_page=False)] == [UNKNOWN, ALLOW, UNKNOWN]


STEPS = st.sampled_from([None, "0", "1", "x"])


@settings(deadline=None)
@given(STEPS, STEPS, STEPS)
def test_the_last_step_that_states_it_decides(file: str | None, header: str | None, page: str | None) -> None:
    stated = [value for value in (file, header, page) if value in ("0", "1")]
    expected = {"0": ALLOW, "1": DENY}[stated[-1]] if stated else UNKNOWN
    assert verdict(resolve(step(file), step(header), step(page))) == expected


@settings(deadline=None)
@given(st.lists(st.sampled_from(["0", "1", "x", ""]), max_size=5))
def test_another_refusal_never_permits_and_lines_do_not_matter(values: list[str]) -> None:
    refused = observe_headers({"tdm-reservation": [*values, "1"]}, "w")
    assert [o.verdict for o in refused] == [DENY]
    split, joined = ({"tdm-reservation": lines} for lines in (values, [",".join(values)] if values else []))
    assert observe_headers(split, "w") == observe_headers(joined, "w")


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["/", "/a", "/a*b", "/b$"]), st.sampled_from([0, 1, 2])), max_size=5))
def test_a_refusal_of_everything_in_front_denies(given_rules: list[tuple[str, int]]) -> None:
    for path in ("/", "/a", "/b", "/axb"):
        found = TdmRep(answer(rules(("/", 1), *given_rules))).observe(f"https://a.example{path}")
        assert [o.verdict for o in found] == [DENY]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()), st.text(max_size=40))
def test_garbage_never_permits(body: bytes, url: str) -> None:
    if b"tdm-reservation" not in body:
        assert all(o.verdict != ALLOW for o in TdmRep(answer(body)).observe(url))
    text = body.decode("latin-1")
    if "0" not in text:
        assert all(o.verdict != ALLOW for o in observe_headers({"tdm-reservation": [text]}, url))


@pytest.mark.parametrize(
    "body",
    [
        "[" * 500_000,
        "[" + '{"location":"/*a*a*a*a*a*b","tdm-reservation":1},' * 9_000 + "0]",
        '[{"location":"/' + "*a" * 200_000 + '$","tdm-reservation":1}]',
        '[{"location":"/' + "%" * 400_000 + '","tdm-reservation":1}]',
        '[{"x":' * 80_000,
    ],
    ids=["brackets", "stars in many rules", "many stars", "percent signs", "objects"],
)
def test_hostile_files_take_no_time(body: str) -> None:
    before = time.process_time()
    TdmRep(answer(body)).observe("https://a.example/" + "a" * 2000)
    assert time.process_time() - before < 2
