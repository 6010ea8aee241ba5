"""`cleanplate status`: how runs stand, what was submitted to a cluster, what a server serves.

Reads files and asks APIs; no Ray is started. A run is known by the event log beside its outputs.
"""

from __future__ import annotations

import os
import platform
import re
import time
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel

from curation import events, standing, storage
from curation.errors import UserError
from curation.events import Begun, CheckpointWritten, Ended
from pipelines.happenings import explained, told
from pipelines.submit import Submitted

if TYPE_CHECKING:
    from pipelines.pipeline import PipelineJob

_SILENT_S = 60.0
_DEEPEST = 3
_LAST = 5
State = Literal["running", "silent", "gone", "finished", "failed", "interrupted"]
_ENDS: dict[str, State] = {"finished": "finished", "interrupted": "interrupted"}


class StageStatus(BaseModel):
    """How far a stage is."""

    name: str
    done: int
    total: int
    per_second: float | None
    eta_seconds: float | None


class Checkpoint(BaseModel):
    """The newest that a run has written."""

    images: int
    path: str
    age_seconds: float


class RunStatus(BaseModel):
    """A run. `silent`: it has not been heard of for a minute; `gone`: its process ended and did not say so."""

    folder: str
    verb: str
    name: str
    state: State
    attempt: int
    began: float
    of: str
    stages: list[StageStatus] = []
    workers: int
    nodes: dict[str, int] = {}
    values: dict[str, float] = {}
    checkpoint: Checkpoint | None = None
    note: str = ""
    explained: list[str] = []
    last: list[str] = []
    spent: dict[str, Any] | None = None


class StepStatus(BaseModel):
    """A step of a pipeline."""

    name: str
    verb: str
    state: Literal["ended", "next", "waits"]


class ServedVersion(BaseModel):
    """A version behind an endpoint, as the process that was asked has it."""

    model: str
    version: str
    state: str
    aliases: list[str]
    problem: str | None = None


class Status(BaseModel):
    """What was found."""

    runs: list[RunStatus] = []
    steps: list[StepStatus] = []
    jobs: list[Submitted] = []
    served: list[ServedVersion] = []

    @property
    def running(self) -> bool:
        """Whether anything goes on."""
        active = any(job.status in ("PENDING", "RUNNING") for job in self.jobs)
        return active or any(run.state == "running" for run in self.runs)


def run(subject: str | None = None, *, address: str | None = None) -> Status:
    """Looks once.

    Args:
        subject: a folder, local or s3://, that runs are in; a job file; or an endpoint's URL. None: the folder `runs`,
            or, where there is an address, nothing beside it.
        address: of a cluster's dashboard, whose submissions are shown.

    Raises:
        UserError: a folder in which no run is, a bad job file, or a server that does not answer.
    """
    found = Status()
    if address is not None:
        from pipelines import submit

        found = Status(jobs=submit.submissions(address).jobs)
        if subject is None:
            return found
    subject = subject or "runs"
    if subject.startswith(("http://", "https://")):
        return found.model_copy(update={"served": served(subject)})
    try:
        if subject.endswith((".yaml", ".yml")):
            return _of_job(subject, found)
        runs = _runs(folders_in(subject))
    except OSError as error:
        raise UserError(
            f"{subject} cannot be looked into: {error}", field="status", remedy="name a folder that you may read"
        ) from None
    if not runs:
        raise UserError(f"no run is known in {subject}", field="status", remedy="name its output, or its job file")
    return found.model_copy(update={"runs": runs})


def _runs(folders: list[str]) -> list[RunStatus]:
    return [run for folder in folders if (run := run_status(folder)) is not None]


def _of_job(path: str, found: Status) -> Status:
    from pipelines import config

    job: Any = config.load_job(path, [])
    if job.kind == "pipeline":
        return found.model_copy(update=_of_pipeline(job))
    runs = _runs(folders_of(job))
    if not runs:
        raise UserError(
            f"nothing is known of the runs of {path}", field="status", remedy="run it, or name another folder"
        )
    return found.model_copy(update={"runs": runs})


def folders_of(job: Any) -> list[str]:
    """Where the runs of a job have their logs, if they have any."""
    output = getattr(job, "output", None)
    if output is None:
        return []
    if job.kind == "curate":
        return [storage.join(output, ".work")]
    mine = re.compile(re.escape(job.name) + "-[0-9a-f]{8}")  # another job's name may begin with this one's
    return [storage.join(output, name) for name in storage.list_folders(output) if mine.fullmatch(name)]


def _of_pipeline(job: PipelineJob) -> dict[str, Any]:
    from pipelines import config, pipeline

    ended = pipeline.ended(job)
    steps, runs, before = [], [], True
    for step in job.steps:
        there = step.name in ended
        state: Literal["ended", "next", "waits"] = "ended" if there else "next" if before else "waits"
        steps.append(StepStatus(name=step.name, verb=step.verb, state=state))
        before = there
        try:
            merged = config.merged(step.raw, step.set, unless=lambda value: isinstance(value, str) and "${" in value)
            runs += _runs(folders_of(merged))
        except UserError:
            continue  # what it is about is only known when the steps before it have ended
    return {"steps": steps, "runs": runs}


def folders_in(folder: str) -> list[str]:
    """The folders at or below one that have an event log."""
    found, level = [], [folder]
    for _ in range(_DEEPEST + 1):
        below = []
        for each in level:
            names = storage.list_folders(each)
            if events.FOLDER in names:
                found.append(each)
            else:
                below += [storage.join(each, name) for name in names if name == ".work" or not name.startswith(".")]
        level = below
    return found


def run_status(folder: str) -> RunStatus | None:
    """How the newest attempt at a run stands, by its log; None where that tells of none, or there is none.

    A log without its first line tells nobody what it is of.
    """
    entries = events.read(folder)
    began = [(entry, entry.event) for entry in entries if isinstance(entry.event, Begun)]
    if not began:
        return None
    first, begun = began[-1]
    mine = [entry for entry in entries if entry.attempt == first.attempt]
    now, stands = time.time(), standing.read(folder)
    if stands is not None and stands.attempt != first.attempt:
        stands = None
    ended = next((entry.event for entry in reversed(mine) if isinstance(entry.event, Ended)), None)
    written = next((entry for entry in reversed(entries) if isinstance(entry.event, CheckpointWritten)), None)
    checkpoint = None
    if written is not None and isinstance(written.event, CheckpointWritten):
        checkpoint = Checkpoint(images=written.event.images, path=written.event.path, age_seconds=now - written.at)
    return RunStatus(
        folder=folder,
        verb=begun.verb,
        name=begun.name,
        state=_state(begun, ended, stands, now),
        attempt=begun.attempt,
        began=first.at,
        of=begun.of,
        stages=[]
        if stands is None
        else [
            StageStatus(name=name, done=s.done, total=s.total, per_second=s.per_second, eta_seconds=s.eta_seconds)
            for name, s in stands.stages.items()
        ],
        workers=begun.workers if stands is None else stands.workers,
        nodes={} if stands is None else stands.nodes,
        values={} if stands is None else stands.values,
        checkpoint=checkpoint,
        note="" if stands is None else stands.note,
        explained=explained(mine),
        last=[told(entry.event) for entry in mine[-_LAST:]],
        spent=None if ended is None else ended.spent,
    )


def _state(begun: Begun, ended: Ended | None, stands: standing.Standing | None, now: float) -> State:
    if ended is not None:
        return _ENDS.get(ended.how, "failed")
    if begun.host == platform.node() and not _alive(begun.pid):
        return "gone"
    return "running" if stands is not None and now - stands.at < _SILENT_S else "silent"


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def served(url: str) -> list[ServedVersion]:
    """What an endpoint serves. A key stands in $CLEANPLATE_API_KEY.

    Raises:
        UserError: no cleanplate server answers there.
    """
    from serving.client import models

    found = []
    for entry in models(url):
        rollout = entry.rollout
        if rollout is None or not rollout.versions:
            alias = [entry.alias] if entry.alias else []
            found.append(ServedVersion(model=entry.id, version=entry.version, state="live", aliases=alias))
            continue
        found += [
            ServedVersion(
                model=entry.id,
                version=version.version,
                state=version.state,
                aliases=list(version.aliases),
                problem=version.problem,
            )
            for version in rollout.versions
        ]
    return list({(each.model, each.version): each for each in found}.values())
