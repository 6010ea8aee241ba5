"""Who goes forward next: deficit round robin (Shreedhar & Varghese 1996, algorithm DRR) over rows of forward passes.

A flow is whoever shares fairly with others: a request, or a key with all its requests. In every round each flow may
have `quantum` more rows, and what it could not use up it loses, so nobody saves up. Within a flow the requests take
turns, and within a request its pictures. So a request of few steps gets its share of the passes at once, however many
steps the others have left.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Hashable, Iterator
from typing import Generic, Protocol, TypeVar


class Item(Protocol):
    """What takes a place in a pass: a number of its rows. Items of different buckets cannot share one."""

    @property
    def rows(self) -> int: ...

    @property
    def bucket(self) -> Hashable: ...


T = TypeVar("T", bound=Item)


class DeficitRoundRobin(Generic[T]):
    """Items by flow and request, each in at most one place of a pass.

    Who could not share a pass because its bucket is another one leads a later pass, in the order of having waited, at
    the cost of its flow.

    Args:
        quantum: rows of a flow's turn; at least those of the largest item, or that one waits several rounds.
    """

    def __init__(self, quantum: int = 2) -> None:
        self._quantum = quantum
        self._flows: dict[Hashable, _Flow[T]] = {}
        self._ring: deque[Hashable] = deque()
        self._granted = False  # whether the flow in front had its quantum in this turn
        self._passed_over: dict[T, Hashable] = {}

    def add(self, flow: Hashable, request: Hashable, item: T) -> None:
        """The item waits from now on, until it is removed; a new flow is the last of the round."""
        if flow not in self._flows:
            self._flows[flow] = _Flow()
            self._ring.append(flow)
        self._flows[flow].requests.setdefault(request, deque()).append(item)

    def remove(self, flow: Hashable, request: Hashable, item: T) -> None:
        self._passed_over.pop(item, None)
        requests = self._flows[flow].requests
        requests[request].remove(item)
        if not requests[request]:
            del requests[request]
        if not requests:
            self._granted = self._granted and self._ring[0] != flow
            self._ring.remove(flow)
            del self._flows[flow]

    def select(self, capacity: int) -> list[T]:
        """Who shares the next pass: items of one bucket and together at most `capacity` rows, but at least one item."""
        chosen: list[T] = []
        if self._passed_over:
            first = next(iter(self._passed_over))
            self._choose(first, self._flows[self._passed_over[first]], chosen)
        idle = 0
        while idle < len(self._ring):
            flow = self._flows[self._ring[0]]
            item = self._next(self._ring[0], chosen)
            if item is None:
                flow.deficit = min(flow.deficit, 0)
                self._turn()
                idle += 1
                continue
            idle = 0
            if chosen and sum(other.rows for other in chosen) + item.rows > capacity:
                break  # its turn goes on in the next pass
            if flow.deficit >= item.rows:
                self._choose(item, flow, chosen)
            elif self._granted:
                self._turn()
            else:
                flow.deficit += self._quantum
                self._granted = True
        return chosen

    def _next(self, key: Hashable, chosen: list[T]) -> T | None:
        """A flow's first item that is not in the pass yet and can share it."""
        for item in self._flows[key].in_turn():
            if any(item is other for other in chosen):
                continue
            if not chosen or item.bucket == chosen[0].bucket:
                return item
            self._passed_over.setdefault(item, key)
        return None

    def _choose(self, item: T, flow: _Flow[T], chosen: list[T]) -> None:
        flow.deficit -= item.rows
        chosen.append(item)
        flow.served(item)
        self._passed_over.pop(item, None)

    def _turn(self) -> None:
        self._ring.rotate(-1)
        self._granted = False


class _Flow(Generic[T]):
    """The requests of a flow; whoever is next stands in front, of the requests and of each one's items."""

    def __init__(self) -> None:
        self.requests: dict[Hashable, deque[T]] = {}
        self.deficit = 0

    def in_turn(self) -> Iterator[T]:
        return itertools.chain.from_iterable(self.requests.values())

    def served(self, item: T) -> None:
        """The item and its request go to the end."""
        for request, items in self.requests.items():
            if any(item is other for other in items):
                items.remove(item)
                items.append(item)
                self.requests[request] = self.requests.pop(request)
                return
