"""How `cleanplate status` is shown: tables, once or again and again."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from pipelines.happenings import duration
from pipelines.status import RunStatus, Status

if TYPE_CHECKING:
    from rich.console import Group, RenderableType

WATCH_S = 2.0


def show(found: Status) -> None:
    """Prints what was found."""
    from rich.console import Console

    Console().print(page(found))


def watch(look: Callable[[], Status], *, every_s: float = WATCH_S) -> Status:
    """Draws it again every few seconds, until nothing goes on any more; elsewhere than on a terminal only when it has
    changed, and plainly. Returns what was seen last."""
    from rich.console import Console
    from rich.live import Live

    console = Console()
    found = look()
    if not sys.stdout.isatty():
        shown = None
        while True:
            lines = plain(found)
            if lines != shown:
                print("\n".join(lines), flush=True)
            shown = lines
            if not found.running:
                return found
            time.sleep(every_s)
            found = look()
    with Live(page(found), console=console, auto_refresh=False) as live:
        while found.running:
            time.sleep(every_s)
            found = look()
            live.update(page(found), refresh=True)
    return found


def plain(found: Status) -> list[str]:
    """A line for each thing, without what changes with every look."""
    runs = [
        f"{run.verb} {run.name}: {run.state}"
        + "".join(f"; {stage.name} {stage.done:,}/{stage.total:,}" for stage in run.stages)
        for run in found.runs
    ]
    steps = [f"step {step.name}: {step.state}" for step in found.steps]
    jobs = [f"job {job.job_id}: {job.status.lower()}" for job in found.jobs]
    served = [f"{each.model} {each.version}: {each.state} {','.join(each.aliases)}" for each in found.served]
    return [*steps, *runs, *jobs, *served]


def page(found: Status) -> Group:
    """All of it."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    parts: list[RenderableType] = []
    if found.steps:
        table = Table("step", "verb", "state")
        for step in found.steps:
            table.add_row(Text(step.name), step.verb, step.state)
        parts.append(table)
    for run in found.runs:
        parts += _run(run)
    if found.jobs:
        table = Table("id", "kind", "status")
        for job in found.jobs:
            table.add_row(Text(job.job_id), job.kind, job.status.lower())
        parts.append(table)
    if found.served:
        table = Table("model", "version", "state", "answers for", "problem")
        for each in found.served:
            table.add_row(
                *map(Text, (each.model, each.version, each.state, ", ".join(each.aliases), each.problem or ""))
            )
        parts.append(table)
    return Group(*(parts or [Text("nothing is known")]))


def _run(run: RunStatus) -> list[RenderableType]:
    from rich.table import Table
    from rich.text import Text

    workers = f"{run.workers} worker{'' if run.workers == 1 else 's'}"
    title = Text(f"{run.verb} {run.name}: {run.state}, attempt {run.attempt}, {workers}")
    table = Table()
    table.add_column("stage")
    for name in ("done", "of", f"{run.of}/s", "left"):
        table.add_column(name, justify="right")
    for stage in run.stages:
        pace = "" if stage.per_second is None else f"{stage.per_second:,.1f}"
        left = "" if stage.eta_seconds is None or run.state != "running" else duration(stage.eta_seconds)
        table.add_row(stage.name, f"{stage.done:,}", f"{stage.total:,}", pace, left)
    lines = [run.folder]
    if run.nodes:
        lines.append("nodes: " + ", ".join(f"{n} {kind}" for kind, n in run.nodes.items()))
    if run.values:
        lines.append(", ".join(f"{name} {value:.4g}" for name, value in run.values.items()))
    if run.checkpoint is not None:
        lines.append(f"checkpoint at {run.checkpoint.images:,} images, {duration(run.checkpoint.age_seconds)} ago")
    lines += [*run.explained, *(f"· {line}" for line in run.last)]
    return [title, table, Text("\n".join(lines)), Text("")]
