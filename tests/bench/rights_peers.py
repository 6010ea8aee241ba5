"""Who heeds which opt-out: cleanplate beside datadiligence 0.1.7, by `python -m tests.bench.rights_peers`.

Every case is a site on a loopback port with one picture (or page) and one statement. Both are asked about its URL the
way their users ask: `datadiligence.is_allowed(url=…)` and `cleanplate rights check URL`. What is refused, or cannot be
told, must not be let through, whether by a refusal, by holding it or by an exception; the controls are what nobody
refuses. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import http.server
import io
import json
import subprocess
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from PIL import Image, PngImagePlugin
from rich.console import Console
from rich.table import Table

from pipelines import rights
from tests.bench.peers import ask_datadiligence
from tests.bench.peers.environments import environment
from tests.curation.rights.signed import mining, plain, sign

REQUIREMENTS = ("datadiligence==0.1.7", "c2pa-python==0.38.1", "pillow==13.0.0")
PRODUCT = "cleanplate"
JPEG, PNG, HTML = "image/jpeg", "image/png", "text/html"
CAWG, C2PA = "cawg.training-mining", "c2pa.training-mining"
RSL = (
    b'<rsl xmlns="https://rslstandard.org/rsl"><content url="/"><license><prohibits type="usage">all</prohibits>'
    b"</license></content></rsl>"
)
# What datadiligence says that it reads: these headers, and the older assertion of the picture itself.
_READ_BY_PEER = frozenset(
    {
        *("X-Robots-Tag: noai", "X-Robots-Tag: noimageai", "X-Robots-Tag: NoAI"),
        *("X-Robots-Tag: noindex; noai in a second line", "X-Robots-Tag: cleanplate: noai"),
        *("X-Robots-Tag: CleanPlate: noai", "X-Robots-Tag: cleanplate: noindex, noimageai", "tdm-reservation: 1"),
        *("C2PA c2pa.training-mining", "C2PA, tampered picture"),
    }
)
_ANSWERS = {"deny": "refused", "error": "held", "allow": "through", "unknown": "through"}


class Answer(NamedTuple):
    """What a path of a site answers with."""

    body: bytes = b""
    kind: str = "text/plain"
    headers: tuple[tuple[str, str], ...] = ()
    status: int = 200


class Case(NamedTuple):
    """A site, the path that is asked about, and what is right: `refuse`, `hold` (nobody can tell) or `keep`."""

    group: str
    name: str
    right: str
    site: dict[str, Answer]
    path: str = "/a.jpg"
    closed: bool = False


def headed(name: str, *lines: tuple[str, str], right: str = "refuse") -> Case:
    """A picture that is sent with these headers."""
    return Case("HTTP headers", name, right, {"/a.jpg": Answer(plain(), JPEG, lines)})


def beside(name: str, path: str, text: str | bytes, right: str = "refuse", status: int = 200) -> Case:
    """A picture on a site with this file."""
    body = text.encode() if isinstance(text, str) else text
    site = {"/a.jpg": Answer(plain(), JPEG), path: Answer(body, "text/plain", (), status)}
    return Case("site files" if status == 200 else "cannot ask", name, right, site)


def inside(name: str, data: bytes, right: str = "refuse", kind: str = JPEG) -> Case:
    """A file that says something itself."""
    return Case("inside the file", name, right, {"/a.jpg": Answer(data, kind)})


def mined(term: str, kind: str = "JPEG") -> bytes:
    """A picture with a plus:DataMining property."""
    packet = (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description rdf:about="" xmlns:plus="http://ns.useplus.org/ldf/xmp/1.0/" '
        f'plus:DataMining="http://ns.useplus.org/ldf/vocab/{term}"/></rdf:RDF></x:xmpmeta>'
    )
    buffer, image = io.BytesIO(), Image.new("RGB", (32, 32), (9, 99, 199))
    if kind == "PNG":
        info = PngImagePlugin.PngInfo()
        info.add_itxt("XML:com.adobe.xmp", packet)
        image.save(buffer, kind, pnginfo=info)
    else:
        image.save(buffer, kind, xmp=packet.encode())
    return buffer.getvalue()


def cases() -> list[Case]:
    tag, usage, reserved = "X-Robots-Tag", "Content-Usage", "tdm-reservation"
    return [
        headed("X-Robots-Tag: noai", (tag, "noai")),
        headed("X-Robots-Tag: noimageai", (tag, "noimageai")),
        headed("X-Robots-Tag: NoAI", (tag, "NoAI")),
        headed("X-Robots-Tag: noml", (tag, "noml")),
        headed("X-Robots-Tag: noindex; noai in a second line", (tag, "noindex"), (tag, "noai")),
        headed("X-Robots-Tag: cleanplate: noai", (tag, "cleanplate: noai")),
        headed("X-Robots-Tag: CleanPlate: noai", (tag, "CleanPlate: noai")),
        headed("X-Robots-Tag: cleanplate: noindex, noimageai", (tag, "cleanplate: noindex, noimageai")),
        headed("tdm-reservation: 1", (reserved, "1")),
        headed("Content-Usage: train-ai=n", (usage, "train-ai=n")),
        beside("robots.txt: Disallow for *", "/robots.txt", "User-agent: *\nDisallow: /\n"),
        beside("robots.txt: Disallow for us", "/robots.txt", "User-agent: cleanplate\nDisallow: /*.jpg$\n"),
        beside("robots.txt: Content-Usage", "/robots.txt", "User-agent: *\nContent-Usage: train-ai=n\nAllow: /\n"),
        beside("robots.txt: Content-Signal", "/robots.txt", "User-agent: *\nContent-Signal: ai-train=no\nAllow: /\n"),
        beside("tdmrep.json", "/.well-known/tdmrep.json", '[{"location": "/", "tdm-reservation": 1}]'),
        beside("ai.txt", "/ai.txt", "User-Agent: *\nDisallow: *.jpg\n"),
        _rsl(),
        _page('<meta name="robots" content="noai, noimageai">', "page: meta robots noai"),
        _page('<meta name="tdm-reservation" content="1">', "page: meta tdm-reservation"),
        *_files(),
        beside("robots.txt: 503", "/robots.txt", b"", "hold", 503),
        beside("tdmrep.json: 500", "/.well-known/tdmrep.json", b"", "hold", 500),
        Case("cannot ask", "the picture: 500", "hold", {"/a.jpg": Answer(b"", JPEG, (), 500)}),
        Case("cannot ask", "nobody listens", "hold", {}, closed=True),
        *_controls(),
    ]


def _rsl() -> Case:
    robots = Answer(b"License: /licence.xml\nUser-agent: *\nAllow: /\n")
    site = {"/a.jpg": Answer(plain(), JPEG), "/robots.txt": robots, "/licence.xml": Answer(RSL, "application/rsl+xml")}
    return Case("site files", "robots.txt: RSL licence", "refuse", site)


def _page(meta: str, name: str) -> Case:
    body = f"<!doctype html><html><head>{meta}<title>x</title></head><body></body></html>".encode()
    return Case("pages", name, "refuse", {"/page": Answer(body, HTML)}, "/page")


def _files() -> list[Case]:
    forbidden = mining(C2PA, ai_generative_training="notAllowed", ai_training="notAllowed")
    signed = sign(plain(), "JPEG", forbidden)
    tampered = bytearray(signed)
    tampered[-4] ^= 0x10
    parent = sign(plain(), "JPEG", ingredients=((signed, "parentOf"),))
    remote = sign(plain(), "JPEG", forbidden, remote="http://127.0.0.1:9/manifest.c2pa")
    return [
        inside("C2PA c2pa.training-mining", signed),
        inside("C2PA cawg.training-mining", sign(plain(), "JPEG", mining(CAWG, ai_generative_training="notAllowed"))),
        inside("C2PA constrained", sign(plain(), "JPEG", mining(C2PA, ai_generative_training="constrained"))),
        inside("C2PA of the parent", parent),
        inside("C2PA, tampered picture", bytes(tampered)),
        inside("C2PA, manifest cut off", signed[: len(signed) // 2], "hold"),
        inside("C2PA, manifest elsewhere", remote, "hold"),
        inside("PLUS DMI-PROHIBITED", mined("DMI-PROHIBITED")),
        inside("PLUS DMI-PROHIBITED-AIMLTRAINING", mined("DMI-PROHIBITED-AIMLTRAINING")),
        inside("PLUS in a PNG", mined("DMI-PROHIBITED", "PNG"), kind=PNG),
    ]


def _controls() -> list[Case]:
    tag = "X-Robots-Tag"
    found = [
        headed("nothing is said", right="keep"),
        headed("X-Robots-Tag: otherbot: noai", (tag, "otherbot: noai"), right="keep"),
        headed("X-Robots-Tag: max-image-preview:large", (tag, "max-image-preview:large"), right="keep"),
        headed("tdm-reservation: 0", ("tdm-reservation", "0"), right="keep"),
        beside("robots.txt: Disallow elsewhere", "/robots.txt", "User-agent: *\nDisallow: /b/\n", "keep"),
        inside("C2PA allowed", sign(plain(), "JPEG", mining(C2PA, ai_generative_training="allowed")), "keep"),
        inside("PLUS DMI-ALLOWED", mined("DMI-ALLOWED"), "keep"),
    ]
    return [case._replace(group="controls") for case in found]


@contextmanager
def served(case: Case) -> Iterator[str]:
    """The case's site on a loopback port of its own; gives the URL that is asked about."""

    class Site(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = case.site.get(self.path, Answer(status=404))
            self.send_response(answer.status)
            for name, value in (("Content-Type", answer.kind), *answer.headers):
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        url = f"http://127.0.0.1:{server.server_port}{case.path}"
        if case.closed:
            server.server_close()  # the port stays known and nobody answers there
            yield url
            return
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield url
        server.shutdown()
        thread.join()


def ask_peer(cache: Path, urls: Sequence[str]) -> list[str]:
    """What datadiligence answers for each URL."""
    python = environment(cache, "datadiligence", REQUIREMENTS) / "python"
    with TemporaryDirectory() as folder:
        asked, out = Path(folder, "urls.json"), Path(folder, "answers.json")
        asked.write_text(json.dumps(list(urls)))
        command = [str(python), str(ask_datadiligence.__file__), PRODUCT, str(asked), str(out)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        answers: list[str] = json.loads(out.read_text())
    return answers


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/cleanplate-bench"))
    options = parser.parse_args()
    chosen = cases()
    with ExitStack() as stack:
        urls = [stack.enter_context(served(case)) for case in chosen]
        theirs = ask_peer(options.cache.expanduser().resolve(), urls)
        ours = [_ANSWERS[rights.run(url, allow_private=True).verdict] for url in urls]
    _show(chosen, ours, theirs)
    print(json.dumps({"ratios": _ratios(chosen, ours, theirs), "missed": _missed(chosen, ours, theirs)}))


def _show(chosen: Sequence[Case], ours: Sequence[str], theirs: Sequence[str]) -> None:
    table = Table("", "statement", "right", "cleanplate", "datadiligence", title="Who heeds what")
    before = ""
    for case, our, their in zip(chosen, ours, theirs, strict=True):
        styled = [f"[{'green' if _is_right(case, a) else 'red'}]{a}[/]" for a in (our, their)]
        table.add_row(case.group if case.group != before else "", case.name, case.right, *styled)
        before = case.group
    Console(width=130).print(table)


def _is_right(case: Case, answer: str) -> bool:
    return (answer == "through") == (case.right == "keep")


def _missed(chosen: Sequence[Case], ours: Sequence[str], theirs: Sequence[str]) -> dict[str, list[str]]:
    return {
        who: [case.name for case, answer in zip(chosen, answers, strict=True) if not _is_right(case, answer)]
        for who, answers in (("cleanplate", ours), ("datadiligence", theirs))
    }


def _ratios(chosen: Sequence[Case], ours: Sequence[str], theirs: Sequence[str]) -> dict[str, float]:
    """Shares of the cases: of what is refused, of what cannot be told, and of what nobody refuses."""
    names = {"refuse": "caught", "hold": "held_when_nobody_can_tell", "keep": "kept_where_nobody_refuses"}
    ratios = {}
    for right, name in names.items():
        for who, answers in (("ours", ours), ("datadiligence", theirs)):
            ratios[f"{name}_by_{who}"] = _share(
                _is_right(c, a) for c, a in zip(chosen, answers, strict=True) if c.right == right
            )
    read = [_is_right(c, a) for c, a in zip(chosen, theirs, strict=True) if c.name in _READ_BY_PEER]
    return ratios | {"caught_of_what_it_reads_by_datadiligence": _share(read)}


def _share(right: Iterable[bool]) -> float:
    found = list(right)
    return round(sum(found) / len(found), 3)


if __name__ == "__main__":
    main()
