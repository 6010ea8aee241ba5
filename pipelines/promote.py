"""`cleanplate promote`: an alias is pointed at a model version, if it passes the gates of a job file.

Gates read what others have measured: `cleanplate evaluate` (quality, memorisation), the takedown ledger and the
version's tags (rights), the export (parity). What has not been measured does not pass. Nothing is moved unless all
gates let it.
"""

from __future__ import annotations

import getpass
import json
import re
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from curation.errors import UserError
from curation.manifest import Manifest, now
from curation.takedowns import Ledger

if TYPE_CHECKING:
    from training.tracking import ModelVersion

_PARITY = re.compile(r"export\.([a-z0-9_]+)\.parity")
"""Of a version's tag by `training.exported`; its value begins with `passed` or `failed`."""
Action = Literal["refuse", "warn"]


class _Gate(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    action: Action = Field("refuse", description="warn: said, but the alias is moved all the same")


class QualityGate(_Gate):
    """Limits of one metric."""

    min: float | None = Field(None, description="the least it may be")
    max: float | None = Field(None, description="the most it may be")
    max_over_floor: float | None = Field(None, gt=0, description="how many times its floor it may be")

    @model_validator(mode="after")
    def _has_a_limit(self) -> QualityGate:
        if self.min is None and self.max is None and self.max_over_floor is None:
            raise ValueError("give min, max or max_over_floor")
        return self


class MemorizationGate(_Gate):
    """The limit of what a model may have by heart, as `cleanplate evaluate` measured it."""

    max_excess: float = Field(
        0.01, ge=0, le=1, description="share of samples that are copies, weighted, beyond the false positives"
    )


class RightsGate(_Gate):
    """No takedown reaches the version's pictures, and what was asked about their rights is recent enough."""

    consent_max_age_days: float | None = Field(None, gt=0, description="of the manifest's evidence; null: any age")


class ExportGate(_Gate):
    """Every export that is attached answers as the model does."""

    required: bool = Field(False, description="false: a version without an export passes")


class PromoteJob(BaseModel):
    """`kind: promote`: the gates that a version passes before an alias points at it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["promote"] = "promote"
    quality: dict[str, QualityGate] = Field({}, description="by metric, as `cleanplate evaluate` names them")
    memorization: MemorizationGate = MemorizationGate()
    rights: RightsGate = RightsGate()
    export: ExportGate = ExportGate()
    ledger: str | None = Field(None, description="takedown ledger; null: those that the version's training asked")
    tracking_uri: str | None = Field(
        None, description="MLflow; null: $MLFLOW_TRACKING_URI, else sqlite:///runs/mlflow.db"
    )


class Outcome(BaseModel):
    """What a gate found."""

    gate: str
    outcome: Literal["passed", "warned", "failed"]
    detail: str


class Promotion(BaseModel):
    """Whether an alias was moved, and by which gates."""

    model: str  # models:/NAME/VERSION
    alias: str  # models:/NAME@alias
    before: str | None  # the version that had it
    moved: bool
    gates: list[Outcome]

    @property
    def failed(self) -> list[Outcome]:
        """The gates that stand in the way."""
        return [gate for gate in self.gates if gate.outcome == "failed"]


def run(name: str, version: str, job: PromoteJob, *, alias: str) -> Promotion:
    """Asks every gate, and moves the alias if none refuses.

    Who moved it and when stands in the version's tags and in the audit record of the ledgers that are named.

    Raises:
        UserError: no such model or version, an alias that MLflow does not take, or a ledger that cannot be written.
    """
    from training import tracking

    found = tracking.find(f"models:/{name}/{version}", tracking_uri=job.tracking_uri)
    tracking.check_alias(name, alias)
    gates = [
        *(_quality(metric, limit, found) for metric, limit in job.quality.items()),
        _memorization(job.memorization, found),
        _rights(job, found),
        _export(job.export, found),
    ]
    made = Promotion(
        model=f"models:/{name}/{version}", alias=f"models:/{name}@{alias}", before=None, moved=False, gates=gates
    )
    if made.failed:
        return made
    before = tracking.set_alias(name, alias, version, tracking_uri=job.tracking_uri)
    made = made.model_copy(update={"before": before, "moved": True})
    by = getpass.getuser()
    tags = {
        f"promoted.{alias}.at": now().isoformat(timespec="seconds"),
        f"promoted.{alias}.by": by,
        f"promoted.{alias}.gates": json.dumps({gate.gate: gate.outcome for gate in gates}),
    }
    tracking.tag_version(name, version, tags, tracking_uri=job.tracking_uri)
    for uri in _ledgers(job, found):
        detail = {"version": version, "before": before, "gates": {gate.gate: gate.outcome for gate in gates}}
        Ledger.open(uri).record_action(what="alias_moved", subject=made.alias, by=by, detail=detail)
    return made


def _outcome(gate: str, problem: str | None, good: str, action: Action) -> Outcome:
    if problem is None:
        return Outcome(gate=gate, outcome="passed", detail=good)
    return Outcome(gate=gate, outcome="failed" if action == "refuse" else "warned", detail=problem)


def _quality(metric: str, limit: QualityGate, version: ModelVersion) -> Outcome:
    from pipelines.evaluate import TAG, StoredMetric

    gate = f"quality: {metric}"
    told = version.tags.get(TAG + metric)
    if told is None:
        known = ", ".join(sorted(key.removeprefix(TAG) for key in version.tags if key.startswith(TAG)))
        return _outcome(gate, f"not measured ({known or 'run `cleanplate evaluate`'})", "", limit.action)
    try:
        found = StoredMetric.model_validate_json(told)
    except ValidationError:
        return _outcome(gate, "what is stored of it cannot be read: evaluate again", "", limit.action)
    problems = []
    if limit.min is not None and not found.value >= limit.min:
        problems.append(f"at least {limit.min:g} is asked")
    if limit.max is not None and not found.value <= limit.max:
        problems.append(f"at most {limit.max:g} is allowed")
    if limit.max_over_floor is not None:
        if found.floor is None or found.floor <= 0:
            problems.append("its floor is not known, or not above 0")
        elif not found.value <= limit.max_over_floor * found.floor:
            problems.append(f"at most {limit.max_over_floor:g} times its floor of {found.floor:.4g} is allowed")
    value = f"{found.value:.4g} [{found.low:.4g}, {found.high:.4g}]"
    return _outcome(gate, f"{value}: {'; '.join(problems)}" if problems else None, value, limit.action)


def _memorization(limit: MemorizationGate, version: ModelVersion) -> Outcome:
    from pipelines.evaluate import MEMORIZATION_TAG, StoredMemorization

    told = version.tags.get(MEMORIZATION_TAG)
    if told is None:
        return _outcome("memorisation", "not measured: run `cleanplate evaluate`", "", limit.action)
    try:
        found = StoredMemorization.model_validate_json(told)
    except ValidationError:
        return _outcome("memorisation", "what is stored of it cannot be read: evaluate again", "", limit.action)
    false = "unknown" if found.false_positives is None else f"{found.false_positives:.1%}"
    value = f"{found.excess:.1%} of samples, weighted, are copies beyond false positives ({false})"
    problem = None
    if found.verdict == "undecided":
        problem = f"undecided: {false} of pictures that it has never seen are taken for copies"
    elif not found.excess <= limit.max_excess:
        problem = f"{value}, at most {limit.max_excess:.1%} may be"
    return _outcome("memorisation", problem, value, limit.action)


def _rights(job: PromoteJob, version: ModelVersion) -> Outcome:
    from serving.takedowns import models_behind, standing
    from training import consent, dependencies

    problems = []
    try:
        behind, problem = models_behind(version, dependencies.of_tags(version.tags), tracking_uri=job.tracking_uri)
    except UserError as error:
        behind, problem = [], error.message
    named = [*_ledgers(job, version), *([] if job.ledger else (uri for model in behind for uri in model.ledgers))]
    ledgers = list(dict.fromkeys(named))
    heeded = _listed(version.tags.get("takedown_ledger_version"))
    found = standing(version.tags, ledgers, heeded, behind, problem)
    if found.through:
        problems.append(f"made from {', '.join(found.through)}")
    if found.affected:
        problems.append(f"trained on what was taken down (entries {', '.join(found.affected)})")
    if found.unexamined:
        problems.append(f"not examined for entries {', '.join(found.unexamined)}: run `cleanplate takedown plan`")
    if found.problem is not None:
        problems.append(found.problem)
    if job.rights.consent_max_age_days is not None:
        try:
            manifest = Manifest.open(version.tags.get("manifest_uri", "unknown"))
            consent.check_age(manifest, job.rights.consent_max_age_days)
        except UserError as error:
            problems.append(error.message)
    asked = "no takedown reaches it" if ledgers else "no ledger is named: only the version's tags were asked"
    return _outcome("rights", "; ".join(problems) or None, asked, job.rights.action)


def _export(limit: ExportGate, version: ModelVersion) -> Outcome:
    told = {match[1]: value for tag, value in version.tags.items() if (match := _PARITY.fullmatch(tag))}
    if not told:
        return _outcome("export parity", "no export is attached" if limit.required else None, "no export", limit.action)
    differ = [f"{kind} {value or 'failed'}" for kind, value in sorted(told.items()) if not _passed(value)]
    return _outcome("export parity", "; ".join(differ) or None, f"{', '.join(sorted(told))} passed", limit.action)


def _passed(told: str) -> bool:
    return re.match(r"passed\b", told) is not None


def _ledgers(job: PromoteJob, version: ModelVersion) -> list[str]:
    return [job.ledger] if job.ledger else _listed(version.tags.get("ledger_uri"))


def _listed(joined: str | None) -> list[str]:
    return [] if joined in (None, "none", "unknown") else str(joined).split(", ")


def show(done: Promotion) -> None:
    """Prints the gates as a table."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("gate", "", "", title=Text(f"{done.model} as {done.alias}"), title_justify="left")
    for gate in done.gates:
        table.add_row(Text(gate.gate), gate.outcome, Text(gate.detail, overflow="fold"))
    Console().print(table)


def summary(done: Promotion) -> list[str]:
    """The result in one line."""
    if not done.moved:
        names = ", ".join(gate.gate for gate in done.failed)
        return [f"{done.alias} was not moved: {done.model} does not pass {names}"]
    was = f", before it was version {done.before}" if done.before else ""
    return [f"{done.alias} is {done.model} now{was}"]
