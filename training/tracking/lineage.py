"""The exact pictures that a version or a run was trained on, as its run kept them."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from curation.errors import UserError
from training.roster import FILE as ROSTER_FILE
from training.roster import Roster
from training.tracking.registry import ModelVersion
from training.tracking.runs import LINEAGE
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


def _roster_of_run(client: MlflowClient, run_id: str) -> Roster:
    from mlflow.exceptions import MlflowException

    path = f"{LINEAGE}/{ROSTER_FILE}"
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
