"""Progress on standard error: bars on a terminal, a quiet line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

_LINE_EVERY_S = 15.0


class Progress(Protocol):
    """What a long-running verb reports to."""

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None: ...


class _Lines:
    """One line when a stage begins, one when it ends, and one every quarter of a minute between."""

    def __init__(self) -> None:
        self._begun: dict[str, float] = {}
        self._last = 0.0

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        at = time.monotonic()
        first = self._begun.setdefault(stage, at)
        if done < total and at - self._last < _LINE_EVERY_S and first != at:
            return
        self._last = at
        seconds = f" in {at - first:.1f} s" if done >= total and at > first else ""
        print(f"{stage}: {done:,}/{total:,}{seconds}{'  ' + note if note else ''}", file=sys.stderr, flush=True)


@contextmanager
def progress(unit: str) -> Iterator[Progress]:
    """A reporter for the duration of a `with` block.

    Args:
        unit: what is counted, for the rate: "images", "pictures".
    """
    if not sys.stderr.isatty():
        yield _Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description:>10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Bars(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, TaskID] = {}
        begun: dict[str, tuple[float, int]] = {}

        def report(stage: str, done: int, total: int, note: str = "") -> None:
            at = time.monotonic()
            since, start = begun.setdefault(stage, (at, done))
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total, rate="", note="")
            rate = f"{(done - start) / (at - since):,.1f} {unit}/s" if at > since and done > start else ""
            bars.update(tasks[stage], completed=done, total=total, rate=rate, note=note)

        yield report
