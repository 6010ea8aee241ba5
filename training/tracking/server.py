"""Where the tracking server is, and how it is asked."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curation.errors import UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient

DEFAULT_URI = "sqlite:///runs/mlflow.db"
DEFAULT_EXPERIMENT = "cleanplate"
TAG = "cleanplate."
"""What the names of our tags begin with."""


def tracking_uri(given: str | None) -> str:
    """The tracking server: the given one, else `MLFLOW_TRACKING_URI`, else SQLite in ./runs."""
    return given or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI


def is_missing(given: str | None) -> bool:
    """Whether the tracking server is a local database that is not there; whoever asks it would make an empty one."""
    uri = tracking_uri(given)
    return uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists()


def client_of(given: str | None) -> tuple[MlflowClient, Path | None]:
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


def experiment_id_of(client: MlflowClient, name: str, artifacts: Path | None) -> str:
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


def every(search: Callable[..., Any], *arguments: Any) -> Iterator[Any]:
    """Every result of a search that answers in pages."""
    token = None
    while True:
        page = search(*arguments, page_token=token)
        yield from page
        token = page.token
        if not token:
            return
