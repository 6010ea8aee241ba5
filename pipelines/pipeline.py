"""`cleanplate pipeline`: several jobs one after the other, each from what the ones before it made.

Each step is a process of its own, the same command that a person would type: it takes the cluster that it needs, gives
it back, and resumes by its own means. What is kept here is only which steps have ended and what they said.
"""

from __future__ import annotations

import hashlib
import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from curation import storage
from curation.errors import UserError
from curation.manifest import Name
from pipelines import config

Execute = Callable[[str, str, dict[str, str] | None], tuple[int, dict[str, Any] | None]]
"""Takes a verb, its job as YAML and a promote step's version; gives the exit code and what the verb said last."""

_REFERENCE = re.compile(r"\$\{([\w-]+)\.([\w.]+)\}")


class Version(BaseModel):
    """Which version of a registered model a promote step is about."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str = Field(description="the registered model")
    version: str = Field(description="its version, or a step's: ${register.version}")
    alias: str = Field("champion", description="what is to point at the version")


class Step(BaseModel):
    """One job of a pipeline."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: Name = Field(description="by which later steps refer to what it made: ${NAME.field}")
    job: str | dict[str, Any] = Field(description="a job file, relative to the pipeline's, or the job itself")
    set: dict[str, Any] = Field({}, description="fields of the job to override, dotted: {a.b: value}")
    promotes: Version | None = Field(None, description="of a promote job: which version it is about")

    @property
    def raw(self) -> dict[str, Any]:
        """The job's fields, once `inlined` has read its file."""
        assert isinstance(self.job, dict)
        return self.job

    @property
    def verb(self) -> str:
        return str(self.raw.get("kind"))


class PipelineJob(BaseModel):
    """`kind: pipeline`: jobs in their order, as one submission."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["pipeline"] = "pipeline"
    name: Name = Field("pipeline", description="names the folder of its state")
    steps: tuple[Step, ...] = Field(min_length=1, description="what is run, one after the other")
    state: str = Field("runs/pipelines", description="folder, local or s3://, that tells which steps have ended")

    @field_validator("steps")
    @classmethod
    def _fit_together(cls, steps: tuple[Step, ...]) -> tuple[Step, ...]:
        before: set[str] = set()
        for number, step in enumerate(steps):
            if isinstance(step.job, str):
                raise ValueError(f"the job file of step {step.name} was not read")
            if step.name in before:
                raise ValueError(f"two steps are called {step.name}")
            if step.verb == "serve" and number + 1 < len(steps):
                raise ValueError(f"step {step.name} serves until it is ended: it can only be the last one")
            if (step.verb == "promote") != (step.promotes is not None):
                raise ValueError(f"step {step.name}: `promotes` goes with a promote job, and a promote job needs it")
            unknown = {name for name, _ in _references(step.model_dump())} - before
            if unknown:
                raise ValueError(f"step {step.name} refers to {', '.join(sorted(unknown))}, which no earlier step is")
            before.add(step.name)
        return steps


class Ended(BaseModel):
    """A step that has ended well: of which job, and what it said."""

    job_sha256: str
    result: dict[str, Any]


class PipelineResult(BaseModel):
    """What became of a pipeline; `failed` names the step that stopped it."""

    steps: dict[str, dict[str, Any]]
    failed: str | None = None
    exit_code: int = 0


def inlined(raw: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A pipeline's raw fields with its job files in them, so that it travels whole and lies anywhere.

    Raises:
        UserError: a job file that cannot be read.
    """
    steps = raw.get("steps")
    if not isinstance(steps, list):
        return raw
    return raw | {
        "steps": [
            step | {"job": config.read(str(folder / step["job"]))}
            if isinstance(step, dict) and isinstance(step.get("job"), str)
            else step
            for step in steps
        ]
    }


def plan(job: PipelineJob) -> dict[str, Any]:
    """Its steps, with what they override; checks every job as far as it is known before the ones before it have run.

    Raises:
        UserError: a mistake in a step's job.
    """
    for step in job.steps:
        _check(step, step.raw, step.set)
    return {"steps": [{"name": step.name, "verb": step.verb} for step in job.steps], "state": _place(job)}


def run(job: PipelineJob, *, execute: Execute | None = None) -> PipelineResult:
    """Runs the steps that have not ended yet, each in a process of its own.

    After a failure, or when this process was killed, the same command goes on with the step that did not end. A step
    whose job was changed since runs again, and so do those after it. When all have ended, the next run begins anew.

    Args:
        execute: runs a step; None: as a process.

    Raises:
        UserError: a mistake in a step's job, before anything starts, or in a reference, when its step is reached.
    """
    plan(job)
    place = _place(job)
    known = _read(place)
    done: dict[str, Ended] = {}
    for number, step in enumerate(job.steps, start=1):
        where = f"[{number}/{len(job.steps)}] {step.name}"
        results = {name: found.result for name, found in done.items()}
        fields = _filled(step.model_dump(exclude={"name"}), results, step.name)
        resolved = config.to_yaml(_check(step, fields["job"], fields["set"]))
        promotes = fields["promotes"] and {key: str(value) for key, value in fields["promotes"].items()}
        sha256 = hashlib.sha256(json.dumps([resolved, promotes]).encode()).hexdigest()
        if step.name in known and known[step.name].job_sha256 == sha256:
            done[step.name] = known[step.name]
            print(f"{where}: ended before", file=sys.stderr, flush=True)
            continue
        known = {}  # what comes after it is made from something else by now
        print(f"{where}: cleanplate {step.verb}", file=sys.stderr, flush=True)
        code, result = (execute or _run_step)(step.verb, resolved, promotes)
        if code or result is None:
            return PipelineResult(steps=results, failed=step.name, exit_code=code or 1)
        done[step.name] = Ended(job_sha256=sha256, result=result)
        _write(place, done)
    storage.remove_tree(place)
    return PipelineResult(steps={name: found.result for name, found in done.items()})


def ended(job: PipelineJob) -> dict[str, Ended]:
    """The steps of a pipeline that have ended, while not all of them have."""
    return _read(_place(job))


def summary(result: PipelineResult) -> list[str]:
    """What became of it, for a person."""
    if result.failed is not None:
        return [f"step {result.failed} ended with {result.exit_code}; the same command goes on from there"]
    return [f"{len(result.steps)} steps have ended: {', '.join(result.steps)}"]


def _run_step(verb: str, job: str, promotes: dict[str, str] | None) -> tuple[int, dict[str, Any] | None]:
    """Runs a verb as a process; its exit code and what it said last."""
    given = [promotes["name"], promotes["version"], "--alias", promotes["alias"], "--job", "-"] if promotes else ["-"]
    command = [sys.executable, "-m", "pipelines", verb, *given, "--json"]
    result = None
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(job)
        child.stdin.close()
        with _passed_on(child):
            for line in child.stdout:
                result = _result(line)
                if result is None or verb == "serve":
                    print(line, end="", flush=True)
            code = child.wait()
    return (128 - code if code < 0 else code), result


@contextmanager
def _passed_on(child: subprocess.Popen[str]) -> Iterator[None]:
    """Whoever ends this process means the step: it saves what it has, and its exit code is ours.

    Ctrl-C reaches both by the terminal; SIGTERM only comes here.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {
        signal.SIGTERM: signal.signal(signal.SIGTERM, lambda *_: child.terminate()),
        signal.SIGINT: signal.signal(signal.SIGINT, lambda *_: None),
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _result(line: str) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _check(step: Step, raw: dict[str, Any], overrides: Mapping[str, Any]) -> BaseModel:
    """The step's job. A field that refers to another step's result is let pass until that is known.

    Raises:
        UserError: with the step's name before the field's.
    """
    try:
        job: BaseModel = config.merged(raw, overrides, unless=_is_reference)
    except UserError as error:
        raise UserError(error.message, field=f"steps.{step.name}.{error.field}", remedy=error.remedy) from None
    return job


def _is_reference(value: Any) -> bool:
    """Whether a field's own value refers to a step; a mistake of what it is in is a mistake all the same."""
    return isinstance(value, str) and _REFERENCE.search(value) is not None


def _references(value: Any) -> list[tuple[str, str]]:
    """The (step, field) pairs that a value refers to."""
    if isinstance(value, str):
        return [(found[1], found[2]) for found in _REFERENCE.finditer(value)]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [found for part in parts for found in _references(part)]


def _filled(value: Any, results: Mapping[str, dict[str, Any]], step: str) -> Any:
    """A value with each reference replaced by what it stands for; one that is alone keeps its type.

    Raises:
        UserError: a step did not say what is asked for.
    """
    if isinstance(value, dict):
        return {key: _filled(part, results, step) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_filled(part, results, step) for part in value]
    if not isinstance(value, str):
        return value
    alone = _REFERENCE.fullmatch(value)
    if alone:
        return _looked_up(alone, results, step)
    return _REFERENCE.sub(lambda found: str(_looked_up(found, results, step)), value)


def _looked_up(found: re.Match[str], results: Mapping[str, dict[str, Any]], step: str) -> Any:
    node: Any = results[found[1]]
    for part in found[2].split("."):
        if not isinstance(node, dict) or part not in node:
            said = ", ".join(node) if isinstance(node, dict) else f"no fields, but {node!r}"
            raise UserError(
                f"step {found[1]} did not say {found[2]}", field=f"steps.{step}: {found[0]}", remedy=f"it said {said}"
            )
        node = node[part]
    return node


def _place(job: PipelineJob) -> str:
    return storage.join(storage.absolute(job.state), job.name)


def _read(place: str) -> dict[str, Ended]:
    path = storage.join(place, "state.json")
    try:
        return {name: Ended.model_validate(found) for name, found in json.loads(storage.read_bytes(path)).items()}
    except FileNotFoundError:
        return {}
    except ValueError:
        raise UserError(f"{path} is no state of a pipeline", field="state", remedy="delete it to begin anew") from None


def _write(place: str, ended: Mapping[str, Ended]) -> None:
    told = {name: found.model_dump() for name, found in ended.items()}
    storage.write_bytes(storage.join(place, "state.json"), json.dumps(told, indent=2).encode())
