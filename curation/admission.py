"""Whose turn it is: what one host is asked at a time, and how much a worker holds for its caller.

Everything here lives in the one asyncio loop of `web`.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from curation.fetch import FetchError

_HOPELESS = 16  # failures in a row after which a host is let alone ...
_LET_ALONE_S = 30.0  # ... for so long


class NoRoomError(Exception):
    """A body does not fit into what may be held: let go of the connection, and ask anew when it is first in line."""


class Host:
    """What one host gets at a time, and since when it is not to be asked."""

    def __init__(self, slots: int) -> None:
        self._slots, self._starting = asyncio.Semaphore(slots), asyncio.Lock()
        self._free_at = 0.0
        self._closed: tuple[float, tuple[str, str]] = (0.0, ("", ""))
        self._users = 0
        self.failures = 0

    @asynccontextmanager
    async def entering(self, connections: asyncio.Semaphore, delay: float) -> AsyncIterator[None]:
        self._users += 1
        try:
            async with self._slots:
                # Requests start one by one, each with its connection in hand: the delay is between starts, not plans.
                async with self._starting:
                    await self._start(connections)
                    self._free_at = max(self._free_at, _time() + delay)
                try:
                    yield
                finally:
                    connections.release()
        finally:
            self._users -= 1

    async def _start(self, connections: asyncio.Semaphore) -> None:
        while True:
            while (wait := max(0.0, self._free_at - _time())) and not self._refusal():
                await asyncio.sleep(wait)
            if refusal := self._refusal():
                raise refusal
            await connections.acquire()
            if self._free_at <= _time() and not self._refusal():
                return
            connections.release()  # while it waited for a connection, the host asked for a rest

    def _refusal(self) -> FetchError | None:
        return FetchError(*self._closed[1]) if _time() < self._closed[0] else None

    def rest(self, seconds: float) -> None:
        """The host asked to be left in peace for a while: requests to it wait."""
        self._free_at = max(self._free_at, _time() + seconds)

    def close(self, reason: str, detail: str, seconds: float) -> None:
        """Requests to the host fail for a while without being sent."""
        self._closed = (_time() + seconds, (reason, detail))

    def failed(self, failure: FetchError) -> FetchError:
        """Counts a failure of the host itself: where nothing works, a long list must not wait for each of its URLs."""
        self.failures += 1
        if self.failures >= _HOPELESS:
            self.close(failure.reason, f"not asked: the host failed {self.failures} times in a row", _LET_ALONE_S)
            self.failures = 0
        return failure

    def idle(self) -> bool:
        """Whether there is nothing to remember of the host."""
        return not self._users and max(self._free_at, self._closed[0]) <= _time()


class Held:
    """Bytes of bodies that are held, or expected from URLs that were begun."""

    def __init__(self, limit: int) -> None:
        self.limit, self.now, self.peak = limit, 0, 0
        self._mean = min(128 * 1024, limit / 32)
        self._waiting: set[asyncio.Future[None]] = set()

    @property
    def expected(self) -> int:
        """What to count on for a body of which nothing is known: twice the mean of the late ones."""
        return math.ceil(2 * self._mean)

    def learn(self, size: int) -> None:
        self._mean += (size - self._mean) / 8

    def change(self, by: int) -> None:
        self.now += by
        self.peak = max(self.peak, self.now)
        self.changed()

    def changed(self) -> None:
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)

    async def until(self, ready: Callable[[], bool]) -> None:
        while not ready():
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.add(waiter)
            try:
                await waiter
            finally:
                self._waiting.discard(waiter)


class Line:
    """The URLs of one call in their order, and what each of them holds.

    Nobody waits for room with a connection in hand: a body that does not fit gives its connection back. The first in
    line always has room, so the line always moves.
    """

    def __init__(self, held: Held) -> None:
        self._held = held
        self._first = 0
        self._sizes: dict[int, int] = {}
        self._task: asyncio.Task[None] | None = None
        self._ended = False

    async def enter(self, index: int, lead: int) -> None:
        """Waits until a URL may be begun: not too far ahead of the caller, and with room for what it may bring."""
        held = self._held
        await held.until(
            lambda: index == self._first or (index < self._first + lead and held.now + held.expected <= held.limit)
        )
        self._resize(index, max(0, min(held.expected, held.limit - held.now)))

    async def first(self, index: int) -> None:
        self._resize(index, 0)
        await self._held.until(lambda: index == self._first)

    def take(self, index: int, size: int) -> None:
        """Room for `size` bytes in all.

        Raises:
            NoRoomError: for any but the first in line.
        """
        more = size - self._sizes[index]
        if more > 0:
            if index != self._first and self._held.now + more > self._held.limit:
                raise NoRoomError
            self._resize(index, size)

    def settle(self, index: int, size: int) -> None:
        """The URL is done, and `size` bytes of it wait for the caller."""
        self._resize(index, size)
        if size:
            self._held.learn(size)

    def advance(self) -> None:
        """The caller is done with the first in line."""
        self._held.change(-self._sizes.pop(self._first, 0))
        self._first += 1
        self._held.changed()

    def begin(self, task: asyncio.Task[None]) -> None:
        """Names the task that works on the line, for `end` to stop."""
        self._task = task
        if self._ended:
            self.end()

    def end(self) -> None:
        """Stops what is on its way, and lets go of what is held."""
        self._ended = True
        if self._task is not None:
            self._task.cancel()
            self._task.add_done_callback(lambda _: self._let_go())

    def _let_go(self) -> None:
        self._held.change(-sum(self._sizes.values()))
        self._sizes.clear()

    def _resize(self, index: int, size: int) -> None:
        by = size - self._sizes.get(index, 0)
        self._sizes[index] = size
        self._held.change(by)


def _time() -> float:
    return asyncio.get_running_loop().time()
