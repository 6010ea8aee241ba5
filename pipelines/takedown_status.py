"""`cleanplate takedown status`: what of an entry is done, as the manifests, the registry and the training sets show it.

Nothing is believed because a plan said so: a derived manifest is searched, a new version's training set is compared
with its digest, aliases are looked up. An affected version stays affected for ever; the entry is resolved when no alias
points at one and a manifest without the pictures is there.
"""

from __future__ import annotations

import getpass
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel

from curation.takedowns import Action
from pipelines.takedown import open_ledger
from pipelines.takedown_survey import SHORT, Survey, leave_tags, survey
from pipelines.trace import count
from pipelines.trainings import Training, Version, registry
from serving.takedowns import TAG

if TYPE_CHECKING:
    from rich.text import Text

What = Literal["examined", "derived", "retrained", "moved"]


class Step(BaseModel):
    """One thing that is to be done."""

    what: What
    subject: str
    done: bool
    detail: str


class EntryStatus(BaseModel):
    """How far an entry is."""

    entry: str
    requester: str
    state: Literal["open", "resolved", "withdrawn"]
    steps: list[Step]
    notes: list[str]
    actions: list[Action]  # the audit record


class Status(BaseModel):
    """How far the entries are that were asked about."""

    ledger: str
    entries: list[EntryStatus]


def run(
    id_: str | None, *, ledger: str | None = None, tracking_uri: str | None = None, manifests: Sequence[str] = ()
) -> Status:
    """Looks at everything anew, and adds to the audit record what it finds done for the first time.

    Args:
        id_: an entry's id, or the beginning of it; None for all that are in force.

    Raises:
        UserError: no such entry, or a ledger that cannot be read or written.
    """
    opened = open_ledger(ledger)
    state = opened.read()
    ids = [state.entry(id_).id] if id_ is not None else [entry.id for entry in state.in_force]
    known = registry(tracking_uri)
    found = [_status(survey(entry, ledger, tracking_uri, manifests, known)) for entry in ids]
    return Status(ledger=opened.uri, entries=found)


def _status(found: Survey) -> EntryStatus:
    entry = found.entry
    told = {"entry": entry.id, "requester": entry.requester}
    if entry.withdrawn is not None:
        actions = list(found.state.actions_of(entry.id))
        return EntryStatus(**told, state="withdrawn", steps=[], notes=[], actions=actions)
    touched = [t for t in found.trainings if t.verdict != "not_trained_on"]
    planned = [json.loads(a.detail) for a in found.state.actions_of(entry.id) if a.what == "plan_written"]
    if planned:  # versions that came after the plan are examined too
        leave_tags(found)
    steps = [*_examined(found, bool(planned)), *_derived(found), *_retrained(found, touched), *_moved(touched)]
    resolved = all(step.done for step in steps if step.what in ("derived", "moved")) and found.known.note is None
    _record(found, planned, resolved)
    notes = [f"not read: {place}: {why}" for place, why in sorted(found.unreadable.items())]
    notes += [f"{t.title}: through {through.title}" for t in touched for through in t.through]
    notes += [f"{t.title}: {t.why}" for t in touched if t.why]
    notes += [line for t in found.trainings for line in t.statements]
    return EntryStatus(
        **told,
        state="resolved" if resolved else "open",
        steps=steps,
        notes=[*([found.known.note] if found.known.note else []), *notes],
        actions=list(found.ledger.read().actions_of(entry.id)),
    )


def _examined(found: Survey, all_: bool) -> list[Step]:
    tag = f"{TAG}{found.entry.id[:SHORT]}"
    missing = [f"{v.name}/{v.version}" for v in found.known.versions if tag not in v.tags and not all_]
    done = f"all {count(len(found.known.versions), 'version')} examined"
    todo = f"not examined: {', '.join(missing[:5])}{' …' if len(missing) > 5 else ''}; run cleanplate takedown plan"
    return [Step(what="examined", subject="versions", done=not missing, detail=todo if missing else done)]


def _derived(found: Survey) -> list[Step]:
    steps = []
    for family in found.families:
        keeps, derived = family.newest_with, family.derived_without
        assert keeps is not None
        rows = next(len(rows) for manifest, rows in family.members if manifest.id == keeps.id)
        detail = f"{keeps.uri} keeps {rows:,} of the pictures, and none is derived from it without them"
        if derived is not None:
            detail = f"{derived.uri} keeps none of the pictures"
        steps.append(Step(what="derived", subject=family.base_id, done=derived is not None, detail=detail))
    return steps


def _retrained(found: Survey, touched: Sequence[Training]) -> list[Step]:
    """Whether each affected model has a version, by its training set and the digest of it, without the pictures."""
    steps = []
    for name in sorted({v.name for t in touched for v in t.versions}):
        without = _without(found, name)
        detail = "no version was trained on a set without the pictures, and made from such models only"
        if without:
            detail = (
                f"version {without[-1].version} was trained on a set without them, by its digest, and so was all that "
                "it was made from"
            )
        steps.append(Step(what="retrained", subject=name, done=bool(without), detail=detail))
    return steps


def _without(found: Survey, name: str) -> list[Version]:
    versions = [v for t in found.trainings if t.verdict == "not_trained_on" for v in t.versions if v.name == name]
    return sorted(versions, key=lambda v: int(v.version))


def _moved(touched: Sequence[Training]) -> list[Step]:
    pointing = [(v, alias, t) for t in touched for v in t.versions for alias in v.aliases]
    steps = [
        Step(
            what="moved",
            subject=f"models:/{v.name}@{alias}",
            done=False,
            detail=f"points at version {v.version}, which "
            f"{'was' if t.verdict == 'trained_on' else 'may have been'} trained on the pictures{_by(t)}",
        )
        for v, alias, t in pointing
    ]
    return steps or [Step(what="moved", subject="aliases", done=True, detail="none points at an affected version")]


def _by(training: Training) -> str:
    if training.own_verdict == "trained_on" or not training.through:
        return ""
    return f", through {training.through[0].title}"


def _record(found: Survey, planned: Sequence[dict[str, Any]], resolved: bool) -> None:
    """Adds what is done by now and was planned, and that the entry is resolved; each once."""

    def add(what: str, subject: str, **detail: str) -> None:
        found.ledger.record_action(
            what=what, subject=subject, by=getpass.getuser(), entry=found.entry.id, detail=detail, once=True
        )

    newest: dict[str, int] = {}  # affected version of a model
    for model in (model for plan in planned for model in plan["versions"]):
        name, _, version = model.removeprefix("models:/").rpartition("/")
        newest[name] = max(newest.get(name, 0), int(version))
    for name, before in newest.items():
        for version in _without(found, name):
            if int(version.version) > before:
                add("version_retrained", version.model, instead_of=f"models:/{name}/{before}")
    for alias, was in {alias: was for plan in planned for alias, was in plan["aliases"].items()}.items():
        name = alias.removeprefix("models:/").partition("@")[0]
        for version in _without(found, name):
            if alias in _aliases(version):
                add("alias_moved", alias, version=version.version, before=was)
    if resolved and planned:
        add("entry_resolved", found.entry.id)


def _aliases(version: Version) -> list[str]:
    return [f"models:/{version.name}@{alias}" for alias in version.aliases]


def summary(result: Status) -> list[str]:
    """The state in one line."""
    states = [entry.state for entry in result.entries]
    told = ", ".join(
        f"{states.count(state):,} {state}" for state in ("open", "resolved", "withdrawn") if state in states
    )
    return [f"{count(len(states), 'entry', 'entries')} of {result.ledger}: {told or 'none in force'}"]


def show(result: Status) -> None:
    """Prints the steps and the audit record of each entry."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    for entry in result.entries:
        title = Text(f"{entry.entry[:SHORT]}  {entry.state}  asked by {entry.requester}")
        table = Table("", "step", "of", "", title=title, title_justify="left")
        for step in entry.steps:
            table.add_row("done" if step.done else "to do", step.what, *map(_folded, (step.subject, step.detail)))
        console.print(table if entry.steps else title)
        for action in entry.actions:
            line = f"{action.recorded_at:%Y-%m-%d %H:%M}Z  {action.what}  {action.subject}  by {action.by}"
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        for note in entry.notes:
            console.print(note, markup=False, highlight=False, soft_wrap=True)


def _folded(told: str) -> Text:
    from rich.text import Text

    return Text(told, overflow="fold")
