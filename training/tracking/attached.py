"""What is attached to a version after it was registered: evaluations, exports and indexes of training pictures."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from curation import storage
from curation.errors import UserError
from training.exported import FOLDER as EXPORT_FOLDER
from training.exported import REPORT_FILE as EXPORT_REPORT
from training.neighbours.index import FOLDER as NEIGHBOURS_FOLDER
from training.neighbours.index import INFO_FILE as NEIGHBOURS_INFO
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
    _attach(_EXPORT, version, folder, tags, tracking_uri)


def export_of(version: ModelVersion, *, tracking_uri: str | None = None) -> Path:
    """The folder of a version's export, as `resolve` gave the version; a bundle's own where it has no version.

    A bundle that was downloaded before the export was attached is completed. The report is checked against the
    version's tag, the other files against the report by whoever opens them (`training.exported.load_exported`).

    Raises:
        UserError: nothing was exported, or what is attached is not what the tag says.
    """
    return _attached(_EXPORT, version, tracking_uri)


def attach_neighbours(
    version: ModelVersion, folder: Path, tags: Mapping[str, str], *, tracking_uri: str | None = None
) -> None:
    """Attaches an index of training pictures (`training.neighbours`) to a version; as `attach_export`.

    Args:
        tags: `neighbours.…` ones; `neighbours.sha256` is set last.
    """
    _attach(_NEIGHBOURS, version, folder, tags, tracking_uri)


def neighbours_of(version: ModelVersion, *, tracking_uri: str | None = None) -> Path | None:
    """The folder of a version's index of training pictures; None where it has none. As `export_of`.

    Raises:
        UserError: what is attached is not what the tag says.
    """
    if version.name == "local":
        folder = Path(version.bundle) / _NEIGHBOURS.folder
        return folder if (folder / _NEIGHBOURS.report).is_file() else None
    if _NEIGHBOURS.tag not in version.tags:
        return None
    return _attached(_NEIGHBOURS, version, tracking_uri)


@dataclass(frozen=True)
class _Attachment:
    """A folder of a bundle that comes later, and the file in it that vouches for the others."""

    name: str
    folder: str
    report: str
    prefix: str  # of its tags
    tag: str  # with the report's sha256
    verb: str


_EXPORT = _Attachment("export", EXPORT_FOLDER, EXPORT_REPORT, "export.", "export.report_sha256", "export")
_NEIGHBOURS = _Attachment(
    "index of neighbours", NEIGHBOURS_FOLDER, NEIGHBOURS_INFO, "neighbours.", "neighbours.sha256", "index"
)


def _attach(
    what: _Attachment, version: ModelVersion, folder: Path, tags: Mapping[str, str], tracking_uri: str | None
) -> None:
    client, _ = client_of(tracking_uri)
    found = look_up(client, version.name, version.version, None)
    if version.model_id is None:
        raise UserError(
            f"{version.name} version {version.version} was not registered by cleanplate: nothing can be attached to it",
            field="model",
            remedy=f"register its bundle with `cleanplate register`, or {what.verb} it with --set attach=false",
        )
    for key in found.tags:
        if key.startswith(TAG + what.prefix):
            client.delete_model_version_tag(version.name, version.version, key)
    client.log_model_artifacts(version.model_id, str(folder), what.folder)
    report = storage.sha256_of(folder / what.report)
    for key, value in {**tags, what.tag: report}.items():
        client.set_model_version_tag(version.name, version.version, TAG + key, value)


def _attached(what: _Attachment, version: ModelVersion, tracking_uri: str | None) -> Path:
    folder = Path(version.bundle) / what.folder
    if version.name == "local":
        return folder
    told, expected = f"{version.name} version {version.version}", version.tags.get(what.tag)
    if expected is None:
        raise UserError(
            f"{told} has no {what.name}",
            field="model",
            remedy=f"cleanplate {what.verb} models:/{version.name}/{version.version}",
        )
    if not _vouches(folder / what.report, expected):
        _download(client_of(tracking_uri)[0], what, version, folder)
    if not _vouches(folder / what.report, expected):
        raise UserError(
            f"the {what.name} attached to {told} was changed", field="model", remedy=f"{what.verb} it again"
        )
    return folder


def _vouches(report: Path, expected: str) -> bool:
    return report.is_file() and storage.sha256_of(report) == expected


def _download(client: MlflowClient, what: _Attachment, version: ModelVersion, folder: Path) -> None:
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    staging = folder.with_name(f".{uuid.uuid4().hex[:8]}.partial")
    staging.mkdir(parents=True)
    try:
        place = client.get_logged_model(str(version.model_id)).artifact_location
        download_artifacts(f"{place}/{what.folder}", dst_path=str(staging), tracking_uri=client.tracking_uri)
        shutil.rmtree(folder, ignore_errors=True)
        (staging / what.folder).rename(folder)
    except (MlflowException, OSError) as error:
        if not (folder / what.report).is_file():  # else another process was quicker
            raise UserError(
                f"the {what.name} of {version.name} version {version.version} cannot be had: {error}",
                field="model",
                remedy=f"restore the tracking server's artifacts, or {what.verb} it again",
            ) from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)
