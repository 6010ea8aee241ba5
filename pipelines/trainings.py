"""What was trained on which pictures: every run and model version of a tracking server, held against a query."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel

from curation.errors import UserError
from training.exposure import Exposure

if TYPE_CHECKING:
    from curation.lineage import Found, Query
    from curation.manifest import Manifest
    from training.roster import Roster
    from training.tracking import ModelVersion, RunRecord


class Version(BaseModel):
    """A registered version, and the aliases that point at it now."""

    name: str
    version: str
    aliases: tuple[str, ...]

    @property
    def model(self) -> str:
        return f"models:/{self.name}/{self.version}"


class Training(BaseModel):
    """A run, or a version without one, and what of the queried pictures it was trained on."""

    run_id: str | None
    name: str
    status: str  # MLflow's; UNKNOWN where the run is not there
    versions: list[Version]
    manifest_id: str | None
    manifest_uri: str | None
    training_rows: int | None
    images: int | None  # samples seen in all
    verdict: Literal["trained_on", "not_trained_on", "unknown"]
    why: str | None = None  # what is not known, and why
    pictures: list[Exposure] = []
    times: int = 0  # samples that showed any of the pictures
    first: int | None = None  # the sample that showed any of them first, counted from 0

    @property
    def title(self) -> str:
        """For a person: the versions, or the run where there is none."""
        return ", ".join(f"{v.name} version {v.version}" for v in self.versions) or f"run {self.name} ({self.run_id})"


class Sightings:
    """Manifests, each opened and searched for a query once."""

    def __init__(self, query: Query) -> None:
        self.query = query
        self._found: dict[str, tuple[Manifest, list[Found]] | UserError] = {}

    def of(self, uri: str) -> tuple[Manifest, list[Found]]:
        """A manifest and its rows that the query is about.

        Raises:
            UserError: it cannot be read.
        """
        from pyarrow import ArrowException

        from curation.lineage import find
        from curation.manifest import Manifest

        if uri not in self._found:
            try:
                manifest = Manifest.open(uri)
                self._found[uri] = (manifest, find(manifest, self.query))
            except UserError as error:
                self._found[uri] = error
            except (OSError, ArrowException) as error:
                self._found[uri] = UserError(f"{uri} cannot be read: {error}", field="manifest")
        found = self._found[uri]
        if isinstance(found, UserError):
            raise found
        return found

    @property
    def ids(self) -> set[str]:
        """Of all rows that were found in any manifest so far, and of all files that the query names."""
        named = {s.sha256 for entry in self.query.entries for s in entry.selectors if s.sha256 is not None}
        rows = (found[1] for found in self._found.values() if not isinstance(found, UserError))
        return named | {row.id for found in rows for row in found}


@dataclass(frozen=True)
class Registry:
    """All that a tracking server knows of trainings; `note` says when there is no such server."""

    uri: str
    versions: list[ModelVersion]
    runs: list[RunRecord]
    note: str | None = None

    @property
    def shown(self) -> str:
        """Where it is, without a password."""
        return without_password(self.uri)

    @property
    def _tags(self) -> list[dict[str, str]]:
        return [run.tags for run in self.runs] + [version.tags for version in self.versions]

    @property
    def manifests(self) -> list[str]:
        """Where the manifests lay that anything was trained on, the oldest first."""
        return list(
            dict.fromkeys(t["manifest_uri"] for t in self._tags if t.get("manifest_uri", "unknown") != "unknown")
        )

    @property
    def ledgers(self) -> list[str]:
        """Where the takedown ledgers lie that any training asked."""
        named = [tags.get("ledger_uri", "none") for tags in self._tags]
        return list(dict.fromkeys(uri for joined in named if joined != "none" for uri in joined.split(", ")))


def without_password(uri: str) -> str:
    """An address as it may be shown and written down."""
    return re.sub(r"^([A-Za-z][A-Za-z0-9+.-]*://)[^/?#]*@", r"\1", uri)


def is_missing(uri: str) -> bool:
    """Whether a tracking URI names a local database that is not there; whoever asks it would make an empty one."""
    return uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists()


def registry(tracking_uri: str | None) -> Registry:
    """Reads a tracking server. A local database that is not there is not made."""
    from training import tracking

    uri = tracking.tracking_uri(tracking_uri)
    if is_missing(uri):
        return Registry(uri, [], [], f"there is no tracking database at {uri}: what was trained is not known")
    return Registry(uri, tracking.versions(tracking_uri=uri), tracking.runs(tracking_uri=uri))


def trainings(known: Registry, sightings: Sightings) -> list[Training]:
    """Every training and whether it was on what the query is about, the oldest run first.

    What a manifest says of the pictures is asked of the training's own manifest; where that cannot be read, of all
    others that were read, and then nothing can be excluded.
    """
    by_run: dict[str | None, list[ModelVersion]] = {}
    for version in known.versions:
        by_run.setdefault(version.run_id, []).append(version)
    alone = by_run.pop(None, [])
    runs = {run.run_id: run for run in known.runs}
    for uri in known.manifests:  # so that what one of them cannot tell, another may
        try:
            sightings.of(uri)
        except UserError:
            continue
    found = [_training(known.uri, run, by_run.pop(run.run_id, []), sightings) for run in known.runs]
    found += [_training(known.uri, runs.get(str(run_id)), versions, sightings) for run_id, versions in by_run.items()]
    return found + [_training(known.uri, None, [version], sightings) for version in alone]


def _training(uri: str, run: RunRecord | None, versions: list[ModelVersion], sightings: Sightings) -> Training:
    tags = {**(run.tags if run else {}), **(versions[0].tags if versions else {})}
    images = _images(uri, run, tags)
    made = Training(
        run_id=run.run_id if run else versions[0].run_id,
        name=run.name if run else versions[0].name,
        status=run.status if run else "UNKNOWN",
        versions=[Version(name=v.name, version=v.version, aliases=v.aliases) for v in versions],
        manifest_id=tags.get("manifest_id"),
        manifest_uri=tags.get("manifest_uri"),
        training_rows=_number(tags.get("training_rows")),
        images=images,
        verdict="unknown",
    )
    try:
        roster = _roster(uri, run, versions)
    except UserError as error:
        return made.model_copy(update={"why": error.message})
    ids, doubt = _ids(roster, sightings)
    seed = _number(tags.get("seed"))
    hits = ids & set(roster.ids)
    if not hits:
        return made.model_copy(update={"verdict": "unknown" if doubt else "not_trained_on", "why": doubt})
    if seed is None or images is None:
        told = "how often is not known: its run does not say with which seed, or for how long"
        return made.model_copy(update={"verdict": "trained_on", "why": told})
    if made.status not in ("FINISHED", "UNKNOWN"):
        doubt = doubt or "the run did not finish: counted up to the last image that it told of"
    return made.model_copy(update={"verdict": "trained_on", "why": doubt, **_shown(roster, seed, images, hits)})


def _shown(roster: Roster, seed: int, images: int, ids: set[str]) -> dict[str, object]:
    from training.exposure import exposures

    pictures = exposures(roster, seed, images, ids)
    firsts = [p.first for p in pictures if p.first is not None]
    return {"pictures": pictures, "times": sum(p.times for p in pictures), "first": min(firsts, default=None)}


def _roster(uri: str, run: RunRecord | None, versions: list[ModelVersion]) -> Roster:
    from training import tracking

    if versions:
        return tracking.training_set(versions[0], tracking_uri=uri)
    assert run is not None
    return tracking.training_set(run.run_id, tracking_uri=uri)


def _ids(roster: Roster, sightings: Sightings) -> tuple[set[str], str | None]:
    """The ids that a training on this roster is asked for, and why they may not be all."""
    named = {s.sha256 for entry in sightings.query.entries for s in entry.selectors if s.sha256 is not None}
    try:
        manifest, found = sightings.of(roster.info.manifest_uri)
    except UserError as error:
        return sightings.ids, f"its manifest cannot be read, so that there may be more: {error.message}"
    if manifest.id != roster.info.manifest_id:
        return sightings.ids, f"{manifest.uri} is not the manifest that it was trained on, so that there may be more"
    return named | {row.id for row in found}, None


def _images(uri: str, run: RunRecord | None, tags: dict[str, str]) -> int | None:
    """Samples of a whole training; of a run that did not finish, those that it told of."""
    from training import tracking

    if "images_seen" in tags:
        return _number(tags["images_seen"])
    if run is not None and run.status != "FINISHED":
        return tracking.images_of_run(run.run_id, tracking_uri=uri)
    return _number(tags.get("images"))


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None


def affected(found: Iterable[Training]) -> list[Training]:
    """Those that were trained on the pictures, or may have been."""
    return [training for training in found if training.verdict != "not_trained_on"]
