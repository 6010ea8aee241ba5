"""What a takedown entry reaches: manifests, grouped by the curated one they come from, and trainings."""

from __future__ import annotations

import getpass
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from curation.errors import UserError
from pipelines.sightings import Sightings
from pipelines.takedown import open_ledger
from pipelines.trainings import Registry, Training, registry, trainings
from serving.takedowns import TAG, Examined

if TYPE_CHECKING:
    from curation.lineage import Found
    from curation.manifest import Manifest
    from curation.takedowns import Entry, Ledger, LedgerState

SHORT = 12
"""Digits of an entry's id in tags and names."""


_EXAMINED: dict[str, Examined] = {"trained_on": "affected", "not_trained_on": "unaffected", "unknown": "unknown"}


@dataclass(frozen=True)
class Family:
    """A curated manifest and what was derived from it, as far as it is known; the oldest first."""

    base_id: str
    members: list[tuple[Manifest, list[Found]]]  # each with the rows that the entry reaches and that it keeps

    @property
    def newest_with(self) -> Manifest | None:
        """The newest manifest that keeps pictures of the entry."""
        return next((manifest for manifest, rows in reversed(self.members) if rows), None)

    @property
    def derived_without(self) -> Manifest | None:
        """The newest derived manifest, if it keeps none of them."""
        derived = [(manifest, rows) for manifest, rows in self.members if manifest.info.base_id is not None]
        return derived[-1][0] if derived and not derived[-1][1] else None

    def folder_for(self, entry: str) -> str:
        """Where the plan has the derived manifest published: below the folder that the base lies in."""
        from curation import storage

        info = self.members[0][0].info
        base = info.base_uri or self.members[0][0].uri
        parent = storage.absolute(base).rstrip("/").rpartition("/")[0]
        return storage.join(parent, f"takedown-{entry[:SHORT]}-{self.base_id[:8]}")


@dataclass(frozen=True)
class Survey:
    """Everything that is known about an entry."""

    ledger: Ledger
    state: LedgerState
    entry: Entry
    known: Registry
    sightings: Sightings
    families: list[Family]  # those that keep, or kept before something was derived, pictures of the entry
    trainings: list[Training]
    unreadable: dict[str, str]  # manifests that are named somewhere and cannot be read, and why


def survey(
    id_: str, ledger: str | None, tracking_uri: str | None, manifests: Sequence[str], known: Registry | None = None
) -> Survey:
    """Looks an entry up everywhere: in the manifests that anything was trained on, those beside the ledger, those that
    were derived for it, and those that are named; and in every training.

    Raises:
        UserError: no such entry, or a ledger that cannot be read.
    """
    from curation.lineage import Query

    opened = open_ledger(ledger)
    state = opened.read()
    entry = state.entry(id_)
    known = known or registry(tracking_uri)
    sightings = Sightings(Query("entry", entry.id, (entry,)))
    families, unreadable = _families(_places(opened, state, entry, known, manifests), entry, sightings)
    return Survey(opened, state, entry, known, sightings, families, trainings(known, sightings), unreadable)


def _places(ledger: Ledger, state: LedgerState, entry: Entry, known: Registry, manifests: Sequence[str]) -> list[str]:
    """Where manifests may lie; of a folder of manifests its newest."""
    from curation import storage

    derived = [json.loads(a.detail).get("manifest") for a in state.actions_of(entry.id) if a.what == "manifest_derived"]
    places = [*manifests, *known.manifests, *(place for place in derived if place)]
    folders = [storage.absolute(place).rstrip("/").rpartition("/")[0] for place in places]
    folders.append(ledger.uri.rpartition("/")[0])
    return [*places, *filter(_has_manifests, dict.fromkeys(folders))]


def _has_manifests(folder: str) -> bool:
    """Whether manifests were published in a folder; also where that cannot be told, to be named as unreadable."""
    from curation import storage
    from curation.manifest import LATEST_FILE

    try:
        return storage.exists(storage.join(folder, LATEST_FILE))
    except (OSError, UserError):
        return True


def _families(places: Sequence[str], entry: Entry, sightings: Sightings) -> tuple[list[Family], dict[str, str]]:
    from curation.manifest import Decision

    members: dict[str, dict[str, tuple[Manifest, list[Found]]]] = {}
    unreadable: dict[str, str] = {}

    def look(place: str) -> None:
        try:
            manifest, rows = sightings.of(place)
        except UserError as error:
            unreadable[place] = error.message
            return
        kept = [row for row in rows if row.decision == Decision.KEPT]
        members.setdefault(manifest.info.base_id or manifest.id, {})[manifest.id] = (manifest, kept)

    for place in dict.fromkeys(places):
        look(place)
    for base_id, found in list(members.items()):  # what was derived for this entry, by its plan
        folder = Family(base_id, list(found.values())).folder_for(entry.id)
        if _has_manifests(folder):
            look(folder)
    families = [
        Family(base_id, sorted(found.values(), key=lambda member: member[0].info.created_at))
        for base_id, found in sorted(members.items())
    ]
    return [family for family in families if family.newest_with is not None], unreadable


def leave_tags(found: Survey) -> None:
    """Leaves the answer at every version, for serving (`serving.takedowns`), and in the audit record."""
    from training import tracking

    tag = f"{TAG}{found.entry.id[:SHORT]}"
    tags = {(v.name, v.version): v.tags for v in found.known.versions}
    for training in found.trainings:
        value = _EXAMINED[training.verdict]
        for version in training.versions:
            if tags[version.name, version.version].get(tag) != value:
                tracking.tag_version(version.name, version.version, {tag: value}, tracking_uri=found.known.uri)
            found.ledger.record_action(
                what="version_tagged",
                subject=version.model,
                by=getpass.getuser(),
                entry=found.entry.id,
                detail={
                    **{"tag": tag, "value": value, "seen": training.times},
                    **({"statements": training.statements} if training.statements else {}),
                },
                once=True,
            )
