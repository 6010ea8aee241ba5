"""One that asks the sites for all workers of a cluster, so that each site is asked once."""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from curation.fetch import FetchConfig
from curation.rights.config import RightsConfig
from curation.rights.evidence import SiteFile
from curation.site_files import SiteRecord
from curation.site_rights import Records, own_records
from curation.web import Web

_AT_A_TIME = 1000  # questions that one desk holds open


class SiteDesk:
    """A Ray actor. Two workers that ask about one site at the same time wait for the same answer."""

    def __init__(self, fetch: FetchConfig, rights: RightsConfig, folder: str | None) -> None:
        self._web = Web(fetch)
        self._records = own_records(lambda: self._web, rights, folder)

    async def of(self, origin: str) -> str:
        """A `SiteRecord`, as JSON."""
        record: SiteRecord = await asyncio.wrap_future(self._web.soon(self._records.of(origin)))
        return record.model_dump_json()

    async def document(self, url: str) -> str:
        """A `SiteFile`, as JSON."""
        file: SiteFile = await asyncio.wrap_future(self._web.soon(self._records.document(url)))
        return file.model_dump_json()


class Desks:
    """The desks of a job, as a worker asks them."""

    def __init__(self, names: Sequence[str]) -> None:
        import ray

        self._desks: list[Any] = [ray.get_actor(name) for name in names]

    async def of(self, origin: str) -> SiteRecord:
        return SiteRecord.model_validate_json(await self._desk(origin).of.remote(origin))

    async def document(self, url: str) -> SiteFile:
        return SiteFile.model_validate_json(await self._desk(url).document.remote(url))

    def _desk(self, key: str) -> Any:
        return self._desks[int.from_bytes(hashlib.sha256(key.encode()).digest()[:4]) % len(self._desks)]


@contextmanager
def desks(count: int, fetch: FetchConfig, rights: RightsConfig, folder: str | None) -> Iterator[tuple[str, ...]]:
    """Desks on the cluster that this process is connected to, for the duration of a `with` block; gives their names."""
    import ray

    names = tuple(f"cleanplate-sites-{uuid.uuid4().hex[:12]}" for _ in range(count))
    actor: Any = ray.remote(SiteDesk)
    options = {"num_cpus": 0, "max_concurrency": _AT_A_TIME, "max_restarts": -1, "max_task_retries": -1}
    held = [actor.options(name=name, **options).remote(fetch.share(count), rights, folder) for name in names]
    try:
        yield names
    finally:
        for desk in held:
            ray.kill(desk)


def records(names: Sequence[str], own: Records) -> Records:
    """The desks of these names; where there are none, a worker asks for itself."""
    return Desks(names) if names else own
