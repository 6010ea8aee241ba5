"""What was served, added up by training picture: for credit, or for payment. It says nothing of prompts or users.

Each picture that leaves is one unit, shared among the training pictures that are named for it in proportion to their
similarity. A process adds up what it serves and writes a file of its own every so often, whole or not at all, so that
any number of them may write into one folder, local or in a bucket:

    <folder>/<day>-<32 hex>.parquet     columns as in `SCHEMA`; a row without `sha256` counts the day's pictures

What was taken down is not named from then on, and gets no share; what it got before stays in the files.
"""

from __future__ import annotations

import io
import logging
import threading
import uuid
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curation import storage
from curation.errors import UserError

SCHEMA = pa.schema(
    [
        ("day", pa.date32()),
        ("model", pa.string()),
        ("version", pa.string()),
        ("index", pa.string()),  # sha256 of the index that was asked
        ("sha256", pa.string()),  # of the training picture's file
        ("creator", pa.string()),
        ("licence", pa.string()),
        ("uri", pa.string()),
        ("pictures", pa.int64()),  # served pictures that it was named for
        ("weight", pa.float64()),  # its shares of them
        ("near_copies", pa.int64()),  # of these, those that were flagged as near copies of it
    ]
)
LEDGERS = b"cleanplate.ledgers"
"""Of a file's metadata: the takedown ledgers that were asked, with commas between them."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Named:
    """A training picture that is named for a served one."""

    sha256: str
    creator: str | None
    licence: str | None
    uri: str | None
    similarity: float


def today() -> date:
    return datetime.now(UTC).date()


class CreditLog:
    """Adds up and writes. For any thread.

    Args:
        folder: where to.
        model, version, index: of whose pictures.
        ledgers: that were asked.
        every_s: how long what was added up may wait to be written.
        day: today's date.
    """

    def __init__(
        self,
        folder: str,
        *,
        model: str,
        version: str,
        index: str,
        ledgers: Sequence[str] = (),
        every_s: float = 60.0,
        day: Callable[[], date] = today,
    ) -> None:
        self._sums = _Sums(folder, {"model": model, "version": version, "index": index}, ", ".join(ledgers))
        self._every_s = every_s
        self._day = day
        self._timer: threading.Timer | None = None
        weakref.finalize(self, self._sums.write)  # also when the process ends of itself

    def add(self, named: Sequence[Named], near_copy_of: str | None = None) -> None:
        """A picture was served.

        Args:
            near_copy_of: id of the training picture that it was flagged as a near copy of.
        """
        if self._sums.add(self._day(), named, near_copy_of):
            self._timer = threading.Timer(self._every_s, self._sums.write)
            self._timer.daemon = True
            self._timer.start()

    def flush(self) -> None:
        """Writes what there is. A storage that fails is logged, and it is tried again the next time."""
        if self._timer is not None:
            self._timer.cancel()
        self._sums.write()


class _Sums:
    def __init__(self, folder: str, about: dict[str, str], ledgers: str) -> None:
        self._folder = folder
        self._about = about
        self._ledgers = ledgers
        self._lock = threading.Lock()
        self._rows: dict[tuple[date, str | None], dict[str, Any]] = {}
        self._due = False  # whether somebody is to write what there is

    def add(self, day: date, named: Sequence[Named], near_copy_of: str | None) -> bool:
        """Returns whether it is to be written, and nobody was told so yet."""
        total = sum(one.similarity for one in named)
        with self._lock:
            self._row(day, None)["pictures"] += 1
            for one in named:
                row = self._row(day, one)
                row["pictures"] += 1
                row["weight"] += one.similarity / total if total > 0 else 1 / len(named)
                row["near_copies"] += one.sha256 == near_copy_of
            told, self._due = self._due, True
        return not told

    def _row(self, day: date, one: Named | None) -> dict[str, Any]:
        key = (day, None if one is None else one.sha256)
        if key not in self._rows:
            facts = {
                name: None if one is None else getattr(one, name) for name in ("sha256", "creator", "licence", "uri")
            }
            self._rows[key] = {**self._about, "day": day, **facts, "pictures": 0, "weight": 0.0, "near_copies": 0}
        return self._rows[key]

    def write(self) -> None:
        with self._lock:
            rows, self._rows, self._due = self._rows, {}, False
        by_day: dict[date, list[dict[str, Any]]] = {}
        for (day, _), row in rows.items():
            by_day.setdefault(day, []).append(row)
        for day, some in by_day.items():
            buffer = io.BytesIO()
            table = pa.Table.from_pylist(some, schema=SCHEMA)
            pq.write_table(table.replace_schema_metadata({LEDGERS: self._ledgers.encode()}), buffer, compression="zstd")
            try:
                storage.write_bytes(storage.join(self._folder, f"{day}-{uuid.uuid4().hex}.parquet"), buffer.getvalue())
            except OSError as error:
                _log.error("what was served cannot be written to %s, and is kept for now: %s", self._folder, error)
                self._take_back(some)

    def _take_back(self, rows: Sequence[dict[str, Any]]) -> None:
        with self._lock:
            for row in rows:
                known = self._rows.setdefault(
                    (row["day"], row["sha256"]), {**row, "pictures": 0, "weight": 0, "near_copies": 0}
                )
                for name in ("pictures", "weight", "near_copies"):
                    known[name] += row[name]


def read(folder: str) -> tuple[pa.Table, list[str]]:
    """All that is in a folder, and the ledgers that were asked.

    Raises:
        UserError: no such folder, or a file in it that is damaged.
    """
    try:
        files = [found for found in storage.list_files(folder, recursive=True) if found.path.endswith(".parquet")]
        if not files and not storage.is_dir(folder):
            raise UserError(
                f"there is no folder {folder}", field="--attribution", remedy="name a job's attribution.log"
            )
        tables, ledgers = [SCHEMA.empty_table()], dict[str, None]()
        for found in files:
            table = pq.read_table(found.path, filesystem=storage.filesystem(folder)[0])
            told = (table.schema.metadata or {}).get(LEDGERS, b"").decode()
            ledgers |= dict.fromkeys(uri for uri in told.split(", ") if uri)
            tables.append(table.replace_schema_metadata(None).select(SCHEMA.names).cast(SCHEMA))
    except (OSError, pa.ArrowException, KeyError) as error:
        raise UserError(
            f"{folder} cannot be read: {error}", field="--attribution", remedy="name a folder that a server writes to"
        ) from None
    return pa.concat_tables(tables), list(ledgers)
