"""API keys: who may ask for what, and how much. Kept as hashes in a JSON file that the operator edits by
`cleanplate keys`.

A key is `cp_ID_SECRET`: the id is public and names it in records and lists, the secret has 256 bits and is shown once.
The file holds its SHA-256; a slower hash protects guessable secrets, and this is none.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import logging
import re
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from curation import storage
from curation.errors import UserError

Scope = Literal["generate", "read", "verify", "metrics", "admin"]
"""What a key may do: draw, see what it drew, ask whether a file is from here, read the server's metrics; `admin` all
that, and see everybody's."""

_SECRET = re.compile(r"cp_([0-9a-f]{8})_[A-Za-z0-9_-]{43}")
_log = logging.getLogger(__name__)


class KeysConfig(BaseModel):
    """`keys` of a serve job: where the keys are."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    file: str = Field(description="the keys' JSON file, a path or s3://…; `cleanplate keys` makes and edits it")
    usage: str | None = Field(
        None, description="folder in which the day's use is counted, shared by all gateways; null: FILE.usage"
    )
    reload_s: float = Field(5.0, gt=0, description="seconds within which a change of the file is heeded")


class Key(BaseModel):
    """A key without its secret."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    id: str
    name: str
    sha256: str
    """Of the whole key."""
    scopes: tuple[Scope, ...]
    created: int
    """Unix time, seconds."""
    revoked: int | None = None
    row_steps_per_minute: int | None = Field(None, ge=1)
    row_steps_per_day: int | None = Field(None, ge=1)

    def may(self, scope: Scope) -> bool:
        return scope in self.scopes or "admin" in self.scopes


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    version: Literal[1] = 1
    keys: tuple[Key, ...] = ()


class KeyRing:
    """The keys of a file, as they stand now. Belongs to one thread.

    Args:
        clock: seconds, monotonic.

    Raises:
        UserError: a file that is not there or is none.
    """

    def __init__(self, config: KeysConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._config = config
        self._clock = clock
        self._by_id = {key.id: key for key in read(config.file)}
        self._read_at = clock()

    def find(self, secret: str) -> Key | None:
        """The key that is in force and has this secret. Takes as long for a wrong secret as for a right one."""
        found = _SECRET.fullmatch(secret)
        key = None if found is None else self._by_id.get(found[1])
        digest = hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()
        same = hmac.compare_digest(digest, "0" * 64 if key is None else key.sha256)
        return key if same and key is not None and key.revoked is None else None

    @property
    def stale(self) -> bool:
        """Whether it is time for `reload`."""
        return self._clock() >= self._read_at + self._config.reload_s

    def reload(self) -> None:
        """Reads the file again; the keys stay as they were where it cannot be read. May run in a thread."""
        self._read_at = self._clock()
        try:
            self._by_id = {key.id: key for key in read(self._config.file)}
        except UserError as error:
            _log.error("the keys stay as they were: %s", error)


def create(
    file: str,
    name: str,
    scopes: Sequence[Scope],
    *,
    row_steps_per_minute: int | None = None,
    row_steps_per_day: int | None = None,
) -> tuple[Key, str]:
    """A new key in the file, which is made where there is none; with its secret, which nobody can tell later."""
    number = secrets.token_hex(4)
    secret = f"cp_{number}_{secrets.token_urlsafe(32)}"
    key = Key(
        id=number,
        name=name,
        sha256=hashlib.sha256(secret.encode()).hexdigest(),
        scopes=tuple(dict.fromkeys(scopes)),
        created=int(time.time()),
        row_steps_per_minute=row_steps_per_minute,
        row_steps_per_day=row_steps_per_day,
    )
    with _alone(file):
        _write(file, [*(read(file) if storage.exists(file) else ()), key])
    return key, secret


def revoke(file: str, name: str) -> Key:
    """Ends a key, by its id or its name; it stays in the file, so that its id is not given again.

    Raises:
        UserError: no such key in force, or several of that name.
    """
    with _alone(file):
        keys = read(file)
        meant = [key for key in keys if name in (key.id, key.name) and key.revoked is None]
        if len(meant) != 1:
            raise UserError(
                f"{'no key' if not meant else 'several keys'} in force {name!r}",
                field="key",
                remedy="`cleanplate keys list` shows their ids",
            )
        ended = meant[0].model_copy(update={"revoked": int(time.time())})
        _write(file, [ended if key.id == ended.id else key for key in keys])
    return ended


def read(file: str) -> tuple[Key, ...]:
    """The keys of a file. Raises UserError."""
    try:
        return _File.model_validate_json(storage.read_bytes(file)).keys
    except FileNotFoundError:
        raise UserError(
            f"there is no {file}",
            field="keys.file",
            remedy=f"make a key with `cleanplate keys create NAME --file {file}`",
        ) from None
    except (OSError, ValidationError) as error:
        raise UserError(
            f"{file} cannot be read as keys ({type(error).__name__})",
            field="keys.file",
            remedy="restore it, or move it away and make the keys anew",
        ) from error


def _write(file: str, keys: Sequence[Key]) -> None:
    storage.write_bytes(file, _File(keys=tuple(keys)).model_dump_json(indent=1).encode())


@contextmanager
def _alone(file: str) -> Iterator[None]:
    """Nobody else on this machine changes the file meanwhile; of a bucket only one may be in charge."""
    if storage.is_remote(file):
        yield
        return
    path = Path(storage.absolute(file) + ".lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
