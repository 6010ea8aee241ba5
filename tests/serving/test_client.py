"""The client says in one sentence what went wrong and what to do."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from curation.errors import UserError
from serving import client


@contextmanager
def answering(status: int, body: bytes, headers: dict[str, str] | None = None) -> Iterator[str]:
    """A server that gives every request the same answer."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Silent."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_nothing_listens() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(UserError, match="cannot reach") as caught:
            client.generate(url, "a")
    assert caught.value.field == "server"
    assert "cleanplate serve" in str(caught.value.remedy)


def test_a_refusal_names_the_field() -> None:
    body = b'{"error": {"message": "n is too large.", "type": "invalid_request_error", "param": "n", "code": "x"}}'
    with answering(400, body) as url, pytest.raises(UserError, match="n is too large") as caught:
        client.generate(url, "a", n=99)
    assert caught.value.field == "n"


def test_an_overloaded_server_says_when_to_come_again() -> None:
    body = b'{"error": {"message": "Full.", "type": "rate_limit_error", "param": null, "code": "overloaded"}}'
    with answering(429, body, {"Retry-After": "7"}) as url, pytest.raises(UserError) as caught:
        client.generate(f"{url}/v1", "a")
    assert caught.value.remedy == "try again in 7 s"


@pytest.mark.parametrize(("status", "body"), [(200, b"<html>hello</html>"), (200, b"{}"), (502, b"Bad gateway")])
def test_another_kind_of_server_is_told_apart(status: int, body: bytes) -> None:
    with answering(status, body) as url, pytest.raises(UserError, match="not as a cleanplate server"):
        client.generate(url, "a")


def test_a_url_needs_its_scheme() -> None:
    with pytest.raises(UserError, match="not a URL"):
        client.generate("localhost:8000", "a")
