"""MLflow: runs and the model registry. The only file that imports it.

One process writes: the driver. Workers never speak to the tracking server; they hand their points to the driver.
A bundle is registered through MLflow's logged-model calls, which store the folder as it is: no flavour, no pickle.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import shutil
import tempfile
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

from curation.errors import UserError
from training.bundle import INFO_FILE, BundleInfo, local_bundle, read_info, verify
from training.exported import FOLDER as EXPORT_FOLDER
from training.exported import REPORT_FILE as EXPORT_REPORT
from training.folders import cache_root
from training.progress import Point
from training.roster import FILE as ROSTER_FILE
from training.roster import Roster

if TYPE_CHECKING:
    from mlflow import MlflowClient

DEFAULT_URI = "sqlite:///runs/mlflow.db"
DEFAULT_EXPERIMENT = "cleanplate"
DEFAULT_ALIAS = "champion"
_TAG = "cleanplate."
_LINEAGE = "lineage"  # folder of a run's artifacts
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


class ModelVersion(BaseModel):
    """A registered version of a model, or a bundle's folder taken as it is (`name="local"`, `version="0"`)."""

    model_config = ConfigDict(frozen=True)
    name: str
    version: str
    alias: str | None
    model_id: str | None
    run_id: str | None
    tags: dict[str, str]
    bundle: str
    aliases: tuple[str, ...] = ()


class RunRecord(BaseModel):
    """A training run as the tracking server knows it; tags without their prefix."""

    model_config = ConfigDict(frozen=True)
    run_id: str
    name: str
    status: str
    started_at: datetime
    tags: dict[str, str]


def tracking_uri(given: str | None) -> str:
    """The tracking server: the given one, else `MLFLOW_TRACKING_URI`, else SQLite in ./runs."""
    return given or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI


def _client(given: str | None) -> tuple[MlflowClient, Path | None]:
    """A client, and where artifacts go when the store is SQLite (MLflow's default would be the working directory).

    Raises:
        UserError: a URI that this MLflow does not take.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read at import: no calls home from a rights tool
    os.environ.setdefault("DO_NOT_TRACK", "true")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    import mlflow
    from mlflow.exceptions import MlflowException

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    uri, artifacts = tracking_uri(given), None
    if uri.startswith("sqlite:///"):
        database = Path(uri.removeprefix("sqlite:///")).absolute()
        database.parent.mkdir(parents=True, exist_ok=True)
        uri, artifacts = f"sqlite:///{database}", database.parent / "mlartifacts"
    try:
        # the registry looks logged models up in the global store, whatever the client was made with
        mlflow.set_tracking_uri(uri)
        return mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri), artifacts
    except MlflowException as error:
        raise UserError(
            f"MLflow does not take the tracking URI {uri}: {error.message}",
            field="tracking.uri",
            remedy="use sqlite:///path/to/mlflow.db or the http(s) address of a tracking server",
        ) from None


def _experiment(client: MlflowClient, name: str, artifacts: Path | None) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is not None:
        if found.lifecycle_stage != "active":
            raise UserError(
                f"the MLflow experiment {name} was deleted",
                field="tracking.experiment",
                remedy=f"restore it (mlflow experiments restore -x {found.experiment_id}) or name another one",
            )
        return str(found.experiment_id)
    try:
        return str(client.create_experiment(name, None if artifacts is None else (artifacts / name).as_uri()))
    except MlflowException:
        created = client.get_experiment_by_name(name)  # somebody else was quicker
        if created is None:
            raise
        return str(created.experiment_id)


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

        client, artifacts = _client(uri)
        if known_run_id is not None:
            try:
                if client.get_run(known_run_id).info.lifecycle_stage == "active":
                    client.update_run(known_run_id, status="RUNNING")
                    for key, value in tags.items():  # the ledger may have grown since
                        client.set_tag(known_run_id, _TAG + key, value)
                    return cls(client, known_run_id)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
        experiment_id = _experiment(client, experiment, artifacts)
        run = client.create_run(experiment_id, run_name=name, tags={_TAG + key: v for key, v in tags.items()})
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

        inputs = self._client.get_run(self.run_id).inputs
        if inputs is not None and inputs.dataset_inputs:
            return
        meta: Any = MetaDataset  # typed as abstract, though it is not
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "can be interpreted in multiple ways: LocalArtifact…, LocalArtifact…"
            source = resolve_dataset_source(uri)
        data = meta(source, name=name, digest=digest[:36])  # 36: the width of the store's column
        tags = [InputTag("mlflow.data.context", "training")]
        self._client.log_inputs(self.run_id, [DatasetInput(data._to_mlflow_entity(), tags)])

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

    def training_set(self, roster: Roster) -> None:
        """Keeps which inputs the run trains on, so that proofs and traces need no manifest."""
        with tempfile.TemporaryDirectory() as scratch:
            local = Path(scratch) / ROSTER_FILE
            local.write_bytes(roster.to_parquet())
            self.artifact(local, _LINEAGE)

    def artifact(self, path: str | Path, folder: str) -> None:
        """Uploads a file into a folder of the run's artifacts."""
        self._client.log_artifact(self.run_id, str(path), folder)

    def finish(self, status: Literal["FINISHED", "FAILED"], tags: Mapping[str, str] | None = None) -> None:
        """Ends the run."""
        for key, value in (tags or {}).items():
            self._client.set_tag(self.run_id, _TAG + key, value)
        self._client.set_terminated(self.run_id, status)


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for key, value in values.items():
        pairs += _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(prefix + key, value)]
    return pairs


def register(
    bundle: str,
    name: str,
    *,
    alias: str | None = DEFAULT_ALIAS,
    tracking_uri: str | None = None,
    run_id: str | None = None,
    extra_tags: Mapping[str, str] | None = None,
) -> ModelVersion:
    """Makes a bundle a version of the registered model `name` and points `alias` at it.

    The same bundle registered twice is one version; the alias is then moved to it.

    Raises:
        UserError: no whole bundle there, or a name or alias that MLflow does not take.
    """
    _check_name(name, alias)
    bundle = str(local_bundle(bundle))
    info = read_info(bundle)
    verify(bundle, info)
    client, artifacts = _client(tracking_uri)
    _check_run(client, run_id)
    digest = _bundle_digest(bundle)
    found = _version_with(client, name, digest)
    if found is None:
        told = {**_tags(info, digest), **_parent(client, info), **(extra_tags or {})}
        tags = {_TAG + key: value for key, value in told.items()}
        found = _create_version(client, artifacts, bundle, name, run_id, tags)
    if alias is not None:
        client.set_registered_model_alias(name, alias, found.version)
    return _describe(found, alias, bundle)


def _check_name(name: str, alias: str | None) -> None:
    if not _NAME.fullmatch(name) or name == "local":
        raise UserError(
            f"{name!r} is no name for a model",
            field="name",
            remedy="use letters, digits, '.', '_' and '-'; 'local' is taken",
        )
    if alias is not None and (not re.fullmatch(r"[a-z][a-z0-9_-]{0,99}", alias) or re.fullmatch(r"v\d+|latest", alias)):
        raise UserError(
            f"{alias!r} is no alias",
            field="alias",
            remedy="use lower-case letters, digits, '_' and '-', beginning with a letter; not v1 or latest",
        )


def check_alias(name: str, alias: str) -> None:
    """Raises UserError where MLflow does not take a name of a model, or an alias."""
    _check_name(name, alias)


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
        "ledger_uri": info.ledger_uri,
        "takedown_ledger_version": info.ledger_version,
    }


def _tags(info: BundleInfo, digest: str) -> dict[str, str]:
    return {
        "bundle_sha256": digest,
        "manifest_id": info.manifest_id,
        "manifest_uri": info.manifest_uri or "unknown",
        "training_set_digest": info.training_set_digest,
        "training_set_digest_kind": info.training_set_digest_kind,
        "training_rows": str(info.training_rows),
        "base_rows": str(info.base_rows or "unknown"),
        "excluded_rows": str(info.excluded_rows),
        "ledger_uri": info.ledger_uri or "none",
        "config_sha256": info.config_sha256,
        "state_sha256": info.state_sha256,
        "images_seen": str(info.images_seen),
        "seed": str(info.job.get("seed", "unknown")),
        "takedown_ledger_version": info.takedown_ledger_version or "none",
        **({} if info.distilled_from is None else {"distilled_from": info.distilled_from}),
    }


def _parent(client: MlflowClient, info: BundleInfo) -> dict[str, str]:
    """Which version a student's teacher is, as `NAME/3`; nothing where it is no student, or its teacher is not here."""
    if info.distilled_from is None:
        return {}
    found = _all(client.search_model_versions, f"tags.`{_TAG}bundle_sha256` = '{info.distilled_from}'")
    parent = next(iter(found), None)
    return {} if parent is None else {"parent_version": f"{parent.name}/{parent.version}"}


def _bundle_digest(bundle: str) -> str:
    """sha256 of `cleanplate.json`, which holds the sha256 of every other file."""
    return hashlib.sha256((Path(bundle) / INFO_FILE).read_bytes()).hexdigest()


def knows_run(run_id: str, *, tracking_uri: str | None = None) -> bool:
    """Whether the tracking server has a run."""
    with contextlib.suppress(UserError):
        _check_run(_client(tracking_uri)[0], run_id)
        return True
    return False


def _check_run(client: MlflowClient, run_id: str | None) -> None:
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


def _create_version(
    client: MlflowClient, artifacts: Path | None, bundle: str, name: str, run_id: str | None, tags: dict[str, str]
) -> Any:
    from mlflow.entities import LoggedModelOutput
    from mlflow.exceptions import MlflowException

    if run_id is None:
        experiment_id = _experiment(client, DEFAULT_EXPERIMENT, artifacts)
    else:
        experiment_id = client.get_run(run_id).info.experiment_id
    model = client.create_logged_model(experiment_id, name, source_run_id=run_id, tags=tags, model_type="diffusion")
    client.log_model_artifacts(model.model_id, bundle)
    client.finalize_logged_model(model.model_id, "READY")
    if run_id is not None:
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, 0)])
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    # MLflow does not lead from a version back to its logged model: the tag does
    tags = {**tags, _TAG + "model_id": model.model_id}
    return client.create_model_version(
        name, source=f"models:/{model.model_id}", run_id=run_id, tags=tags, model_id=model.model_id
    )


def _version_with(client: MlflowClient, name: str, digest: str) -> Any | None:
    for version in client.search_model_versions(f"name = '{name}'"):
        if version.tags.get(_TAG + "bundle_sha256") == digest:
            return version
    return None


def _describe(version: Any, alias: str | None, bundle: str) -> ModelVersion:
    tags = {key.removeprefix(_TAG): value for key, value in version.tags.items()}
    return ModelVersion(
        name=version.name,
        version=str(version.version),
        alias=alias,
        model_id=tags.get("model_id"),
        run_id=version.run_id or None,
        tags=tags,
        bundle=bundle,
        aliases=tuple(sorted(version.aliases or ())),
    )


def find(model: str, *, tracking_uri: str | None = None) -> ModelVersion:
    """What `resolve` finds, without downloading anything: `bundle` is empty.

    Raises:
        UserError: no such model, version or alias.
    """
    name, version, alias = _parse(model)
    return _describe(_look_up(_client(tracking_uri)[0], name, version, alias), alias, "")


def resolve(model: str, *, tracking_uri: str | None = None, cache: str | None = None) -> ModelVersion:
    """The bundle behind a name, as a local folder.

    Args:
        model: `models:/NAME@alias`, `models:/NAME/3`, `NAME` (its champion), or a bundle's folder.
        cache: where downloaded bundles are kept; `$XDG_CACHE_HOME/cleanplate/models` by default. A version is
            immutable, so it is downloaded once.

    Raises:
        UserError: no such model, version or alias, or its bundle is damaged.
    """
    if model.startswith("s3://") or (not model.startswith("models:/") and (Path(model) / INFO_FILE).is_file()):
        folder = str(local_bundle(model))
        tags = _tags(read_info(folder), _bundle_digest(folder))
        return ModelVersion(name="local", version="0", alias=None, model_id=None, run_id=None, tags=tags, bundle=folder)
    name, version, alias = _parse(model)
    client, _ = _client(tracking_uri)
    found = _look_up(client, name, version, alias)
    described = _describe(found, alias, "")
    root = Path(cache) if cache is not None else cache_root() / "models"
    return described.model_copy(update={"bundle": _download(client, described, found.source, root)})


def versions(*, tracking_uri: str | None = None) -> list[ModelVersion]:
    """All versions of all registered models, with their aliases; nothing is downloaded (`bundle` is empty)."""
    client, _ = _client(tracking_uri)
    found = []
    for model in _all(client.search_registered_models):
        aliases: dict[str, list[str]] = {}
        for alias, version in model.aliases.items():
            aliases.setdefault(str(version), []).append(alias)
        known = _all(client.search_model_versions, f"name = '{model.name}'")
        for version in sorted(known, key=lambda version: int(version.version)):
            names = tuple(sorted(aliases.get(str(version.version), ())))
            found.append(_describe(version, None, "").model_copy(update={"aliases": names}))
    return found


def runs_of(manifest_ids: Iterable[str], *, tracking_uri: str | None = None) -> list[RunRecord]:
    """The runs, also failed ones, that trained on any of some manifests, the oldest first."""
    client, _ = _client(tracking_uri)
    experiments = [found.experiment_id for found in _all(client.search_experiments)]
    found = []
    for manifest_id in sorted(set(manifest_ids)):
        only = f"tags.`{_TAG}manifest_id` = '{manifest_id}'"
        for run in _all(client.search_runs, experiments, only):
            tags = {k.removeprefix(_TAG): v for k, v in run.data.tags.items() if k.startswith(_TAG)}
            at = datetime.fromtimestamp(run.info.start_time / 1000, UTC)
            record = RunRecord(
                run_id=run.info.run_id, name=run.info.run_name, status=run.info.status, started_at=at, tags=tags
            )
            found.append(record)
    return sorted(found, key=lambda run: (run.started_at, run.run_id))


def _all(search: Callable[..., Any], *arguments: Any) -> Iterator[Any]:
    """Every result of a search that answers in pages."""
    token = None
    while True:
        page = search(*arguments, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def training_set(of: ModelVersion | str, *, tracking_uri: str | None = None) -> Roster:
    """The exact set that a model version, or the run of an id, was trained on.

    Raises:
        UserError: when it was not kept, is damaged, or is not the one that the version's digest stands for.
    """
    if isinstance(of, str):
        return _roster_of_run(_client(tracking_uri)[0], of)
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
        roster = _roster_of_run(_client(tracking_uri)[0], of.run_id)
    if roster.info.digest != of.tags["training_set_digest"]:
        raise _no_training_set(what, f"what its run kept has another digest ({roster.info.digest[:12]}…)")
    return roster


def _roster_of_run(client: MlflowClient, run_id: str) -> Roster:
    from mlflow.exceptions import MlflowException

    path = f"{_LINEAGE}/{ROSTER_FILE}"
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


def tag_version(name: str, version: str, tags: Mapping[str, str], *, tracking_uri: str | None = None) -> None:
    """Sets tags of a version: `takedown.<first 12 digits of the entry>` is `affected` or `resolved`.

    Raises:
        UserError: no such model or version.
    """
    client, _ = _client(tracking_uri)
    _look_up(client, name, version, None)
    for key, value in tags.items():
        client.set_model_version_tag(name, version, _TAG + key, value)


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
    client, _ = _client(tracking_uri)
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
    client, _ = _client(tracking_uri)
    found = _look_up(client, version.name, version.version, None)
    if version.model_id is None:
        raise UserError(
            f"{version.name} version {version.version} was not registered by cleanplate: nothing can be attached to it",
            field="model",
            remedy="register its bundle with `cleanplate register`, or export it with --set attach=false",
        )
    for key in found.tags:
        if key.startswith(_TAG + "export."):
            client.delete_model_version_tag(version.name, version.version, key)
    client.log_model_artifacts(version.model_id, str(folder), EXPORT_FOLDER)
    report = hashlib.sha256((folder / EXPORT_REPORT).read_bytes()).hexdigest()
    for key, value in {**tags, "export.report_sha256": report}.items():
        client.set_model_version_tag(version.name, version.version, _TAG + key, value)


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
        _download_export(_client(tracking_uri)[0], version, folder)
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


def set_alias(name: str, alias: str, version: str, *, tracking_uri: str | None = None) -> str | None:
    """Points an alias at a version, wherever it pointed before.

    Returns:
        The version that had it until now; None where none had.

    Raises:
        UserError: no such model or version, or no alias that MLflow takes.
    """
    _check_name(name, alias)
    client, _ = _client(tracking_uri)
    _look_up(client, name, version, None)
    before = client.get_registered_model(name).aliases.get(alias)
    client.set_registered_model_alias(name, alias, version)
    return None if before is None else str(before)


def only_model(*, tracking_uri: str | None = None) -> str:
    """The name of the one registered model, for commands that were given none.

    Raises:
        UserError: none is registered, or several are.
    """
    names = sorted(found.name for found in _client(tracking_uri)[0].search_registered_models(max_results=20))
    if len(names) == 1:
        return str(names[0])
    raise UserError(
        f"{len(names)} models are registered: {', '.join(names)}" if names else "no model is registered",
        field="model",
        remedy="name one of them" if names else "train and register one, or set MLFLOW_TRACKING_URI",
    )


def _parse(model: str) -> tuple[str, str | None, str | None]:
    match = re.fullmatch(r"(?:models:/)?([^/@:]+)(?:@([^/@]+)|/(\d+))?", model)
    if match is None or not _NAME.fullmatch(match[1]):
        looks_like_path = "/" in model and not model.startswith("models:/")
        raise UserError(
            f"no bundle at {model}" if looks_like_path else f"{model!r} names no model",
            field="model",
            remedy="use models:/NAME@alias, models:/NAME/VERSION, NAME, or the folder of a bundle",
        )
    name, alias, version = match.groups()
    return name, version, alias if alias or version else DEFAULT_ALIAS


def _look_up(client: MlflowClient, name: str, version: str | None, alias: str | None) -> Any:
    from mlflow.exceptions import MlflowException

    try:
        if version is not None:
            return client.get_model_version(name, version)
        return client.get_model_version_by_alias(name, str(alias))
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "NOT_FOUND"):
            raise
    try:
        registered = client.get_registered_model(name)
    except MlflowException:
        known = ", ".join(sorted(found.name for found in client.search_registered_models(max_results=20)))
        raise UserError(
            f"no model is registered as {name}",
            field="model",
            remedy=f"register one with `cleanplate register`; registered here: {known or 'none'}",
        ) from None
    aliases = ", ".join(sorted(registered.aliases)) or "none"
    what = f"version {version}" if version is not None else f"alias {alias}"
    raise UserError(f"{name} has no {what}", field="model", remedy=f"its aliases: {aliases}; or name a version")


def _download(client: MlflowClient, version: ModelVersion, source: str, root: Path) -> str:
    from mlflow.artifacts import download_artifacts

    # named after the contents: two servers may both have a version 1 of one name
    target = root / f"{version.name}-{version.version}-{version.tags.get('bundle_sha256', version.model_id)}"[:200]
    if not (target / INFO_FILE).is_file():
        staging = root / f".{uuid.uuid4().hex[:8]}.partial"
        staging.mkdir(parents=True)
        uri = client.tracking_uri
        try:
            download_artifacts(source, dst_path=str(staging), tracking_uri=uri, registry_uri=uri)
            verify(staging, read_info(staging))
            shutil.rmtree(target, ignore_errors=True)
            staging.rename(target)
        except OSError:
            if not (target / INFO_FILE).is_file():  # else another process put the same bundle there meanwhile
                raise
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return str(target)


def runs(*, tracking_uri: str | None = None) -> list[RunRecord]:
    """All training runs, also failed ones and those that no version was registered of, the oldest first."""
    client, _ = _client(tracking_uri)
    experiments = [found.experiment_id for found in _all(client.search_experiments)]
    named = {
        run.data.tags[_TAG + "manifest_id"]
        for run in _all(client.search_runs, experiments)
        if _TAG + "manifest_id" in run.data.tags
    }
    return runs_of(named, tracking_uri=tracking_uri)


def images_of_run(run_id: str, *, tracking_uri: str | None = None) -> int:
    """How many images a run has logged a loss for: what one that did not finish has seen at least."""
    history = _client(tracking_uri)[0].get_metric_history(run_id, "loss")
    return max((metric.step for metric in history), default=0)


def info_of(version: ModelVersion, *, tracking_uri: str | None = None) -> BundleInfo:
    """The description of a version's bundle, without its weights.

    Raises:
        UserError: it cannot be had, or is damaged.
    """
    if version.bundle:
        return read_info(version.bundle)
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    client, _ = _client(tracking_uri)
    with tempfile.TemporaryDirectory() as scratch:
        try:
            place = client.get_logged_model(str(version.model_id)).artifact_location
            download_artifacts(f"{place}/{INFO_FILE}", dst_path=scratch, tracking_uri=client.tracking_uri)
        except (MlflowException, OSError) as error:
            raise UserError(
                f"the bundle of {version.name} version {version.version} cannot be had: {error}",
                field="model",
                remedy="restore the tracking server's artifacts",
            ) from None
        return read_info(scratch)


def experiment_of(run_id: str, *, tracking_uri: str | None = None) -> str:
    """The name of the experiment that a run belongs to."""
    client, _ = _client(tracking_uri)
    return str(client.get_experiment(client.get_run(run_id).info.experiment_id).name)
