"""Fetching the original bytes of inputs: local files, objects in a store, members of containers, and URLs.

Whatever goes wrong with one input becomes a reason in its row; nothing here raises for the sake of one picture. The
results come in the order of the locations, as a stream: local files are read when they are asked for, URLs (`web`) are
on their way while the caller works on the ones before them.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import stat
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property, partial
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, Field, field_validator

from curation import storage
from curation.errors import UserError
from curation.manifest import Reason
from curation.places import is_url

if TYPE_CHECKING:
    from curation.containers import MemberReader
    from curation.web import Admit, Web

PASSING = frozenset(
    {
        *(Reason.TIMEOUT, Reason.CONNECTION, Reason.WRONG_LENGTH, Reason.DNS, Reason.UNREADABLE, "http_429"),
        *(f"http_{status}" for status in range(500, 600)),
    }
)
"""Reasons that may be gone by the next run: rerunning a job asks again for the units that have them."""

_OBJECTS_AT_A_TIME = 8

_In = TypeVar("_In")
_Out = TypeVar("_Out")


class FetchConfig(BaseModel):
    """How bytes are fetched, and what is refused. The limits are those of the whole job, whatever its `workers`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_bytes: int = Field(64 * 2**20, ge=1, description="a larger file fails as too_large")
    timeout_s: float = Field(30, gt=0, description="for connecting, and for each wait on a URL's data, in seconds")
    total_timeout_s: float = Field(
        120, gt=0, description="for one URL with its redirects and retries, in seconds; waits of our own left out"
    )
    retries: int = Field(
        2, ge=0, le=10, description="after a timeout, a broken connection, a 5xx or a 429; never after a refusal"
    )
    backoff_s: float = Field(0.5, ge=0, description="wait before the first retry, in seconds; doubled for each more")
    max_retry_after_s: float = Field(
        60, ge=0, description="longest wait a host may ask for (Retry-After), in seconds; a longer one fails its URLs"
    )
    max_redirects: int = Field(5, ge=0, le=20, description="redirects that are followed for one URL")
    connections: int = Field(64, ge=1, le=10_000, description="URLs that the job fetches at a time")
    per_host: int = Field(4, ge=1, description="requests that one host gets at a time")
    delay_s: float = Field(0, ge=0, description="least time between the starts of two requests to one host, in seconds")
    bytes_in_flight: int = Field(256 * 2**20, ge=1, description="bytes of fetched bodies that are held at a time")
    dns_ttl_s: float = Field(300, ge=0, description="how long an answer of the name service is remembered, in seconds")
    allow_private: bool = Field(False, description="admit private, loopback and link-local addresses")
    user_agent: str = Field("cleanplate/0.1", description="the product that asks, as NAME/VERSION")
    contact: str | None = Field(None, description="https:// or mailto: URL where hosts can reach you; URLs need it")

    @field_validator("user_agent")
    @classmethod
    def _product(cls, name: str) -> str:
        if not re.fullmatch(r"[!-~]+( [ -~]*[!-~])?", name):
            raise ValueError("must be printable ASCII that neither begins nor ends with a space")
        return name

    @field_validator("contact")
    @classmethod
    def _reachable(cls, contact: str | None) -> str | None:
        if contact is not None and not re.fullmatch(r"(https?://|mailto:)[!-'*-~]+", contact):
            raise ValueError("must be a URL that begins with https://, http:// or mailto:")
        return contact

    @property
    def product(self) -> str:
        """The product token of `user_agent`: what a robots.txt calls us by."""
        return self.user_agent.split("/", 1)[0].split(" ", 1)[0]

    def agent(self) -> str:
        """The User-Agent header: the product, and where its user can be reached."""
        return f"{self.user_agent} (+{self.contact})" if self.contact else self.user_agent

    def check(self, has_urls: bool, workers: int = 1) -> None:
        """Looks at what a job that fetches URLs must say.

        Raises:
            UserError: URLs of strangers without a contact; or more workers than one host may get requests at a time:
                workers do not take turns with each other, so each needs one of `per_host` for itself.
        """
        if not has_urls:
            return
        if self.contact is None and not self.allow_private:
            raise UserError(
                "the source lists URLs, and the job does not say who is asking for them",
                field="fetch.contact",
                remedy="set it to a web page or a mailto: address where the owner of a site can reach you",
            )
        limits: tuple[Literal["per_host", "connections"], ...] = ("per_host", "connections")
        for name in limits:
            limit = self.per_host if name == "per_host" else self.connections
            if workers > limit:
                raise UserError(
                    f"{limit} cannot be divided among {workers} workers",
                    field=f"fetch.{name}",
                    remedy=f"raise it to {workers}, or set workers to {limit} at most",
                )

    def share(self, workers: int) -> FetchConfig:
        """What one of `workers` equal workers may do, so that together they keep the job's limits.

        `connections`, `per_host` and `bytes_in_flight` are divided, rounded down, at least 1. `delay_s` is multiplied:
        a host then gets as many requests a second as the job allows, though two workers may happen to ask at once.
        """
        return self.model_copy(
            update={
                "connections": max(1, self.connections // workers),
                "per_host": max(1, self.per_host // workers),
                "bytes_in_flight": max(1, self.bytes_in_flight // workers),
                "delay_s": self.delay_s * workers,
            }
        )


class Answer(NamedTuple):
    """One answer on the way to a picture: whose, and what it says of rights."""

    url: str
    status: int
    headers: Mapping[str, Sequence[str]]  # those of `web.RIGHTS_HEADERS`, a value for each line


@dataclass(frozen=True)
class Fetched:
    """The bytes of an input, or why there are none."""

    data: bytes | None
    at: datetime | None = None  # a file's modification time; for a URL, when its bytes had come
    final_uri: str | None = None  # where redirects led, if they led anywhere
    reason: str | None = None
    detail: str | None = None
    redirects: tuple[str, ...] = ()  # the targets of the redirects in order; the last of them is final_uri
    headers: Mapping[str, str] = field(default_factory=dict)  # those of `web.KEPT_HEADERS` that the response had
    answers: tuple[Answer, ...] = ()  # every one, redirects' included


class FetchError(Exception):
    """Why the bytes of one input did not come: the row's reason and detail."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


class Fetcher:
    """Fetches locations: paths, `file://`, `s3://` and what else `storage` reads, container members, http(s) URLs.

    Args:
        config: what this one worker may do.
        admit: asked before each request to a site, see `web.Admit`.
    """

    def __init__(self, config: FetchConfig, admit: Admit | None = None) -> None:
        self._config, self._admit = config, admit

    def __call__(self, locations: Sequence[str]) -> Iterator[Fetched]:
        """The bytes at each location, in order, one result for each.

        URLs are fetched from the first step on, wherever they stand in `locations`, with a bounded lead over the
        caller; `FetchConfig.bytes_in_flight` bounds what is held for it. Closing the iterator stops them.
        """
        from curation.containers import is_member

        def kind(location: str) -> str:
            if is_url(location):
                return "url"
            if is_member(location):
                return "member"
            return "object" if storage.is_remote(location) else "file"

        asked = [location for location in locations if is_url(location)]
        with contextlib.closing(self.web.fetch(asked) if asked else _none()) as pages:
            for what, run in groupby(locations, kind):
                if what == "url":
                    yield from islice(pages, sum(1 for _ in run))
                elif what == "member":
                    yield from self._members(list(run))
                elif what == "object":
                    yield from self._objects(run)
                else:
                    yield from (_tried(self._file, location) for location in run)

    def soon(self, work: Any) -> Future[Any]:
        """Runs a coroutine in the loop that URLs are fetched in."""
        found: Future[Any] = self.web.soon(work)
        return found

    def close(self) -> None:
        """Lets go of connections and open containers; a later call opens them anew."""
        for name in ("web", "_reader"):
            if (held := self.__dict__.pop(name, None)) is not None:
                held.close()

    @cached_property
    def web(self) -> Web:
        """Who fetches the URLs."""
        from curation.web import Web

        return Web(self._config, admit=self._admit)

    @cached_property
    def _reader(self) -> MemberReader:
        from curation.containers import MemberReader

        return MemberReader(self._config.max_bytes)

    def _members(self, locations: Sequence[str]) -> Iterator[Fetched]:
        for found in self._reader.read(locations):
            if isinstance(found, bytes):
                yield Fetched(found)
            else:
                yield Fetched(None, reason=found.reason, detail=found.detail)

    def _objects(self, locations: Iterable[str]) -> Iterator[Fetched]:
        """Some at a time, as far as `bytes_in_flight` goes: a store answers late, but it answers many."""
        at_a_time = min(_OBJECTS_AT_A_TIME, self._config.connections)
        threads = ThreadPoolExecutor(at_a_time, thread_name_prefix="cleanplate-objects")
        reads: deque[tuple[int, Future[Fetched]]] = deque()
        held = 0
        try:
            for found in _ahead(threads, partial(_tried, self._look), locations, 2 * at_a_time):
                size = 0 if isinstance(found, Fetched) else found.info.size
                while reads and (held + size > self._config.bytes_in_flight or len(reads) == at_a_time):
                    taken, read = reads.popleft()
                    yield read.result()
                    held -= taken
                reads.append((size, threads.submit(_tried, _object, found)))
                held += size
            while reads:
                yield reads.popleft()[1].result()
        finally:
            threads.shutdown(wait=False, cancel_futures=True)

    def _file(self, location: str) -> Fetched:
        path = storage.local_path(location)
        try:
            status = os.stat(path)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            raise FetchError(Reason.NOT_A_FILE, "a link that leads back to itself") from None
        if not stat.S_ISREG(status.st_mode):
            raise FetchError(Reason.NOT_A_FILE, "not a regular file")  # opening a pipe would wait for ever
        self._limit(status.st_size)
        with open(path, "rb") as file:
            return Fetched(file.read(), datetime.fromtimestamp(status.st_mtime, UTC))

    def _look(self, location: str) -> _Found:
        info = storage.info(location)
        if not info.is_file:
            raise FileNotFoundError(location)
        self._limit(info.size)
        return _Found(location, info)

    def _limit(self, size: int) -> None:
        if size > self._config.max_bytes:
            raise FetchError(Reason.TOO_LARGE, f"{size} bytes")


@dataclass(frozen=True)
class _Found:
    """An object that is there, and what its store says of it."""

    location: str
    info: Any


def _object(found: _Found | Fetched) -> Fetched:
    return found if isinstance(found, Fetched) else Fetched(storage.read_bytes(found.location), found.info.mtime)


def _tried(work: Callable[[_In], _Out], what: _In) -> _Out | Fetched:
    """What the work comes to; a failure of the one input is a row with its reason."""
    try:
        return work(what)
    except FetchError as error:
        return Fetched(None, reason=error.reason, detail=error.detail)
    except UserError as error:
        return Fetched(None, reason=Reason.UNREADABLE, detail=error.message)
    except (FileNotFoundError, NotADirectoryError):
        return Fetched(None, reason=Reason.NOT_FOUND, detail="no file there")
    except (OSError, ValueError) as error:
        detail = getattr(error, "strerror", None) or type(error).__name__
        return Fetched(None, reason=Reason.UNREADABLE, detail=detail)


def _ahead(threads: ThreadPoolExecutor, work: Callable[[_In], _Out], items: Iterable[_In], lead: int) -> Iterator[_Out]:
    """The work's results in order, with at most `lead` begun before the caller wants them."""
    begun: deque[Future[_Out]] = deque()
    for item in items:
        begun.append(threads.submit(work, item))
        if len(begun) == lead:
            yield begun.popleft().result()
    while begun:
        yield begun.popleft().result()


def _none() -> Generator[Fetched]:
    yield from ()


def row_id(uri: str, data: bytes | None) -> str:
    """The manifest's `id`: sha256 of the bytes, or of `uri:` and the uri where the bytes never came."""
    return hashlib.sha256(data if data is not None else f"uri:{uri}".encode()).hexdigest()
