"""Who is inside, and whether more may come in: what a graceful end waits for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class Doorway:
    """Counts what is under way in a process. Belongs to one event loop."""

    def __init__(self) -> None:
        self.open = True
        self.inside = 0

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Something is under way for as long as the block lasts."""
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1

    def close(self) -> None:
        """Nothing new is to come in; what is inside goes on."""
        self.open = False
