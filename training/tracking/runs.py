"""Runs: what the driver logs while it trains, and what can be asked of runs afterwards."""

from __future__ import annotations

import contextlib
import tempfile
import warnings
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

from curation.errors import UserError
from training import dependencies
from training.progress import Point
from training.roster import FILE as ROSTER_FILE
from training.roster import Roster
from training.tracking.server import TAG, client_of, every, experiment_id_of

if TYPE_CHECKING:
    from mlflow import MlflowClient

LINEAGE = "lineage"
"""Folder of a run's artifacts that says what it was trained on."""
VALIDATION = "validation"
"""Of evaluations in the loop: what their metrics' names begin with, and the folder of their files."""


class RunRecord(BaseModel):
    """A training run as the tracking server knows it; tags without their prefix."""

    model_config = ConfigDict(frozen=True)
    run_id: str
    name: str
    status: str
    started_at: datetime
    tags: dict[str, str]


class Run:
    """A run that the driver owns. A restarted job finds its run again and adds to it."""

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self._client = client
        self.run_id = run_id
        history = client.get_metric_history(run_id, "loss")
        self._logged = max((metric.step for metric in history), default=-1)

    @classmethod
    def start(
        cls, name: str, *, uri: str | None, experiment: str, known_run_id: str | None, tags: Mapping[str, str]
    ) -> Run:
        """Continues `known_run_id` if the server has it, else makes a new run.

        Raises:
            UserError: a tracking URI that MLflow does not take, or a deleted experiment.
        """
        from mlflow.exceptions import MlflowException

        client, artifacts = client_of(uri)
        if known_run_id is not None:
            try:
                if client.get_run(known_run_id).info.lifecycle_stage == "active":
                    client.update_run(known_run_id, status="RUNNING")
                    for key, value in tags.items():  # the ledger may have grown since
                        client.set_tag(known_run_id, TAG + key, value)
                    return cls(client, known_run_id)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
        experiment_id = experiment_id_of(client, experiment, artifacts)
        run = client.create_run(experiment_id, run_name=name, tags={TAG + key: v for key, v in tags.items()})
        return cls(client, run.info.run_id)

    def params(self, values: Mapping[str, Any]) -> None:
        """Logs a nested mapping as dotted parameters; those that the run has already are left alone."""
        from mlflow.entities import Param

        have = self._client.get_run(self.run_id).data.params
        flat = [Param(key, str(value)[:6000]) for key, value in _flat(values) if key not in have]
        for start in range(0, len(flat), 100):
            self._client.log_batch(self.run_id, params=flat[start : start + 100])

    def dataset(self, *, name: str, uri: str, digest: str) -> None:
        """Names a manifest as the run's training data."""
        from mlflow.data.dataset_source_registry import resolve_dataset_source
        from mlflow.data.meta_dataset import MetaDataset
        from mlflow.entities import DatasetInput, InputTag
        from mlflow.exceptions import MlflowException

        inputs = self._client.get_run(self.run_id).inputs
        if inputs is not None and inputs.dataset_inputs:
            return
        meta: Any = MetaDataset  # typed as abstract, though it is not
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "can be interpreted in multiple ways: LocalArtifact…, LocalArtifact…"
            source = resolve_dataset_source(uri)
        data = meta(source, name=name, digest=digest[:36])  # 36: the width of the store's column
        tags = [InputTag("mlflow.data.context", "training")]
        named = [DatasetInput(data._to_mlflow_entity(), tags)]
        try:
            self._client.log_inputs(self.run_id, named)
        except MlflowException:
            # Another run of the same manifest may have been quicker, between MLflow's look and its writing.
            self._client.log_inputs(self.run_id, named)

    def log(self, points: Sequence[Point]) -> None:
        """Logs points that the run does not have yet.

        After a restart the loop goes through the images since the last checkpoint again and measures the same; what
        stands in the run already is therefore left out, and no curve doubles back.
        """
        from mlflow.entities import Metric

        new = sorted((point for point in points if point.images > self._logged), key=lambda point: point.images)
        metrics = [
            Metric(key, value, int(point.time * 1000), point.images)
            for point in new
            for key, value in point.values.items()
        ]
        for start in range(0, len(metrics), 1000):
            self._client.log_batch(self.run_id, metrics=metrics[start : start + 1000])
        if new:
            self._logged = new[-1].images

    def evaluation(self, images: int, at: datetime, values: Mapping[str, float], files: Sequence[Path]) -> None:
        """Logs an evaluation in the loop and its files below `validation`, unless the run has it already.

        Args:
            images: seen by the checkpoint that was evaluated.
        """
        from mlflow.entities import Metric

        new = []
        for name, value in values.items():
            key = f"{VALIDATION}/{name}"
            if all(known.step != images for known in self._client.get_metric_history(self.run_id, key)):
                new.append(Metric(key, value, int(at.timestamp() * 1000), images))
        if new:  # the files first: what has its numbers has all
            for file in files:
                self.artifact(file, VALIDATION)
            self._client.log_batch(self.run_id, metrics=new)

    def training_set(self, roster: Roster) -> None:
        """Keeps which inputs the run trains on, so that proofs and traces need no manifest."""
        with tempfile.TemporaryDirectory() as scratch:
            local = Path(scratch) / ROSTER_FILE
            local.write_bytes(roster.to_parquet())
            self.artifact(local, LINEAGE)

    def dependencies(self, rosters: Mapping[str, Roster]) -> None:
        """Keeps the training sets of the models that this one is made from, by the sha256 of their bundles."""
        with tempfile.TemporaryDirectory() as scratch:
            dependencies.keep(scratch, rosters)
            for sha256 in rosters:
                copy = Path(scratch) / dependencies.FOLDER / dependencies.file_of(sha256)
                self.artifact(copy, f"{LINEAGE}/{dependencies.FOLDER}")

    def artifact(self, path: str | Path, folder: str) -> None:
        """Uploads a file into a folder of the run's artifacts."""
        self._client.log_artifact(self.run_id, str(path), folder)

    def finish(self, status: Literal["FINISHED", "FAILED"], tags: Mapping[str, str] | None = None) -> None:
        """Ends the run."""
        for key, value in (tags or {}).items():
            self._client.set_tag(self.run_id, TAG + key, value)
        self._client.set_terminated(self.run_id, status)


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for key, value in values.items():
        pairs += _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(prefix + key, value)]
    return pairs


def roster_tags(roster: Roster) -> dict[str, str]:
    """What a run's tags say of its training set; a version's, of a bundle, say the same (`_tags`)."""
    info = roster.info
    return {
        "manifest_id": info.manifest_id,
        "manifest_uri": info.manifest_uri,
        "training_set_digest": info.digest,
        "training_set_digest_kind": "merkle",
        "training_rows": str(len(roster)),
        "base_rows": str(info.base_rows),
        "excluded_rows": str(info.excluded_rows),
        "held_out_rows": str(info.held_out_rows),
        "ledger_uri": info.ledger_uri,
        "takedown_ledger_version": info.ledger_version,
    }


def knows_run(run_id: str, *, tracking_uri: str | None = None) -> bool:
    """Whether the tracking server has a run."""
    with contextlib.suppress(UserError):
        check_run(client_of(tracking_uri)[0], run_id)
        return True
    return False


def check_run(client: MlflowClient, run_id: str | None) -> None:
    from mlflow.exceptions import MlflowException

    if run_id is None:
        return
    try:
        client.get_run(run_id)
    except MlflowException as error:
        raise UserError(
            f"the tracking server has no run {run_id}: {error.message}",
            field="run_id",
            remedy="register with the tracking URI that the run was logged to, or leave the run out",
        ) from None


def runs_of(manifest_ids: Iterable[str], *, tracking_uri: str | None = None) -> list[RunRecord]:
    """The runs, also failed ones, that trained on any of some manifests, the oldest first."""
    client, _ = client_of(tracking_uri)
    experiments = [found.experiment_id for found in every(client.search_experiments)]
    found = []
    for manifest_id in sorted(set(manifest_ids)):
        only = f"tags.`{TAG}manifest_id` = '{manifest_id}'"
        for run in every(client.search_runs, experiments, only):
            tags = {k.removeprefix(TAG): v for k, v in run.data.tags.items() if k.startswith(TAG)}
            at = datetime.fromtimestamp(run.info.start_time / 1000, UTC)
            record = RunRecord(
                run_id=run.info.run_id, name=run.info.run_name, status=run.info.status, started_at=at, tags=tags
            )
            found.append(record)
    return sorted(found, key=lambda run: (run.started_at, run.run_id))


def runs(*, tracking_uri: str | None = None) -> list[RunRecord]:
    """All training runs, also failed ones and those that no version was registered of, the oldest first."""
    client, _ = client_of(tracking_uri)
    experiments = [found.experiment_id for found in every(client.search_experiments)]
    named = {
        run.data.tags[TAG + "manifest_id"]
        for run in every(client.search_runs, experiments)
        if TAG + "manifest_id" in run.data.tags
    }
    return runs_of(named, tracking_uri=tracking_uri)


def images_of_run(run_id: str, *, tracking_uri: str | None = None) -> int:
    """How many images a run has logged a loss for: what one that did not finish has seen at least."""
    history = client_of(tracking_uri)[0].get_metric_history(run_id, "loss")
    return max((metric.step for metric in history), default=0)


def experiment_of(run_id: str, *, tracking_uri: str | None = None) -> str:
    """The name of the experiment that a run belongs to."""
    client, _ = client_of(tracking_uri)
    return str(client.get_experiment(client.get_run(run_id).info.experiment_id).name)
