"""What is attached to a version after it was registered: evaluations and exports."""

from __future__ import annotations

import hashlib
import shutil
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from curation.errors import UserError
from training.exported import FOLDER as EXPORT_FOLDER
from training.exported import REPORT_FILE as EXPORT_REPORT
from training.tracking.registry import ModelVersion, look_up
from training.tracking.server import TAG, client_of

if TYPE_CHECKING:
    from mlflow import MlflowClient


def log_evaluation(
    version: ModelVersion, folder: Path, metrics: Mapping[str, float], step: int, *, tracking_uri: str | None = None
) -> None:
    """Puts an evaluation's files and metrics on the run of a version, where it has one.

    Args:
        folder: all of its files go below `evaluation/VERSION`.
        metrics: by name; the same value at the same step is logged once.
        step: images that the model has seen.
    """
    from mlflow.entities import Metric

    if version.run_id is None:
        return
    client, _ = client_of(tracking_uri)
    client.log_artifacts(version.run_id, str(folder), f"evaluation/{version.version}")
    at = int(datetime.now(UTC).timestamp() * 1000)
    new = []
    for key, value in metrics.items():
        known = client.get_metric_history(version.run_id, key)
        if all((metric.step, metric.value) != (step, value) for metric in known):
            new.append(Metric(key, value, at, step))
    client.log_batch(version.run_id, metrics=new)


def attach_export(
    version: ModelVersion, folder: Path, tags: Mapping[str, str], *, tracking_uri: str | None = None
) -> None:
    """Attaches an export's folder to a version, as `onnx/` of its bundle, and says so in its tags.

    Tags of an older export go. `export.report_sha256` is set last: the report names the sha256 of every file.

    Args:
        tags: `export.…` ones.

    Raises:
        UserError: no such version, or one without a logged model.
    """
    client, _ = client_of(tracking_uri)
    found = look_up(client, version.name, version.version, None)
    if version.model_id is None:
        raise UserError(
            f"{version.name} version {version.version} was not registered by cleanplate: nothing can be attached to it",
            field="model",
            remedy="register its bundle with `cleanplate register`, or export it with --set attach=false",
        )
    for key in found.tags:
        if key.startswith(TAG + "export."):
            client.delete_model_version_tag(version.name, version.version, key)
    client.log_model_artifacts(version.model_id, str(folder), EXPORT_FOLDER)
    report = hashlib.sha256((folder / EXPORT_REPORT).read_bytes()).hexdigest()
    for key, value in {**tags, "export.report_sha256": report}.items():
        client.set_model_version_tag(version.name, version.version, TAG + key, value)


def export_of(version: ModelVersion, *, tracking_uri: str | None = None) -> Path:
    """The folder of a version's export, as `resolve` gave the version; a bundle's own where it has no version.

    A bundle that was downloaded before the export was attached is completed. The report is checked against the
    version's tag, the other files against the report by whoever opens them (`training.exported.load_exported`).

    Raises:
        UserError: nothing was exported, or what is attached is not what the tag says.
    """
    folder = Path(version.bundle) / EXPORT_FOLDER
    if version.name == "local":
        return folder
    what, expected = f"{version.name} version {version.version}", version.tags.get("export.report_sha256")
    if expected is None:
        raise UserError(
            f"{what} has no export",
            field="model",
            remedy=f"cleanplate export models:/{what.split()[0]}/{version.version}",
        )
    if not _is_report(folder, expected):
        _download_export(client_of(tracking_uri)[0], version, folder)
    if not _is_report(folder, expected):
        raise UserError(f"the export attached to {what} was changed", field="model", remedy="export it again")
    return folder


def _is_report(folder: Path, expected: str) -> bool:
    report = folder / EXPORT_REPORT
    return report.is_file() and hashlib.sha256(report.read_bytes()).hexdigest() == expected


def _download_export(client: MlflowClient, version: ModelVersion, folder: Path) -> None:
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    staging = folder.with_name(f".{uuid.uuid4().hex[:8]}.partial")
    staging.mkdir(parents=True)
    try:
        place = client.get_logged_model(str(version.model_id)).artifact_location
        download_artifacts(f"{place}/{EXPORT_FOLDER}", dst_path=str(staging), tracking_uri=client.tracking_uri)
        shutil.rmtree(folder, ignore_errors=True)
        (staging / EXPORT_FOLDER).rename(folder)
    except (MlflowException, OSError) as error:
        if not (folder / EXPORT_REPORT).is_file():  # else another process was quicker
            raise UserError(
                f"the export of {version.name} version {version.version} cannot be had: {error}",
                field="model",
                remedy="restore the tracking server's artifacts, or export it again",
            ) from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)
