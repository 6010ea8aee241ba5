"""Several processes that are one gloo group, as Ray Train's workers on CPUs are."""

from __future__ import annotations

import multiprocessing
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist

from training.learner import Place


class Workers:
    """Processes of which the first few form a group at a time: starting one and importing takes seconds.

    Each keeps its rank, as DTensor remembers what it once computed for one.
    """

    def __init__(self, processes: list[ProcessPoolExecutor], scratch: Path) -> None:
        self._processes = processes
        self._scratch = scratch

    def run(self, count: int, work: Callable[..., Any], *given: Any) -> list[Any]:
        """What `work(place, *given)` returns on each of `count` workers; raises what one of them raised."""
        store = self._scratch / uuid.uuid4().hex
        members = [
            process.submit(_member, rank, count, str(store), work, given)
            for rank, process in enumerate(self._processes[:count])
        ]
        failed = [error for member in members if (error := member.exception()) is not None]
        if failed:
            # the others' is that of a broken connection
            raise next((error for error in failed if not isinstance(error, RuntimeError)), failed[0])
        return [member.result() for member in members]


@contextmanager
def workers(most: int, scratch: Path) -> Iterator[Workers]:
    context = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        processes = [stack.enter_context(ProcessPoolExecutor(1, mp_context=context)) for _ in range(most)]
        yield Workers(processes, scratch)


def _member(rank: int, count: int, store: str, work: Callable[..., Any], given: tuple[Any, ...]) -> Any:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=count, timeout=timedelta(seconds=60)
    )
    try:
        return work(Place(rank, count), *given)
    finally:
        dist.destroy_process_group()
