"""Shards made by Ray Data are those that one process makes; on S3, too, and what a storage does is said."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from curation import storage
from curation.errors import UserError
from curation.manifest import Manifest
from tests.curation.seaweed import S3, seaweed
from tests.training.conftest import many, write_manifest
from training import prepare, shard_job, shard_maker
from training.data import load
from training.data_shards import INFO_FILE, Part, ShardsInfo, ShardsPlan
from training.job import TrainJob
from training.shard_reader import Shards
from training.space import PatchSpace

MakeJob = Callable[..., TrainJob]
DATA = {"kind": "shards", "window": 8, "block": 1, "file_bytes": 2**16}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return write_manifest(tmp_path_factory.mktemp("base"), many(50))


def make(job: TrainJob, **options: Any) -> tuple[ShardsPlan, ShardsInfo]:
    """Ten files of five rows, made in four bins."""
    prepared = prepare.prepare(job)
    plan = prepare.shards(prepared)
    assert plan is not None
    plan = replace(plan, spec=plan.spec.model_copy(update={"file_bytes": 5 * 192}))
    return plan, shard_job.make(plan, prepared.manifest, prepared.roster, **options)


def bytes_of(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


class Dying(shard_maker.Maker):
    """A worker whose process is killed behind the first file that any of them writes."""

    def _write(self, part: Part, tables: list[pa.Table | None]) -> None:
        super()._write(part, tables)
        with suppress(FileExistsError):
            Path(self._told["uri"], "..", "died").touch(exist_ok=False)
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.ray
def test_ray_data_makes_what_one_process_makes(
    make_job: MakeJob, base: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_cluster: None
) -> None:
    """Also where an attempt before was interrupted, left half a file, and a worker is killed."""
    monkeypatch.setattr(shard_job, "_BINS", 4)
    alone, info = make(make_job(manifest=base.uri, data={**DATA, "folder": str(tmp_path / "alone")}))
    job = make_job(manifest=base.uri, data={**DATA, "folder": str(tmp_path / "ray")}, workers=2)

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "shards":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(job, on_stage=stop)
    (folder,) = (tmp_path / "ray").iterdir()
    first, second, third = sorted(folder.glob("part-*"))
    left = first.stat().st_mtime_ns
    second.write_bytes(b"half")
    third.unlink()
    told: list[tuple[str, int, int]] = []
    monkeypatch.setattr(shard_job, "Maker", Dying)
    plan, found = make(job, workers=2, on_stage=lambda *stage: told.append(stage))
    assert (tmp_path / "ray" / "died").is_file()
    assert (found, bytes_of(plan.uri)) == (info, bytes_of(alone.uri))
    assert first.stat().st_mtime_ns == left
    assert (told[0][0], told[-1]) == ("sort", ("shards", 45, 45))
    assert folder.name == Path(alone.uri).name
    assert folder.name.startswith(f"{base.id[:12]}-")


def test_what_went_while_shards_were_made_is_sorted_again(make_job: MakeJob, base: Manifest) -> None:
    job = make_job(manifest=base.uri, data=DATA)

    def lose(stage: str, done: int, total: int) -> None:
        if stage == "sort":
            (piece,) = Path(job.output).glob("shards/*/.work/*/bin-003/*")
            piece.unlink()

    with pytest.raises(UserError, match="have gone") as refused:
        make(job, on_stage=lose)
    assert refused.value.field == "data.folder"
    plan, info = make(job)
    Path(plan.uri, INFO_FILE).unlink()  # all files are there
    assert (info.rows, make(job)[1].rows) == (50, 50)


def test_a_full_or_closed_disk_is_told(make_job: MakeJob, base: Manifest, tmp_path: Path) -> None:
    (tmp_path / "shards").write_text("a file where a folder should be")
    with pytest.raises(UserError, match="cannot be written") as refused:
        make(make_job(manifest=base.uri, data={**DATA, "folder": str(tmp_path / "shards")}))
    assert refused.value.field == "data.folder"


# --- S3 ---


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with seaweed(tmp_path_factory.mktemp("s3")) as started:
        started.put("runs", "keep", b"")
        yield started


@pytest.fixture
def s3(server: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    storage._s3.cache_clear()
    yield server
    storage._s3.cache_clear()


def on(server: S3, worker: type[Any]) -> type[Any]:
    """A worker that is told of the storage by its environment, as one on another machine is."""
    environment = server.environment

    class Told(worker):  # type: ignore[misc]
        def __init__(self, told: dict[str, Any]) -> None:
            os.environ.update(environment)
            super().__init__(told)

    return Told


@pytest.mark.ray
@pytest.mark.slow
def test_ray_data_makes_them_on_s3(
    make_job: MakeJob, base: Manifest, s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_cluster: None
) -> None:
    monkeypatch.setattr(shard_job, "_BINS", 2)
    here, info = make(make_job(manifest=base.uri, data={**DATA, "folder": str(tmp_path / "disk")}))
    for name in ("Splitter", "Maker"):
        monkeypatch.setattr(shard_job, name, on(s3, getattr(shard_maker, name)))
    job = make_job(manifest=base.uri, data={**DATA, "folder": "s3://runs/by-ray"}, workers=2)
    plan, found = make(job, workers=2)
    assert found == info
    below = plan.uri.removeprefix("s3://runs/")
    files = [key for key in s3.keys("runs") if key.startswith(below) and not key.endswith("/")]
    assert {Path(key).name: s3.get("runs", key) for key in files} == bytes_of(here.uri)


@pytest.mark.slow
def test_shards_on_s3_are_those_on_disk_and_read_through_the_cache(
    make_job: MakeJob, base: Manifest, s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, info = make(make_job(manifest=base.uri, data={**DATA, "folder": str(tmp_path / "disk")}))
    job = make_job(manifest=base.uri, data={**DATA, "folder": "s3://runs/shards", "cache": str(tmp_path / "cache")})

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "shards" and done >= 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(job, on_stage=stop)
    plan, found = make(job)
    assert found == info
    below = plan.uri.removeprefix("s3://runs/")
    files = [key for key in s3.keys("runs") if key.startswith(below) and not key.endswith("/")]
    assert {Path(key).name: s3.get("runs", key) for key in files} == bytes_of(here.uri)
    roster = prepare.prepare(job).roster

    def opened() -> Shards:
        assert not isinstance(job.data, dict)
        return Shards(plan.uri, found, roster, cache=tmp_path / "cache", cache_bytes=2**20)

    shards, memory = opened(), load(base)
    rows = torch.arange(50)
    assert torch.equal(
        shards.clean(rows, None, PatchSpace(1), CPU), memory.source.clean(rows, None, PatchSpace(1), CPU)
    )
    for part in found.parts[1:]:
        s3.client.delete_object(Bucket="runs", Key=f"{below}/{part.name}")
    again = opened()  # another process on this machine
    assert torch.equal(again.clean(rows, None, PatchSpace(1), CPU), shards.clean(rows, None, PatchSpace(1), CPU))
    fresh = Shards(plan.uri, found, roster, cache=tmp_path / "elsewhere", cache_bytes=2**20)
    with pytest.raises(UserError, match=r"part-0-00001\.parquet is missing") as gone:
        fresh.clean(rows, None, PatchSpace(1), CPU)
    assert gone.value.remedy is not None
    with pytest.raises(UserError, match="is missing"):
        fresh.channel_stats()
    assert make(job)[1] == info  # what has gone is made anew
    assert len(fresh.clean(rows, None, PatchSpace(1), CPU)) == 50

    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    storage._s3.cache_clear()
    closed = Shards(plan.uri, found, roster, cache=tmp_path / "third", cache_bytes=2**20)
    attempts: list[Callable[[], object]] = [
        lambda: make(job),
        lambda: Shards.of(job, roster),
        lambda: closed.clean(rows, None, PatchSpace(1), CPU),
        closed.channel_stats,
    ]
    for attempt in attempts:
        with pytest.raises(UserError, match="the storage refuses s3://runs") as refused:
            attempt()
        assert (refused.value.field, "AWS_SECRET_ACCESS_KEY" in str(refused.value.remedy)) == ("data.folder", True)
