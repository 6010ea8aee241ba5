"""The exact pictures that a version or a run was trained on, and the models that it was made from, with theirs."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from curation.errors import UserError
from training import dependencies
from training.dependencies import Dependency
from training.roster import FILE as ROSTER_FILE
from training.roster import Roster
from training.tracking.registry import ModelVersion, versions_of_bundle
from training.tracking.runs import LINEAGE, RunRecord
from training.tracking.server import client_of

if TYPE_CHECKING:
    from mlflow import MlflowClient


def training_set(of: ModelVersion | str, *, tracking_uri: str | None = None) -> Roster:
    """The exact set that a model version, or the run of an id, was trained on.

    Raises:
        UserError: when it was not kept, is damaged, or is not the one that the version's digest stands for.
    """
    if isinstance(of, str):
        return _roster_of_run(client_of(tracking_uri)[0], of)
    what = f"{of.name} version {of.version}"
    if of.tags.get("training_set_digest_kind") != "merkle":
        raise _no_training_set(what, "it was trained before digests could prove anything")
    if of.name == "local":
        beside = Path(of.bundle).parent / ROSTER_FILE
        if not beside.is_file():
            raise _no_training_set(of.bundle, f"there is no {ROSTER_FILE} beside it")
        roster = Roster.from_parquet(beside.read_bytes(), str(beside))
    elif of.run_id is None:
        raise _no_training_set(what, "it was registered without the run that trained it")
    else:
        roster = _roster_of_run(client_of(tracking_uri)[0], of.run_id)
    if roster.info.digest != of.tags["training_set_digest"]:
        raise _no_training_set(what, f"what its run kept has another digest ({roster.info.digest[:12]}…)")
    return roster


def dependencies_of(of: ModelVersion | RunRecord, *, tracking_uri: str | None = None) -> list[Dependency]:
    """All models that a version or a run was made from, the nearest first.

    Raises:
        UserError: what its tags say of them is damaged, or it is more than `dependencies.MOST`.
    """
    return walk(dependencies.of_tags(of.tags), own=of.tags.get("bundle_sha256"), tracking_uri=tracking_uri)


def walk(named: Sequence[Dependency], *, own: str | None = None, tracking_uri: str | None = None) -> list[Dependency]:
    """What a model names as made from, and what the registry adds: an older student named its teacher alone.

    Args:
        own: sha256 of the model's own bundle; that it should depend on itself is left out.

    Raises:
        UserError: what the registry has of one of them is damaged, or it is more than `dependencies.MOST`.
    """
    found = [d for d in dependencies.unique(named) if d.sha256 != own]
    for dependency in found:  # which grows meanwhile
        for version in versions_of_bundle(dependency.sha256, tracking_uri=tracking_uri):
            further = (dependencies.behind(dependency.sha256, d) for d in dependencies.of_tags(version.tags))
            known = {own, *(d.sha256 for d in found)}
            found += [d for d in dependencies.unique(further) if d.sha256 not in known]
            dependencies.unique(found)
    return found


def dependency_set(of: ModelVersion | RunRecord, dependency: Dependency, *, tracking_uri: str | None = None) -> Roster:
    """The exact set that a model was trained on which a version or a run was made from.

    The copy that was kept with `of` is taken, or else what the registry has of the model itself.

    Raises:
        UserError: neither is there, or neither is the one that the digest stands for.
    """
    problems = ["no copy was kept"]
    try:
        copy = _copy(of, dependency.sha256, tracking_uri)
        if copy is not None and copy.info.digest == dependency.training_set_digest:
            return copy
    except UserError as error:
        problems = [error.message]
    for version in versions_of_bundle(dependency.sha256, tracking_uri=tracking_uri):
        try:
            return training_set(version, tracking_uri=tracking_uri)
        except UserError as error:
            problems.append(error.message)
    raise _no_training_set(f"the {dependency.kind} {dependency.name}", "; ".join(problems))


def rosters_of(of: ModelVersion, *, tracking_uri: str | None = None) -> dict[str, Roster]:
    """The training sets of a version and of all that it was made from, by the sha256 of their bundles.

    What cannot be had is left out: whoever asks for it later is told so.

    Raises:
        UserError: as `dependencies_of`.
    """
    found: dict[str, Roster] = {}
    own = of.tags["bundle_sha256"]
    registered = versions_of_bundle(own, tracking_uri=tracking_uri) if of.name == "local" else []
    for version in [of, *registered]:
        with contextlib.suppress(UserError):
            found[own] = training_set(version, tracking_uri=tracking_uri)
            break
    for dependency in dependencies_of(of, tracking_uri=tracking_uri):
        with contextlib.suppress(UserError):
            found[dependency.sha256] = dependency_set(of, dependency, tracking_uri=tracking_uri)
    return found


def _copy(of: ModelVersion | RunRecord, sha256: str, tracking_uri: str | None) -> Roster | None:
    name = dependencies.file_of(sha256)
    if isinstance(of, ModelVersion) and of.name == "local":
        beside = Path(of.bundle).parent / dependencies.FOLDER / name
        return Roster.from_parquet(beside.read_bytes(), str(beside)) if beside.is_file() else None
    if of.run_id is None:
        return None
    return _roster_of_run(client_of(tracking_uri)[0], of.run_id, f"{dependencies.FOLDER}/{name}")


def _roster_of_run(client: MlflowClient, run_id: str, name: str = ROSTER_FILE) -> Roster:
    from mlflow.exceptions import MlflowException

    path = f"{LINEAGE}/{name}"
    with tempfile.TemporaryDirectory() as scratch:
        try:
            data = Path(client.download_artifacts(run_id, path, scratch)).read_bytes()
        except (MlflowException, OSError) as error:
            raise _no_training_set(f"run {run_id}", f"{path} is not among its artifacts ({error})") from None
    return Roster.from_parquet(data, f"run {run_id}: {path}")


def _no_training_set(what: str, why: str) -> UserError:
    return UserError(
        f"which pictures {what} was trained on is not on record: {why}",
        field="model",
        remedy="name a version that was trained and registered with this cleanplate, and its run",
    )
