"""Checkpoints written beside training: the training thread waits for a copy in memory and for nothing else.

Where it says when it is about to change the state, the copy too is taken beside it, during the next step's passes.

Copying, serialising, hashing, writing and the removal of old ones happen in one thread, one checkpoint after another,
so what is kept is what writing in place would have kept. At most one is under way: a second waits for the first.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import torch
from torch import Tensor

from training import checkpoint
from training.checkpoint import CheckpointInfo, Standing, State
from training.sharding import local


class Write(Protocol):
    """Writes a state, which lies in the host's memory, into a folder of checkpoints and returns its path there."""

    def __call__(
        self,
        folder: str,
        state: State,
        info: CheckpointInfo,
        *,
        keep: int,
        keep_best: int,
        standing: Callable[[], Standing] | None,
    ) -> str: ...


class Writer:
    """Writes the checkpoints of one run into one folder. `close` it, whatever happens: a thread may be writing.

    Of a state that is split over workers it is given this worker's shares (`training.shards` writes them).
    """

    def __init__(
        self,
        folder: str,
        *,
        keep: int,
        keep_best: int = 0,
        standing: Callable[[], Standing] | None = None,
        write: Write = checkpoint.save,
        after: Writer | None = None,
        written: Callable[[str, float, float], None] | None = None,
    ) -> None:
        """
        Args:
            written: called by the thread that writes with the path of what is there, the seconds since it was given,
                and those that the caller waited for.
            after: one whose thread this one shares: what it was given before is written before, or nothing is.
        """
        self._folder = folder
        self._write = write
        self._keep: dict[str, Any] = {"keep": keep, "keep_best": keep_best, "standing": standing}
        self._after = after
        self._written = written
        self._waited = 0.0
        self._thread: ThreadPoolExecutor = (
            ThreadPoolExecutor(1, thread_name_prefix="checkpoint-writer") if after is None else after._thread
        )
        self._taken: Future[None] | None = None
        self._under_way: Future[str] | None = None
        self._copy: dict[str, dict[str, Tensor]] = {}

    def save(
        self, state: State, info: CheckpointInfo | Callable[[], CheckpointInfo], *, copies_beside: bool = False
    ) -> None:
        """Takes a copy of a state and has it written; what is done to the state afterwards does not matter.

        Args:
            info: a function is called by the thread that writes, one after another.
            copies_beside: the copy is taken beside whatever the caller goes on with. It promises to call `taken`
                before it changes the state.

        Raises:
            Exception: what the one before failed with.
        """
        began = time.monotonic()
        self.flush()
        self._waited = 0.0  # not before: the one before says itself what was waited for it
        on_gpu = next((local(t).device for part in state.values() for t in part.values() if t.is_cuda), None)
        stream = None if on_gpu is None else torch.cuda.Stream(on_gpu)
        if stream is not None:
            stream.wait_stream(torch.cuda.current_stream(on_gpu))  # what is still being computed belongs to it
        before = None if self._after is None else self._after._under_way
        self._taken = Future()
        self._waited += time.monotonic() - began
        self._under_way = self._thread.submit(self._run, state, info, stream, before, self._taken, began)
        if not copies_beside:
            self.taken()

    def taken(self) -> None:
        """Waits until the state that was given last may be changed. Raises what copying it failed with."""
        taken, self._taken = self._taken, None
        if taken is not None:
            began = time.monotonic()
            taken.result()
            self._waited += time.monotonic() - began

    def flush(self) -> None:
        """Waits until all is written. Raises what writing failed with."""
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            under_way.result()

    def check(self) -> None:
        """Raises what writing failed with, if it has by now."""
        if self._under_way is not None and self._under_way.done():
            self.flush()

    def close(self) -> None:
        """Waits until nothing is being written any more. What failed is raised by `flush` alone."""
        self._thread.shutdown(wait=True)

    def _run(
        self,
        state: State,
        info: CheckpointInfo | Callable[[], CheckpointInfo],
        stream: torch.cuda.Stream | None,
        before: Future[str] | None,
        taken: Future[None],
        began: float,
    ) -> str:
        try:
            self._take(state, stream)
        except BaseException as error:
            taken.set_exception(error)
            raise
        taken.set_result(None)
        if before is not None:
            before.result()
        path = self._write(self._folder, self._copy, info() if callable(info) else info, **self._keep)
        if self._written is not None:
            self._written(path, time.monotonic() - began, self._waited)
        return path

    @torch.no_grad()
    def _take(self, state: State, stream: torch.cuda.Stream | None) -> None:
        """Into the same memory each time, as fresh pages cost more than the copy; pinned where it comes from a GPU."""
        with contextlib.nullcontext() if stream is None else torch.cuda.stream(stream):
            for part, tensors in state.items():
                copies = self._copy.setdefault(part, {})
                for name, all_of_it in tensors.items():
                    tensor = local(all_of_it)
                    if name not in copies:
                        copies[name] = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
                    copies[name].copy_(tensor, non_blocking=True)
        if stream is not None:
            stream.synchronize()
