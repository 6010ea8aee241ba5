"""robots.txt against RFC 9309: its own examples, its rules, and protego as an oracle."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from protego import Protego

from curation.manifest import Verdict
from curation.rights.robots import AI_AGENTS, Robots
from curation.rights.robots_txt import Pattern, lines, target
from tests.curation.rights.answers import AT, answer

SIMPLE = """\
User-Agent: *
Disallow: *.gif$
Disallow: /example/
Allow: /publications/

User-Agent: foobot
Disallow:/
Allow:/example/page.html
Allow:/example/allowed.gif

User-Agent: barbot
User-Agent: bazbot
Disallow: /example/page.html

User-Agent: quxbot
"""
LONGEST = "User-Agent: foobot\nAllow: /example/page/\nDisallow: /example/page/disallowed.gif\n"
MERGED = "user-agent: ExampleBot\ndisallow: /foo\ndisallow: /bar\n\nuser-agent: ExampleBot\ndisallow: /baz\n"
SITEMAP = "User-agent: foobot\nSitemap: https://a.example/sitemap.xml\nUser-agent: barbot\nDisallow: /\n"
UNKNOWN = "User-agent: foobot\nNoise: /x\nUser-agent: barbot\nDisallow: /\n"
ENCODED = "User-agent: *\nDisallow: "

CASES = [
    # where in the RFC, file, product token, path, whether it may be fetched
    ("5.1 nobody's group", SIMPLE, "other", "/example/x", False),
    ("5.1 nobody's group, any gif", SIMPLE, "other", "/publications.gif", False),
    ("5.1 nobody's group, a longer allow", SIMPLE, "other", "/publications/x.gif", True),
    ("5.1 nobody's group, no rule", SIMPLE, "other", "/elsewhere", True),
    ("5.1 foobot, all but two pages", SIMPLE, "foobot", "/publications/", False),
    ("5.1 foobot, its page", SIMPLE, "foobot", "/example/page.html", True),
    ("5.1 foobot, its gif", SIMPLE, "foobot", "/example/allowed.gif", True),
    ("5.1 two agents of one group, the first", SIMPLE, "barbot", "/example/page.html", False),
    ("5.1 two agents of one group, the second", SIMPLE, "bazbot", "/example/page.html", False),
    ("5.1 a group does not add to that of *", SIMPLE, "bazbot", "/example/other.html", True),
    ("5.1 a group without rules allows all", SIMPLE, "quxbot", "/example/", True),
    ("5.2 longest match, disallowed", LONGEST, "foobot", "/example/page/disallowed.gif", False),
    ("5.2 longest match, allowed", LONGEST, "foobot", "/example/page/x", True),
    ("2.2.1 several groups of one agent are one", MERGED, "examplebot", "/foo", False),
    ("2.2.1 several groups of one agent are one, the second", MERGED, "examplebot", "/baz", False),
    ("2.2.1 names in any case", "USER-AGENT: ExAmPlEbOt\nDISALLOW: /", "examplebot", "/", False),
    ("2.2.1 no group at all", "Disallow: /\n", "foobot", "/", True),
    ("2.2.1 a name that begins alike is another", "User-agent: foobot-images\nDisallow: /", "foobot", "/", True),
    ("2.2.1 a version behind the name", "User-agent: foobot/1.2\nDisallow: /", "foobot", "/", False),
    ("2.2.1 a star behind the name", "User-agent: foobot*\nDisallow: /", "foobot", "/", False),
    ("2.2.1 names in a row, against the RFC", "User-agent: a, foobot\nDisallow: /", "foobot", "/", False),
    ("2.2.2 equal rules: allow", "User-agent: *\nDisallow: /page\nAllow: /page", "foobot", "/page", True),
    ("2.2.2 an empty path disallows nothing", "User-agent: *\nDisallow:\n", "foobot", "/", True),
    ("2.2.2 paths are case-sensitive", "User-agent: *\nDisallow: /A", "foobot", "/a", True),
    ("2.2.2 robots.txt is always allowed", "User-agent: *\nDisallow: /", "foobot", "/robots.txt", True),
    ("2.2.2 order does not matter", "User-agent: *\nDisallow: /a/b\nAllow: /a", "foobot", "/a/b", False),
    ("2.2.2 table 1, a query", ENCODED + "/foo/bar?baz=quz", "foobot", "/foo/bar?baz=quz", False),
    ("2.2.2 table 1, plain", ENCODED + "/foo/bar?baz=https://foo.bar", "foobot", "/foo/bar?baz=https://foo.bar", False),
    (
        *("2.2.2 table 1, encoded rule", ENCODED + "/foo/bar?baz=https%3A%2F%2Ffoo.bar"),
        *("foobot", "/foo/bar?baz=https://foo.bar", False),
    ),
    (
        *("2.2.2 table 1, encoded URL", ENCODED + "/foo/bar?baz=https://foo.bar"),
        *("foobot", "/foo/bar?baz=https%3a%2f%2ffoo.bar", False),
    ),
    ("2.2.2 table 1, UTF-8 in the rule", ENCODED + "/foo/bar/ツ", "foobot", "/foo/bar/%E3%83%84", False),
    ("2.2.2 table 1, UTF-8 in the URL", ENCODED + "/foo/bar/%E3%83%84", "foobot", "/foo/bar/ツ", False),
    ("2.2.2 table 1, needlessly encoded rule", ENCODED + "/foo/bar/%62%61%7A", "foobot", "/foo/bar/baz", False),
    ("2.2.2 an encoded slash is no slash", ENCODED + "/a%2Fb", "foobot", "/a/b", True),
    ("2.2.2 RFC 3986 5.2.4: dots resolved", "User-agent: *\nDisallow: /b", "foobot", "/a/../b", False),
    ("2.2.2 encoded dots resolved", "User-agent: *\nDisallow: /b", "foobot", "/a/%2e%2E/b", False),
    ("2.2.3 # comment", "User-agent: * # all\nDisallow: /x # why\n# Disallow: /", "foobot", "/y", True),
    ("2.2.3 # comment behind a rule", "User-agent: *\nDisallow: /x # why", "foobot", "/x/y", False),
    ("2.2.3 $ ends", "User-agent: *\nAllow: /this/path/exactly$\nDisallow: /", "foobot", "/this/path/exactly", True),
    ("2.2.3 $ ends, not here", "User-agent: *\nAllow: /this/exactly$\nDisallow: /", "foobot", "/this/exactly/x", False),
    ("2.2.3 * any", "User-agent: *\nAllow: /this/*/exactly\nDisallow: /", "foobot", "/this/a/b/exactly/x", True),
    ("2.2.3 a literal *", ENCODED + "/path/file-with-a-%2A.html", "foobot", "/path/file-with-a-*.html", False),
    (
        "2.2.3 a literal * is no wildcard",
        ENCODED + "/path/file-with-a-%2A.html",
        "foobot",
        "/path/file-with-a-b.html",
        True,
    ),
    ("2.2.3 a literal $", ENCODED + "/path/foo-%24", "foobot", "/path/foo-$", False),
    ("2.2.3 what is before and behind * does not overlap", "User-agent: *\nDisallow: /a*a$", "foobot", "/a", True),
    ("2.2.2 what is reserved counts as encoded", "User-agent: *\nAllow: /*/*\nDisallow: /a:", "foobot", "/a:/x", False),
    ("2.2.4 a sitemap does not end a group", SITEMAP, "foobot", "/", False),
    ("2.2.4 nor does an unknown line", UNKNOWN, "foobot", "/", False),
    ("2.3 CR", "User-agent: *\rDisallow: /a\rDisallow: /b", "foobot", "/a", False),
    ("2.3 CRLF", "User-agent: *\r\nDisallow: /a\r\nDisallow: /b\r\n", "foobot", "/b", False),
    ("2.2 white space", " \tUser-agent \t:\t foobot \n\t Disallow\t: /a \t", "foobot", "/a", False),
    ("2.2 a blank line ends no group", "User-agent: foobot\n\n\nDisallow: /\n", "foobot", "/", False),
    ("2.3 UTF-8 byte order mark", "\ufeffUser-agent: *\nDisallow: /", "foobot", "/", False),
    ("2.2.3 a refusal without its slash", "User-agent: *\nDisallow: private", "foobot", "/private", False),
    (
        "2.2.3 a permission without its slash",
        "User-agent: *\nDisallow: /p\nAllow: private",
        "foobot",
        "/private",
        False,
    ),
    ("2.2.3 common misspellings", "Useragent: *\nDissallow: /", "foobot", "/", False),
]


@pytest.mark.parametrize(("section", "body", "product", "path", "allowed"), CASES, ids=[c[0] for c in CASES])
def test_rfc_9309(section: str, body: str, product: str, path: str, allowed: bool) -> None:
    robots = Robots(answer(body), product)
    ours = robots.observe(f"https://a.example{path}")[0]
    assert ours.verdict == (Verdict.ALLOW if allowed else Verdict.DENY), section
    assert ours.signal == "robots"
    assert ours.observed_at == AT
    assert robots.allows(f"https://a.example{path}") is allowed


@pytest.mark.parametrize(
    ("status", "detail", "verdict", "value"),
    [
        # 2.3.1.2 and 2.3.1.3: absent allows
        (404, None, Verdict.ALLOW, "absent (404)"),
        (403, None, Verdict.ALLOW, "absent (403)"),
        (410, None, Verdict.ALLOW, "absent (410)"),
        # 2.3.1.4: unreachable disallows all; a redirect that leads nowhere and "too many requests" are taken for it
        (429, None, Verdict.DENY, "unreachable: 429"),
        (500, None, Verdict.DENY, "unreachable: 500"),
        (503, None, Verdict.DENY, "unreachable: 503"),
        (302, "too many redirects", Verdict.DENY, "unreachable: 302"),
        (None, "no such host", Verdict.DENY, "unreachable: no such host"),
        (None, None, Verdict.DENY, "unreachable: no answer"),
        (204, None, Verdict.ALLOW, "no rule applies"),
        (200, None, Verdict.ALLOW, "no rule applies"),
    ],
)
def test_what_an_answer_means(status: int | None, detail: str | None, verdict: Verdict, value: str) -> None:
    robots = Robots(answer(b"", status, detail=detail), "cleanplate")
    assert robots.observe("https://a.example/x.jpg") == [
        ("robots", value, "https://a.example/robots.txt", verdict, AT),
    ]
    assert robots.observe("https://a.example/robots.txt")[0].verdict == Verdict.ALLOW


def test_evidence_names_the_line() -> None:
    robots = Robots(
        answer("# hello\n\nUser-agent: CleanPlate\nDisallow: /img  # ours\nAllow: /img/open\n"), "cleanplate"
    )
    where = "https://a.example/robots.txt"
    denied = robots.observe("https://a.example/img/1.jpg")[0]
    assert denied == ("robots", "Disallow: /img  # ours", f"{where}:4", Verdict.DENY, AT)
    allowed = robots.observe("https://a.example/img/open/1.jpg")[0]
    assert allowed == ("robots", "Allow: /img/open", f"{where}:5", Verdict.ALLOW, AT)
    assert robots.observe("https://a.example/x")[0] == ("robots", "no rule applies", where, Verdict.ALLOW, AT)


def test_what_a_person_sees_has_no_control_characters_and_an_end() -> None:
    robots = Robots(answer(b"User-agent: *\nDisallow: /\x1b[2J\xff" + b"x" * 2000 + b"\nDisallow: /"), "cleanplate")
    value = robots.observe("https://a.example/\x1b[2J%FF" + "x" * 2000)[0].value
    assert value is not None
    assert value.startswith("Disallow: /\ufffd[2J\ufffdxxx")
    assert len(value) == 500


def test_ai_agents_advise() -> None:
    groups = ["User-agent: GPTBot\nUser-agent: CCBot\nDisallow: /", "User-agent: img2dataset\nDisallow: /art"]
    body = "\n\n".join([*groups, "User-agent: *\nAllow: /"])
    robots = Robots(answer(body), "cleanplate")
    ours, advice = robots.observe("https://a.example/art/1.jpg")
    assert ours.verdict == Verdict.ALLOW
    where = "https://a.example/robots.txt:3"
    assert advice == ("robots_ai_agents", "CCBot, GPTBot, img2dataset disallowed", where, Verdict.UNKNOWN, AT)
    assert robots.observe("https://a.example/x.jpg")[1].value == "CCBot, GPTBot disallowed"


def test_agents_that_nobody_names_do_not_advise() -> None:
    robots = Robots(answer("User-agent: *\nDisallow: /\n\nUser-agent: cleanplate\nAllow: /\n"), "cleanplate")
    assert [o.signal for o in robots.observe("https://a.example/x")] == ["robots"]


def test_a_list_of_all_agents_advises_within_bounds() -> None:
    body = "".join(f"User-agent: {agent}\n" for agent in AI_AGENTS) + "Disallow: /\n"
    advice = Robots(answer(body), "cleanplate").observe("https://a.example/x")[1]
    assert advice.value is not None
    assert advice.value.endswith(" disallowed")
    assert len(advice.value) <= 500


@pytest.mark.parametrize(
    "agent",
    [
        *("GPTBot", "CCBot", "Google-Extended", "ClaudeBot", "anthropic-ai", "Bytespider", "img2dataset", "omgili"),
        *("Applebot-Extended", "meta-externalagent", "PerplexityBot", "Amazonbot", "cohere-ai", "Diffbot"),
        *("FacebookBot", "LAIONDownloader"),
    ],
)
def test_who_is_an_ai_agent(agent: str) -> None:
    robots = Robots(answer(f"User-agent: {agent.upper()}\nDisallow: /\n"), "cleanplate")
    assert robots.observe("https://a.example/x")[1].value == f"{agent} disallowed"


def test_licences_are_for_everybody() -> None:
    body = "License: https://a.example/one.xml\nUser-agent: x\nDisallow: /\nlicense : /two.xml # RSL\nLicense:\n"
    found = Robots(answer(body), "cleanplate").licences()
    assert found == [(1, "https://a.example/one.xml"), (4, "/two.xml")]
    assert Robots(answer(body, 503), "cleanplate").licences() == []


def test_a_cut_file_is_read_up_to_its_last_whole_line() -> None:
    whole = b"User-agent: *\nDisallow: /private\nAllow: /"
    robots = Robots(answer(whole, truncated=True), "cleanplate")
    assert not robots.allows("https://a.example/private")
    assert Robots(answer(whole), "cleanplate").observe("https://a.example/x")[0].value == "Allow: /"
    assert robots.observe("https://a.example/x")[0].value == "no rule applies"


def test_utf_16_is_read() -> None:
    body = "User-agent: *\nDisallow: /".encode("utf-16")
    assert not Robots(answer(body), "cleanplate").allows("https://a.example/x")


def test_lines_of_500_kib_are_read_and_no_more() -> None:
    filler = b"#" * 99 + b"\n"
    body = filler * 5119 + b"\n\n\n\nDisallow: /x" + b"\nDisallow: /y" * 20
    fields = [line.value for line in lines(body)]
    assert 0 < len(fields) < 21
    assert len(body) > 500 * 1024


@pytest.mark.parametrize(
    "body",
    [
        b"user-agent:a\n" * 19_000 + b"user-agent:*\nallow:/\n" + b"disallow:/*a*b*c$\n" * 14_000,
        b"".join(b"user-agent:%s\ndisallow:/%d\n" % (a.encode(), n) for a in AI_AGENTS[:60] for n in range(200)),
        "".join(f"user-agent:{a}\n" for a in AI_AGENTS).encode() + b"disallow:/*a*b*c$\n" * 25_000,
        b"user-agent:*\ndisallow:/" + b"*a" * 200_000 + b"$",
        b"user-agent:*\ndisallow:" + b" " * 500_000,
    ],
    ids=["many rules", "many groups", "many agents", "many wildcards", "white space"],
)
def test_hostile_files_take_linear_time(body: bytes) -> None:
    begun = time.process_time()
    robots = Robots(answer(body), "cleanplate")
    robots.observe("https://a.example/" + "a" * 2000)
    assert time.process_time() - begun < 2


SEGMENTS = st.sampled_from(
    [
        *("a", "b", "img", "%62", "é", "%C3%A9", "%e3%83%84", "~", "%7E", "-", "x.jpg", "=", "%3D"),
        *(":", "%3a", "@", "+", "%2B", "(", "!", "%2F", "%2f"),
    ]
)
PATHS = st.lists(SEGMENTS | st.just("/"), max_size=6).map(lambda parts: "/" + "".join(parts).lstrip("/"))
RULE_PATHS = st.tuples(
    st.sampled_from(["/", "/", "*", ""]),
    st.lists(SEGMENTS | st.sampled_from(["/", "/", "*"]), max_size=5),
    st.sampled_from(["", "", "$"]),
).map(lambda p: (p[0] + "".join(p[1]) + p[2]) if p[0] else "")
AGENTS = st.sampled_from(["*", "foobot", "FooBot", "barbot", "foobot/2.0"])
RULES = st.tuples(st.sampled_from(["Allow", "Disallow", "disallow"]), RULE_PATHS).map(lambda r: f"{r[0]}: {r[1]}")
FILES = st.lists(
    st.tuples(st.lists(AGENTS, min_size=1, max_size=3), st.lists(RULES, min_size=1, max_size=5)), max_size=4
).map(lambda groups: "\n".join("\n".join([*(f"User-agent: {a}" for a in agents), *rules]) for agents, rules in groups))


@settings(max_examples=250, deadline=None)
@given(FILES, PATHS, st.sampled_from(["foobot", "barbot", "quxbot"]))
def test_protego_agrees(body: str, path: str, product: str) -> None:
    url = f"https://a.example{path}"
    # protego takes "foobot/2.0" in a file for the name of an agent of its own; RFC 9309 has no version there.
    oracle = Protego.parse(body.replace("foobot/2.0", "foobot")).can_fetch(url, product)
    assert Robots(answer(body), product).allows(url) is oracle


@settings(max_examples=150, deadline=None)
@given(FILES, PATHS, RULE_PATHS)
def test_another_refusal_never_permits(body: str, path: str, refused: str) -> None:
    url = f"https://a.example{path}"
    more = Robots(answer(f"{body}\nDisallow: {refused}"), "foobot")
    if not Robots(answer(body), "foobot").allows(url):
        assert not more.allows(url)


@settings(max_examples=400, deadline=None)
@given(st.binary(max_size=300), st.text(max_size=60))
def test_garbage_never_permits_by_a_rule(body: bytes, url: str) -> None:
    found = Robots(answer(body), "cleanplate").observe(url)
    for observed in found:
        by_rule = observed.verdict == Verdict.ALLOW and ":" in observed.where.removeprefix("https:")
        assert not by_rule or b"allow" in body.lower()
    assert {o.signal for o in found} <= {"robots", "robots_ai_agents"}


@settings(max_examples=300, deadline=None)
@given(st.text("ab*$%2F/?é", max_size=12), st.text("ab$%2F/?é", max_size=12))
def test_a_pattern_matches_what_it_is_written_for(pattern: str, tail: str) -> None:
    literal = pattern.replace("*", "").replace("$", "").lstrip("/")
    rule = Pattern(("/" + literal).encode().decode("latin-1"))
    assert rule.matches(target(f"https://a.example/{literal}"))
    if "?" not in tail and "%" not in literal + tail:
        assert rule.matches(target(f"https://a.example/{literal}{tail}"))
