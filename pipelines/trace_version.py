"""`cleanplate trace models:/NAME/VERSION`: what a version was trained on, and how much of it is revoked by now."""

from __future__ import annotations

import os
from collections import Counter
from datetime import datetime
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from curation.errors import UserError
from pipelines.trace import count
from training.dependencies import Statement

if TYPE_CHECKING:
    from curation.manifest import Manifest
    from training.bundle import BundleInfo
    from training.roster import Roster
    from training.tracking import ModelVersion

_SHOWN = 10


class Ancestor(BaseModel):
    """A manifest that the training set descends from."""

    relation: str  # trained_on, base, parent
    uri: str
    id: str | None
    name: str | None = None
    created_at: datetime | None = None
    why: str | None = None  # it could not be read


class Asked(BaseModel):
    """A takedown ledger that the training asked, and the state that it had."""

    uri: str
    version: str


class Revoked(BaseModel):
    """Rows of the training set that may no longer be used."""

    ledgers: list[str]
    rows: int
    share: float
    entries: dict[str, int]  # id of an entry, and how many rows it revokes; a row counts for one entry


class MadeFrom(BaseModel):
    """A model that the version was made from, and how much of what it was trained on is revoked."""

    kind: str  # teacher, autoencoder
    name: str  # models:/NAME/VERSION where it is registered, else as it calls itself
    sha256: str
    through: str | None  # the sha256 of the model that was made from it; None: the version itself was
    manifest_id: str | None
    training_set_digest: str | None
    training_rows: int | None
    revoked: Revoked | None
    statement: Statement | None = None  # of who vouches for it, where its training set is not on record
    notes: list[str]  # what is not known, and why


class VersionTrace(BaseModel):
    """What a model version was made from."""

    model: str
    name: str
    version: str
    aliases: tuple[str, ...]
    run_id: str | None
    manifest_id: str
    training_rows: int
    training_set_digest: str
    training_set_digest_kind: str
    excluded_rows: int
    images_seen: int
    seed: int | None
    manifests: list[Ancestor]
    datasets: dict[str, int]  # rows trained on
    domains: dict[str, int]
    licences: dict[str, int]
    ledgers: list[Asked]
    takedowns: dict[str, str]  # entry, first digits: what `takedown plan` found of it
    revoked: Revoked | None
    made_from: list[MadeFrom] = []
    notes: list[str]  # what is not known, and why


def run(subject: str, *, ledger: str | None, tracking_uri: str | None) -> VersionTrace:
    """Reads a version's own records, and asks the ledger what of its training set is revoked.

    Raises:
        UserError: no such version, or its bundle cannot be had.
    """
    from curation.takedowns import of_place
    from training import tracking

    uri = tracking.tracking_uri(tracking_uri)
    if tracking.is_missing(uri):
        raise UserError(
            f"there is no tracking database at {uri}",
            field="--tracking-uri",
            remedy="give the one that the model is registered in, or set MLFLOW_TRACKING_URI",
        )
    version = tracking.find(subject, tracking_uri=tracking_uri)
    info = tracking.info_of(version, tracking_uri=tracking_uri)
    notes: list[str] = []
    roster = _or_note(notes, lambda: tracking.training_set(version, tracking_uri=tracking_uri))
    manifest = _manifest(info.manifest_uri, info.manifest_id, notes)
    heeded = zip(_listed(info.ledger_uri), _listed(info.takedown_ledger_version), strict=False)
    asked = [Asked(uri=uri, version=state) for uri, state in heeded]
    named = ledger or os.environ.get("CLEANPLATE_LEDGER")
    places = [of_place(named)] if named else [a.uri for a in asked]
    if not places and manifest is not None:
        places = [of_place(manifest.uri)]
    sources = _sources(manifest, roster) if manifest is not None else {"dataset": {}, "domain": {}}
    return VersionTrace(
        model=f"models:/{version.name}/{version.version}",
        name=version.name,
        version=version.version,
        aliases=version.aliases,
        run_id=version.run_id,
        manifest_id=info.manifest_id,
        training_rows=info.training_rows,
        training_set_digest=info.training_set_digest,
        training_set_digest_kind=info.training_set_digest_kind,
        excluded_rows=info.excluded_rows,
        images_seen=info.images_seen,
        seed=info.job.get("seed"),
        manifests=_ancestors(info.manifest_uri, info.manifest_id, manifest),
        datasets=sources["dataset"],
        domains=sources["domain"],
        licences=info.licences,
        ledgers=asked,
        takedowns={k.removeprefix("takedown."): v for k, v in version.tags.items() if k.startswith("takedown.")},
        revoked=_revoked(places, manifest, roster, notes),
        made_from=_made_from(version, info, named, places, tracking_uri, notes),
        notes=notes,
    )


def _made_from(
    version: ModelVersion, info: BundleInfo, named: str | None, places: list[str], uri: str | None, notes: list[str]
) -> list[MadeFrom]:
    """Each model that the version was made from.

    Args:
        named: the ledger that was given; else those that each training asked.
        places: the ledgers that the version's own training set is held against.
    """
    from training import dependencies, tracking

    own = version.tags.get("bundle_sha256")
    found = _or_note(notes, lambda: tracking.walk(dependencies.of_info(info), own=own, tracking_uri=uri))
    made = []
    for dependency in found or []:
        lost: list[str] = []
        roster = _or_note(lost, lambda d=dependency: tracking.dependency_set(version, d, tracking_uri=uri))
        manifest = _manifest(roster.info.manifest_uri, roster.info.manifest_id, lost) if roster is not None else None
        asked = [] if named else _listed(dependency.ledger_uri)
        registered = tracking.versions_of_bundle(dependency.sha256, tracking_uri=uri)
        name = f"models:/{registered[0].name}/{registered[0].version}" if registered else dependency.name
        made.append(
            MadeFrom(
                **dependency.model_dump(include={"kind", "sha256", "through", "manifest_id", "training_set_digest"}),
                name=name,
                training_rows=dependency.training_rows if roster is None else len(roster),
                revoked=_revoked(list(dict.fromkeys([*places, *asked])), manifest, roster, lost),
                statement=dependency.vouched,
                notes=lost,
            )
        )
    return made


def _listed(joined: str | None) -> list[str]:
    return [] if joined is None or joined == "none" else joined.split(", ")


def _or_note(notes: list[str], call: Any) -> Any:
    try:
        return call()
    except UserError as error:
        notes.append(error.message)
        return None


def _manifest(uri: str | None, id_: str, notes: list[str]) -> Manifest | None:
    from curation.manifest import Manifest

    if uri is None:
        notes.append("where its manifest lay is not on record")
        return None
    found: Manifest | None = _or_note(notes, lambda: Manifest.open(uri))
    if found is not None and found.id != id_:
        notes.append(f"{found.uri} is another manifest by now ({found.id[:12]}… instead of {id_[:12]}…)")
        return None
    return found


def _ancestors(uri: str | None, id_: str, manifest: Manifest | None) -> list[Ancestor]:
    """The manifest that was trained on, what it was derived from, and the older ones that curation heeded."""
    from curation.manifest import Manifest

    if manifest is None:
        return [Ancestor(relation="trained_on", uri=uri or "unknown", id=id_, why="it cannot be read")]
    found = [_ancestor("trained_on", manifest)]
    seen, here = {manifest.id}, manifest
    while True:
        info = here.info
        nexts = [("base", info.base_uri, info.base_id), ("parent", info.parent_uri, info.parent_id)]
        relation, place, next_id = next(
            ((r, u, i) for r, u, i in nexts if i is not None and i not in seen), (None,) * 3
        )
        if relation is None or next_id is None:
            return found
        seen.add(next_id)
        try:
            if place is None:
                raise UserError("where it lay is not on record")
            here = Manifest.open(place)
        except (UserError, OSError) as error:
            found.append(Ancestor(relation=relation, uri=place or "unknown", id=next_id, why=str(error)))
            return found
        found.append(_ancestor(relation, here))


def _ancestor(relation: str, manifest: Manifest) -> Ancestor:
    info = manifest.info
    return Ancestor(relation=relation, uri=manifest.uri, id=info.id, name=info.name, created_at=info.created_at)


def _sources(manifest: Manifest, roster: Roster | None) -> dict[str, dict[str, int]]:
    """Rows trained on by dataset and by registrable domain, the most first; of all kept rows without a roster."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from curation.manifest import Decision

    counts: dict[str, Counter[str]] = {"dataset": Counter(), "domain": Counter()}
    wanted = None if roster is None else pa.array(roster.ids, pa.string())
    for batch in manifest.batches(["id", *counts], decision=Decision.KEPT):
        rows = batch if wanted is None else batch.filter(pc.is_in(batch["id"], wanted))
        for name, counted in counts.items():
            counted.update(value or "none" for value in rows[name].to_pylist())
    return {name: dict(counted.most_common()) for name, counted in counts.items()}


def _revoked(ledgers: list[str], manifest: Manifest | None, roster: Roster | None, notes: list[str]) -> Revoked | None:
    from curation.takedowns import Ledger
    from curation.takedowns.revocation import Revocations

    if manifest is None or roster is None:
        notes.append("how much of it is revoked cannot be told")
        return None
    there, rows = set(roster.ids), dict[str, str]()
    for uri in ledgers:
        state = _or_note(notes, lambda uri=uri: Ledger.open(uri).read())
        if state is None:
            notes.append("how much of it is revoked cannot be told")
            return None
        for id_, reason in Revocations(state.in_force).of_manifest(manifest).items():
            if id_ in there:
                rows.setdefault(id_, reason.entry)
    by_entry = Counter(rows.values())
    return Revoked(ledgers=ledgers, rows=len(rows), share=len(rows) / len(roster), entries=dict(by_entry.most_common()))


def summary(result: VersionTrace) -> list[str]:
    """The answer in one line."""
    aliases = ", ".join(result.aliases) or "no alias"
    revoked = "revoked share unknown"
    if result.revoked is not None:
        revoked = f"{result.revoked.rows:,} revoked by now ({result.revoked.share:.2%})"
    behind = ""
    if result.made_from:
        known = [model.revoked for model in result.made_from if model.revoked is not None]
        stated = sum(model.revoked is None and model.statement is not None for model in result.made_from)
        doubtful = len(result.made_from) - len(known) - stated
        rows = count(sum(revoked.rows for revoked in known), "picture")
        behind = f"; made from {count(len(result.made_from), 'other model')}, {rows} of theirs revoked"
        behind += f", {stated:,} by a statement alone" if stated else ""
        behind += f", {doubtful:,} unknown" if doubtful else ""
    return [
        f"{result.name} version {result.version} ({aliases}): {result.training_rows:,} pictures of manifest "
        f"{result.manifest_id[:16]}, {result.images_seen:,} images seen; {revoked}{behind}"
    ]


def show(result: VersionTrace) -> None:
    """Prints the answer for a person."""
    from rich.console import Console

    lines = [f"{'run':<13}{result.run_id or 'unknown'}"]
    for ancestor in result.manifests:
        made = f"{ancestor.created_at:%Y-%m-%d}" if ancestor.created_at else ancestor.why or ""
        label = ancestor.relation.replace("_", " ")
        lines.append(f"{label:<13}{(ancestor.id or 'unknown')[:16]}  {ancestor.uri}  {made}")
    lines += [
        f"{'training set':<13}{result.training_rows:,} pictures, {result.training_set_digest_kind} digest "
        f"{result.training_set_digest}",
        f"{'left out':<13}{result.excluded_rows:,} that a takedown revoked before it was trained",
        *(f"{'ledger':<13}{asked.uri} at {asked.version[:16]}" for asked in result.ledgers),
    ]
    for title, counted in (("datasets", result.datasets), ("domains", result.domains), ("licences", result.licences)):
        shown = ", ".join(f"{name} {n:,}" for name, n in list(counted.items())[:_SHOWN]) or "unknown"
        more = f", and {len(counted) - _SHOWN:,} more" if len(counted) > _SHOWN else ""
        lines.append(f"{title:<13}{shown}{more}")
    if result.revoked is not None:
        lines += [f"{'revoked':<13}{n:,} pictures by entry {entry}" for entry, n in result.revoked.entries.items()]
    for model in result.made_from:
        trained = "what it was trained on is not known"
        if model.training_rows is not None:
            trained = f"{model.training_rows:,} pictures, digest {model.training_set_digest or 'unknown'}"
        share = "revoked share unknown"
        if model.revoked is not None:
            share = f"{model.revoked.rows:,} revoked by now ({model.revoked.share:.2%})"
        label = "made from" if model.through is None else "behind that"
        lines.append(f"{label:<13}{model.kind} {model.name}: {trained}; {share}")
        lines += [f"{'':<13}{model.statement.told}"] if model.statement is not None else []
        lines += [f"{'':<13}{note}" for note in model.notes]
    lines += [f"{'examined':<13}{value} by entry {entry}" for entry, value in result.takedowns.items()]
    lines += [f"{'not known':<13}{note}" for note in result.notes]
    console = Console()
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
