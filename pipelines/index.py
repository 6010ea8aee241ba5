"""`cleanplate index`: which pictures a model was trained on, in a form that a server searches (`training.neighbours`).

The exact training set is in it: the model's own and those of the models that it was made from. It is calibrated with
pictures of the same manifest that the model was not trained on, or of another one. What was taken down stays in it, so
that no copy of it leaves unseen; it is never shown, and has no thumbnail.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from curation import storage
from curation.clip import ClipConfig
from curation.errors import UserError
from curation.manifest import Manifest, Name
from pipelines import config

if TYPE_CHECKING:
    from training.neighbours.building import Trained
    from training.roster import Roster
    from training.tracking import ModelVersion


class ThumbnailsConfig(BaseModel):
    """Which training pictures a server may show small beside their creators' names."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    licences: tuple[str, ...] = Field(
        (
            "CC0-1.0",
            "CC-PDM-1.0",
            *(f"CC-BY{sa}-{n}" for sa in ("", "-SA") for n in ("1.0", "2.0", "2.5", "3.0", "4.0")),
        ),
        description="SPDX identifiers, or the source's own words; '*': all, also what states none",
    )
    side: int = Field(64, ge=16, le=256, description="pixels at most")

    def permit(self, licence: str | None) -> bool:
        """Whether a picture of this stated licence may be shown."""
        from curation.rights.licences import normalise

        named = {normalise(allowed) for allowed in self.licences}
        return "*" in named or (licence is not None and normalise(licence) in named)


class IndexJob(BaseModel):
    """`kind: index`: a model version or a bundle in, an index of its training pictures out."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["index"] = "index"
    name: Name = Field("index", description="of the job, where it is submitted to a cluster")
    model: str = Field(description="models:/NAME/3, models:/NAME@alias, NAME, or a bundle's folder")
    manifest: str | None = Field(None, description="what it was trained on; null: where its training says that it lies")
    holdout: str | None = Field(
        None,
        description="a manifest with pictures that it was not trained on; null: those of `manifest` that it was not",
    )
    ledger: str | None = Field(None, description="takedown ledger; null: those that concern the manifests")
    clip: ClipConfig = Field(ClipConfig(), description="the CLIP of the server's job")
    thumbnails: ThumbnailsConfig = ThumbnailsConfig()
    out: str | None = Field(None, description="a folder on this machine; null: `neighbours` in the bundle's")
    attach: bool = Field(True, description="whether it becomes a part of the registered version")
    tracking_uri: str | None = Field(
        None, description="MLflow; null: $MLFLOW_TRACKING_URI, else sqlite:///runs/mlflow.db"
    )


class Indexed(BaseModel):
    """The index that was made."""

    model: str
    version: str
    folder: str
    sha256: str
    attached: bool
    pictures: int
    thumbnails: int
    calibrated_with: str
    missing: tuple[str, ...]


def job_of(subject: str, sets: Sequence[str], *, out: str | None) -> IndexJob:
    """The job of a command line: of a job file, or of a model and the defaults.

    Raises:
        UserError: for anything wrong with the file, the overrides or the job.
    """
    if subject == config.STDIN or subject.endswith((".yaml", ".yml")):
        job: IndexJob = config.load_job(subject, sets, kind="index")
    else:
        job = config.build({"kind": "index", "model": subject}, sets)
    return job if out is None else job.model_copy(update={"out": out})


def plan(job: IndexJob) -> dict[str, Any]:
    """What indexing would take; checks that the model and its training set are there."""
    from training.tracking import find, resolve, training_set

    version = find(job.model, tracking_uri=job.tracking_uri) if job.model.startswith("models:/") else None
    version = version or resolve(job.model, tracking_uri=job.tracking_uri)
    return {"pictures": len(training_set(version, tracking_uri=job.tracking_uri)), "cpus": 1, "gpus": 0}


def run(job: IndexJob) -> Indexed:
    """Makes the index and attaches it to the version.

    Raises:
        UserError: no such model, a training set that is not on record, or a manifest that cannot be read.
    """
    import torch

    from pipelines.evaluate import embedder
    from training import tracking
    from training.neighbours.building import Thumbnails, build
    from training.neighbours.index import FOLDER, INFO_FILE

    if job.out is not None and storage.is_remote(job.out):
        raise UserError(f"{job.out} is no folder on this machine", field="out", remedy="name a folder here")
    version = tracking.resolve(job.model, tracking_uri=job.tracking_uri)
    trained, missing = _trained(job, version)
    revoked, ledgers = _revoked(job, trained)
    folder = Path(version.bundle) / FOLDER if job.out is None else Path(job.out)
    print(f"indexing {sum(len(t.roster) for t in trained):,} training pictures", file=sys.stderr, flush=True)
    clip = job.clip.build()
    info = build(
        folder,
        trained,
        _held_out(job, trained, revoked),
        embedder(clip),
        clip=clip.name,
        dim=clip.dim,
        thumbnails=Thumbnails(job.thumbnails.licences, job.thumbnails.permit, frozenset(revoked), job.thumbnails.side),
        ledgers=ledgers,
        missing=missing,
        device="cuda" if job.clip.device != "cpu" and torch.cuda.is_available() else "cpu",
    )
    attached = job.attach and version.name != "local"
    if attached:
        tags = {"neighbours.pictures": str(info.pictures), "neighbours.clip": info.clip}
        tracking.attach_neighbours(version, folder, tags, tracking_uri=job.tracking_uri)
    real = f"{len(info.calibration.ratios)} {info.calibration.kind.replace('_', ' ')}"
    return Indexed(
        model=version.name,
        version=version.version,
        folder=str(folder),
        sha256=storage.sha256_of(folder / INFO_FILE),
        attached=attached,
        pictures=info.pictures,
        thumbnails=info.thumbnails,
        calibrated_with=real,
        missing=info.missing,
    )


def _trained(job: IndexJob, version: ModelVersion) -> tuple[list[Trained], list[str]]:
    """The training sets of a version and of all that it was made from, and those that cannot be had."""
    from training import tracking
    from training.neighbours.building import Trained

    own = tracking.training_set(version, tracking_uri=job.tracking_uri)
    made = [Trained(version.tags["bundle_sha256"], own, Manifest.open(job.manifest or own.info.manifest_uri))]
    missing = []
    for dependency in tracking.dependencies_of(version, tracking_uri=job.tracking_uri):
        try:
            roster = tracking.dependency_set(version, dependency, tracking_uri=job.tracking_uri)
            made.append(Trained(dependency.sha256, roster, Manifest.open(roster.info.manifest_uri)))
        except UserError as error:
            missing.append(f"those of its {dependency.kind} {dependency.name}: {error.message}")
    return made, missing


def _revoked(job: IndexJob, trained: Sequence[Trained]) -> tuple[set[str], list[str]]:
    """The ids of what was taken down, and the ledgers that said so."""
    from training import consent
    from training.roster import NO_LEDGER

    asked = [consent.ask(manifest, job.ledger) for manifest in {t.manifest.id: t.manifest for t in trained}.values()]
    named = [*(a.ledger_uri for a in asked), *(t.roster.info.ledger_uri for t in trained)]
    ledgers = dict.fromkeys(uri for joined in named if joined != NO_LEDGER for uri in joined.split(", "))
    return {id_ for a in asked for id_ in a.revoked}, list(ledgers)


def _held_out(job: IndexJob, trained: Sequence[Trained], revoked: set[str]) -> list[tuple[Manifest, Roster]]:
    """Kept pictures that no training set has, and that may be used."""
    from training import consent
    from training.roster import Roster

    source = trained[0].manifest if job.holdout is None else Manifest.open(job.holdout)
    if job.holdout is not None:
        revoked = revoked | set(consent.ask(source, job.ledger).revoked)
    known = {id_ for one in trained for id_ in one.roster.ids}
    try:
        return [(source, Roster.of_manifest(source, known | revoked))]
    except UserError:  # nothing is left
        return []


def summary(result: Indexed) -> list[str]:
    """The result for a person."""
    lines = [
        f"{result.pictures:,} training pictures, {result.thumbnails:,} of them with a thumbnail, in {result.folder}",
        f"what is a copy is calibrated with {result.calibrated_with} pictures",
        *(f"missing  {what}" for what in result.missing),
    ]
    if result.attached:
        lines.append(f"attached to {result.model} version {result.version}  sha256 {result.sha256}")
    return lines
