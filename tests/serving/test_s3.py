"""What the endpoint keeps, in a bucket of a real S3 server: records, pictures, jobs, and what keys used."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from curation import storage
from serving.api import RequestError
from serving.generator import Generator
from serving.jobs import JobsConfig, JobStore
from serving.quotas import Quotas
from serving.records import Archive, RecordsConfig
from tests.curation.seaweed import S3, seaweed
from tests.serving.http.test_jobs import BODY, ended
from tests.serving.local import JOB, LocalBackend, client_of
from tests.serving.test_quotas import DAY, Clock, key
from tests.serving.test_records import IDS, records

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with pytest.MonkeyPatch.context() as patch, seaweed(tmp_path_factory.mktemp("s3")) as server:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        storage._s3.cache_clear()
        server.client.create_bucket(Bucket="kept")
        yield server
    storage._s3.cache_clear()


def test_pictures_and_their_records_are_kept_and_forgotten(s3: S3) -> None:
    config = RecordsConfig(folder="s3://kept/archive")
    archive = Archive(config)
    assert archive.record(IDS[0]) is None
    assert archive.marked("c0ff") == []
    archive.keep(records())
    first = archive.record(IDS[0])
    assert first is not None
    assert (first.seed, first.key) == (4, "key_1")
    assert archive.marked("c0ff") == [IDS[0]]
    name = archive.put(b"a picture", "png")
    assert archive.picture(name) == b"a picture"
    archive.sweep(now=True)
    assert archive.picture(name) == b"a picture"
    later = Clock(first.created + (config.days + 1) * DAY)
    Archive(config, later).sweep(now=True)
    assert [at for at in s3.keys("kept") if at.startswith("archive/") and not at.endswith("/")] == []
    assert archive.record(IDS[0]) is None
    assert archive.picture(name) is None


def test_gateways_add_up_what_keys_used(s3: S3) -> None:
    clock = Clock()
    first, second = (Quotas("s3://kept/usage", clock) for _ in range(2))
    first.sync()  # before anything lies there
    first.charge(key(day=100), 40)
    first.flush()
    second.charge(key(day=100), 50)
    second.sync()
    assert second.used_today(key()) == 90
    with pytest.raises(RequestError, match="used up"):
        second.charge(key(day=100), 11)
    clock.now += 2 * DAY
    second.sync()
    assert second.used_today(key()) == 0
    assert [at for at in s3.keys("kept") if at.startswith("usage/") and not at.endswith("/")] == []


def test_a_job_is_asked_for_fetched_and_forgotten(s3: S3, generator: Generator) -> None:
    config = JobsConfig(folder="s3://kept/queue")
    job = JOB.model_copy(update={"jobs": config, "records": RecordsConfig(folder="s3://kept/drawn")})

    async def go() -> None:
        async with client_of(LocalBackend(generator), job) as client:
            where = "/v1/images/jobs/mine"
            assert (await client.get(where)).status_code == 404
            assert (await client.put(where, json=BODY)).status_code == 201
            assert (await ended(client, where))["status"] == "succeeded"
            (datum,) = (await client.get(f"{where}/result")).json()["data"]
            record = (await client.get(f"/v1/images/{datum['id']}")).json()
            assert record["pixels_sha256"] == datum["pixels_sha256"]
            (stored,) = JobStore(config).all()
            assert JobStore(config).alive(stored.gateway, 60)
            assert not JobStore(config).alive("nobody", 60)
            assert (await client.delete(where)).status_code == 200
            assert (await client.get(where)).status_code == 404

    asyncio.run(go())
    assert list(JobStore(config).all()) == []
    assert not any("/results/" in at and at.endswith(".json") for at in s3.keys("kept"))
