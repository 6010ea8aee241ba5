"""The model registry: bundles become versions, and names lead back to bundles."""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from curation.errors import UserError
from training import dependencies
from training.bundle import INFO_FILE, BundleInfo, local_bundle, read_info, verify
from training.folders import cache_root
from training.tracking.runs import check_run
from training.tracking.server import DEFAULT_EXPERIMENT, TAG, client_of, every, experiment_id_of, is_missing

if TYPE_CHECKING:
    from mlflow import MlflowClient

DEFAULT_ALIAS = "champion"
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
    client, artifacts = client_of(tracking_uri)
    check_run(client, run_id)
    digest = _bundle_digest(bundle)
    found = _version_with(client, name, digest)
    if found is None:
        told = {**_tags(info, digest), **_parent(client, info), **(extra_tags or {})}
        tags = {TAG + key: value for key, value in told.items()}
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
        "held_out_rows": str(info.held_out_rows),
        "ledger_uri": info.ledger_uri or "none",
        "config_sha256": info.config_sha256,
        "state_sha256": info.state_sha256,
        "images_seen": str(info.images_seen),
        "seed": str(info.job.get("seed", "unknown")),
        "takedown_ledger_version": info.takedown_ledger_version or "none",
        **({} if info.distilled_from is None else {"distilled_from": info.distilled_from}),
        **({dependencies.TAG: dependencies.to_tag(info.depends_on)} if info.depends_on else {}),
    }


def _parent(client: MlflowClient, info: BundleInfo) -> dict[str, str]:
    """Which version a student's teacher is, as `NAME/3`; nothing where it is no student, or its teacher is not here."""
    if info.distilled_from is None:
        return {}
    parent = next(_versions_with(client, info.distilled_from), None)
    return {} if parent is None else {"parent_version": f"{parent.name}/{parent.version}"}


def versions_of_bundle(sha256: str, *, tracking_uri: str | None = None) -> list[ModelVersion]:
    """The versions, of whatever name, that a bundle was registered as, by the sha256 of its `cleanplate.json`.

    A local database that is not there is not made.
    """
    if is_missing(tracking_uri):
        return []
    return [_describe(found, None, "") for found in _versions_with(client_of(tracking_uri)[0], sha256)]


def _versions_with(client: MlflowClient, sha256: str) -> Iterator[Any]:
    return every(client.search_model_versions, f"tags.`{TAG}bundle_sha256` = '{sha256}'")


def _bundle_digest(bundle: str) -> str:
    """sha256 of `cleanplate.json`, which holds the sha256 of every other file."""
    return hashlib.sha256((Path(bundle) / INFO_FILE).read_bytes()).hexdigest()


def _create_version(
    client: MlflowClient, artifacts: Path | None, bundle: str, name: str, run_id: str | None, tags: dict[str, str]
) -> Any:
    from mlflow.entities import LoggedModelOutput
    from mlflow.exceptions import MlflowException

    if run_id is None:
        experiment_id = experiment_id_of(client, DEFAULT_EXPERIMENT, artifacts)
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
    tags = {**tags, TAG + "model_id": model.model_id}
    return client.create_model_version(
        name, source=f"models:/{model.model_id}", run_id=run_id, tags=tags, model_id=model.model_id
    )


def _version_with(client: MlflowClient, name: str, digest: str) -> Any | None:
    for version in client.search_model_versions(f"name = '{name}'"):
        if version.tags.get(TAG + "bundle_sha256") == digest:
            return version
    return None


def _describe(version: Any, alias: str | None, bundle: str) -> ModelVersion:
    tags = {key.removeprefix(TAG): value for key, value in version.tags.items()}
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
    return _describe(look_up(client_of(tracking_uri)[0], name, version, alias), alias, "")


def is_registered(model: str) -> bool:
    """Whether a name leads to the registry; else it is the folder of a bundle."""
    return not model.startswith("s3://") and (model.startswith("models:/") or not (Path(model) / INFO_FILE).is_file())


def resolve(model: str, *, tracking_uri: str | None = None, cache: str | None = None) -> ModelVersion:
    """The bundle behind a name, as a local folder.

    Args:
        model: `models:/NAME@alias`, `models:/NAME/3`, `NAME` (its champion), or a bundle's folder.
        cache: where downloaded bundles are kept; `$XDG_CACHE_HOME/cleanplate/models` by default. A version is
            immutable, so it is downloaded once.

    Raises:
        UserError: no such model, version or alias, or its bundle is damaged.
    """
    if not is_registered(model):
        folder = str(local_bundle(model))
        tags = _tags(read_info(folder), _bundle_digest(folder))
        return ModelVersion(name="local", version="0", alias=None, model_id=None, run_id=None, tags=tags, bundle=folder)
    name, version, alias = _parse(model)
    client, _ = client_of(tracking_uri)
    found = look_up(client, name, version, alias)
    described = _describe(found, alias, "")
    root = Path(cache) if cache is not None else cache_root() / "models"
    return described.model_copy(update={"bundle": _download(client, described, found.source, root)})


def versions(*, tracking_uri: str | None = None) -> list[ModelVersion]:
    """All versions of all registered models, with their aliases; nothing is downloaded (`bundle` is empty)."""
    client, _ = client_of(tracking_uri)
    found = []
    for model in every(client.search_registered_models):
        aliases: dict[str, list[str]] = {}
        for alias, version in model.aliases.items():
            aliases.setdefault(str(version), []).append(alias)
        known = every(client.search_model_versions, f"name = '{model.name}'")
        for version in sorted(known, key=lambda version: int(version.version)):
            names = tuple(sorted(aliases.get(str(version.version), ())))
            found.append(_describe(version, None, "").model_copy(update={"aliases": names}))
    return found


def tag_version(name: str, version: str, tags: Mapping[str, str], *, tracking_uri: str | None = None) -> None:
    """Sets tags of a version: `takedown.<first 12 digits of the entry>` is `affected` or `resolved`.

    Raises:
        UserError: no such model or version.
    """
    client, _ = client_of(tracking_uri)
    look_up(client, name, version, None)
    for key, value in tags.items():
        client.set_model_version_tag(name, version, TAG + key, value)


def set_alias(name: str, alias: str, version: str, *, tracking_uri: str | None = None) -> str | None:
    """Points an alias at a version, wherever it pointed before.

    Returns:
        The version that had it until now; None where none had.

    Raises:
        UserError: no such model or version, or no alias that MLflow takes.
    """
    _check_name(name, alias)
    client, _ = client_of(tracking_uri)
    look_up(client, name, version, None)
    before = client.get_registered_model(name).aliases.get(alias)
    client.set_registered_model_alias(name, alias, version)
    return None if before is None else str(before)


def only_model(*, tracking_uri: str | None = None) -> str:
    """The name of the one registered model, for commands that were given none.

    Raises:
        UserError: none is registered, or several are.
    """
    names = sorted(found.name for found in client_of(tracking_uri)[0].search_registered_models(max_results=20))
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


def look_up(client: MlflowClient, name: str, version: str | None, alias: str | None) -> Any:
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


def info_of(version: ModelVersion, *, tracking_uri: str | None = None) -> BundleInfo:
    """The description of a version's bundle, without its weights.

    Raises:
        UserError: it cannot be had, or is damaged.
    """
    if version.bundle:
        return read_info(version.bundle)
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    client, _ = client_of(tracking_uri)
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
