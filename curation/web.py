"""Fetching from the web: many URLs at a time, politely, and nothing that a stranger's list should not reach.

One asyncio loop in a thread of the worker serves plain iterators outside. What a host is asked at a time, how fast, and
how many bytes are held for the caller is bounded. What addresses may be asked at all is in `addresses`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
import re
import threading
import weakref
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from email.utils import parsedate_to_datetime
from queue import SimpleQueue
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver
from yarl import URL

from curation.addresses import basic_authorization, guarded_connector, parse, public_address, shown
from curation.admission import Held, Host, Line, NoRoomError
from curation.fetch import Answer, FetchConfig, Fetched, FetchError
from curation.manifest import Reason, now

RIGHTS_HEADERS = ("x-robots-tag", "tdm-reservation", "tdm-policy", "content-usage", "content-signal", "link")
KEPT_HEADERS = ("etag", "last-modified", "content-type", *RIGHTS_HEADERS)
"""Response headers that are kept, by their lower-case names; several of one name are joined by commas."""

Admit = Callable[[str], Awaitable[None]]
"""Asked before every request, redirects' included; raises FetchError where a URL must not be asked for."""

_REDIRECTS = {301, 302, 303, 307, 308}
_BUSY = {429, 503}
_PIECE = 64 * 1024
_LEAD = 8  # URLs begun beyond the one that the caller waits for, for each connection
_NAME_THREADS = 32
_IDLE_S = 5  # a connection unused for longer is closed: a list of a million hosts must not keep them all
_HOSTS_KEPT = 10_000


class Web:
    """Fetches URLs. Not to be used from two processes; several threads may call `fetch`.

    Args:
        config: what this one worker may do; see `FetchConfig.share`.
        resolver: who knows the addresses of names; the system's own unless given.
        is_public: which addresses may be asked where the job does not admit private ones.
        admit: what a site itself says about being asked; nothing is asked where None.
    """

    def __init__(
        self,
        config: FetchConfig,
        resolver: AbstractResolver | None = None,
        is_public: Callable[[str], bool] | None = None,
        admit: Admit | None = None,
    ) -> None:
        self._config = config
        self.admit = admit
        self._loop = asyncio.new_event_loop()
        self._loop.set_default_executor(ThreadPoolExecutor(_NAME_THREADS, thread_name_prefix="cleanplate-names"))
        thread = threading.Thread(target=self._loop.run_forever, name="cleanplate-web", daemon=True)
        thread.start()
        self._session: aiohttp.ClientSession = self.soon(
            _session(config, resolver, is_public or public_address)
        ).result()
        self._connections = asyncio.Semaphore(config.connections)
        self._hosts: dict[str, Host] = {}
        self._held = Held(config.bytes_in_flight)
        self.close = weakref.finalize(self, _stop, self._loop, thread, self._session)

    def fetch(self, urls: Sequence[str], *, heads: bool = False) -> Generator[Fetched]:
        """What came of each URL, in order. Closing the iterator stops what is on its way.

        With `heads`, only what the answers say is asked for (HEAD, and GET where that is answered by an error), and
        their data is empty.

        At most `bytes_in_flight` of bodies are held, those that wait for the caller and the one it works on included;
        only the body that the caller waits for is taken in also where it does not fit, lest everything stop.
        """
        arrived: SimpleQueue[tuple[int, Fetched] | None] = SimpleQueue()
        line = Line(self._held)
        running = self.soon(self._run(urls, line, arrived, heads))
        running.add_done_callback(lambda _: arrived.put(None))
        early: dict[int, Fetched] = {}
        try:
            for index in range(len(urls)):
                while index not in early:
                    if (came := arrived.get()) is None:
                        running.result()
                        raise AssertionError("the web fetcher ended without a result: this is a defect of cleanplate")
                    early[came[0]] = came[1]
                yield early.pop(index)
                self._loop.call_soon_threadsafe(line.advance)
        finally:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nothing is on its way any more
                self._loop.call_soon_threadsafe(line.end)

    def soon(self, work: Any) -> Any:
        """Runs a coroutine in the fetcher's loop; returns its `concurrent.futures.Future`."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _run(
        self, urls: Sequence[str], line: Line, arrived: SimpleQueue[tuple[int, Fetched] | None], heads: bool
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        line.begin(task)

        async def one(index: int, url: str) -> None:
            arrived.put((index, await self._one(index, url, line, heads)))

        async with asyncio.TaskGroup() as group:
            for index, url in enumerate(urls):
                await line.enter(index, _LEAD * self._config.connections)
                group.create_task(one(index, url))

    async def _one(self, index: int, url: str, line: Line, heads: bool) -> Fetched:
        while True:
            visit = _Visit(self, self._config, lambda size: line.take(index, size), heads)
            try:
                fetched = await visit(url)
            except NoRoomError:
                await line.first(index)
                continue
            line.settle(index, len(fetched.data or b""))
            return fetched

    @asynccontextmanager
    async def turn(self, name: str) -> AsyncIterator[Host]:
        """A request's turn: one of its host's slots, a connection, and the host's delay."""
        if (host := self._hosts.get(name)) is None:
            if len(self._hosts) >= _HOSTS_KEPT:
                self._hosts = {known: host for known, host in self._hosts.items() if not host.idle()}
            host = self._hosts[name] = Host(self._config.per_host)
        async with host.entering(self._connections, self._config.delay_s):
            yield host

    @property
    def session(self) -> aiohttp.ClientSession:
        return self._session

    @property
    def held(self) -> Held:
        """The bytes of bodies that are held, or expected."""
        return self._held


class _Visit:
    """One URL: its requests one after another, and how it ended."""

    def __init__(self, web: Web, config: FetchConfig, take: Callable[[int], None], heads: bool) -> None:
        self._web, self._config, self._take, self._heads = web, config, take, heads
        self._method = "HEAD" if heads else "GET"
        self._redirects: list[str] = []
        self._headers: dict[str, str] = {}
        self._answers: list[Answer] = []

    async def __call__(self, asked: str) -> Fetched:
        """Never raises for what the URL or its host did.

        Raises:
            NoRoomError: by `take`, for a body that the caller's line has no room for yet.
        """
        data, at, reason, detail = None, None, None, None
        try:
            async with asyncio.timeout(self._config.total_timeout_s) as self._limit:
                data = await self._retried(parse(asked))
                at = now()
        except FetchError as error:
            reason, detail = error.reason, error.detail
        except TimeoutError:
            reason, detail = Reason.TIMEOUT, f"not complete after {self._config.total_timeout_s:g} s"
        except NoRoomError:
            raise
        except Exception as error:  # whatever one URL does, the others are not to suffer for it
            reason, detail = Reason.CONNECTION, type(error).__name__
        led_to = self._redirects[-1] if self._redirects else None
        return Fetched(data, at, led_to, reason, detail, tuple(self._redirects), self._headers, tuple(self._answers))

    async def _retried(self, url: URL) -> bytes:
        for attempt in range(self._config.retries):
            try:
                return await self._followed(url)
            except _RetryError:
                with self._our_wait():
                    await asyncio.sleep(self._config.backoff_s * 2**attempt * (0.5 + _fraction(f"{attempt} {url}")))
        return await self._followed(url)

    async def _followed(self, url: URL) -> bytes:
        self._redirects.clear()
        self._answers.clear()
        seen = {shown(url)}
        authorization, origin = basic_authorization(url), url.origin()
        for _ in range(self._config.max_redirects + 1):
            who = authorization if url.origin() == origin else None
            answer = await self._asked(shown(url), who)
            if answer is None:
                answer = await self._asked(shown(url), who)
            assert answer is not None, "only HEAD is asked again"
            if isinstance(answer, bytes):
                return answer
            target = parse(answer, shown(url))
            if target.user is not None:
                authorization, origin = basic_authorization(target), target.origin()
            url = target
            self._redirects.append(str(shown(url)))
            if shown(url) in seen:
                raise FetchError(Reason.TOO_MANY_REDIRECTS, "the redirects go round in a loop")
            seen.add(shown(url))
        raise FetchError(Reason.TOO_MANY_REDIRECTS, f"more than {self._config.max_redirects}")

    async def _asked(self, url: URL, authorization: str | None) -> bytes | str | None:
        """One request: the body, or where the answer points to; None where it is to be made again, by GET."""
        self._headers = {}
        if self._web.admit is not None:
            with self._our_wait():
                await self._web.admit(str(url))
        async with contextlib.AsyncExitStack() as stack:
            with self._our_wait():
                host = await stack.enter_async_context(self._web.turn(str(url.host)))
            try:
                headers = {"Authorization": authorization} if authorization else None
                async with self._web.session.request(
                    self._method, url, headers=headers, allow_redirects=False
                ) as response:
                    self._headers = _kept(response)
                    self._answers.append(Answer(str(url), response.status, rights_headers(response)))
                    if response.status not in _BUSY:
                        host.failures = 0
                    if response.status in _REDIRECTS and "Location" in response.headers:
                        return response.headers["Location"]
                    if self._method == "HEAD" and response.status >= 400 and response.status not in _BUSY:
                        # Servers that know no HEAD answer it with anything; a picture is gone when GET says so.
                        self._method = "GET"
                        self._answers.pop()
                        return None
                    if response.status != 200:
                        raise self._status(url, host, response)
                    return b"" if self._heads else await self._body(response)
            except aiohttp.ClientConnectorDNSError:
                host.close(Reason.DNS, str(url.host), self._config.dns_ttl_s)
                raise FetchError(Reason.DNS, str(url.host)) from None
            except aiohttp.ClientSSLError as error:  # a wrong certificate is wrong the next time, too
                raise FetchError(Reason.CONNECTION, f"{type(error).__name__}: {url}") from None
            except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
                kind = Reason.TIMEOUT if isinstance(error, TimeoutError) else Reason.CONNECTION
                raise host.failed(_RetryError(kind, f"{type(error).__name__}: {url}")) from None
            except aiohttp.ServerTimeoutError:
                raise _RetryError(Reason.TIMEOUT, f"no data for {self._config.timeout_s:g} s: {url}") from None
            except aiohttp.ClientPayloadError as error:
                reset = isinstance(error.__cause__, OSError) or "ConnectionReset" in str(error)
                kind = Reason.CONNECTION if reset else Reason.WRONG_LENGTH
                raise _RetryError(kind, f"the body broke off: {url}") from None
            except aiohttp.InvalidURL:
                raise FetchError(Reason.BAD_URL, "not an http(s) URL") from None
            except (aiohttp.ClientError, OSError) as error:
                raise _RetryError(Reason.CONNECTION, f"{type(error).__name__}: {url}") from None

    def _status(self, url: URL, host: Host, response: aiohttp.ClientResponse) -> FetchError:
        reason, detail = f"http_{response.status}", str(url)
        if response.status not in _BUSY:
            return (_RetryError if response.status >= 500 else FetchError)(reason, detail)
        wait = _retry_after(response.headers.get("Retry-After"))
        if wait > self._config.max_retry_after_s:
            host.close(reason, f"not asked: the host wants {wait:.0f} s of rest", wait)
            return FetchError(reason, f"asked to wait {wait:.0f} s: {url}")
        host.rest(wait)
        return host.failed(_RetryError(reason, detail))

    async def _body(self, response: aiohttp.ClientResponse) -> bytes:
        length, most = response.content_length, self._config.max_bytes
        if length is not None and length > most:
            raise FetchError(Reason.TOO_LARGE, f"{length} bytes")
        expand = Expander(response.headers.get("Content-Encoding", ""))
        if length is not None and not expand.coded:
            self._take(length)
        parts, received, size = [], 0, 0
        async for piece in response.content.iter_any():
            received += len(piece)
            for part in expand(piece):
                size += len(part)
                if max(size, received) > most:
                    raise FetchError(Reason.TOO_LARGE, f"more than {most} bytes")
                self._take(size)
                parts.append(part)
        expand.finish()
        return parts[0] if len(parts) == 1 else b"".join(parts)

    @contextmanager
    def _our_wait(self) -> Iterator[None]:
        """Stops the clock of the URL's total timeout: it must not pay for the URLs before it."""
        loop, when = asyncio.get_running_loop(), self._limit.when()
        assert when is not None
        left = when - loop.time()
        self._limit.reschedule(None)
        try:
            yield
        finally:
            self._limit.reschedule(loop.time() + left)


class _RetryError(FetchError):
    """A failure after which another request is right."""


class Expander:
    """Undoes a Content-Encoding piece by piece; no piece is expanded beyond `_PIECE` bytes at a time."""

    def __init__(self, coding: str) -> None:
        coding = coding.strip().lower()
        self.coded = coding not in ("", "identity")
        if self.coded and coding not in ("gzip", "x-gzip", "deflate"):
            raise FetchError(Reason.UNSUPPORTED_FORMAT, f"content-encoding {coding[:40]}")
        self._zlib = zlib.decompressobj(wbits=32 + zlib.MAX_WBITS)

    def __call__(self, piece: bytes) -> Iterator[bytes]:
        if not self.coded:
            yield piece
            return
        part = b""
        try:
            while piece or len(part) == _PIECE:
                part = self._zlib.decompress(piece, _PIECE)
                piece = self._zlib.unconsumed_tail
                yield part
        except zlib.error:
            raise FetchError(Reason.CORRUPT, "the body's compression is broken") from None

    def finish(self) -> None:
        if self.coded and not self._zlib.eof:
            raise _RetryError(Reason.WRONG_LENGTH, "the compressed body broke off")


async def _session(
    config: FetchConfig, resolver: AbstractResolver | None, is_public: Callable[[str], bool]
) -> aiohttp.ClientSession:
    connector = guarded_connector(
        lambda address: config.allow_private or is_public(address),
        resolver,
        limit=0,  # `Web.turn` counts them, and a wait for one is not to look like a slow host
        ttl_dns_cache=math.ceil(config.dns_ttl_s),
        use_dns_cache=config.dns_ttl_s > 0,
        keepalive_timeout=_IDLE_S,
    )
    return aiohttp.ClientSession(
        connector=connector,
        headers={"User-Agent": config.agent(), "Accept": "image/*,*/*;q=0.1", "Accept-Encoding": "identity"},
        timeout=aiohttp.ClientTimeout(total=None, connect=config.timeout_s, sock_read=config.timeout_s),
        cookie_jar=aiohttp.DummyCookieJar(),
        max_line_size=2**16,  # 8 KiB, the default, is less than the policies of some sites
        max_field_size=2**16,
        auto_decompress=False,  # it expands without a limit that we could set
        trust_env=False,
    )


def _stop(loop: asyncio.AbstractEventLoop, thread: threading.Thread, session: aiohttp.ClientSession) -> None:
    async def end() -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await session.close()

    if threading.current_thread() is thread:  # collected by the loop's own hand: nothing to wait for
        loop.stop()
        return
    asyncio.run_coroutine_threadsafe(end(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def _kept(response: aiohttp.ClientResponse) -> dict[str, str]:
    return {name: ", ".join(values) for name, values in _values(response, KEPT_HEADERS).items()}


def rights_headers(response: aiohttp.ClientResponse) -> dict[str, list[str]]:
    """What an answer says of rights: the values of every line of each of `RIGHTS_HEADERS` that it has, in order."""
    return _values(response, RIGHTS_HEADERS)


def _values(response: aiohttp.ClientResponse, names: Sequence[str]) -> dict[str, list[str]]:
    # Bytes that are not UTF-8 arrive as lone surrogates, which no table takes.
    return {
        name: [v.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for v in response.headers.getall(name)]
        for name in names
        if name in response.headers
    }


def _retry_after(value: str | None) -> float:
    """Seconds to wait by a Retry-After header: a number or a date; 0 where it is absent or makes no sense."""
    if value is None:
        return 0.0
    if re.fullmatch(r"\d{1,9}", value.strip()):
        return float(value)
    try:
        when = parsedate_to_datetime(value)
        return max(0.0, (when - now()).total_seconds())
    except (TypeError, ValueError):
        return 0.0


def _fraction(text: str) -> float:
    """A number in [0, 1) that is the same for the same text: the jitter of retries."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") / 2**32
