"""Fetching: files and URLs, against a real HTTP server on loopback that misbehaves on request."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from curation.fetch import FetchConfig, Fetcher, host_and_domain
from curation.manifest import Reason


class Handler(BaseHTTPRequestHandler):
    """`/ok`, `/status/N`, `/flaky` (503 once), `/large`, `/loop`, `/away` (to a private address), `/slow`."""

    asked: ClassVar[Counter[str]] = Counter()
    release: ClassVar[threading.Event] = threading.Event()

    def do_GET(self) -> None:
        Handler.asked[self.path] += 1
        if self.path == "/slow":
            Handler.release.wait(10)
        moved = {"/loop": "/loop", "/away": "http://10.0.0.1/x", "/moved": "/ok"}.get(self.path)
        status = 302 if moved else int(self.path.rsplit("/", 1)[1]) if "/status/" in self.path else 200
        if self.path == "/flaky" and Handler.asked[self.path] == 1:
            status = 503
        body = b"x" * 5000 if self.path == "/large" else b"picture"
        self.send_response(status)
        if moved:
            self.send_header("Location", moved)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(OSError):  # a client that had enough has gone
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    Handler.release.set()
    server.shutdown()
    thread.join()
    server.server_close()


def fetcher(**settings: object) -> Fetcher:
    defaults = {"allow_private": True, "max_bytes": 1000, "timeout_s": 0.5, "retries": 1}
    return Fetcher(FetchConfig.model_validate(defaults | settings))


@pytest.mark.parametrize(
    ("path", "reason", "asked"),
    [
        ("/ok", None, 1),
        ("/moved", None, 1),
        ("/flaky", None, 2),
        ("/status/404", "http_404", 1),
        ("/status/403", "http_403", 1),
        ("/status/500", "http_500", 2),
        ("/large", Reason.TOO_LARGE, 1),
        ("/loop", Reason.CONNECTION, 12),
        ("/slow", Reason.TIMEOUT, 2),
    ],
)
def test_every_outcome_has_a_reason(site: str, path: str, reason: str | None, asked: int) -> None:
    Handler.asked.clear()
    (found,) = fetcher()([site + path])
    assert found.reason == reason
    assert (found.data == b"picture") == (reason is None)
    assert Handler.asked[path] == asked


def test_where_a_redirect_led_is_on_record(site: str) -> None:
    moved, direct = fetcher()([site + "/moved", site + "/ok"])
    assert moved.final_uri == site + "/ok"
    assert direct.final_uri is None


def test_private_addresses_are_refused_before_any_request(site: str) -> None:
    Handler.asked.clear()
    locations = [site + "/ok", "http://[::1]/x", "http://169.254.169.254/latest", "http://localhost/x"]
    assert [f.reason for f in fetcher(allow_private=False)(locations)] == [Reason.REFUSED_ADDRESS] * 4
    assert not Handler.asked


def test_hosts_that_do_not_exist_and_odd_urls_are_told_apart() -> None:
    urls = ["http://nowhere.invalid/x", "http:///x", "http://127.0.0.1:1/x", "http://[bad/x"]
    assert [f.reason for f in fetcher(retries=0)(urls)] == [
        *(Reason.DNS, Reason.REFUSED_ADDRESS, Reason.CONNECTION, Reason.CONNECTION),
    ]


def test_files(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"picture")
    (tmp_path / "large").write_bytes(b"x" * 1001)
    found = fetcher()([str(tmp_path / name) for name in ("a", "large", "absent", "")] + ["", "ftp://x/y"])
    assert [f.reason for f in found] == [
        *(None, Reason.TOO_LARGE, Reason.NOT_FOUND),
        *(Reason.NOT_A_FILE, Reason.NOT_FOUND, Reason.UNREADABLE),
    ]
    assert found[0].at is not None
    assert found[0].at.timestamp() == pytest.approx((tmp_path / "a").stat().st_mtime, abs=1e-3)


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("https://img.shop.example.co.uk/x.png", ("img.shop.example.co.uk", "example.co.uk")),
        ("http://example.com:8080/", ("example.com", "example.com")),
        ("http://example.com./", ("example.com", "example.com")),
        ("http://bücher.example/", ("xn--bcher-kva.example", "xn--bcher-kva.example")),
        ("http://127.0.0.1/x", ("127.0.0.1", "127.0.0.1")),
        ("a/b.png", (None, None)),
        ("s3://bucket/key", (None, None)),
        ("http://[broken/x", (None, None)),
    ],
)
def test_registrable_domains(uri: str, expected: tuple[str | None, str | None]) -> None:
    assert host_and_domain(uri) == expected
