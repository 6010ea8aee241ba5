"""A notice that a run will be interrupted: what it has learned is saved between two steps, before it is too late."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any, Protocol


class Terminated(SystemExit):
    """The process was asked to end, and the run has saved its state.

    Attributes:
        images: seen by the state that was saved; 0 where that is not known.
    """

    def __init__(self, images: int = 0) -> None:
        super().__init__(128 + signal.SIGTERM)
        self.images = images


class Takes(Protocol):
    """What the loop asks between two steps."""

    @property
    def ends(self) -> bool: ...

    def take(self) -> bool: ...


class Notice:
    """Given from a signal handler or another thread, taken by the loop between two steps.

    Attributes:
        ends: whether the run is to end once its state is saved. Otherwise it goes on for as long as it can: a machine
            that is taken away at a deadline may do some more steps until then.
    """

    def __init__(self, *, ends: bool) -> None:
        self.ends = ends
        self._given = threading.Event()

    def give(self, *, ends: bool = False) -> None:
        """Gives it.

        Args:
            ends: the run is to end, whatever the notice was made for.
        """
        self.ends |= ends
        self._given.set()

    def take(self) -> bool:
        """Whether it was given since it was last taken."""
        given = self._given.is_set()
        self._given.clear()
        return given


class SharedNotice:
    """A notice to any of several workers that all of them take after the same step, one after it was given.

    To be asked by all workers after every step. The answer of a step is exchanged while the next one is computed, so
    nobody waits for it. To be made by all of them at once.
    """

    def __init__(self, own: Notice) -> None:
        from torch import distributed as dist

        self.ends = own.ends
        self._own = own
        self._group = dist.new_group(backend="gloo")  # between hosts' memories; nothing waits for a GPU
        self._under_way: tuple[Any, Any] | None = None

    def take(self) -> bool:
        """Whether any worker was given it by the step before; the same on all."""
        import torch
        from torch import distributed as dist

        before = self._under_way
        given = self._own.take()
        flag = torch.tensor(1 + self._own.ends if given else 0)  # `ends` is said before it is given
        work = dist.all_reduce(flag, dist.ReduceOp.MAX, group=self._group, async_op=True)
        self._under_way = work, flag
        if before is None:
            return False
        before[0].wait()
        self.ends |= int(before[1]) == 2
        return bool(before[1])


@contextlib.contextmanager
def on_sigterm() -> Iterator[Notice]:
    """A notice that SIGTERM gives during a `with` block; outside the main thread, where there are none, never."""
    notice = Notice(ends=True)

    def give(signum: int, frame: FrameType | None) -> None:
        notice.give()

    if threading.current_thread() is not threading.main_thread():
        yield notice
        return
    before = signal.signal(signal.SIGTERM, give)
    try:
        yield notice
    finally:
        signal.signal(signal.SIGTERM, before)
