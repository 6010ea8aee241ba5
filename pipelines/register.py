"""`cleanplate register`: a trained bundle becomes a version of a model in the MLflow registry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from curation.errors import UserError

if TYPE_CHECKING:
    from training.run_record import Best
    from training.tracking import ModelVersion


class RegisterJob(BaseModel):
    """`kind: register`: a bundle in, a model version with an alias out."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["register"] = "register"
    name: str = Field(description="the registered model's name")
    bundle: str = Field(description="a bundle's folder, as `cleanplate train` prints it")
    which: Literal["last", "best"] = Field(
        "last",
        description="best: instead of it one of the best checkpoint that its run kept, made if there is none yet",
    )
    alias: str | None = Field("champion", description="what serving follows; null registers without an alias")
    tracking_uri: str | None = Field(
        None, description="MLflow; null: $MLFLOW_TRACKING_URI, else sqlite:///runs/mlflow.db"
    )
    run_id: str | None = Field(
        None, description="the MLflow run that trained it; null: the one that its run's folder names, if it is known"
    )
    tags: dict[str, str] = Field({}, description="more tags of the version")


def plan(job: RegisterJob) -> dict[str, Any]:
    """What registering would do; checks that the bundle is there, and that it is known which one is the best."""
    from pipelines.trainings import without_password
    from training.bundle import local_bundle, read_info
    from training.tracking import tracking_uri

    if job.which == "best":
        _best(job)
    info = read_info(local_bundle(job.bundle))
    return {
        "manifest_id": info.manifest_id,
        "tracking_uri": without_password(tracking_uri(job.tracking_uri)),
        "cpus": 0,
        "gpus": 0,
    }


def run(job: RegisterJob) -> ModelVersion:
    """Registers the bundle and moves the alias. What it draws here for the self-test stands in the version's tags."""
    from serving import selftest
    from training.tracking import register, tag_version

    bundle = job.bundle
    if job.which == "best":
        from training import kept

        bundle = str(kept.with_bundle(_folder(job), _best(job)).bundle)
    # before the alias moves: servers that follow it compare with them
    tests = selftest.tags_of(bundle)
    version = register(
        bundle,
        job.name,
        alias=job.alias,
        tracking_uri=job.tracking_uri,
        run_id=job.run_id or _run_beside(job),
        extra_tags={**tests, **job.tags},
    )
    # a version that was registered by an earlier release
    lacking = {key: value for key, value in tests.items() if key not in version.tags}
    tag_version(version.name, version.version, lacking, tracking_uri=job.tracking_uri)
    return version.model_copy(update={"tags": {**lacking, **version.tags}})


def _folder(job: RegisterJob) -> str:
    """The folder of the run that the bundle lies in."""
    from curation import storage

    return storage.absolute(job.bundle).rstrip("/").rpartition("/")[0]


def _best(job: RegisterJob) -> Best:
    """The best checkpoint of the run that the bundle lies in.

    Raises:
        UserError: it is no run's, or the run did not keep its best.
    """
    from training.prepare import finished

    done = finished(_folder(job))
    if done is None or done.best is None:
        raise UserError(
            f"which checkpoint is the best is not known of {job.bundle}",
            field="which",
            remedy="train with keep_best_checkpoints: 1, or use `which: last`",
        )
    return done.best


def _run_beside(job: RegisterJob) -> str | None:
    """The run whose folder the bundle lies in. Without it nothing leads from the version to its training set."""
    from training.run_record import known_run
    from training.tracking import knows_run

    try:
        run_id = known_run(_folder(job))
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
