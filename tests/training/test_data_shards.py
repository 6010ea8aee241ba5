"""Shards: made once, whole or not at all; what is read of them is what the manifest holds."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from curation.errors import UserError
from curation.manifest import Manifest
from tests.training.conftest import derive, many, row_id, write_manifest
from training import prepare, shard_job
from training.block_cache import BlockCache
from training.data import TrainingSet, load
from training.data_shards import INFO_FILE, ShardsPlan, stored
from training.job import TrainJob
from training.launch import launch
from training.learner import Place
from training.loop import Outcome, train
from training.order import Order
from training.progress import Point
from training.retraining import earliest
from training.shard_reader import Shards
from training.space import PatchSpace
from training.text import TextEncoder

MakeJob = Callable[..., TrainJob]
ROWS = many(50)
DATA = {"kind": "shards", "window": 16, "block": 4, "file_bytes": 2**16}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return write_manifest(tmp_path_factory.mktemp("base"), ROWS)


@pytest.fixture
def shard_job_of(make_job: MakeJob, base: Manifest, tmp_path: Path) -> MakeJob:
    def make(data: dict[str, Any] | None = None, **changes: Any) -> TrainJob:
        told = {**DATA, "cache": str(tmp_path / "cache"), **(data or {})}
        return make_job(**{"manifest": base.uri, "data": told, "workers": 0, **changes})

    return make


def made(job: TrainJob, **options: Any) -> tuple[ShardsPlan, prepare.Prepared]:
    prepared = prepare.prepare(job)
    planned = prepare.shards(prepared)
    assert planned is not None
    shard_job.make(planned, prepared.manifest, prepared.roster, **options)
    return planned, prepared


def opened(job: TrainJob) -> TrainingSet:
    prepared = prepare.prepare(job)
    return load(prepared.manifest, None, None, prepared.roster, job.conditioning, Shards.of(job, prepared.roster))


def bytes_of(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def test_what_is_read_is_what_the_manifest_holds(shard_job_of: MakeJob, base: Manifest) -> None:
    job = shard_job_of()
    planned, _ = made(job)
    assert planned.bytes == 50 * 3 * 8 * 8
    assert planned.uri.startswith(f"{job.output}/shards/{base.id[:12]}-")
    data, memory = opened(job), load(base)
    assert (data.image_size, data.captions, data.options) == (8, memory.captions, memory.options)
    for number in range(0, 120, 8):
        index = torch.arange(number, number + 8)
        rows, x0 = data.samples(0, index, PatchSpace(2), CPU, flip=True)
        mirrored = torch.tensor([bool(flip) for flip in flips(index)])
        assert torch.equal(x0, memory.source.clean(rows, mirrored, PatchSpace(2), CPU))
    shown = data.shown(0, torch.arange(50))
    assert sorted(shown.tolist()) == list(range(50))
    for ours, theirs in zip(data.source.channel_stats(), memory.source.channel_stats(), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-12)
    assert len({bytes(row) for row in data.contents.numpy()}) == 50
    close(data)


def flips(index: Tensor) -> Tensor:
    from training import randomness

    return randomness.uniform(0, randomness.Purpose.FLIP, index) < 0.5


def close(data: TrainingSet) -> None:
    assert isinstance(data.source, Shards)
    data.source.close()


def test_a_rerun_makes_what_is_missing(shard_job_of: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    job = shard_job_of({"file_bytes": 2**16, "block": 1, "window": 8})
    monkeypatch.setattr(shard_job, "_BINS", 3)
    small = {"parts": [], "rows": 0}
    prepared = prepare.prepare(job)
    planned = prepare.shards(prepared)
    assert planned is not None
    planned = replace(planned, spec=planned.spec.model_copy(update={"file_bytes": 5 * 192}))
    assert len(planned.parts) == 10

    def stop(stage: str, done: int, total: int) -> None:
        small["rows"] = done
        if stage == "shards":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shard_job.make(planned, prepared.manifest, prepared.roster, on_stage=stop)
    assert 0 < small["rows"] < 50
    first = bytes_of_files(planned.uri)
    assert 0 < len(first) < 10
    told: list[tuple[str, int, int]] = []
    info = shard_job.make(planned, prepared.manifest, prepared.roster, on_stage=lambda *t: told.append(t))
    assert told[-1] == ("shards", 50 - small["rows"], 50 - small["rows"])
    assert bytes_of_files(planned.uri) == {**bytes_of_files(planned.uri), **first}  # those were left as they are
    assert (info.rows, len(info.parts)) == (50, 10)
    assert not Path(planned.uri, ".work").exists()
    whole = bytes_of(planned.uri)
    Path(planned.uri, "part-0-00007.parquet").unlink()
    Path(planned.uri, "part-0-00002.parquet").write_bytes(b"half")
    assert shard_job.make(planned, prepared.manifest, prepared.roster) == info
    assert bytes_of(planned.uri) == whole
    assert shard_job.make(planned, prepared.manifest, prepared.roster, on_stage=stop) == info  # nothing to do


def bytes_of_files(folder: str) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in Path(folder).glob("part-*")}


def test_damaged_and_foreign_shards_are_refused(shard_job_of: MakeJob) -> None:
    job = shard_job_of()
    with pytest.raises(UserError, match="no shards at"):
        opened(job)
    planned, prepared = made(job)
    info = stored(planned.uri)
    assert info is not None
    other = info.model_copy(update={"spec": info.spec.model_copy(update={"block": 8})})
    Path(planned.uri, INFO_FILE).write_text(other.model_dump_json())
    for attempt in (lambda: opened(job), lambda: made(job)):
        with pytest.raises(UserError, match="block is 8 there and not 4"):
            attempt()
    Path(planned.uri, INFO_FILE).write_text(info.model_dump_json())
    name = Path(planned.uri, info.parts[0].name)
    rows = pq.read_table(name)
    turned = rows.set_column(0, "slot", rows["slot"].take(list(reversed(range(len(rows))))))
    groups = pq.ParquetFile(name)
    with pq.ParquetWriter(name, turned.schema) as writer:
        for group in range(groups.num_row_groups):
            writer.write_table(turned.slice(4 * group, 4), row_group_size=4)
    data = opened(job)
    with pytest.raises(UserError, match="is damaged: block") as refused:
        data.source.clean(torch.tensor([0]), None, PatchSpace(1), CPU)
    assert refused.value.field == "data.folder"
    name.write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match="is damaged"):
        data.source.clean(torch.tensor([0]), None, PatchSpace(1), CPU)
    name.unlink()
    with pytest.raises(UserError, match="is missing"):
        data.source.clean(torch.tensor([0]), None, PatchSpace(1), CPU)
    made(job)
    assert len(data.source.clean(torch.tensor([0]), None, PatchSpace(1), CPU)) == 1
    assert prepared.roster.info.order.window == 16


def test_a_cache_that_is_too_small_is_refused_before_anything_is_made(shard_job_of: MakeJob) -> None:
    job = shard_job_of({"window": 65_536, "block": 4096})
    prepared = prepare.prepare(job)
    tight = job.model_copy(update={"data": job.data.model_copy(update={"cache_bytes": 4 * 50 * 192 - 1})})
    with pytest.raises(UserError, match="windows are") as refused:
        prepare.shards(replace(prepared, job=tight))
    assert refused.value.field == "data.cache_bytes"


# --- the cache ---


def test_a_cache_keeps_what_was_used_last_and_fetches_once(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, 10_000)
    fetched: list[int] = []

    def block(number: int) -> np.ndarray:
        def fetch() -> list[np.ndarray]:
            fetched.append(number)
            return [np.full(500, number, np.uint8), np.full(500, 255, np.uint8)]

        found: np.ndarray = cache.open(f"0-{number:08d}", fetch)
        return found

    kept = block(0)
    for number in range(1, 40):
        assert (int(block(number)[0]), len(block(number))) == (number, 1000)
        os.utime(cache.path("0-00000001"))  # in use all the time
    assert fetched == list(range(40))
    assert sum(path.stat().st_size for path in tmp_path.glob("*.rows")) <= 10_000
    assert not cache.path("0-00000000").exists()
    assert int(kept[0]) == 0  # whoever has it mapped keeps it
    assert int(block(1)[0]) == 1
    assert fetched == list(range(40))
    assert int(block(0)[0]) == 0
    assert fetched[-1] == 0
    assert not list(tmp_path.glob("*.partial"))


def test_two_who_want_a_block_fetch_it_once(tmp_path: Path) -> None:
    began, may_end = threading.Event(), threading.Event()
    fetched: list[str] = []

    def slow() -> list[np.ndarray]:
        fetched.append("slow")
        began.set()
        may_end.wait(30)
        return [np.zeros(8, np.uint8)]

    def never() -> list[np.ndarray]:
        raise AssertionError

    first = threading.Thread(target=lambda: BlockCache(tmp_path, 1000).open("0-00000001", slow))
    first.start()
    assert began.wait(30)
    other = BlockCache(tmp_path, 1000)
    assert not other.want("0-00000001", never, wait=False)
    second = threading.Thread(target=lambda: other.open("0-00000001", never))
    second.start()
    may_end.set()
    first.join(30)
    second.join(30)
    assert fetched == ["slow"]
    assert other.want("0-00000001", never, wait=False)


def test_blocks_are_there_before_they_are_wanted(shard_job_of: MakeJob) -> None:
    job = shard_job_of()
    made(job)
    data = opened(job)
    shards = data.source
    assert isinstance(shards, Shards)
    order = Order.of(data.roster, 0)
    expected = set(shards.blocks.of(order.slots(torch.arange(32)).numpy()))  # two windows
    asked: list[tuple[int, int]] = []
    enough = threading.Event()
    want = shards.blocks.want

    def note(shape: int, block: int, *, wait: bool) -> bool:
        found = want(shape, block, wait=wait)
        asked.append((shape, block))
        if set(asked) >= expected:
            enough.set()
        return found

    shards.blocks.want = note  # type: ignore[method-assign]
    shards.reached(order, 0)
    assert enough.wait(30)
    shards.close()
    assert set(asked) == expected


# --- training ---


@pytest.mark.slow
def test_a_run_from_shards_is_resumed_and_retrained_to_the_bit(
    shard_job_of: MakeJob, text: TextEncoder, tower: Path, tracking_uri: str, tmp_path: Path
) -> None:
    tracking = {"uri": tracking_uri, "experiment": "shards"}
    job = shard_job_of(images=128, flip=True, conditioning_images=8, milestones=16, tracking=tracking)
    planned = prepare.plan(job)
    assert (planned["shards_made"], planned["shards_rows"], planned["shards_bytes"]) == (False, 50, 9600)
    whole = launch(job, text_encoder=str(tower))
    assert prepare.plan(job)["shards_made"] is True
    assert [str(path) for path in Path(job.output, "shards").iterdir()] == [planned["shards"]]

    def stop(point: Point) -> None:
        if point.images == 40:
            raise KeyboardInterrupt

    folder = str(tmp_path / "killed")
    with pytest.raises(KeyboardInterrupt):
        run(job, folder, text, stop)
    assert run(job, folder, text).state_sha256 == whole.state_sha256

    prepared = prepare.prepare(job)
    first = Order.of(prepared.roster, 0).first_seen(128)
    slot = int(((first >= 48) & (first < 64)).nonzero()[0])
    gone = prepared.roster.ids[slot]
    point = earliest(prepared.folder, prepared.roster, {gone}, job)
    assert point is not None
    assert point.images_seen == 48
    (caption,) = [caption for caption, picture in ROWS if row_id(picture) == gone]
    derived = {"manifest": derive(tmp_path / "derived", ROWS, {caption}).uri}
    scratch = shard_job_of(**{**settings_of(job), **derived})
    made(scratch)
    fresh = run(scratch, str(tmp_path / "fresh"), text)
    again = run(scratch.model_copy(update={"resume_from": point.checkpoint}), str(tmp_path / "again"), text)
    assert (again.resumed_from, again.state_sha256) == (48, fresh.state_sha256)
    assert fresh.state_sha256 != whole.state_sha256


def settings_of(job: TrainJob) -> dict[str, Any]:
    return {"images": job.images, "flip": job.flip, "conditioning_images": 8, "milestones": 16}


def run(job: TrainJob, folder: str, text: TextEncoder, report: Callable[[Point], None] | None = None) -> Outcome:
    data = opened(job)
    try:
        return train(job, folder=folder, data=data, text=text, place=Place(), report=report)
    finally:
        close(data)
