"""`cleanplate keys`: who may ask an endpoint, and how much."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, cast, get_args

from pydantic import BaseModel

from curation.errors import UserError
from serving import keys
from serving.keys import Key, Scope


class Created(BaseModel):
    """A new key, with its secret."""

    file: str
    key: Key
    secret: str  # nobody can tell it later


class Listed(BaseModel):
    """The keys of a file."""

    file: str
    keys: tuple[Key, ...]


class Revoked(BaseModel):
    """A key that has ended."""

    file: str
    key: Key


def create(file: str, name: str, scopes: Sequence[str], **limits: int | None) -> Created:
    """A new key in the file. Raises UserError."""
    wrong = sorted(set(scopes) - set(get_args(Scope)))
    if wrong:
        raise UserError(
            f"no scope {wrong[0]!r}", field="scope", remedy=f"one of {', '.join(get_args(Scope))}; may be repeated"
        )
    key, secret = keys.create(file, name, cast("Sequence[Scope]", scopes), **limits)
    return Created(file=file, key=key, secret=secret)


def listed(file: str) -> Listed:
    """The keys of the file. Raises UserError."""
    return Listed(file=file, keys=keys.read(file))


def revoke(file: str, name: str) -> Revoked:
    """Ends a key, by its id or its name. Raises UserError."""
    return Revoked(file=file, key=keys.revoke(file, name))


def summary(done: Any) -> list[str]:
    """What was done, for a person."""
    if isinstance(done, Created):
        return [done.secret, f"key {done.key.id} of {done.key.name}: written down nowhere, so keep it now"]
    if isinstance(done, Revoked):
        return [f"key {done.key.id} of {done.key.name} has ended; endpoints heed it within seconds"]
    return [_line(key) for key in done.keys] or [f"no keys in {done.file}"]


def _line(key: Key) -> str:
    since = datetime.fromtimestamp(key.created, UTC).date().isoformat()
    limits = [
        f"{most:,} row-steps a {unit}"
        for most, unit in ((key.row_steps_per_minute, "minute"), (key.row_steps_per_day, "day"))
        if most is not None
    ]
    state = "in force" if key.revoked is None else "ended"
    return f"{key.id}  {since}  {state:8}  {key.name}  {','.join(key.scopes)}  {', '.join(limits) or 'no limits'}"
