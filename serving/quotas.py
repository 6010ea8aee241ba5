"""How much a key has used: so many row-steps a minute, so many a day.

A minute's worth is a bucket that fills all the time, in each gateway its own. A day's use is counted in files, one a
gateway, which all gateways add up: so it holds across gateways and restarts, but for what was used since the files were
last looked at. Days are those of UTC.
"""

from __future__ import annotations

import json
import logging
import secrets
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from curation import storage
from serving.api import RequestError
from serving.keys import Key

_DAY_S = 86_400
_log = logging.getLogger(__name__)


@dataclass
class _Bucket:
    tokens: float
    at: float


class Quotas:
    """What the keys of a gateway have used.

    Args:
        folder: of the day's counts.
        clock: Unix time, seconds.
        sync_s: seconds between two looks at the files.
    """

    def __init__(self, folder: str, clock: Callable[[], float] = time.time, *, sync_s: float = 5.0) -> None:
        self._folder = folder
        self._clock = clock
        self._sync_s = sync_s
        self._gateway = secrets.token_hex(8)
        self._buckets: dict[str, _Bucket] = {}
        self._day = self._today()
        self._own: Counter[str] = Counter()
        self._others: Counter[str] = Counter()
        self._synced = -float("inf")
        self.unwritten = False
        """Whether there is something for `flush` to write: what keys with a day's limit used."""

    def charge(self, key: Key, row_steps: int) -> None:
        """Takes a request's cost from what its key may use.

        Raises:
            RequestError: 429, with when it will be there; 400 where it is more than a whole day's.
        """
        self._turn_day()
        self._charge_day(key, row_steps)
        self._charge_minute(key, row_steps)
        self._count(key, row_steps)

    def refund(self, key: Key, row_steps: int) -> None:
        """Gives back what a request cost that the server failed at."""
        self._count(key, -row_steps)
        if key.id in self._buckets:
            self._buckets[key.id].tokens += row_steps

    def used_today(self, key: Key) -> int:
        """Row-steps, of all gateways as far as is known."""
        self._turn_day()
        return self._own[key.id] + self._others[key.id]

    def _count(self, key: Key, row_steps: int) -> None:
        self._own[key.id] = max(0, self._own[key.id] + row_steps)
        # A minute's worth is nobody else's business, and no limit is nobody's.
        self.unwritten |= key.row_steps_per_day is not None

    @property
    def stale(self) -> bool:
        """Whether it is time for `sync`."""
        return self._clock() >= self._synced + self._sync_s

    def sync(self) -> None:
        """Writes this gateway's counts, and reads the others'. May run in a thread, one at a time; never raises."""
        self._synced = self._clock()
        self._turn_day()
        day = storage.join(self._folder, str(self._day))
        try:
            if self.unwritten:
                self._write(day)
            others: Counter[str] = Counter()
            for file in storage.list_files(day):
                if file.base_name.endswith(".json") and file.base_name != f"{self._gateway}.json":
                    others.update(json.loads(storage.read_bytes(storage.join(day, file.base_name))))
            self._others = others
            storage.remove_tree(storage.join(self._folder, str(self._day - 2)))
        except (OSError, ValueError, TypeError):
            _log.exception("the keys' use of today could not be shared through %s", self._folder)

    def flush(self) -> None:
        """Writes what was charged since the last time. May run in a thread, one at a time; never raises."""
        try:
            while self.unwritten:
                self._write(storage.join(self._folder, str(self._day)))
        except OSError:
            _log.exception("the keys' use of today could not be written to %s", self._folder)

    def _write(self, day: str) -> None:
        self.unwritten = False
        try:
            storage.write_bytes(storage.join(day, f"{self._gateway}.json"), json.dumps(dict(self._own)).encode())
        except OSError:
            self.unwritten = True
            raise

    def _charge_day(self, key: Key, row_steps: int) -> None:
        most = key.row_steps_per_day
        if most is None:
            return
        if row_steps > most:
            raise RequestError(
                f"This costs {row_steps} row-steps; the key has {most} a day.",
                param="num_inference_steps",
                code="over_limit",
            )
        if self.used_today(key) + row_steps > most:
            raise RequestError(
                f"The key's {most} row-steps of today are used up.",
                status=429,
                code="quota_exceeded",
                retry_after_s=(self._day + 1) * _DAY_S - self._clock(),
            )

    def _charge_minute(self, key: Key, row_steps: int) -> None:
        most = key.row_steps_per_minute
        if most is None:
            return
        now = self._clock()
        bucket = self._buckets.setdefault(key.id, _Bucket(float(most), now))
        bucket.tokens = min(float(most), bucket.tokens + max(0.0, now - bucket.at) * most / 60)
        bucket.at = now
        # What costs more than a minute's worth is taken from a full bucket, and leaves a debt.
        wanted = min(row_steps, most)
        if bucket.tokens < wanted:
            raise RequestError(
                f"The key has {most} row-steps a minute; this costs {row_steps}.",
                status=429,
                code="rate_limit_exceeded",
                retry_after_s=(wanted - bucket.tokens) * 60 / most,
            )
        bucket.tokens -= row_steps

    def _turn_day(self) -> None:
        today = self._today()
        if today != self._day:
            self._day = today
            self._own, self._others = Counter(), Counter()

    def _today(self) -> int:
        return int(self._clock() // _DAY_S)
