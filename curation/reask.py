"""Asking again: what the web says today about the pictures of a manifest, without fetching any of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from curation.fetch import FetchConfig, Fetched, Fetcher
from curation.manifest import Decision, Manifest, Reason, Verdict
from curation.places import is_url
from curation.rights.config import RightsConfig
from curation.rights.verdict import Observation, of_row
from curation.site_desk import desks, records
from curation.site_rights import SiteRights, own_records
from curation.workers import ray_data

SIGNAL = "recheck"
"""The signal of an observation that says how asking for the picture itself went."""

_GONE = frozenset({"http_404", "http_410"})
_FORBIDDEN = frozenset({"http_451", Reason.SITE_REFUSES.value})

# Copies by embedding are other pictures.
_COPIES = pa.array([Reason.DUPLICATE_EXACT, Reason.DUPLICATE_PIXEL, Reason.DUPLICATE_PERCEPTUAL], pa.string())
_DESKS = 4


class Asker:
    """Asks the web about rows; one in each worker.

    Args:
        fetch: what this one worker may do.
        rights: which signals are read.
        desks: actors that ask the sites for all workers; none: this process does.
    """

    def __init__(self, fetch: FetchConfig, rights: RightsConfig, desks: Sequence[str] = ()) -> None:
        self._fetcher = Fetcher(fetch, self._admit)
        own = own_records(lambda: self._fetcher.web, rights, None)
        self._rights = SiteRights(rights, fetch.product, records(desks, own), self._fetcher.soon)
        self._pages = rights.pages

    async def _admit(self, url: str) -> None:
        await self._rights.admit(url)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, list[Observation]]]:
        """What is said of each row (`uri`, `page_url`) from the web: its uri and the observations."""
        pages = sorted({row["page_url"] for row in rows if row["page_url"] and self._pages})
        read = {url: self._rights.read(url, fetched) for url, fetched in zip(pages, self._fetcher(pages), strict=True)}
        registered = self._rights.registered([row["uri"] for row in rows])
        answers = self._fetcher.web.fetch([row["uri"] for row in rows], heads=True)
        for row, fetched in zip(rows, answers, strict=True):
            found = self._rights.observe(row["uri"], fetched, read.get(row["page_url"]))
            listed = [registered[row["uri"]]] if row["uri"] in registered else []
            yield row["uri"], [*found, *listed, *self._of_itself(row["uri"], fetched)]

    def _of_itself(self, uri: str, fetched: Fetched) -> list[Observation]:
        """A picture that is gone is no refusal, one that is withheld is, and what could not be asked is an error."""
        if fetched.data is not None:
            return []
        reason = str(fetched.reason)
        verdict = Verdict.ERROR
        if reason in _GONE:
            verdict = Verdict.UNKNOWN
        elif reason in _FORBIDDEN:
            verdict = Verdict.DENY
        return [Observation(SIGNAL, f"{reason}: {fetched.detail or ''}"[:200], uri, verdict, fetched.at)]

    def close(self) -> None:
        self._fetcher.close()


def web_rows(manifest: Manifest) -> Iterator[list[dict[str, Any]]]:
    """The rows from the web that are asked about, some at a time: `uri`, `page_url`.

    Those that were kept, and those that were left out as their copies: who refuses a copy refuses the picture.
    """
    there = manifest.schema.names
    columns = [name for name in ("uri", "page_url") if name in there]
    for batch in manifest.batches([*columns, "decision", "reason"]):
        asked = pc.or_(pc.equal(batch["decision"], Decision.KEPT.value), pc.is_in(batch["reason"], _COPIES))
        asked = pc.and_(asked, pc.match_substring_regex(batch["uri"], "(?i)^https?://"))
        rows = batch.filter(asked).select(columns).to_pylist()
        if rows:
            yield [{"page_url": None, **row} for row in rows]


class _Actor:
    """An `Asker` as Ray Data calls it: batches of one list of rows."""

    def __init__(self, fetch: FetchConfig, rights: RightsConfig, desks: Sequence[str]) -> None:
        self._asker = Asker(fetch, rights, desks)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        told = []
        for rows in batch["rows"]:
            found = [(uri, [seen.row() for seen in observed]) for uri, observed in self._asker(json.loads(rows))]
            told.append(json.dumps(found, default=datetime.isoformat))
        return {"seen": told}


def ask_again(
    manifest: Manifest, fetch: FetchConfig, rights: RightsConfig, workers: int, on_asked: Callable[[int], None]
) -> dict[str, list[Observation]]:
    """What the web says about a manifest's rows (`web_rows`), by uri, asked by the workers of the cluster we are
    connected to. The same bytes at two places are two answers; the same place by way of two pages is all of them.

    Args:
        on_asked: called with the number of rows that were asked about since the last call.
    """
    items = [{"rows": json.dumps(rows)} for rows in web_rows(manifest)]
    if not items:
        return {}
    data, found, workers = ray_data(), dict[str, list[Observation]](), min(workers, len(items))
    with desks(min(workers, _DESKS), fetch, rights, None) as names:
        asked = data.from_items(items, override_num_blocks=len(items)).map_batches(
            _Actor,
            batch_size=1,
            compute=data.ActorPoolStrategy(size=workers),
            fn_constructor_args=[fetch.share(workers), rights, names],
            num_cpus=1,
        )
        for row in asked.iter_rows():
            seen = json.loads(row["seen"])
            for uri, observed in seen:
                found.setdefault(uri, []).extend(_observation(told) for told in observed)
            on_asked(len(seen))
    return found


def _observation(told: Mapping[str, Any]) -> Observation:
    at = told["observed_at"]
    return of_row({**told, "observed_at": None if at is None else datetime.fromisoformat(at)})


def is_from_web(observation: Mapping[str, Any]) -> bool:
    """Whether an observation (as a row of the manifest) was made on the web, and so can be made again."""
    return is_url(observation["where"])
