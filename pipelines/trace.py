"""`cleanplate trace`: where pictures stand, what was trained on them and how often, and what serves it now.

Of a model version it tells the other way round: what it was trained on (`pipelines.trace_version`).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import BaseModel

from curation.errors import UserError
from curation.lineage import Found
from pipelines.sightings import Sightings
from pipelines.trainings import Registry, Training, registry, trainings

if TYPE_CHECKING:
    from rich.table import Table

    from curation.clip import Clip
    from curation.lineage import Query
    from curation.manifest import Manifest
    from curation.takedowns import LedgerState
    from pipelines.trace_version import VersionTrace

_SHOWN = 10


class InManifest(BaseModel):
    """What a manifest has of the pictures."""

    uri: str
    id: str
    name: str
    base_id: str | None
    counts: dict[str, int]  # rows found, by decision
    rows: list[Found]
    neighbours: list[Found] = []  # other pictures, near by CLIP
    note: str | None = None  # why there are no neighbours though they were asked for


class Unreadable(BaseModel):
    """A manifest that is named somewhere and cannot be read."""

    uri: str
    why: str


class Serving(BaseModel):
    """An alias that points at a version which was trained on the pictures, or may have been."""

    model: str  # models:/NAME@alias
    version: str
    certain: bool
    through: list[str] = []  # the models that it was made from by which it comes, where it was not itself


class Trace(BaseModel):
    """Where pictures stand and what was trained on them."""

    subject: str
    kind: str
    tracking_uri: str
    manifests: list[InManifest]
    unreadable: list[Unreadable]
    trainings: list[Training]  # also those that were not on the pictures
    serving: list[Serving]
    note: str | None = None


def run(
    subject: str,
    *,
    manifests: Sequence[str] = (),
    ledger: str | None = None,
    tracking_uri: str | None = None,
    neighbours: int = 0,
) -> Trace | VersionTrace:
    """Traces pictures, or a model version.

    Args:
        subject: see `curation.lineage.Query.of`; or `models:/NAME/3`, `models:/NAME@alias`.
        manifests: folders of manifests that are looked at; none: those that any run or version names.
        ledger: that has the entry, or revokes what a version was trained on.
        neighbours: how many of the nearest other pictures are told, where the subject is a picture's file.

    Raises:
        UserError: a subject that could select nothing, or that is not there.
    """
    if subject.startswith("models:/"):
        from pipelines import trace_version

        return trace_version.run(subject, ledger=ledger, tracking_uri=tracking_uri)
    from curation.lineage import Query, may_be_entry

    known = registry(tracking_uri)
    query = Query.of(subject, ledger_state(ledger, known, manifests) if may_be_entry(subject) else None)
    sightings = Sightings(query)
    places = [found for given in manifests for found in _below(given)] or known.manifests
    read, unreadable = _in_manifests(places, sightings, neighbours)
    found = trainings(known, sightings)
    return Trace(
        subject=query.text,
        kind=query.kind,
        tracking_uri=known.shown,
        manifests=read,
        unreadable=unreadable,
        trainings=found,
        serving=serving(found),
        note=known.note,
    )


def ledger_state(given: str | None, known: Registry, manifests: Sequence[str] = ()) -> LedgerState:
    """What the ledger that is named holds, or else all that a training asked or one of the manifests names."""
    from curation.takedowns import Ledger, LedgerState, of_place
    from curation.takedowns.ledger import VARIABLE

    named = given or os.environ.get(VARIABLE)
    places = [named] if named else [*known.ledgers, *manifests]
    states = [Ledger.open(uri).read() for uri in dict.fromkeys(of_place(place) for place in places)]
    return LedgerState(
        tuple(entry for state in states for entry in state.entries),
        tuple(withdrawal for state in states for withdrawal in state.withdrawals),
        (),
    )


def serving(found: Sequence[Training]) -> list[Serving]:
    """The aliases that point at a version which was trained on the pictures, or may have been."""
    return [
        Serving(
            model=f"models:/{v.name}@{alias}",
            version=v.version,
            certain=training.verdict == "trained_on",
            through=[t.name for t in training.through] if training.own_verdict != "trained_on" else [],
        )
        for training in found
        if training.verdict != "not_trained_on"
        for v in training.versions
        for alias in v.aliases
    ]


def _below(given: str) -> list[str]:
    """A manifest's folder, or all manifests of a folder of them, by name."""
    from curation import storage
    from curation.manifest import INFO_FILE

    if storage.exists(storage.join(given, INFO_FILE)):
        return [given]
    listed = [info.path for info in storage.list_files(given, recursive=True)] if storage.is_dir(given) else []
    names = sorted({path.split("/")[-2] for path in listed if path.endswith(f"/{INFO_FILE}")})
    if not names:
        raise UserError(
            f"no manifest in {given}", field="--manifests", remedy="give a folder that `cleanplate curate` published in"
        )
    return [storage.join(given, name) for name in names]


def _in_manifests(
    places: Sequence[str], sightings: Sightings, neighbours: int
) -> tuple[list[InManifest], list[Unreadable]]:
    read: list[InManifest] = []
    unreadable: list[Unreadable] = []
    clips: dict[str, Clip] = {}
    for uri in places:
        try:
            manifest, rows = sightings.of(uri)
        except UserError as error:
            unreadable.append(Unreadable(uri=uri, why=error.message))
            continue
        info = manifest.info
        made = InManifest(
            uri=manifest.uri,
            id=info.id,
            name=info.name,
            base_id=info.base_id,
            counts=dict(Counter(row.decision for row in rows)),
            rows=rows,
        )
        if neighbours > 0:
            made = made.model_copy(update=_near(manifest, sightings.query, rows, neighbours, clips))
        read.append(made)
    return read, unreadable


def _near(
    manifest: Manifest, query: Query, rows: Sequence[Found], k: int, clips: dict[str, Clip]
) -> dict[str, list[Found] | str]:
    from curation.lineage import clip_of, neighbours

    if query.picture is None:
        return {"note": "only a picture's file has neighbours"}
    name = manifest.info.clip.name if manifest.info.clip else ""
    try:
        if name not in clips:
            clips[name] = clip_of(manifest)
    except UserError as error:
        return {"note": error.message}
    return {"neighbours": neighbours(manifest, clips[name], query.picture, k, {row.id for row in rows})}


def summary(result: Trace | VersionTrace) -> list[str]:
    """The answer in one line."""
    if not isinstance(result, Trace):
        from pipelines import trace_version

        return trace_version.summary(result)
    rows = sum(len(m.rows) for m in result.manifests)
    kept = sum(m.counts.get("kept", 0) for m in result.manifests)
    trained = [t for t in result.trainings if t.verdict == "trained_on"]
    versions = [v for t in trained for v in t.versions]
    doubtful = sum(len(t.versions) or 1 for t in result.trainings if t.verdict == "unknown")
    parts = [f"{count(rows, 'row')} in {count(len(result.manifests), 'manifest')}, {kept:,} kept"]
    if result.note is not None:
        parts.append(result.note)
    elif trained:
        times = count(sum(t.times for t in trained), "time")
        parts.append(f"trained on by {count(len(versions), 'version')} in {count(len(trained), 'run')}, seen {times}")
        only = [v for t in trained if t.own_verdict != "trained_on" for v in t.versions]
        if only:
            parts.append(f"{len(only):,} of them only through a model that it was made from")
    else:
        parts.append("trained on by nothing that is known")
    if doubtful:
        parts.append(f"not known of {count(doubtful, 'other')}: treat as affected")
    parts.append(f"served as {', '.join(s.model for s in result.serving)}" if result.serving else "no alias serves it")
    return [f"{result.subject}: {'; '.join(parts)}"]


def show(result: Trace | VersionTrace) -> None:
    """Prints the answer as tables."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not isinstance(result, Trace):
        from pipelines import trace_version

        return trace_version.show(result)
    console = Console()
    for manifest in result.manifests:
        table = Table(title=Text(f"{manifest.name}  {manifest.id[:16]}  {manifest.uri}"), title_justify="left")
        for column in ("row", "how", "decision", "reason", "uri"):
            table.add_column(column, overflow="fold")
        for row in (*manifest.rows[:_SHOWN], *manifest.neighbours):
            cells = (row.id[:12], how(row), row.decision, row.reason or "", row.uri)
            table.add_row(*map(Text, cells))
        console.print(table)
        more = len(manifest.rows) - _SHOWN
        for line in ([f"… and {more:,} rows more"] if more > 0 else []) + ([manifest.note] if manifest.note else []):
            console.print(line, markup=False, highlight=False)
    for lost in result.unreadable:
        console.print(f"not read: {lost.uri}: {lost.why}", markup=False, highlight=False, soft_wrap=True)
    console.print(trainings_table(result.trainings))
    for training in result.trainings:
        for through in training.through:
            was = "was" if through.verdict == "trained_on" else "may have been"
            line = f"{training.title}: through {through.title}, which {was} trained on them"
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        for line in training.statements:
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        if training.why:
            console.print(f"{training.title}: {training.why}", markup=False, highlight=False, soft_wrap=True)


def count(n: int, noun: str, several: str | None = None) -> str:
    """A number of things, in the singular where it is one."""
    return f"{n:,} {noun if n == 1 else several or noun + 's'}"


def how(row: Found) -> str:
    """How a row was met, in a word or two."""
    words = {"selector": "named", "clip": "neighbour"}.get(row.how, row.how)
    return words if row.similarity is None or row.how == "exact" else f"{words} {row.similarity:.3f}"


def trainings_table(found: Sequence[Training]) -> Table:
    """A row for each training."""
    from rich.table import Table
    from rich.text import Text

    table = Table("model versions", "aliases", "run", "trained on it", "pictures", "times seen", "first at image")
    for training in found:
        aliases = ", ".join(alias for v in training.versions for alias in v.aliases)
        known = training.own_verdict == "trained_on" and training.images is not None
        counts = (f"{len(training.pictures):,}", f"{training.times:,}") if known else ("", "")
        first = "" if training.first is None else f"{training.first + 1:,}"
        run_id = (training.run_id or "")[:12]
        verdict = {"trained_on": "yes", "not_trained_on": "no", "unknown": "unknown"}[training.verdict]
        if training.verdict == "trained_on" and training.own_verdict != "trained_on":
            verdict = f"through its {training.through[0].kind}"
        cells = (training.title if training.versions else training.name, aliases, run_id, verdict, *counts, first)
        table.add_row(*map(Text, cells))
    return table
