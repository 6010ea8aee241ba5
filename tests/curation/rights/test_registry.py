"""The registry's wire form, against a real server on this machine that answers as it is told."""

from __future__ import annotations

import json
import pickle
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from pydantic import ValidationError

from curation.errors import UserError
from curation.manifest import Verdict
from curation.rights.registry import KEY, Registry, RegistryConfig

DENY, UNKNOWN, ERROR = Verdict.DENY, Verdict.UNKNOWN, Verdict.ERROR
SECRET = "sk-do-not-show"
A, B, C = "https://a.example/1.jpg", "https://b.example/é.jpg?x=1,2", "https://c.example/3.jpg"

Answer = tuple[int, bytes]


class Server:
    """Answers by a function of the lines that were sent; keeps what was asked."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.headers: list[dict[str, str]] = []
        self.answer: Callable[[list[str]], Answer] = lambda urls: listed(*((url, False) for url in urls))
        self.released = threading.Event()  # for answers that do not come
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                lines = self.rfile.read(int(self.headers["content-length"])).decode().split("\n")
                outer.asked.append(lines)
                outer.headers.append({name.lower(): value for name, value in self.headers.items()})
                status, body = outer.answer(lines)
                self.send_response(status)
                if 300 <= status < 400:
                    self.send_header("location", outer.url + "elsewhere")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/api/v2/query/urls/"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()


def listed(*items: tuple[object, object]) -> Answer:
    return 200, json.dumps({"urls": [{"url": u, "optOut": out, "optIn": False} for u, out in items]}).encode()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv(KEY, SECRET)
    running = Server()
    yield running
    running.close()


def ask(server: Server, *urls: str, **more: Any) -> dict[str, Verdict]:
    config = RegistryConfig(url=server.url, **{"timeout_s": 30, **more})
    return {url: o.verdict for url, o in Registry(config).observe(urls).items()}


def test_what_is_sent(server: Server) -> None:
    ask(server, A, B)
    assert server.asked == [[A, B]]
    assert server.headers[0]["authorization"] == f"API {SECRET}"
    assert server.headers[0]["content-type"] == "text/plain"


def test_evidence(server: Server) -> None:
    server.answer = lambda _: listed((A, True))
    found = Registry(RegistryConfig(url=server.url)).observe([A, B])
    assert [(o.signal, o.value, o.where) for o in found.values()] == [
        ("registry", "optOut: true", server.url),
        ("registry", "left out of the answer", server.url),
    ]
    assert all(o.observed_at is not None for o in found.values())


ANSWERS: list[tuple[str, Answer, dict[str, Verdict]]] = [
    ("in order", listed((A, True), (B, False), (C, False)), {A: DENY, B: UNKNOWN, C: UNKNOWN}),
    ("in another order", listed((C, True), (A, False), (B, False)), {A: UNKNOWN, B: UNKNOWN, C: DENY}),
    ("one is missing", listed((A, True), (C, False)), {A: DENY, B: ERROR, C: UNKNOWN}),
    ("all are missing", listed(), {A: ERROR, B: ERROR, C: ERROR}),
    ("what was not asked", listed((A, False), ("https://x.example/", True)), {A: UNKNOWN, B: ERROR, C: ERROR}),
    ("the host in another case", listed(("https://A.Example:443/1.jpg", True)), {A: DENY, B: ERROR, C: ERROR}),
    ("the path in another case", listed(("https://a.example/1.JPG", True)), {A: ERROR, B: ERROR, C: ERROR}),
    ("twice, contradicting", listed((A, False), (A, True), (B, True), (B, False)), {A: DENY, B: DENY, C: ERROR}),
    ("no booleans", listed((A, "false"), (B, None), (C, 0)), {A: ERROR, B: ERROR, C: ERROR}),
    ("a boolean and none", listed((A, False), (A, "x"), (B, True)), {A: ERROR, B: DENY, C: ERROR}),
    ("optIn alone is no permission", (200, json.dumps({"urls": [{"url": A, "optIn": True, "optOut": False}]}).encode()),
        {A: UNKNOWN, B: ERROR, C: ERROR}),
    ("both", (200, json.dumps({"urls": [{"url": A, "optIn": True, "optOut": True}]}).encode()),
        {A: DENY, B: ERROR, C: ERROR}),
    ("items that are none", (200, json.dumps({"urls": [7, None, {"url": 3}, {"optOut": False}, [A]]}).encode()),
        {A: ERROR, B: ERROR, C: ERROR}),
]  # fmt: skip


@pytest.mark.parametrize(("what", "answer", "verdicts"), ANSWERS, ids=[c[0] for c in ANSWERS])
@pytest.mark.parametrize("on_failure", ["error", "unknown"])
def test_answers_are_matched_by_url(
    server: Server, what: str, answer: Answer, verdicts: dict[str, Verdict], on_failure: str
) -> None:
    server.answer = lambda _: answer
    assert ask(server, A, B, C, on_failure=on_failure) == verdicts, what


@pytest.mark.parametrize(
    "answer",
    [
        *((status, listed((A, False))[1]) for status in (204, 301, 307, 400, 401, 403, 404, 429, 500, 503)),
        (200, b""),
        (200, b"not-json"),
        (200, b"[" * 100_000),
        (200, b"\xff\xfe\x00"),
        (200, b"[]"),
        (200, b'{"urls": {}}'),
        (200, b'{"error": "under maintenance"}'),
        (200, b'{"urls": [' + b"9" * 5000 + b"]}"),
    ],
    ids=lambda answer: f"{answer[0]} {answer[1][:12]!r}",
)
def test_failures_are_what_the_job_says(server: Server, answer: Answer) -> None:
    server.answer = lambda _: answer if answer[0] != 204 else (204, b"")
    assert ask(server, A) == {A: ERROR}
    assert ask(server, A, on_failure="unknown") == {A: UNKNOWN}
    assert len(server.asked) == 2, "a redirect is not followed: the key would go with it"


def test_slow_answers_are_failures_and_end_the_asking(server: Server) -> None:
    def never(_: list[str]) -> Answer:
        server.released.wait(60)
        return listed((A, False))

    server.answer = never
    assert ask(server, A, B, C, batch=1, timeout_s=0.2) == {A: ERROR, B: ERROR, C: ERROR}
    assert server.asked == [[A]]


def test_answers_that_drip_are_failures(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each read comes in time, the whole does not."""
    stop = threading.Event()

    class Dripping(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(200)
            self.end_headers()
            while not stop.wait(0.02):
                try:
                    self.wfile.write(b" ")
                except OSError:
                    return

        def log_message(self, *_: object) -> None:
            pass

    drip = ThreadingHTTPServer(("127.0.0.1", 0), Dripping)
    threading.Thread(target=drip.serve_forever, daemon=True).start()
    try:
        config = RegistryConfig(url=f"http://127.0.0.1:{drip.server_port}/", timeout_s=0.3)
        found = Registry(config).observe([A])
        assert (found[A].verdict, found[A].value) == (ERROR, "no whole answer in 0.3 s")
    finally:
        stop.set()
        drip.shutdown()
        drip.server_close()


def test_a_server_that_is_gone(server: Server) -> None:
    url = server.url
    server.close()
    found = Registry(RegistryConfig(url=url)).observe([A])
    assert found[A].verdict == ERROR
    assert "ConnectError" in (found[A].value or "")


def test_batches_and_a_failed_one_among_them(server: Server) -> None:
    urls = [f"https://a.example/{n}" for n in range(7)]

    def third_fails(asked: list[str]) -> Answer:
        return (500, b"") if urls[4] in asked else listed(*((url, url == urls[6]) for url in asked))

    server.answer = third_fails
    found = ask(server, *urls, urls[0], batch=2)
    assert [len(asked) for asked in server.asked] == [2, 2, 2, 1]
    assert [found[url] for url in urls] == [*[UNKNOWN] * 4, ERROR, ERROR, DENY]


def test_a_url_with_a_line_end_is_not_sent(server: Server) -> None:
    odd = [f"{A}\n{B}", f"{A}\r", f"{A}\u2028x", " " + A, ""]
    assert ask(server, *odd, C) == {**dict.fromkeys(odd, ERROR), C: UNKNOWN}
    assert server.asked == [[C]]


def test_nothing_is_asked_about_nothing(server: Server) -> None:
    assert ask(server) == {}
    assert server.asked == []


def test_the_key_shows_nowhere(
    server: Server, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("DEBUG")
    config = RegistryConfig(url=server.url)
    registry = Registry(config)
    server.answer = lambda _: (500, b"")
    found = registry.observe([A])
    seen = repr(found) + repr(vars(registry)) + config.model_dump_json()
    assert SECRET not in seen + caplog.text
    assert SECRET.encode() not in pickle.dumps(registry)
    for bad in ("", f"{SECRET}\n", f"{SECRET}é"):
        monkeypatch.setenv(KEY, bad)
        with pytest.raises(UserError, match=KEY) as raised:
            Registry(config)
        assert SECRET not in str(raised.value)
        assert raised.value.remedy


@pytest.mark.parametrize(
    "given",
    [
        {"url": "http://registry.example/"},
        {"url": "registry.example"},
        {"url": "file:///etc/passwd"},
        {"url": "https://r.example/", "batch": 10_001},
        {"url": "https://r.example/", "batch": 0},
        {"url": "https://r.example/", "timeout_s": 0},
        {"url": "https://r.example/", "on_failure": "allow"},
        {"url": "https://r.example/", "key": "x"},
        {"url": "https://name:password@r.example/"},
        {},
    ],
)
def test_configurations_that_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        RegistryConfig.model_validate(given)
