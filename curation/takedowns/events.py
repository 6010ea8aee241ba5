"""What a ledger is made of: entries, their withdrawals, and the record of what was done about them.

An event is immutable, and its id a hash of what it says, so that the same event written twice is one event. `SCHEMA` is
the one Parquet schema of all of them; a column that an event has no use for is null.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, field_serializer, field_validator, model_validator

from curation.errors import UserError
from curation.manifest import TIME
from curation.selectors import EXAMPLES, normal, well_formed

FORMAT = 1

SELECTORS = pa.list_(
    pa.struct(
        [
            ("kind", pa.string()),  # sha256, uri, domain, creator or picture
            ("value", pa.string()),  # in its normal form (`curation.selectors.normal`); of a picture, its sha256
            ("pixel_hash", pa.string()),  # of a picture, as the three that follow: as in a manifest
            ("phash", pa.uint64()),
            ("colour_layout", pa.binary()),
        ]
    )
)
SCHEMA = pa.schema(
    [
        ("format", pa.int32()),
        ("event", pa.string()),  # entry, withdrawal or action
        ("id", pa.string()),
        ("recorded_at", TIME),
        ("by", pa.string()),  # who asked, withdrew or acted
        ("entry", pa.string()),  # of a withdrawal or an action: the entry that it is about
        ("requested_at", TIME),  # of an entry, as the three that follow
        ("ground", pa.string()),
        ("reference", pa.string()),
        ("selectors", SELECTORS),
        ("why", pa.string()),  # of a withdrawal
        ("what", pa.string()),  # of an action, as the two that follow
        ("subject", pa.string()),
        ("detail", pa.string()),  # JSON
    ]
)

Kind = Literal["sha256", "uri", "domain", "creator", "picture"]


class Selector(BaseModel):
    """Which pictures an entry is about.

    A picture's `value` is the sha256 of its file; its hashes are those of a manifest's columns (`curation.images`). The
    picture itself is not stored.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_bytes="hex", val_json_bytes="hex")

    kind: Kind
    value: str
    pixel_hash: str | None = None
    phash: int | None = Field(None, ge=0, lt=2**64)
    colour_layout: bytes | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> Selector:
        of_picture = (self.pixel_hash, self.phash, self.colour_layout)
        if any((fact is None) == (self.kind == "picture") for fact in of_picture):
            raise ValueError("a picture has a pixel_hash, a phash and a colour_layout, and nothing else has")
        if self.colour_layout is not None and len(self.colour_layout) != 48:
            raise ValueError("a colour layout has 48 bytes")
        kind = "sha256" if self.kind == "picture" else self.kind
        if self.value != normal(kind, self.value) or not well_formed(kind, self.value):
            raise ValueError(f"{self.value!r} is not the normal form of a {kind}")
        return self

    @field_serializer("phash", when_used="json")
    def _hexadecimal(self, phash: int | None) -> str | None:
        return None if phash is None else f"{phash:016x}"  # readers of JSON round numbers beyond 2^53

    @field_validator("phash", mode="before")
    @classmethod
    def _from_hexadecimal(cls, phash: Any) -> Any:
        return int(phash, 16) if isinstance(phash, str) else phash

    @property
    def sha256(self) -> str | None:
        """Of the file that is meant; None where it is not known."""
        return self.value if self.kind in ("sha256", "picture") else None

    @classmethod
    def of(cls, kind: Kind, given: str) -> Selector:
        """A selector as somebody wrote it.

        Raises:
            UserError: when it would select nothing.
        """
        value = normal(kind, given)
        if not well_formed(kind, value):
            raise UserError(
                f"{given!r} would select nothing as a {kind}", field=f"--{kind}", remedy=f"write {EXAMPLES[kind]}"
            )
        return cls(kind=kind, value=value)


class Withdrawal(BaseModel):
    """An entry is taken back."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    recorded_at: datetime
    by: str
    entry: str
    why: str


class Entry(BaseModel):
    """Somebody asked that pictures be no longer used."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    recorded_at: datetime
    requested_at: datetime
    requester: str
    ground: str
    reference: str | None
    selectors: tuple[Selector, ...]
    withdrawn: Withdrawal | None = None

    @property
    def state(self) -> Literal["open", "withdrawn"]:
        return "open" if self.withdrawn is None else "withdrawn"


class Action(BaseModel):
    """Something was done, about an entry or about the ledger as a whole: the audit record."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    recorded_at: datetime
    by: str
    entry: str | None
    what: str
    subject: str
    detail: str  # JSON


Event = Entry | Withdrawal | Action


def make_entry(
    *,
    requester: str,
    ground: str,
    selectors: Sequence[Selector],
    requested_at: datetime,
    reference: str | None,
    recorded_at: datetime,
) -> Entry:
    """An entry with its id. With a reference the time stays out of the id: the same request is then one entry."""
    chosen = sorted(dict.fromkeys(selectors), key=lambda s: s.model_dump_json())
    told = [requester, ground, reference, None if reference else _stamp(requested_at)]
    return Entry(
        id=_digest("entry", [*told, [json.loads(s.model_dump_json()) for s in chosen]]),
        recorded_at=_utc(recorded_at),
        requested_at=_utc(requested_at),
        requester=requester,
        ground=ground,
        reference=reference,
        selectors=tuple(chosen),
    )


def make_withdrawal(*, entry: str, by: str, why: str, recorded_at: datetime) -> Withdrawal:
    """A withdrawal with its id: the same one by the same person is one, whenever it is said again."""
    return Withdrawal(
        id=_digest("withdrawal", [entry, by, why]), recorded_at=_utc(recorded_at), by=by, entry=entry, why=why
    )


def make_action(
    *, entry: str | None, what: str, subject: str, detail: str, by: str, recorded_at: datetime, once: bool
) -> Action:
    """An action with its id; `once` leaves the time out of it."""
    told = [entry, what, subject, detail, by, None if once else _stamp(recorded_at)]
    return Action(
        id=_digest("action", told),
        recorded_at=_utc(recorded_at),
        by=by,
        entry=entry,
        what=what,
        subject=subject,
        detail=detail,
    )


def _utc(time: datetime) -> datetime:
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


def _stamp(time: datetime) -> str:
    return _utc(time).isoformat(timespec="microseconds")


def _digest(kind: str, told: list[Any]) -> str:
    return hashlib.sha256(json.dumps([FORMAT, kind, *told], ensure_ascii=False).encode()).hexdigest()


def to_row(event: Event) -> dict[str, Any]:
    """An event as a row of `SCHEMA`."""
    row: dict[str, Any] = dict.fromkeys(SCHEMA.names) | {"format": FORMAT, "event": type(event).__name__.lower()}
    row |= {name: value for name, value in event.model_dump().items() if name in row}
    if isinstance(event, Entry):
        row["by"] = event.requester
    return row


def from_row(row: Mapping[str, Any]) -> Event:
    """The inverse of `to_row`; of an entry without its withdrawal, which is another event.

    Raises:
        ValueError: for what is no event, or one of a later format.
    """
    if row["format"] != FORMAT or row["event"] not in _FIELDS:
        raise ValueError(f"an event {row['event']!r} of format {row['format']}")
    kind, names = _FIELDS[row["event"]]
    fields = {name: row[name] for name in names}
    if kind is Entry:
        fields |= {"requester": row["by"], "selectors": tuple(Selector(**s) for s in row["selectors"])}
    return kind(**fields)


_FIELDS: dict[str, tuple[type[Event], tuple[str, ...]]] = {
    "entry": (Entry, ("id", "recorded_at", "requested_at", "ground", "reference")),
    "withdrawal": (Withdrawal, ("id", "recorded_at", "by", "entry", "why")),
    "action": (Action, ("id", "recorded_at", "by", "entry", "what", "subject", "detail")),
}
