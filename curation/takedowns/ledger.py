"""The takedown ledger: an append-only folder of Parquet files, local or in a bucket.

`events/<kind>-<id>.parquet` is one event, written whole or not at all under a name made of its id: appending takes no
lock, and appending the same event again makes the same file. `events/packs/` holds many events to a file. So
`pyarrow.parquet.read_table(<ledger>/events)` reads it all; an event that stands there twice counts once, by `id`.

Why nothing is lost while somebody packs: a file is removed only when a pack that holds all of its events was written
before. A pack is named by how many events it holds and by a hash of their ids, so the larger one sorts later and no
name ever means something else. A reader lists the single files first and the packs after them, so what vanished from
under the first listing stands in the second, and reads anew when the packs are others afterwards.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from curation import storage
from curation.errors import UserError
from curation.manifest import INFO_FILE, LATEST_FILE, Manifest, now
from curation.takedowns.events import (
    SCHEMA,
    Action,
    Entry,
    Event,
    Selector,
    Withdrawal,
    from_row,
    make_action,
    make_entry,
    make_withdrawal,
    to_row,
)
from curation.takedowns.state import LedgerState, each_once

FOLDER = "takedowns"
VARIABLE = "CLEANPLATE_LEDGER"
_THREADS = 16
_ATTEMPTS = 50
_REMEDY = "restore it from a backup, or remove it if you know that it never was a whole event"


def location(given: str | None, beside: str | None = None) -> str:
    """Where the ledger lies: where it is said, else where $CLEANPLATE_LEDGER says, else beside the manifests.

    Args:
        given: of a job file or the command line.
        beside: the folder that manifests are published in.

    Raises:
        UserError: when nothing says where.
    """
    found = given or os.environ.get(VARIABLE) or (storage.join(beside, FOLDER) if beside else None)
    if not found:
        raise UserError(
            "nothing says where the takedown ledger lies",
            field="ledger",
            remedy=f"give --ledger FOLDER (or a manifest's folder), or set {VARIABLE}",
        )
    return storage.absolute(found)


def of_place(uri: str) -> str:
    """The ledger's folder, given itself or a manifest, or a folder of manifests, that names it.

    A manifest that names none was published without one: its ledger is where the next one would have it.

    Raises:
        UserError: when the place cannot be reached, or holds what is no whole manifest.
    """
    uri = storage.absolute(uri).rstrip("/")
    try:
        published = storage.exists(storage.join(uri, LATEST_FILE))
        if not published and not storage.exists(storage.join(uri, INFO_FILE)):
            return uri
        info = Manifest.open(uri).info
    except OSError as error:
        raise _unreachable(uri, error) from error
    if info.ledger is not None:
        return info.ledger.uri
    return location(None, beside=uri if published else uri.rpartition("/")[0])


def refuse_vanished(uri: str, state: LedgerState, manifests: Iterable[Manifest]) -> None:
    """Refuses a ledger that lacks requests which manifests heeded: it was lost or moved, or another one is meant.

    Args:
        uri: of the ledger that was read. An absent one reads as an empty one.
        state: what it holds.
        manifests: those that are decided anew, or that this job's is to follow.

    Raises:
        UserError: it has no entries, and theirs had; or theirs is another one, with requests that are not in it.
    """
    known = [(manifest, manifest.info.ledger) for manifest in manifests if manifest.info.ledger is not None]
    have = {entry.id for entry in state.entries}
    for manifest, heeded in known:
        if not have and heeded.version != state.version:
            raise UserError(
                f"the takedown ledger at {uri} has no entries, but {manifest.uri} heeded some of {heeded.uri}",
                field="ledger",
                remedy="restore it, or say where it lies now: nothing goes on without it",
            )
    for other in dict.fromkeys(heeded.uri for _, heeded in known if heeded.uri != uri):
        lacking = [entry.id[:12] for entry in Ledger.open(other).read().in_force if entry.id not in have]
        if lacking:
            raise UserError(
                f"the takedown ledger at {uri} lacks {len(lacking):,} requests that are in force in {other}, such as "
                f"{lacking[0]}",
                field="ledger",
                remedy=f"name {other}, or copy its events (files in {other}/events) into this one",
            )


class Ledger:
    """A ledger in a folder, open for reading and appending. What it read it keeps: events never change."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._singles = storage.join(uri, "events")
        self._packs = storage.join(uri, "events", "packs")
        self._held: dict[str, list[Event]] = {}
        self._state: tuple[tuple[str, ...], LedgerState] | None = None

    @classmethod
    def open(cls, uri: str) -> Ledger:
        """Opens a ledger's folder (see `location` and `of_place`); an absent one is an empty ledger."""
        return cls(storage.absolute(uri).rstrip("/"))

    def append_entry(
        self,
        *,
        requester: str,
        ground: str,
        selectors: Sequence[Selector],
        requested_at: datetime | None = None,
        reference: str | None = None,
    ) -> Entry:
        """Adds a request. When it returns, the entry is in the ledger for good.

        Args:
            requester: who asked, such as `Jane Doe <jane@example.com>`.
            ground: on what ground.
            selectors: what it is about, at least one.
            requested_at: when they asked; now when not given.
            reference: the requester's own ticket. With one, adding the same request again is the same entry.

        Raises:
            UserError: when something is empty, or the ledger cannot be written to.
        """
        for name, value in (("--by", requester), ("--ground", ground), ("selectors", selectors)):
            if not value or (isinstance(value, str) and not value.strip()):
                raise UserError("a takedown entry needs this", field=name, remedy="say who asks, why, and for what")
        at = now()
        entry = make_entry(
            requester=requester.strip(),
            ground=ground.strip(),
            selectors=selectors,
            requested_at=requested_at or at,
            reference=(reference or "").strip() or None,
            recorded_at=at,
        )
        self._append(entry)
        return entry

    def withdraw(self, entry: str, *, by: str, why: str) -> Withdrawal:
        """Takes an entry back; one that is withdrawn already stays as it is.

        Args:
            entry: its id, or a prefix that only it has.

        Raises:
            UserError: when there is no such entry, or something is empty.
        """
        for name, value in (("--by", by), ("--why", why)):
            if not value.strip():
                raise UserError("a withdrawal needs this", field=name, remedy="say who withdraws the entry, and why")
        known = self.read().entry(entry)
        if known.withdrawn is not None:
            return known.withdrawn
        withdrawal = make_withdrawal(entry=known.id, by=by.strip(), why=why.strip(), recorded_at=now())
        self._append(withdrawal)
        return withdrawal

    def record_action(
        self,
        *,
        what: str,
        subject: str,
        by: str,
        entry: str | None = None,
        detail: Mapping[str, Any] | None = None,
        once: bool = False,
    ) -> Action:
        """Adds to the audit record.

        Args:
            what: `plan_written`, `manifest_derived`, `version_tagged`, `alias_moved`, `version_refused`, ….
            subject: what it was done to: a manifest's id, a model version.
            by: who or what did it.
            entry: the id of the entry that it was done about.
            detail: more, to be stored as JSON.
            once: whether the same action done again is the same record.
        """
        text = json.dumps(dict(detail or {}), sort_keys=True, default=str)
        action = make_action(entry=entry, what=what, subject=subject, detail=text, by=by, recorded_at=now(), once=once)
        self._append(action)
        return action

    def read(self) -> LedgerState:
        """All that it holds now; where its files are those of the last time, what was found then.

        Raises:
            UserError: when it cannot be read, whole: a ledger that cannot be read is never taken for an empty one.
        """
        files = self._files()
        names = tuple(files)
        if self._state is None or self._state[0] != names:
            self._state = names, LedgerState.of(event for events in files.values() for event in events)
        return self._state[1]

    def pack(self) -> int:
        """Folds all events into one file and removes those they were in; safe beside writers, readers and other packs.

        Returns:
            The number of files that are no more.
        """
        files = self._files()
        if len(files) < 2:
            return 0
        held = each_once(event for events in files.values() for event in events)
        ids = sorted(event.id for event in held)
        name = f"pack-{len(ids):012d}-{hashlib.sha256(''.join(ids).encode()).hexdigest()[:32]}.parquet"
        target = storage.join(self._packs, name)
        self._guard(lambda: storage.write_bytes(target, _to_parquet(held)))
        gone = [uri for uri in files if uri != target]
        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(lambda uri: self._guard(lambda: storage.remove_file(uri)), gone))
        return len(gone)

    def loose(self) -> int:
        """How many events lie in files of their own."""
        return len(self._list(self._singles))

    def _append(self, event: Event) -> None:
        target = storage.join(self._singles, f"{type(event).__name__.lower()}-{event.id}.parquet")
        if not self._guard(lambda: storage.exists(target)):
            self._guard(lambda: storage.write_bytes(target, _to_parquet([event])))

    def _files(self) -> dict[str, list[Event]]:
        """Every file and its events."""
        for _ in range(_ATTEMPTS):
            singles = self._list(self._singles)
            packs = self._list(self._packs)
            new = [uri for uri in (*singles, *packs) if uri not in self._held]
            with ThreadPoolExecutor(_THREADS) as pool:
                found = dict(zip(new, pool.map(self._events, new), strict=True))
            self._held |= {uri: events for uri, events in found.items() if events is not None}
            if None not in found.values() and self._list(self._packs) == packs:
                self._held = {uri: self._held[uri] for uri in (*singles, *packs)}
                return self._held
        raise UserError(
            f"the takedown ledger at {self.uri} is being packed all the time", field="ledger", remedy="try again later"
        )

    def _list(self, folder: str) -> list[str]:
        def names() -> list[str]:
            if storage.is_remote(folder):
                return [info.base_name for info in storage.list_files(folder)]
            with contextlib.suppress(FileNotFoundError):  # and nothing else: what may not be looked into is not empty
                return sorted(os.listdir(storage.filesystem(folder)[1]))
            return []

        found = (name for name in self._guard(names) if name.endswith(".parquet") and not name.startswith("."))
        return [storage.join(folder, name) for name in found]

    def _events(self, uri: str) -> list[Event] | None:
        """The events of a file; None where it was packed away."""

        def read() -> bytes | None:
            try:
                return storage.read_bytes(uri)
            except OSError:  # S3 has other words for what vanishes between asking for its size and its bytes
                if storage.exists(uri):
                    raise
                return None

        data = self._guard(read)
        if data is None:
            return None
        try:
            table = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)
            if not table.schema.equals(SCHEMA):
                raise ValueError("its columns are not those of a ledger's events")
            return [from_row(row) for row in table.to_pylist()]
        except (pa.ArrowException, OSError, ValueError, ValidationError, TypeError, KeyError) as error:
            told = str(error).strip().splitlines() or [type(error).__name__]
            raise UserError(
                f"{uri} is damaged, or of a newer cleanplate: {told[0][:200]}", field="ledger", remedy=_REMEDY
            ) from None

    def _guard(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except OSError as error:
            raise _unreachable(self.uri, error) from error


def _unreachable(uri: str, error: OSError) -> UserError:
    return UserError(
        f"the takedown ledger at {uri} cannot be reached: {type(error).__name__}: {error}",
        field="ledger",
        remedy="check the place, the credentials and the network; nothing goes on without it",
    )


def _to_parquet(events: Sequence[Event]) -> bytes:
    buffer = io.BytesIO()
    # What helps with many rows is most of the work of reading one.
    plain = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    options = plain if len(events) == 1 else {"compression": "zstd"}
    pq.write_table(pa.Table.from_pylist([to_row(e) for e in events], schema=SCHEMA), buffer, **options)
    return buffer.getvalue()
