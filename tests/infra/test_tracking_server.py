"""MLflow as infra/compose.yaml starts it: on PostgreSQL, its artifacts on S3, several writers at once."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import mlflow
import pytest

from pipelines.register import RegisterJob
from pipelines.register import run as register
from tests.curation.seaweed import S3, seaweed
from tests.infra import postgres
from tests.infra.tracking_server import tracking_server
from training.bundle import read_info
from training.job import TrainJob
from training.launch import launch
from training.tracking import Run, resolve

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(postgres.programs() is None, reason="PostgreSQL is not installed"),
]


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with seaweed(tmp_path_factory.mktemp("s3")) as server:
        server.client.create_bucket(Bucket="cleanplate")
        yield server


@pytest.fixture(scope="module")
def server(s3: S3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with tracking_server(s3, tmp_path_factory.mktemp("server")) as address:
        yield address


def test_runs_and_versions_of_several_writers(
    server: str, s3: S3, make_job: Callable[..., TrainJob], tower: Path, tmp_path: Path
) -> None:
    """Two trainings at once, and what each says is whole; their bundles become versions and come back from S3."""
    jobs = [make_job(workers=0, seed=seed, tracking={"uri": server, "experiment": "together"}) for seed in range(2)]
    command = [sys.executable, "-c", _TRAIN, str(tower)]
    trainings = [subprocess.Popen([*command, job.model_dump_json()], stdout=subprocess.PIPE, text=True) for job in jobs]
    for training in trainings:
        assert training.wait() == 0
    client = mlflow.MlflowClient(server)
    for number, job in enumerate(jobs, start=1):
        result = launch(job, text_encoder=str(tower))  # ended before: the result alone
        run = client.get_run(result.run_id)
        assert run.info.status == "FINISHED"
        assert [point.step for point in client.get_metric_history(result.run_id, "loss")] == list(range(8, 65, 8))
        version = register(RegisterJob(name="drawings", bundle=result.bundle, tracking_uri=server))
        assert str(version.version) == str(number)
    found = resolve("models:/drawings@champion", tracking_uri=server, cache=str(tmp_path / "cache"))
    assert str(found.version) == "2"
    assert Path(found.bundle).is_relative_to(tmp_path / "cache")
    assert read_info(found.bundle) == read_info(result.bundle)
    listed = s3.client.list_objects_v2(Bucket="cleanplate", Prefix="mlflow/")["Contents"]
    assert any(item["Key"].endswith("cleanplate.json") for item in listed)


def test_runs_that_name_one_training_set_at_once(server: str) -> None:
    for digest in ("a" * 36, "b" * 36, "c" * 36):
        fresh = [Run.start("run", uri=server, experiment="at once", known_run_id=None, tags={}) for _ in range(6)]
        name = partial(Run.dataset, name="shapes", uri="/manifests/m", digest=digest)
        with ThreadPoolExecutor(len(fresh)) as threads:
            list(threads.map(name, fresh))
        client = mlflow.MlflowClient(server)
        for run in fresh:
            (named,) = client.get_run(run.run_id).inputs.dataset_inputs
            assert named.dataset.digest == digest


_TRAIN = """
import sys
from training.job import TrainJob
from training.launch import launch
launch(TrainJob.model_validate_json(sys.argv[2]), text_encoder=sys.argv[1])
"""
