"""What is to be done about a takedown entry, as a survey of it shows: the plan, and the jobs that it names."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import BaseModel

from curation import storage
from pipelines.takedown_jobs import Jobs, Retraining
from pipelines.takedown_survey import SHORT, Family, Survey
from pipelines.trainings import Training, Version

if TYPE_CHECKING:
    from pipelines.takedown_jobs import AnyJob


class ToDerive(BaseModel):
    """A manifest that keeps pictures of the entry."""

    manifest: str
    id: str
    base_id: str
    rows: int  # that it keeps and the entry reaches
    derived: str | None  # a derived manifest without them, where there is one
    into: str  # where the derived one is, or is going to be: a folder of manifests
    command: str | None


class Affected(BaseModel):
    """A version that was trained on pictures of the entry, or may have been."""

    model: str  # models:/NAME/VERSION
    aliases: tuple[str, ...]
    run_id: str | None
    certain: bool
    why: str | None  # what is not known
    through: list[str] = []  # models that it was made from and that were trained on them, or may have been
    pictures: int  # of its own training set
    times: int  # samples that showed any of them
    first: int | None  # the first such sample, counted from 0


class Move(BaseModel):
    """An alias that points at an affected version."""

    alias: str  # models:/NAME@alias
    version: str
    job: str | None  # the register job whose version it is to point at


class Plan(BaseModel):
    """What is to be done about an entry."""

    entry: str
    requester: str
    ground: str
    ledger: str
    ledger_version: str
    tracking_uri: str
    folder: str
    manifests: list[ToDerive]
    versions: list[Affected]
    unaffected: list[str]  # versions that were examined and have none of the pictures
    runs: list[str]  # affected runs that no version was registered of
    retrainings: list[Retraining]
    not_retrained: dict[str, str]  # affected versions without a job, and why
    aliases: list[Move]
    commands: list[str]  # in order
    notes: list[str]


_BUNDLE = (
    'bundle_of() { python3 -c "import json, sys; '
    'print(json.loads(open(sys.argv[1]).read().splitlines()[-1])[\'bundle\'])" "$1"; }'
)


class Planner:
    """Makes a plan of a survey.

    Args:
        folder: where the plan and its jobs are going to be.
        tracking_uri: as it was given, for the jobs; None leaves it to whoever submits them.
    """

    def __init__(self, found: Survey, folder: str, tracking_uri: str | None) -> None:
        self._found = found
        self._folder = folder
        # where it holds a password it is not written down: whoever runs the commands has $MLFLOW_TRACKING_URI
        self._tracking_uri = tracking_uri if tracking_uri and tracking_uri == found.known.shown else None

    def plan(self) -> tuple[Plan, dict[str, AnyJob]]:
        found = self._found
        touched = [t for t in found.trainings if t.verdict != "not_trained_on"]
        derive = [self._derive(family) for family in found.families]
        jobs = Jobs(found, self._tracking_uri)
        retrainings, not_retrained = jobs.make(touched)
        by_version = {r.instead_of: r.register_job for r in retrainings}
        moves = [
            Move(alias=f"models:/{v.name}@{alias}", version=v.version, job=by_version.get(v.model))
            for t in touched
            for v in t.versions
            for alias in v.aliases
        ]
        notes = [f"not read: {place}: {why}" for place, why in sorted(found.unreadable.items())]
        notes += [line for training in found.trainings for line in training.statements]
        plan = Plan(
            entry=found.entry.id,
            requester=found.entry.requester,
            ground=found.entry.ground,
            ledger=found.ledger.uri,
            ledger_version=found.state.version,
            tracking_uri=found.known.shown,
            folder=self._folder,
            manifests=derive,
            versions=[_affected(t, v) for t in touched for v in t.versions],
            unaffected=[v.model for t in found.trainings if t.verdict == "not_trained_on" for v in t.versions],
            runs=[t.run_id for t in touched if not t.versions and t.run_id],
            retrainings=retrainings,
            not_retrained=not_retrained,
            aliases=moves,
            commands=self._commands(derive, retrainings, moves),
            notes=[*([found.known.note] if found.known.note else []), *notes],
        )
        return plan, jobs.files

    def _derive(self, family: Family) -> ToDerive:
        keeps, derived = family.newest_with, family.derived_without
        assert keeps is not None
        into = family.folder_for(self._found.entry.id)
        words = ["cleanplate", "recheck", keeps.uri, "--ledger", self._found.ledger.uri, "--out", into]
        return ToDerive(
            manifest=keeps.uri,
            id=keeps.id,
            base_id=family.base_id,
            rows=next(len(rows) for manifest, rows in family.members if manifest.id == keeps.id),
            derived=derived.uri if derived else None,
            into=derived.uri if derived else into,
            command=None if derived else shlex.join(words),
        )

    def _commands(self, derive: Sequence[ToDerive], made: Sequence[Retraining], moves: Sequence[Move]) -> list[str]:
        commands = [d.command for d in derive if d.command is not None]
        if made:
            commands.append(_BUNDLE)
        for r in made:
            job, result = (shlex.quote(storage.join(self._folder, n)) for n in (r.train_job, f"{r.train_job}.json"))
            sets = ""
            for field, other in r.takes.items():
                sets += f'--set "{field}=$(bundle_of {shlex.quote(storage.join(self._folder, f"{other}.json"))})" '
            commands.append(f"cleanplate {r.verb} {job} {sets}--json > {result}")
            if r.register_job is None:
                continue
            register = shlex.quote(storage.join(self._folder, r.register_job))
            commands.append(f'cleanplate register {register} --set "bundle=$(bundle_of {result})"')
        for move in moves:
            for r in made:
                if r.register_job is not None and r.register_job == move.job:
                    register = shlex.quote(storage.join(self._folder, r.register_job))
                    result = shlex.quote(storage.join(self._folder, f"{r.train_job}.json"))
                    alias = move.alias.rpartition("@")[2]
                    commands.append(
                        f'cleanplate register {register} --set "bundle=$(bundle_of {result})" --set alias={alias}'
                    )
        status = ["cleanplate", "takedown", "status", self._found.entry.id[:SHORT], "--ledger", self._found.ledger.uri]
        status += ["--tracking-uri", self._tracking_uri] if self._tracking_uri else []
        return [*commands, shlex.join(status)]


def _affected(training: Training, version: Version) -> Affected:
    return Affected(
        model=version.model,
        aliases=version.aliases,
        run_id=training.run_id,
        certain=training.verdict == "trained_on",
        why=training.why,
        through=[f"{through.kind} {through.name}" for through in training.through],
        pictures=len(training.pictures),
        times=training.times,
        first=training.first,
    )
