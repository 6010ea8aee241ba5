"""AIPREF against draft-ietf-aipref-attach-05, draft-ietf-aipref-vocab-08 and RFC 9651: their examples and rules."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from curation.manifest import Verdict
from curation.rights.aipref import observe_headers, observe_robots, preference
from curation.rights.robots import Robots
from curation.rights.verdict import combine
from tests.curation.rights.answers import AT, answer

ALLOW, DENY, UNKNOWN, ERROR = Verdict.ALLOW, Verdict.DENY, Verdict.UNKNOWN, Verdict.ERROR

FIELDS = [
    # where in the drafts, the value, the verdict
    ("attach 1.2 header", "train-ai=n", DENY),
    ("vocab 6 example", "train-ai=y, search=n", ALLOW),
    ("vocab 6 another category", "search=y", UNKNOWN),
    ("vocab 6 all three labels", "train-ai=n, ai-use=y, search=y", DENY),
    ("vocab 5 no inheritance between categories", "ai-use=n", UNKNOWN),
    ("vocab 6.1 labels are case-sensitive", "Train-AI=n", ERROR),
    ("vocab 6.2 another token", "train-ai=no", UNKNOWN),
    ("vocab 6.2 case-sensitive tokens", "train-ai=Y", UNKNOWN),
    ("vocab 6.4 unknown labels are ignored", "shiny=n, train-ai=y", ALLOW),
    ("vocab 6.4 unknown parameters are ignored", 'train-ai=y;until="2027", search=y', ALLOW),
    ("vocab 6.5 a bare key is no token", "train-ai", UNKNOWN),
    ("vocab 6.5 a boolean is no token", "train-ai=?0", UNKNOWN),
    ("vocab 6.5 a string is no token", 'train-ai="n"', UNKNOWN),
    ("vocab 6.5 a list is no token", "train-ai=(y)", UNKNOWN),
    ("vocab 6.5 a number is no token", "train-ai=1", UNKNOWN),
    ("vocab 6.5.1 the last value, no tokens", 'train-ai=y, train-ai, search=n, search="n"', UNKNOWN),
    ("vocab 6.5.1 the last value refuses", "train-ai=y, train-ai=n", DENY),
    ("vocab 6.5.1 the last value permits", "train-ai=n, train-ai=y", ALLOW),
    ("vocab 6.5.2 parameters of a value overridden", "train-ai;allow=n, train-ai=y", ALLOW),
    ("vocab 6.5.2 parameters alone", 'train-ai;has;parameters="?"', UNKNOWN),
    ("vocab 6.5.2 as printed, with a loose semicolon", 'train-ai;has;parameters="?";', ERROR),
    ("RFC 9651 4.2.2 trailing comma", "train-ai=n,", ERROR),
    ("RFC 9651 4.2.2 missing comma", "train-ai=n search=y", ERROR),
    ("RFC 9651 3.2 space around =", "train-ai = y", ERROR),
    ("RFC 9651 3.1.2 empty", "", UNKNOWN),
    ("Content-Signal's words", "ai-train=no", UNKNOWN),
    ("not ASCII", "train-ai=y, search=\xff", ERROR),
    ("vocab-03 narrower category", "train-genai=n", DENY),
    ("vocab-03 narrower category beside ours", "train-ai=y, train-genai=n", DENY),
    ("vocab-03 a permission by an old label", "train-genai=y", UNKNOWN),
    ("vocab-01 genai", "genai=n", DENY),
    ("vocab-01 ai", "ai=n", DENY),
    ("vocab-01 ai permits nothing now", "ai=y", UNKNOWN),
    ("vocab-01 tdm", "tdm=n, search=y", DENY),
    ("vocab-02 all", "all=n", DENY),
    ("vocab-04 bots", "bots=n", DENY),
    ("vocab-04 bots, overridden by what is narrower", "bots=n, train-ai=y", ALLOW),
    ("vocab-04 another narrower category", "ai-output=n", UNKNOWN),
]


@pytest.mark.parametrize(("section", "field", "verdict"), FIELDS, ids=[c[0] for c in FIELDS])
def test_the_vocabulary(section: str, field: str, verdict: Verdict) -> None:
    assert preference(field) == verdict, section
    found = observe_headers([field], "https://a.example/1.jpg")
    assert [(o.signal, o.where, o.verdict) for o in found] == (
        [("aipref", "https://a.example/1.jpg", verdict)] if field else []
    )


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        # RFC 9651 4.2: the lines of a field are one dictionary, in their order
        (["train-ai=n", "search=y"], DENY),
        (["search=y", "train-ai=n"], DENY),
        (["train-ai=n", "train-ai=y"], ALLOW),
        (["train-ai=y", "train-ai=n"], DENY),
        # one unreadable line spoils the field
        (["train-ai=y", "???"], ERROR),
        (["", " train-ai=y "], ALLOW),
    ],
)
def test_header_lines_are_one_field(values: list[str], verdict: Verdict) -> None:
    assert [o.verdict for o in observe_headers(values, "u")] == [verdict]


def test_no_header_says_nothing() -> None:
    assert observe_headers([], "u") == []
    assert observe_headers([" "], "u") == []


# attach-05, figure 2 and table 1
DRAFT = """\
User-Agent: *
Allow: /
Disallow: /never/
Content-Usage: train-ai=n
Content-Usage: /ai-ok/ train-ai=y

User-Agent: ExampleBot
Allow: /
Content-Usage: train-ai=y
"""
CONFLICT = "User-agent: *\nAllow: /\nContent-Usage: /a train-ai=y\nContent-Usage: /a train-ai=n\n"
RULES = [
    # where in the draft, file, product token, path, verdicts
    ("3.4 table 1, /test", DRAFT, "otherbot", "/test", [DENY]),
    # The draft says that no preference applies; a refusal is kept all the same.
    ("3.4 table 1, /never/test", DRAFT, "otherbot", "/never/test", [DENY]),
    ("3.4 table 1, /ai-ok/test", DRAFT, "otherbot", "/ai-ok/test", [ALLOW]),
    ("3.4 the second group", DRAFT, "examplebot", "/test", [ALLOW]),
    ("3.4 the second group alone", DRAFT, "examplebot", "/never/test", [ALLOW]),
    (
        "3.1 permitted, but not to be crawled",
        "User-agent: *\nDisallow: /\nContent-Usage: train-ai=y",
        "x",
        "/",
        [UNKNOWN],
    ),
    ("3.1 same path, both apply", CONFLICT, "x", "/a/1", [ALLOW, DENY]),
    (
        "3.1 order does not matter",
        "User-agent: *\nContent-Usage: /a/ train-ai=y\nContent-Usage: train-ai=n",
        "x",
        "/a/1",
        [ALLOW],
    ),
    (
        "3.1 the longest path",
        "User-agent: *\nContent-Usage: /a train-ai=y\nContent-Usage: /a/b train-ai=n",
        "x",
        "/a/b/c",
        [DENY],
    ),
    ("3.1 percent-encoding as for Allow", "User-agent: *\nContent-Usage: /%61%20b train-ai=n", "x", "/a b", [DENY]),
    ("3.1 no path matches", "User-agent: *\nContent-Usage: /b train-ai=n", "x", "/a", []),
    ("3.2 white space about label and colon", "User-agent: *\n \tContent-Usage \t:\t train-ai=n \t", "x", "/", [DENY]),
    ("3.2 label in any case", "User-agent: *\nCONTENT-USAGE: train-ai=n", "x", "/", [DENY]),
    ("3.2 comment", "User-agent: *\nContent-Usage: train-ai=n # train-ai=y", "x", "/", [DENY]),
    ("3.2 a tab behind the path", "User-agent: *\nContent-Usage: /a\ttrain-ai=n", "x", "/a", [DENY]),
    ("3.2 paths begin with a slash", "User-agent: *\nContent-Usage: *.jpg train-ai=y", "x", "/a.jpg", [ERROR]),
    ("3.2 a path and nothing else", "User-agent: *\nContent-Usage: /a", "x", "/a", [UNKNOWN]),
    ("3.2 wildcards as for Allow", "User-agent: *\nContent-Usage: /*.jpg$ train-ai=n", "x", "/a.jpg", [DENY]),
    (
        "3 the rule ends a run of user-agents",
        "User-agent: x\nContent-Usage: train-ai=n\nUser-agent: y\nAllow: /",
        "y",
        "/",
        [],
    ),
    ("3 a rule of one group", "User-agent: x\nContent-Usage: train-ai=n\nUser-agent: y\nAllow: /", "x", "/", [DENY]),
    ("3 above all groups, a refusal", "Content-Usage: train-ai=n\nUser-agent: *\nAllow: /", "x", "/", [DENY]),
    ("3 above all groups, no permission", "Content-Usage: train-ai=y\nUser-agent: *\nAllow: /", "x", "/", [UNKNOWN]),
    ("3 what cannot be read", "User-agent: *\nContent-Usage: train-ai:n", "x", "/", [ERROR]),
]


@pytest.mark.parametrize(("section", "body", "product", "path", "verdicts"), RULES, ids=[c[0] for c in RULES])
def test_rules_in_robots_txt(section: str, body: str, product: str, path: str, verdicts: list[Verdict]) -> None:
    found = observe_robots(Robots(answer(body), product), f"https://a.example{path}")
    assert [o.verdict for o in found] == verdicts, section
    assert all(o.signal == "aipref" and o.observed_at == AT for o in found)


def test_evidence_names_the_line() -> None:
    found = observe_robots(Robots(answer(DRAFT), "x"), "https://a.example/ai-ok/1.jpg")
    assert found == [("aipref", "Content-Usage: /ai-ok/ train-ai=y", "https://a.example/robots.txt:5", ALLOW, AT)]


@pytest.mark.parametrize(("status", "verdicts"), [(404, []), (503, [ERROR]), (None, [ERROR]), (429, [ERROR])])
def test_where_there_is_no_file(status: int | None, verdicts: list[Verdict]) -> None:
    found = observe_robots(Robots(answer(DRAFT, status), "x"), "https://a.example/1.jpg")
    assert [o.verdict for o in found] == verdicts


MEMBERS = st.lists(
    st.tuples(st.sampled_from(["train-ai", "search", "ai-use", "genai"]), st.sampled_from(["y", "n", "?1", '"y"'])),
    max_size=4,
).map(lambda members: ", ".join(f"{key}={value}" for key, value in members))


@given(MEMBERS)
def test_a_refusal_behind_it_all_denies(field: str) -> None:
    assert preference(f"{field}, train-ai=n" if field else "train-ai=n") == DENY


@given(st.lists(MEMBERS.filter(bool), max_size=4), st.sampled_from(["", "/a ", "/a/b "]))
def test_another_refusal_in_robots_txt_never_permits(fields: list[str], path: str) -> None:
    body = "\n".join(["User-agent: *", *(f"Content-Usage: {path}{field}" for field in fields)])
    url = "https://a.example/a/b"
    more = observe_robots(Robots(answer(f"{body}\nContent-Usage: {path}train-ai=n"), "x"), url)
    assert combine(o.verdict for o in more) == DENY


@settings(max_examples=400, deadline=None)
@given(st.binary(max_size=200))
@example(b"train-ai=Y")
def test_garbage_never_permits(data: bytes) -> None:
    if b"train-ai=y" not in data:
        field = data.decode("latin-1")
        assert preference(field) != ALLOW
        assert all(o.verdict != ALLOW for o in observe_headers([field, field], "u"))
        body = b"User-agent: *\nContent-Usage: " + data
        assert all(o.verdict != ALLOW for o in observe_robots(Robots(answer(body), "x"), "https://a.example/"))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text(max_size=40), max_size=3))
def test_no_text_is_too_odd(values: list[str]) -> None:
    assert all(o.value is not None and len(o.value) <= 500 for o in observe_headers(values, "u"))
