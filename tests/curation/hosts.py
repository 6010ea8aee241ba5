"""A web server on loopback that is many hosts, 127.0.0.2 and on, each with what it says of rights."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType


@dataclass(frozen=True)
class Answer:
    """What a path is answered with; several values of a header are several lines.

    `head` is the status of the answer to HEAD where it is another, which then has no headers.
    """

    body: bytes = b""
    status: int = 200
    headers: Sequence[tuple[str, str]] = ()
    head: int | None = None


@dataclass
class Hosts:
    """The server, as a context. `add` gives a host its paths; whatever has none is a 404."""

    asked: Counter[tuple[str, str]] = field(default_factory=Counter)  # requests by host and path
    agents: set[str] = field(default_factory=set)
    _paths: dict[tuple[str, str], Answer] = field(default_factory=dict)
    _hosts: int = 1

    def __enter__(self) -> Hosts:
        self._server = ThreadingHTTPServer(("0.0.0.0", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def add(self, **paths: Answer) -> str:
        """A new host; returns its origin. Keys are paths with `_` for `/` and `__` for `.`: `robots__txt`."""
        self._hosts += 1
        name = f"127.0.0.{self._hosts}"
        for key, answer in paths.items():
            self._paths[name, "/" + key.replace("__", ".").replace("_", "/")] = answer
        return f"http://{name}:{self._server.server_port}"

    def put(self, url: str, answer: Answer) -> str:
        """Gives a URL below an origin of `add` another answer."""
        place = url.removeprefix("http://")
        host, _, path = place.partition("/")
        self._paths[host.partition(":")[0], f"/{path}"] = answer
        return url

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        hosts = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._answer(with_body=True)

            def do_HEAD(self) -> None:
                self._answer(with_body=False)

            def _answer(self, *, with_body: bool) -> None:
                host = self.headers["Host"].partition(":")[0]
                hosts.asked[host, self.path] += 1
                hosts.agents.add(self.headers["User-Agent"])
                answer = hosts._paths.get((host, self.path), Answer(status=404))
                if not with_body and answer.head is not None:
                    answer = Answer(status=answer.head)
                self.send_response(answer.status)
                for name, value in answer.headers:
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(answer.body)))
                self.end_headers()
                if with_body:
                    self.wfile.write(answer.body)

            def log_message(self, *_: object) -> None:
                pass

        return Handler
