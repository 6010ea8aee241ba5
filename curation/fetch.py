"""Fetching the original bytes of inputs: local files, S3 objects and URLs.

Whatever goes wrong with one input becomes a reason in its row; nothing here raises for the sake of one picture. A URL
is refused when it leads to a private, loopback or link-local address, redirects included, unless the job allows it: a
list of URLs from strangers must not make a cluster probe its own network.
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import os
import socket
import stat
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx
from pydantic import BaseModel, ConfigDict, Field

from curation import storage
from curation.errors import UserError
from curation.manifest import Reason, now

_MAX_REDIRECTS = 5
_RETRY_AT_ONCE = {Reason.TIMEOUT, Reason.CONNECTION, "http_500", "http_502", "http_503", "http_504"}

PASSING = frozenset({*_RETRY_AT_ONCE, Reason.DNS, Reason.UNREADABLE, "http_429"})
"""Reasons that may be gone by the next run: rerunning a job asks again for the units that have them."""


class FetchConfig(BaseModel):
    """How bytes are fetched, and what is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_bytes: int = Field(64 * 2**20, ge=1, description="a larger file fails as too_large")
    timeout_s: float = Field(30, gt=0, description="for connecting, and for each wait on a URL's data, in seconds")
    total_timeout_s: float = Field(120, gt=0, description="for one URL from first to last byte, in seconds")
    retries: int = Field(2, ge=0, le=10, description="after a timeout, a broken connection or a 5xx; never a refusal")
    connections: int = Field(16, ge=1, le=1024, description="URLs that one worker fetches at a time")
    allow_private: bool = Field(False, description="admit private, loopback and link-local addresses")
    user_agent: str = Field("cleanplate/0.1", description="say who is asking, and where you can be reached")


@dataclass(frozen=True)
class Fetched:
    """The bytes of an input, or why there are none."""

    data: bytes | None
    at: datetime | None = None  # a file's modification time; for a URL, when it was asked
    final_uri: str | None = None  # where redirects led, if they led anywhere
    reason: str | None = None
    detail: str | None = None


class FetchError(Exception):
    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


class Fetcher:
    """Fetches locations, URLs several at a time."""

    def __init__(self, config: FetchConfig) -> None:
        self._config = config

    def __call__(self, locations: Sequence[str]) -> list[Fetched]:
        """The bytes at each location, in order."""
        if any(location.startswith(("http://", "https://")) for location in locations):
            return list(self._threads.map(self._fetch, locations))
        return [self._fetch(location) for location in locations]

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._config.connections)

    @cached_property
    def _client(self) -> httpx.Client:
        limits = httpx.Limits(max_connections=self._config.connections)
        headers = {"User-Agent": self._config.user_agent, "Accept": "image/*,*/*;q=0.1"}
        return httpx.Client(timeout=self._config.timeout_s, limits=limits, headers=headers, trust_env=False)

    def _fetch(self, location: str) -> Fetched:
        try:
            if location.startswith(("http://", "https://")):
                deadline = time.monotonic() + self._config.total_timeout_s
                return self._retried(lambda: self._url(location, deadline))
            return self._file(location)
        except FetchError as failure:
            return Fetched(None, reason=failure.reason, detail=failure.detail)

    def _file(self, location: str) -> Fetched:
        try:
            read = self._object if storage.is_remote(location) else self._local
            return read(location)
        except UserError as error:
            raise FetchError(Reason.UNREADABLE, error.message) from None
        except (FileNotFoundError, NotADirectoryError):
            raise FetchError(Reason.NOT_FOUND, "no file there") from None
        except (OSError, ValueError) as error:
            raise FetchError(Reason.UNREADABLE, getattr(error, "strerror", None) or type(error).__name__) from None

    def _local(self, location: str) -> Fetched:
        path = storage.local_path(location)
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise FetchError(Reason.NOT_A_FILE, "not a regular file")  # opening a pipe would wait for ever
        self._limit(status.st_size)
        with open(path, "rb") as file:
            return Fetched(file.read(), datetime.fromtimestamp(status.st_mtime, UTC))

    def _object(self, location: str) -> Fetched:
        system, path = storage.filesystem(location)
        info = system.get_file_info(path)
        if not info.is_file:
            raise FileNotFoundError(location)
        self._limit(info.size)
        return Fetched(storage.read_bytes(location), info.mtime)

    def _limit(self, size: int) -> None:
        if size > self._config.max_bytes:
            raise FetchError(Reason.TOO_LARGE, f"{size} bytes")

    def _retried(self, attempt: Callable[[], Fetched]) -> Fetched:
        for delay in [0.5 * 2**n for n in range(self._config.retries)]:
            try:
                return attempt()
            except FetchError as failure:
                if failure.reason not in _RETRY_AT_ONCE:
                    raise
                time.sleep(delay)
        return attempt()

    def _url(self, asked: str, deadline: float) -> Fetched:
        url = asked
        for _ in range(_MAX_REDIRECTS + 1):
            try:
                self._admit(url)
                with self._client.stream("GET", url) as response:
                    # Names can resolve to another address by the time of the request: look at who answered, too.
                    self._admit_address(url, response.extensions["network_stream"].get_extra_info("server_addr"))
                    if response.is_redirect:
                        url = urljoin(url, response.headers.get("location", ""))
                        continue
                    if response.status_code != 200:
                        raise FetchError(f"http_{response.status_code}", url)
                    return Fetched(self._body(response, deadline), now(), url if url != asked else None)
            except httpx.TimeoutException:
                raise FetchError(Reason.TIMEOUT, url) from None
            except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
                raise FetchError(Reason.CONNECTION, f"{type(error).__name__}: {url}") from None
        raise FetchError(Reason.CONNECTION, f"more than {_MAX_REDIRECTS} redirects")

    def _body(self, response: httpx.Response, deadline: float) -> bytes:
        parts, size = [], 0
        for part in response.iter_bytes():
            size += len(part)
            if size > self._config.max_bytes:
                raise FetchError(Reason.TOO_LARGE, f"more than {self._config.max_bytes} bytes")
            if time.monotonic() > deadline:
                raise FetchError(Reason.TIMEOUT, f"not complete after {self._config.total_timeout_s:g} s")
            parts.append(part)
        return b"".join(parts)

    def _admit(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise FetchError(Reason.REFUSED_ADDRESS, f"not an http(s) URL: {url}")
        try:
            found = socket.getaddrinfo(parts.hostname, parts.port or 443, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError, ValueError):
            raise FetchError(Reason.DNS, parts.hostname) from None
        for *_, address in found:
            self._admit_address(url, address)

    def _admit_address(self, url: str, address: Any) -> None:
        if self._config.allow_private:
            return
        if address is None or not ipaddress.ip_address(str(address[0]).partition("%")[0]).is_global:
            raise FetchError(Reason.REFUSED_ADDRESS, f"{urlsplit(url).hostname} is {address and address[0]}")


def row_id(uri: str, data: bytes | None) -> str:
    """The manifest's `id`: sha256 of the bytes, or of `uri:` and the uri where the bytes never came."""
    return hashlib.sha256(data if data is not None else f"uri:{uri}".encode()).hexdigest()


def host_and_domain(uri: str) -> tuple[str | None, str | None]:
    """A URL's host and its registrable domain by the Public Suffix List; both None for a file."""
    if not uri.startswith(("http://", "https://")):
        return None, None
    try:
        host = urlsplit(uri).hostname
    except ValueError:
        return None, None
    if not host:
        return None, None
    host = host.rstrip(".")
    with contextlib.suppress(UnicodeError):
        host = host.encode("idna").decode()
    return host, _suffixes()(host).top_domain_under_public_suffix or host


_extract: Any = None


def _suffixes() -> Any:
    global _extract
    if _extract is None:
        import tldextract

        # The list that the package ships: curation must not depend on what a download says today.
        _extract = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)
    return _extract
