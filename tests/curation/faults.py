"""A web server on loopback that misbehaves on request, byte by byte, and remembers who asked for what and when.

What a path does stands in `_Answer`; `?name=value` sets its figures. Nothing here waits longer than the server lives.
"""

from __future__ import annotations

import asyncio
import struct
import threading
import zlib
from collections import Counter, defaultdict
from socket import SO_LINGER, SOL_SOCKET
from types import TracebackType
from urllib.parse import parse_qsl, urlsplit

from tests.curation.pictures import drawing, encoded

PICTURE = encoded(drawing("circle", "red", 32))
_BOMB_HEAD = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"


class Faults:
    """The server, as a context: `with Faults() as site: ... site.url("/ok")`."""

    def __init__(self, address: str = "127.0.0.1") -> None:
        self.address = address
        self.asked: Counter[str] = Counter()  # requests by path, query left out
        self.heads: defaultdict[str, list[dict[str, str]]] = defaultdict(list)  # request headers by path, lower-case
        self.starts: defaultdict[str, list[float]] = defaultdict(list)  # when each request came, by host name
        self.most: Counter[str] = Counter()  # requests at a time at most, by host name; "*" of all hosts
        self.connections = 0
        self.release = threading.Event()  # ends what `/held` waits for
        self._active: Counter[str] = Counter()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="faults")

    def __enter__(self) -> Faults:
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._connected, self.address, 0), self._loop
        ).result()
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        self.release.set()
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def url(self, path: str, host: str | None = None) -> str:
        return f"http://{host or self.address}:{self.port}{path}"

    async def _end(self) -> None:
        self._server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while await self._request(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # a client that had enough has gone, or the server ends
        finally:
            writer.close()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        parts = urlsplit(head[0].split(" ")[1])
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        host = headers["host"].partition(":")[0]
        self.asked[parts.path] += 1
        self.heads[parts.path].append(headers)
        self.starts[host].append(self._loop.time())
        for name in (host, "*"):
            self._active[name] += 1
            self.most[name] = max(self.most[name], self._active[name])
        try:
            return await _Answer(self, writer, parts.path, dict(parse_qsl(parts.query)))()
        finally:
            self._active.subtract([host, "*"])


class _Answer:
    """One answer. Each method is a path; True keeps the connection open for the next request."""

    def __init__(self, site: Faults, writer: asyncio.StreamWriter, path: str, query: dict[str, str]) -> None:
        self._site, self._writer, self._path, self._query = site, writer, path, query
        self._time = site.asked[path]  # 1 for the first request of this path

    async def __call__(self) -> bool:
        name = self._path.strip("/").replace("/", "_").replace("-", "_")
        answer = getattr(self, name, None)
        if name.isdigit():
            return await self._send(b"refused", int(name), [("X-Robots-Tag", "noai")])
        return await (answer() if answer else self._send(b"nothing here", 404))

    async def _send(
        self, body: bytes = PICTURE, status: int = 200, headers: list[tuple[str, str]] | None = None
    ) -> bool:
        given = headers or []
        if not any(name.lower() in ("content-length", "transfer-encoding") for name, _ in given):
            given = [*given, ("Content-Length", str(len(body)))]
        lines = [f"HTTP/1.1 {status} Said", *(f"{name}: {value}" for name, value in given)]
        self._writer.write("\r\n".join([*lines, "", ""]).encode("utf-8", "surrogateescape") + body)
        await self._writer.drain()
        return True

    def _number(self, name: str, default: float) -> float:
        return float(self._query.get(name, default))

    async def ok(self) -> bool:
        """`size` bytes after `wait` seconds, with the headers that are kept."""
        await asyncio.sleep(self._number("wait", 0))
        size = int(self._number("size", len(PICTURE)))
        kept = [("ETag", '"e1"'), ("Last-Modified", "Mon, 01 Jan 2024 00:00:00 GMT"), ("Content-Type", "image/jpeg")]
        rights = [("X-Robots-Tag", "noai"), ("X-Robots-Tag", "noimageai"), ("TDM-Reservation", "1"), ("Server", "x")]
        return await self._send((PICTURE * (size // len(PICTURE) + 1))[:size], headers=[*kept, *rights])

    async def held(self) -> bool:
        """A picture once the test says so."""
        while not self._site.release.is_set():
            await asyncio.sleep(0.01)
        return await self._send()

    async def odd_headers(self) -> bool:
        return await self._send(headers=[("Link", "</caf\udce9>; rel=license"), ("X-Long", "x" * 20_000)])

    async def html(self) -> bool:
        return await self._send(b"<html>Not found</html>", headers=[("Content-Type", "text/html")])

    async def empty(self) -> bool:
        return await self._send(b"")

    async def chunked(self) -> bool:
        """A body without a length, of `size` bytes."""
        size = int(self._number("size", 1000))
        chunks = b"".join(b"%x\r\n%s\r\n" % (len(c), c) for c in _pieces(b"x" * size, 1000))
        return await self._send(chunks + b"0\r\n\r\n", headers=[("Transfer-Encoding", "chunked")])

    async def silent(self) -> bool:
        """No answer at all."""
        await asyncio.sleep(3600)
        return False

    async def drip(self) -> bool:
        """A byte every 20 ms: no single wait is long."""
        self._writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while True:
            self._writer.write(b"x")
            await self._writer.drain()
            await asyncio.sleep(0.02)

    async def stall(self) -> bool:
        """Half a body, then silence."""
        self._writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n" + b"x" * 50)
        await asyncio.sleep(3600)
        return False

    async def announced(self) -> bool:
        """Says that a great deal will come, then nothing."""
        self._writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n")
        await asyncio.sleep(3600)
        return False

    async def endless(self) -> bool:
        self._writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            self._writer.write(b"1000\r\n" + b"x" * 4096 + b"\r\n")
            await self._writer.drain()

    async def reset(self) -> bool:
        """A reset in the middle of the body, the first `times` times."""
        if self._time > self._number("times", 99):
            return await self._send()
        self._writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b"x" * 500)
        await self._writer.drain()
        await asyncio.sleep(0.05)  # lest the reset overtake the data
        self._writer.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()
        return False

    async def hang_up(self) -> bool:
        return False

    async def too_short(self) -> bool:
        """Less than was announced, the first `times` times."""
        if self._time > self._number("times", 99):
            return await self._send()
        await self._send(b"x" * 500, headers=[("Content-Length", "1000")])
        return False

    async def too_long(self) -> bool:
        """More than was announced; the connection stays open."""
        return await self._send(
            PICTURE + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
            headers=[("Content-Length", str(len(PICTURE)))],
        )

    async def garbage(self) -> bool:
        self._writer.write(b"\x16\x03\x01 this is no HTTP\r\n\r\n")
        await self._writer.drain()
        return False

    async def busy(self) -> bool:
        """`status` with Retry-After `after`, the first `times` times."""
        if self._time > self._number("times", 99):
            return await self._send()
        after = [("Retry-After", self._query["after"])] if "after" in self._query else []
        return await self._send(b"busy", int(self._number("status", 429)), after)

    async def chain(self) -> bool:
        """`left` more redirects, then a picture."""
        left = int(self._number("left", 0))
        return await (self._move(f"/chain?left={left - 1}") if left else self._send())

    async def loop(self) -> bool:
        return await self._move("/loop?again=1" if not self._query else "/loop")

    async def to(self) -> bool:
        """A redirect to `url`."""
        return await self._move(self._query["url"])

    async def to_bytes(self) -> bool:
        return await self._move("/caf\udce9 au lait")

    async def _move(self, target: str) -> bool:
        return await self._send(b"moved", int(self._number("status", 302)), [("Location", target)])

    async def gzip(self) -> bool:
        coder = zlib.compressobj(wbits=31)
        return await self._send(coder.compress(PICTURE) + coder.flush(), headers=[("Content-Encoding", "gzip")])

    async def gzip_short(self) -> bool:
        coder = zlib.compressobj(wbits=31)
        body = (coder.compress(PICTURE * 100) + coder.flush())[:-12]
        return await self._send(body, headers=[("Content-Encoding", "gzip")])

    async def gzip_broken(self) -> bool:
        return await self._send(b"\x1f\x8b\x08\0" + b"\xff" * 100, headers=[("Content-Encoding", "gzip")])

    async def brotli(self) -> bool:
        return await self._send(b"whatever", headers=[("Content-Encoding", "br")])

    async def bomb(self) -> bool:
        """Some MB of gzip that are 4 GiB of zeros."""
        return await self._send(bomb(), headers=[("Content-Encoding", "gzip")])


def bomb() -> bytes:
    """A gzip of 4 GiB of zeros, without its end."""
    coder = zlib.compressobj(level=9, wbits=-15)
    block = coder.compress(bytes(2**20)) + coder.flush(zlib.Z_FULL_FLUSH)  # ends at a byte and refers to nothing before
    return _BOMB_HEAD + block * 4096


def _pieces(data: bytes, size: int) -> list[bytes]:
    return [data[i : i + size] for i in range(0, len(data), size)]
