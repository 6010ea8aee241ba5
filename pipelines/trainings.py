"""What was trained on which pictures: every run and model version of a tracking server, held against a query."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel

from curation.errors import UserError
from pipelines.sightings import Sightings
from training.dependencies import Statement
from training.exposure import Exposure

if TYPE_CHECKING:
    from training.dependencies import Dependency
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


Verdict = Literal["trained_on", "not_trained_on", "unknown"]


class Through(BaseModel):
    """A model that a training was made from, and that was trained on the queried pictures, or may have been."""

    kind: str  # teacher, autoencoder
    name: str  # models:/NAME/VERSION where it is registered, else as it calls itself
    sha256: str
    direct: bool  # or what it was made from was made from it
    verdict: Verdict
    why: str | None = None  # what is not known, and why
    pictures: int = 0  # of those that it was trained on
    statement: Statement | None = None  # that it was not: all that the verdict rests on, where it is there

    @property
    def title(self) -> str:
        """For a person, after "through"."""
        return f"its {self.kind} {self.name}" if self.direct else f"{self.name}, the {self.kind} behind that"


class Training(BaseModel):
    """A run, or a version without one, and what of the queried pictures it was trained on, itself or through a model
    that it was made from."""

    run_id: str | None
    name: str
    status: str  # MLflow's; UNKNOWN where the run is not there
    versions: list[Version]
    manifest_id: str | None
    manifest_uri: str | None
    training_rows: int | None
    images: int | None  # samples seen in all
    verdict: Verdict
    own_verdict: Verdict = "unknown"  # by its own training set alone
    through: list[Through] = []  # models that it was made from and that were, or may have been, trained on them
    stated: list[Through] = []  # models that it was made from and of which a statement says that they were not
    why: str | None = None  # what is not known, and why
    pictures: list[Exposure] = []  # of its own training set, as are the samples that are counted
    times: int = 0  # samples that showed any of the pictures
    first: int | None = None  # the sample that showed any of them first, counted from 0

    @property
    def statements(self) -> list[str]:
        """For a person: what the verdict rests on that nobody can check."""
        return [
            f"{self.title}: {through.title}: {through.statement.told}" for through in self.stated if through.statement
        ]

    @property
    def title(self) -> str:
        """For a person: the versions, or the run where there is none."""
        return ", ".join(f"{v.name} version {v.version}" for v in self.versions) or f"run {self.name} ({self.run_id})"


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
    def by_bundle(self) -> dict[str, ModelVersion]:
        """Versions by the sha256 of their bundles."""
        return {v.tags["bundle_sha256"]: v for v in reversed(self.versions) if "bundle_sha256" in v.tags}

    @property
    def ledgers(self) -> list[str]:
        """Where the takedown ledgers lie that any training asked."""
        named = [tags.get("ledger_uri", "none") for tags in self._tags]
        return list(dict.fromkeys(uri for joined in named if joined != "none" for uri in joined.split(", ")))


def without_password(uri: str) -> str:
    """An address as it may be shown and written down."""
    return re.sub(r"^([A-Za-z][A-Za-z0-9+.-]*://)[^/?#]*@", r"\1", uri)


def registry(tracking_uri: str | None) -> Registry:
    """Reads a tracking server. A local database that is not there is not made."""
    from training import tracking

    uri = tracking.tracking_uri(tracking_uri)
    if tracking.is_missing(uri):
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
    several: list[tuple[RunRecord | None, list[ModelVersion]]]
    several = [(run, by_run.pop(run.run_id, [])) for run in known.runs]
    several += [(runs.get(str(run_id)), versions) for run_id, versions in by_run.items()]
    several += [(None, [version]) for version in alone]
    made_from = _MadeFrom(known, sightings)
    return [made_from.added(_training(known.uri, *one, sightings), *one) for one in several]


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
    ids, doubt = sightings.asked_of(roster)
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


class _MadeFrom:
    """Adds to trainings what the models were trained on that they were made from."""

    def __init__(self, known: Registry, sightings: Sightings) -> None:
        self._uri = known.uri
        self._names = {sha256: f"models:/{v.name}/{v.version}" for sha256, v in known.by_bundle.items()}
        self._sightings = sightings
        self._rosters: dict[str, Roster] = {}

    def added(self, made: Training, run: RunRecord | None, versions: list[ModelVersion]) -> Training:
        """A training with all that is behind it, and the verdict that follows."""
        from training import tracking

        of = versions[0] if versions else run
        assert of is not None
        own = made.verdict
        try:
            found = [self._through(of, d) for d in tracking.dependencies_of(of, tracking_uri=self._uri)]
        except UserError as error:
            verdict = own if own == "trained_on" else "unknown"
            return made.model_copy(update={"own_verdict": own, "verdict": verdict, "why": made.why or error.message})
        behind = [through for through in found if through.verdict != "not_trained_on"]
        verdicts = [own, *(through.verdict for through in behind)]
        why = [made.why, *(f"{through.title}: {through.why}" for through in behind if through.why)]
        return made.model_copy(
            update={
                "own_verdict": own,
                "through": behind,
                "stated": [through for through in found if through.statement is not None],
                "verdict": next(v for v in ("trained_on", "unknown", "not_trained_on") if v in verdicts),
                "why": "; ".join(filter(None, why)) or None,
            }
        )

    def _through(self, of: ModelVersion | RunRecord, dependency: Dependency) -> Through:
        from training import tracking

        made = Through(
            kind=dependency.kind,
            name=self._names.get(dependency.sha256, dependency.name),
            sha256=dependency.sha256,
            direct=dependency.through is None,
            verdict="unknown",
        )
        if dependency.sha256 not in self._rosters:
            try:
                roster = tracking.dependency_set(of, dependency, tracking_uri=self._uri)
            except UserError as error:  # another training may have a copy
                vouched = dependency.vouched
                if vouched is not None:
                    return made.model_copy(update={"verdict": "not_trained_on", "statement": vouched})
                return made.model_copy(update={"why": error.message})
            self._rosters[dependency.sha256] = roster
        roster = self._rosters[dependency.sha256]
        ids, doubt = self._sightings.asked_of(roster)
        hits = ids & set(roster.ids)
        if hits:
            return made.model_copy(update={"verdict": "trained_on", "pictures": len(hits), "why": doubt})
        return made.model_copy(update={"verdict": "unknown" if doubt else "not_trained_on", "why": doubt})


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
