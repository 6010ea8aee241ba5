"""`cleanplate register`: a trained bundle becomes a version of a model in the MLflow registry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from training.tracking import ModelVersion


class RegisterJob(BaseModel):
    """`kind: register`: a bundle in, a model version with an alias out."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["register"] = "register"
    name: str = Field(description="the registered model's name")
    bundle: str = Field(description="a bundle's folder, as `cleanplate train` prints it")
    alias: str | None = Field("champion", description="what serving follows; null registers without an alias")
    tracking_uri: str | None = Field(
        None, description="MLflow; null: $MLFLOW_TRACKING_URI, else sqlite:///runs/mlflow.db"
    )
    run_id: str | None = Field(
        None, description="the MLflow run that trained it; null: the one that its run's folder names, if it is known"
    )
    tags: dict[str, str] = Field({}, description="more tags of the version")


def plan(job: RegisterJob) -> dict[str, Any]:
    """What registering would do; checks that the bundle is there."""
    from training.bundle import local_bundle, read_info
    from training.tracking import tracking_uri

    info = read_info(local_bundle(job.bundle))
    return {"manifest_id": info.manifest_id, "tracking_uri": tracking_uri(job.tracking_uri), "cpus": 0, "gpus": 0}


def run(job: RegisterJob) -> ModelVersion:
    """Registers the bundle and moves the alias."""
    from training.tracking import register

    return register(
        job.bundle,
        job.name,
        alias=job.alias,
        tracking_uri=job.tracking_uri,
        run_id=job.run_id or _run_beside(job),
        extra_tags=job.tags,
    )


def _run_beside(job: RegisterJob) -> str | None:
    """The run whose folder the bundle lies in. Without it nothing leads from the version to its training set."""
    from curation import storage
    from training.run_record import known_run
    from training.tracking import knows_run

    folder = storage.absolute(job.bundle).rstrip("/").rpartition("/")[0]
    try:
        run_id = known_run(folder)
    except (OSError, TypeError):
        return None
    return run_id if run_id is not None and knows_run(run_id, tracking_uri=job.tracking_uri) else None


def summary(version: ModelVersion) -> list[str]:
    """The result for a person."""
    alias = f", alias {version.alias}" if version.alias else ""
    return [
        f"registered {version.name} version {version.version}{alias}",
        f"manifest {version.tags.get('manifest_id', 'unknown')}",
        f"serve it with: cleanplate serve JOB.yaml  (model: models:/{version.name}@{version.alias or version.version})",
    ]
