"""Valid statements, mutated, for every parser of rights signals: none may crash, be slow, or permit out of nothing.

    python -m tests.curation.rights.fuzz --inputs 100000

`test_fuzz.py` runs a few hundred of the same inputs in the normal suite. A parser is added to `PARSERS` with what it
parses in `CORPUS` and what a permission looks like in `PERMISSIONS`.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from curation.manifest import Verdict
from curation.rights import aipref, content_signals, robots_tags, rsl, tdmrep
from curation.rights.ai_txt import AiTxt
from curation.rights.page import Page
from curation.rights.robots import Robots
from curation.rights.verdict import Observation
from tests.curation.rights import (
    test_ai_txt,
    test_aipref,
    test_content_signals,
    test_page,
    test_robots,
    test_robots_tags,
    test_rsl,
    test_tdmrep,
)
from tests.curation.rights.answers import answer

URL = "https://a.example/img/1.jpg?next=https://b.example/%2F"


def _robots(data: bytes) -> list[Observation]:
    """What rules say; that no rule applies is no permission by a rule."""
    robots = Robots(answer(data), "foobot")
    robots.licences()
    paths = ("img/1.jpg?next=%2F", "example/page.html", "this/a/exactly", data[-40:].decode("latin-1"))
    return [o for path in paths for o in robots.observe(f"https://a.example/{path}") if o.where != robots.file.url]


def _aipref(data: bytes) -> list[Observation]:
    return aipref.observe_robots(Robots(answer(data), "cleanplate"), URL)


def _aipref_header(data: bytes) -> list[Observation]:
    return aipref.observe_headers(data.decode("latin-1").splitlines(), URL)


def _content_signal(data: bytes) -> list[Observation]:
    return content_signals.observe(Robots(answer(data), "cleanplate"), URL)


def _content_signal_header(data: bytes) -> list[Observation]:
    return content_signals.observe_headers(data.decode("latin-1").splitlines(), URL)


def _ai_txt(data: bytes) -> list[Observation]:
    file = AiTxt(answer(data, name="ai.txt"))
    return file.observe(URL) + file.observe("https://a.example/" + data[-40:].decode("latin-1"))


def _tdmrep(data: bytes) -> list[Observation]:
    file = tdmrep.TdmRep(answer(data, name="tdmrep.json"))
    paths = ("img/1.jpg?next=%2F", "directory-b/images/1.jpg", "a/1.jpg", data[-40:].decode("latin-1"))
    return [o for path in paths for o in file.observe(f"https://a.example/{path}")]


def _headers(data: bytes) -> list[Observation]:
    """Of TDMRep, of robots tags and links to RSL, which stand in the same answer."""
    headers: dict[str, list[str]] = {}
    for line in data.decode("latin-1").split("\n"):
        name, _, value = line.partition(": ")
        headers.setdefault(name.lower(), []).append(value)
    for link in rsl.links_of_headers(headers.get("link", ())):
        link.encode()
    tags = robots_tags.observe_headers(headers.get("x-robots-tag", ()), URL, "cleanplate", indexing=True)
    return tdmrep.observe_headers(headers, URL) + tags


def _page(data: bytes) -> list[Observation]:
    """Of TDMRep, of robots metas, of RSL inside the page and behind its links."""
    page = Page(data, data[-30:].decode("latin-1"))
    for link in rsl.links_of_page(page, URL):
        link.encode()
    tags = robots_tags.observe_page(page, URL, "cleanplate", indexing=True)
    return tdmrep.observe_page(page, URL) + tags + rsl.observe_page(page, URL)


def _rsl(data: bytes) -> list[Observation]:
    document = rsl.Rsl(answer(data, name="license.xml"))
    paths = ("img/1.jpg?next=%2F", "open/a", data[-40:].decode("latin-1"))
    return [o for path in paths for o in document.observe(f"https://a.example/{path}")]


PARSERS: dict[str, Callable[[bytes], list[Observation]]] = {
    "robots": _robots,
    "aipref": _aipref,
    "aipref_header": _aipref_header,
    "content_signal": _content_signal,
    "content_signal_header": _content_signal_header,
    "ai_txt": _ai_txt,
    "tdmrep": _tdmrep,
    "headers": _headers,
    "page": _page,
    "rsl": _rsl,
}

_ALLOW_LINE = re.compile(rb"(?<![a-z])allow\s*:", re.IGNORECASE)
_AI_TRAIN_YES = re.compile(rb"ai[-_]?train\s*=\s*yes", re.IGNORECASE)
_TRAIN_AI_Y = re.compile(rb"train-ai=y")
_PERMITS = rb"(?=.*permits)(?=.*(?:all|train))"
PERMISSIONS: dict[str, re.Pattern[bytes]] = {
    "robots": _ALLOW_LINE,
    "aipref": _TRAIN_AI_Y,
    "aipref_header": _TRAIN_AI_Y,
    "content_signal": _AI_TRAIN_YES,
    "content_signal_header": _AI_TRAIN_YES,
    "ai_txt": _ALLOW_LINE,
    "tdmrep": re.compile(rb"tdm-reservation\"[^,}]*0", re.DOTALL),
    "headers": re.compile(rb"tdm-reservation: .*0", re.IGNORECASE),
    "page": re.compile(rb"(?=.*tdm-reservation)(?=.*0)|" + _PERMITS, re.IGNORECASE | re.DOTALL),
    "rsl": re.compile(_PERMITS, re.DOTALL),
}
"""What an input must hold, NUL bytes left out, for a permission not to come out of nothing."""


def _grouped(field: str, values: Sequence[str]) -> list[bytes]:
    return [f"User-agent: *\n{field}: {v}\n{field}: /img {v}\nAllow: /\n".encode("latin-1", "ignore") for v in values]


def _lines(name: str, of: Iterable[Sequence[str]]) -> list[bytes]:
    return ["".join(f"{name}: {value}\n" for value in values).encode("latin-1", "replace") for values in of]


_FIELDS = [field for _, field, _ in test_aipref.FIELDS]
_SIGNALS = [text for _, text, _ in test_content_signals.SIGNALS]
CORPUS: dict[str, Sequence[bytes]] = {
    "robots": [body.encode() for _, body, *_ in test_robots.CASES],
    "aipref": [*_grouped("Content-Usage", _FIELDS), *(body.encode() for _, body, *_ in test_aipref.RULES)],
    "aipref_header": [field.encode("latin-1") for field in _FIELDS],
    "content_signal": [
        *_grouped("Content-Signal", _SIGNALS),
        *(body.encode() for _, body, *_ in test_content_signals.LINES),
    ],
    "content_signal_header": [text.encode() for text in _SIGNALS],
    "ai_txt": [body if isinstance(body, bytes) else body.encode() for _, body, *_ in test_ai_txt.CASES],
    "tdmrep": [body if isinstance(body, bytes) else body.encode() for _, body, *_ in test_tdmrep.CASES],
    "headers": [
        *_lines("TDM-Reservation", (values for _, values, *_ in test_tdmrep.HEADERS)),
        *_lines("X-Robots-Tag", (values for _, values, *_ in test_robots_tags.HEADERS)),
        *_lines("Link", (values for _, values, *_ in test_rsl.LINKS)),
    ],
    "page": [
        *(html.encode() for _, html, *_ in (*test_page.METAS, *test_robots_tags.METAS)),
        *(test_tdmrep.META.format(value).encode() for value in (0, 1, 2)),
        *(f'<script type="{rsl.MEDIA_TYPE}">{body}</script>'.encode() for _, body, *_ in test_rsl.CASES),
    ],
    "rsl": [body.encode() for _, body, *_ in test_rsl.CASES],
}

_ODDITIES = (
    *(
        b"\r",
        b"\n",
        b"\r\n",
        b"\0",
        b"#",
        b":",
        b"*",
        b"$",
        b"%",
        b"%2F",
        b"%zz",
        b"=",
        b",",
        b";",
        b'"',
        b"(",
        b")",
        b"<",
    ),
    *(
        b"\xef\xbb\xbf",
        b"\xff\xfe",
        b"\xfe\xff",
        b"\xc3\x28",
        b"User-agent: *\n",
        b"Disallow: /\n",
        b"Allow",
        b"y",
        b"yes",
    ),
)
_LIMIT = 4096  # bytes of most inputs; one in 500 is long


class Outcome(NamedTuple):
    """What came of the inputs of one parser."""

    inputs: int
    crashes: list[str]
    allows: int
    garbage: list[bytes]  # inputs that were permitted by and hold no permission
    slowest: float  # seconds of processor time
    seconds: float


def mutated(corpus: Sequence[bytes], count: int, seed: int = 0) -> Iterator[bytes]:
    """`count` inputs, the same ones for the same seed."""
    chance = random.Random(seed)
    for number in range(count):
        data = bytearray(chance.choice(corpus))
        for _ in range(chance.choice((0, 1, 1, 1, 2, 2, 3, 5, 8))):
            _mutate(data, corpus, chance)
        if number % 500 == 499:
            data *= chance.randint(_LIMIT, 16 * _LIMIT) // max(1, len(data))
        yield bytes(data)


def _mutate(data: bytearray, corpus: Sequence[bytes], chance: random.Random) -> None:
    at = chance.randint(0, len(data))
    to = min(len(data), at + chance.randint(0, 24))
    match chance.randrange(8):
        case 0:  # flips
            for _ in range(chance.randint(1, 4) if data else 0):
                data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        case 1:  # splice
            other = chance.choice(corpus)
            data[at:] = other[chance.randint(0, len(other)) :]
        case 2:  # truncation
            del data[at:]
        case 3:  # repetition
            data[at:at] = bytes(data[at:to]) * chance.randint(1, 8)
        case 4:  # random Unicode
            text = "".join(chr(chance.choice((chance.randrange(0x80), chance.randrange(0x2FFF)))) for _ in range(4))
            data[at:at] = text.encode("utf-8", "replace")
        case 5:  # random bytes
            data[at:to] = chance.randbytes(to - at)
        case 6:  # a piece left out
            del data[at:to]
        case _:
            data[at:at] = chance.choice(_ODDITIES)
    del data[_LIMIT:]


def fuzz(
    parser: Callable[[bytes], list[Observation]],
    permission: re.Pattern[bytes],
    corpus: Sequence[bytes],
    inputs: int,
    seed: int = 0,
) -> Outcome:
    """Puts mutated inputs through one parser."""
    crashes: list[str] = []
    garbage: list[bytes] = []
    allows, slowest, begun = 0, 0.0, time.perf_counter()
    for data in mutated(corpus, inputs, seed):
        before = time.process_time()
        try:
            found = parser(data)
        except Exception as error:
            crashes.append(f"{error!r} at {data[:200]!r}")
            continue
        slowest = max(slowest, time.process_time() - before)
        if any(o.verdict == Verdict.ALLOW for o in found):
            allows += 1
            if not permission.search(data.replace(b"\0", b"")):
                garbage.append(data)
    return Outcome(inputs, crashes, allows, garbage, slowest, time.perf_counter() - begun)


def main() -> int:
    """A line for each parser, and one of JSON; fails where anything was found."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--inputs", type=int, default=100_000, help="inputs for each parser")
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--parser", choices=sorted(PARSERS), action="append", help="only this one")
    given = arguments.parse_args()
    outcomes = []
    for name in given.parser or PARSERS:
        found = fuzz(PARSERS[name], PERMISSIONS[name], CORPUS[name], given.inputs, given.seed)
        outcomes.append(found)
        sys.stdout.write(
            f"{name:24} {found.inputs:8,} inputs  {len(found.crashes)} crashes  {found.allows:6,} permissions, "
            f"{len(found.garbage)} from garbage  slowest {1000 * found.slowest:.1f} ms  "
            f"{found.inputs / found.seconds:,.0f}/s\n"
        )
        for trouble in [*found.crashes[:3], *found.garbage[:3]]:
            sys.stdout.write(f"    {trouble!r}\n")
    totals = {
        "inputs": sum(o.inputs for o in outcomes),
        "crashes": sum(len(o.crashes) for o in outcomes),
        "allows_from_garbage": sum(len(o.garbage) for o in outcomes),
        "slowest_ms": round(1000 * max(o.slowest for o in outcomes), 1),
    }
    sys.stdout.write(json.dumps(totals) + "\n")
    return int(bool(totals["crashes"] or totals["allows_from_garbage"] or totals["slowest_ms"] > 1000))


if __name__ == "__main__":
    sys.exit(main())
