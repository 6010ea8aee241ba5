"""Checkpoints written beside training: the training thread waits for a copy in memory and for nothing else.

Serialising, hashing, writing and the removal of old ones happen in one thread, one checkpoint after another, so what is
kept is what writing in place would have kept. At most one is under way: a second waits for the first.
"""

from __future__ import annotations

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
    ) -> None:
        self._folder = folder
        self._write = write
        self._keep: dict[str, Any] = {"keep": keep, "keep_best": keep_best, "standing": standing}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint-writer")
        self._under_way: Future[str] | None = None
        self._copy: dict[str, dict[str, Tensor]] = {}

    def save(self, state: State, info: CheckpointInfo) -> None:
        """Takes a copy of a state and has it written; what is done to the state afterwards does not matter.

        Raises:
            Exception: what the one before failed with.
        """
        self.flush()
        self._take(state)
        self._under_way = self._thread.submit(self._write, self._folder, self._copy, info, **self._keep)

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

    @torch.no_grad()
    def _take(self, state: State) -> None:
        """Into the same memory each time, as fresh pages cost more than the copy; pinned where it comes from a GPU."""
        on_gpu = False
        for part, tensors in state.items():
            copies = self._copy.setdefault(part, {})
            for name, all_of_it in tensors.items():
                tensor = local(all_of_it)
                if name not in copies:
                    copies[name] = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
                copies[name].copy_(tensor, non_blocking=True)
                on_gpu |= tensor.is_cuda
        if on_gpu:
            torch.cuda.synchronize()
