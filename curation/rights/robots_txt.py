"""The grammar of robots.txt (RFC 9309), for all that is written in it: lines, groups, and patterns of paths.

Ours and not protego's, because evidence names the line that decided and where it stands, and because AIPREF,
Content-Signal and RSL put lines of their own into the groups: protego keeps neither line numbers nor rules, and drops
what it does not know. tests/curation/rights/test_robots.py holds our answers against protego's.

Text is handled as Latin-1, a character for each byte, so that no byte is lost before it is percent-encoded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cached_property, lru_cache
from typing import NamedTuple

from curation.rights.evidence import BODY_LIMIT

Target = tuple[str, ...]
"""A URL's path and query in normal form; two where its query can be read as well with `/` and `?` escaped."""

SHOWN = 500  # characters of what was read that evidence keeps

_SPELLINGS = {
    **dict.fromkeys(("useragent", "user agent"), "user-agent"),
    **dict.fromkeys(("dissallow", "dissalow", "disalow", "diasllow", "disallaw"), "disallow"),
}
_ODD = re.compile(r"%[0-9A-Fa-f]{2}|[^!-~]|[*$]")
_RESERVED = re.compile(r"[^A-Za-z0-9._~/?=*%-]")
_NAME = re.compile(r"[^\s/]+")


def shown(text: str) -> str:
    """Latin-1 text as a person reads it: UTF-8, without control characters, bounded."""
    read = text[: 4 * SHOWN].encode("latin-1", "replace").decode("utf-8", "replace").strip()
    return "".join(c if c.isprintable() else "\ufffd" for c in read[:SHOWN])


class Line(NamedTuple):
    """`field: value` without its comment; `text` is the line as it stands, numbered from one."""

    number: int
    field: str
    value: str
    text: str


def lines(body: bytes, truncated: bool = False) -> Iterator[Line]:
    """The lines that have a field; of a body that was cut, the last line is left out when it is a part of one.

    Lines end in CR, LF or both; a byte order mark is skipped. A file that says it is UTF-16 is read as such.
    """
    whole = body[:BODY_LIMIT]
    truncated = truncated or len(body) > BODY_LIMIT
    if whole.startswith((b"\xff\xfe", b"\xfe\xff")):
        whole = whole.decode("utf-16", "replace").encode("utf-8", "replace")
    rows = whole.removeprefix(b"\xef\xbb\xbf").splitlines()
    if truncated and rows and not whole.endswith((b"\n", b"\r")):
        rows.pop()
    for number, row in enumerate(rows, 1):
        field, colon, value = row.partition(b"#")[0].partition(b":")
        if colon:
            name = field.strip().lower().decode("latin-1")
            text = row.decode("latin-1")
            yield Line(number, _SPELLINGS.get(name, name), value.strip().decode("latin-1"), text)


class Pattern:
    """A path in a rule: matches from a path's beginning, `*` is anything, `$` at the end is the end (section 2.2.3)."""

    __slots__ = ("_anchored", "_parts", "length")

    def __init__(self, text: str) -> None:
        self._anchored = text.endswith("$")
        form = _normal(text[:-1] if self._anchored else text, "*")
        # What lacks the slash that the grammar asks for is read as if it had it; see `Rules` for who may lack it.
        form = form if form[:1] in ("/", "*", "") else f"/{form}"
        # Octets, which decide between two rules (section 2.2.2); what is reserved would be encoded in three.
        self.length = len(form) + 2 * len(_RESERVED.findall(form)) + self._anchored
        path, mark, query = form.partition("?")
        self._parts = re.split(r"\*+", path + mark + _escaped(query))

    @property
    def prefix(self) -> str | None:
        """What the pattern is where it has nothing special in it."""
        return None if self._anchored or len(self._parts) > 1 else self._parts[0]

    def matches(self, target: Target) -> bool:
        """Whether any reading of a URL matches, in time linear in its length."""
        return self._match(target[0]) or (len(target) > 1 and self._match(target[1]))

    def _match(self, path: str) -> bool:
        parts = self._parts
        if not path.startswith(parts[0]):
            return False
        at = len(parts[0])
        if len(parts) == 1:
            return not self._anchored or len(path) == at
        for part in parts[1:-1]:
            found = path.find(part, at)
            if found < 0:
                return False
            at = found + len(part)
        if self._anchored:
            return path.endswith(parts[-1]) and len(path) - len(parts[-1]) >= at
        return path.find(parts[-1], at) >= 0


@lru_cache(maxsize=1024)
def target(url: str) -> Target:
    """What rules match of a URL: its path and query, percent-encoded alike (section 2.2.2), dot segments resolved."""
    bytewise = url.encode("utf-8", "replace").decode("latin-1").partition("#")[0]
    _, scheme, rest = bytewise.partition("://")
    rest = rest if scheme else bytewise
    start = min((at for at in (rest.find("/"), rest.find("?")) if at >= 0), default=len(rest))
    path, mark, query = rest[start:].partition("?")
    path = _normal(path or "/")
    path = _without_dots(path) if "/." in path else path
    if not mark:
        return (path,)
    query = _normal(query)
    plain = query.replace("%2F", "/").replace("%3F", "?")
    forms = (f"{path}?{_escaped(query)}", f"{path}?{plain}")
    return forms if forms[0] != forms[1] else forms[:1]


def _normal(text: str, kept: str = "") -> str:
    """Percent-encoding made alike: what need not be encoded is not, what is not ASCII is, in capitals.

    `/`, `?`, `#` and `%` stay as they were written, since their encoded form means another thing. `*` and `$` are
    encoded, unless `kept`: in a rule they have a meaning, in a URL they have none.
    """

    def one(match: re.Match[str]) -> str:
        found = match[0]
        character = chr(int(found[1:], 16)) if len(found) == 3 else found
        if character in kept and len(found) == 1:
            return found
        return character if "!" <= character <= "~" and character not in "/?#%*$" else f"%{ord(character):02X}"

    return _ODD.sub(one, text)


def _escaped(query: str) -> str:
    return query.replace("/", "%2F").replace("?", "%3F")


def _without_dots(path: str) -> str:
    """RFC 3986, section 5.2.4: otherwise `/open/../closed` would pass for open."""
    kept: list[str] = []
    segments = path.split("/")[1:]
    for segment in segments:
        if segment == "..":
            del kept[-1:]
        elif segment != ".":
            kept.append(segment)
    if segments[-1] in (".", ".."):
        kept.append("")
    return "/" + "/".join(kept)


class Rule(NamedTuple):
    """An Allow or Disallow line."""

    line: Line
    pattern: Pattern
    allow: bool

    @property
    def rank(self) -> tuple[int, bool]:
        """Which of two matching rules is used: the one with more octets; of two alike, the one that allows."""
        return self.pattern.length, self.allow


class Block(list[Line]):
    """The lines below one run of user-agent lines."""

    @cached_property
    def rules(self) -> list[Rule]:
        """The best first, so that the first to match is the one that is used.

        An empty path matches nothing. A path without its slash is heeded where it disallows and not where it allows.
        """
        found = [
            Rule(line, Pattern(line.value), line.field == "allow")
            for line in self
            if line.value and (line.field == "disallow" or (line.field == "allow" and line.value[0] in "/*"))
        ]
        return sorted(found, key=lambda rule: rule.rank, reverse=True)

    @cached_property
    def said(self) -> tuple[tuple[str, str], ...]:
        """What tells a block from another, but for where it stands."""
        return tuple((line.field, line.value) for line in self)

    @cached_property
    def _prefixes(self) -> tuple[str, ...]:
        return tuple(prefix for rule in self.rules if (prefix := rule.pattern.prefix) is not None)

    @cached_property
    def _special(self) -> list[Rule]:
        return [rule for rule in self.rules if rule.pattern.prefix is None]

    def best(self, at: Target) -> Rule | None:
        """The rule that a URL falls under."""
        # One call of C sorts out all plain rules where none of them matches, which is the usual case.
        plain = at[0].startswith(self._prefixes) or at[-1].startswith(self._prefixes)
        return next((rule for rule in (self.rules if plain else self._special) if rule.pattern.matches(at)), None)


def best(blocks: list[Block], at: Target) -> Rule | None:
    """The rule that a URL falls under, where an agent is named in several groups."""
    found = [rule for block in blocks if (rule := block.best(at)) is not None]
    return max(found, key=lambda rule: rule.rank, default=None)


class Groups:
    """A file's lines by the agents they are for (section 2.2.1).

    Only Allow and Disallow end a run of user-agent lines, for what is allowed: a line that RFC 9309 does not know must
    not interfere (section 2.2.4). For `own` fields, which belong to groups by other specifications, they end it too.

    Attributes:
        outside: lines of `own` fields above the first group.
        whole: lines of all other fields, which are for everybody.
    """

    def __init__(self, body: bytes, truncated: bool, own: frozenset[str] = frozenset()) -> None:
        self.outside: list[Line] = []
        self.whole: list[Line] = []
        self._crawl: dict[str, list[Block]] = {}
        self._own: dict[str, list[Block]] = {}
        crawl: Block | None = None
        usage: Block | None = None
        crawl_ended = usage_ended = True
        for line in lines(body, truncated):
            if line.field == "user-agent":
                crawl = Block() if crawl is None or crawl_ended else crawl
                usage = Block() if usage is None or usage_ended else usage
                crawl_ended = usage_ended = False
                for name in _names(line.value):
                    _join(self._crawl.setdefault(name, []), crawl)
                    _join(self._own.setdefault(name, []), usage)
            elif line.field in ("allow", "disallow"):
                if crawl is not None:
                    crawl.append(line)
                else:
                    self.outside.append(line)
                crawl_ended = usage_ended = True
            elif line.field in own:
                (self.outside if usage is None else usage).append(line)
                usage_ended = True
            else:
                self.whole.append(line)

    def crawl(self, agent: str) -> list[Block]:
        """What an agent's groups say about crawling; those of `*` where it has none."""
        return self._crawl.get(agent.lower(), self._crawl.get("*", []))

    def own(self, agent: str) -> list[Line]:
        """The lines of `own` fields for an agent; those of `*` where it has no group."""
        return [line for block in self._own.get(agent.lower(), self._own.get("*", [])) for line in block]

    def names(self, agent: str) -> bool:
        """Whether there is a group that names an agent."""
        return agent.lower() in self._crawl


def _names(value: str) -> set[str]:
    """A user-agent line's names, as written and as product tokens: `Bot/1.0`, `Bot*` and, against the RFC, `A, B`."""
    names = set()
    for name in value.lower().split(","):
        token = _NAME.match(name.strip())
        names |= {name.strip(), token[0].rstrip("*") or "*"} if token else {""}
    return names


def _join(blocks: list[Block], block: Block) -> None:
    if not blocks or blocks[-1] is not block:
        blocks.append(block)
