"""Asking sites for the files in which they speak of rights, once for each site.

A site's record is kept for a day. What could not be asked is not kept beyond the run, so that the next one asks again.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta

import aiohttp
from pydantic import BaseModel, ConfigDict, ValidationError
from yarl import URL

from curation import storage
from curation.addresses import parse
from curation.fetch import FetchError
from curation.manifest import now
from curation.rights.evidence import BODY_LIMIT, SiteFile
from curation.rights.robots import Robots
from curation.rights.rsl import joined
from curation.web import Expander, Web

ROBOTS = "/robots.txt"
PATHS = {"tdmrep": "/.well-known/tdmrep.json", "ai_txt": "/ai.txt"}
_IN_ROBOTS = {"robots", "aipref", "content_signal", "rsl"}
_REDIRECTS = 5  # RFC 9309, 2.3.1.2: at least five, also to other hosts
_HOPELESS = ("dns", "refused_address", "bad_url")
_PAUSE_S = 0.5
_SITES_KEPT = 10_000  # a list may name millions; what was let go is read from the folder, or asked for once more
_DOCUMENTS_KEPT = 256
_MOST_DOCUMENTS = 8  # licences that one robots.txt may name

Ask = Callable[[str], Awaitable[SiteFile]]


class SiteRecord(BaseModel):
    """What a site answered: its files by name (`robots`, `tdmrep`, `ai_txt`), RSL documents by their URL."""

    model_config = ConfigDict(frozen=True)

    origin: str
    asked_at: datetime
    files: dict[str, SiteFile]

    @property
    def complete(self) -> bool:
        """Whether every file was answered for, with what it holds or by its absence."""
        return all(file.status == 200 or file.is_absent for file in self.files.values())


async def ask_file(web: Web, url: str, timeout_s: float = 60) -> SiteFile:
    """One file of a site, redirects followed, cut at `BODY_LIMIT`. Never raises for what the site did."""
    target, detail, asked = url, None, 0
    try:
        async with asyncio.timeout(timeout_s):
            while asked <= _REDIRECTS:
                asked += 1
                parsed = parse(target)
                async with (
                    web.turn(str(parsed.host)),
                    web.session.get(parsed, allow_redirects=False, headers={"Accept": "*/*"}) as response,
                ):
                    if 300 <= response.status < 400 and "Location" in response.headers:
                        target = str(parse(response.headers["Location"], parsed).with_fragment(None))
                        continue
                    body, more = b"", False
                    if response.status == 200:
                        body, more = await _body(response)
                    return SiteFile(
                        url=url,
                        status=response.status,
                        body=body,
                        truncated=more,
                        content_type=response.headers.get("Content-Type"),
                        observed_at=now(),
                        detail=None if response.status == 200 else f"http_{response.status}",
                    )
            detail = "too_many_redirects"
    except TimeoutError:
        detail = "timeout"
    except FetchError as error:
        detail = f"{error.reason}: {error.detail}"
    except aiohttp.ClientConnectorDNSError:
        detail = f"dns: {URL(target).host}"
    except Exception as error:  # whatever a site does, the pictures of others are not to suffer for it
        detail = f"connection: {type(error).__name__}"
    return SiteFile(url=url, status=None, observed_at=now(), detail=detail)


async def ask_patiently(web: Web, url: str, retries: int = 1) -> SiteFile:
    """`ask_file`, once more where another answer may come."""
    found = await ask_file(web, url)
    for _ in range(retries):
        if (found.status is not None and found.status < 500) or (found.detail or "").startswith(_HOPELESS):
            break
        await asyncio.sleep(_PAUSE_S)
        found = await ask_file(web, url)
    return found


async def _body(response: aiohttp.ClientResponse) -> tuple[bytes, bool]:
    expand = Expander(response.headers.get("Content-Encoding", ""))
    parts, size = [], 0
    async for piece in response.content.iter_any():
        for part in expand(piece):
            parts.append(part)
            size += len(part)
            if size > BODY_LIMIT:
                return b"".join(parts)[:BODY_LIMIT], True
    expand.finish()
    return b"".join(parts), False


async def ask_site(origin: str, ask: Ask, signals: Sequence[str]) -> SiteRecord:
    """All files of a site that the signals read. A site that cannot be asked for the first is not asked for more."""
    files: dict[str, SiteFile] = {}
    names = [name for name in PATHS if name in signals]
    if _IN_ROBOTS & set(signals):
        files["robots"] = await ask(origin + ROBOTS)
        if files["robots"].status is None:
            names = []
        if "rsl" in signals:
            documents = await asyncio.gather(*(ask(url) for url in _licences(files["robots"])))
            files |= {document.url: document for document in documents}
    files |= dict(zip(names, await asyncio.gather(*(ask(origin + PATHS[name]) for name in names)), strict=True))
    return SiteRecord(origin=origin, asked_at=now(), files=files)


def _licences(robots: SiteFile) -> list[str]:
    """URLs of the RSL documents of a robots.txt that are read."""
    named = dict.fromkeys(joined(robots.url, url) for _, url in Robots(robots, "").licences())
    return list(named)[:_MOST_DOCUMENTS]


class Sites:
    """Records of sites, each asked for once. Lives in one asyncio loop.

    Args:
        ask: asks for one file.
        signals: those that the job reads.
        folder: where records are kept, local or in a store; None keeps them for this object's life only.
        max_age: older records are asked for anew.
    """

    def __init__(self, ask: Ask, signals: Sequence[str], folder: str | None, max_age: timedelta) -> None:
        self._ask, self._signals, self._folder, self._max_age = ask, signals, folder, max_age
        self._known: dict[str, asyncio.Future[SiteRecord]] = {}
        self._documents: dict[str, asyncio.Future[SiteFile]] = {}

    async def of(self, origin: str) -> SiteRecord:
        """The record of a site (`https://example.org`)."""
        if origin not in self._known:
            if len(self._known) >= _SITES_KEPT:
                self._known.pop(next(iter(self._known)))
            self._known[origin] = asyncio.ensure_future(self._find(origin))
        return await asyncio.shield(self._known[origin])

    async def document(self, url: str) -> SiteFile:
        """A document that an answer or a page links to, asked for once."""
        if url not in self._documents:
            if len(self._documents) >= _DOCUMENTS_KEPT:
                self._documents.pop(next(iter(self._documents)))
            self._documents[url] = asyncio.ensure_future(self._ask(url))
        return await asyncio.shield(self._documents[url])

    async def _find(self, origin: str) -> SiteRecord:
        stored = await asyncio.to_thread(self._read, origin)
        if stored is not None:
            return stored
        record = await ask_site(origin, self._ask, self._signals)
        if record.complete and self._folder is not None:
            await asyncio.to_thread(self._write, record)
        return record

    def _place(self, origin: str) -> str:
        assert self._folder is not None
        return storage.join(self._folder, f"{hashlib.sha256(origin.encode()).hexdigest()[:32]}.json")

    def _read(self, origin: str) -> SiteRecord | None:
        if self._folder is None:
            return None
        try:
            record = SiteRecord.model_validate_json(storage.read_bytes(self._place(origin)))
        except (OSError, ValidationError):
            return None
        wanted = {name for name in PATHS if name in self._signals}
        wanted |= {"robots"} if _IN_ROBOTS & set(self._signals) else set()
        if "rsl" in self._signals and "robots" in record.files:  # the job that wrote it may not have read them
            wanted |= set(_licences(record.files["robots"]))
        fresh = record.origin == origin and now() - record.asked_at < self._max_age
        return record if fresh and wanted <= record.files.keys() else None

    def _write(self, record: SiteRecord) -> None:
        with contextlib.suppress(OSError):  # a record that cannot be kept is asked for again
            storage.write_bytes(self._place(record.origin), record.model_dump_json().encode())
