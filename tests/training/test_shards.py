"""A network that is split over workers (FSDP2): it learns as a whole one does, and goes on at any number of workers."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from curation import storage
from curation.errors import UserError
from curation.manifest import Manifest
from tests.curation.seaweed import seaweed
from tests.training.evaluators import JUDGES
from tests.training.test_checkpoint import info
from tests.training.test_loop import Killed
from tests.training.workers import Workers, workers
from training import averages, checkpoint, prepare, space
from training import checkpoint_evaluation as evaluations
from training.bundle import load_bundle
from training.checkpoint import state_sha256
from training.checkpoint_evaluation import EvaluationTask
from training.data import load
from training.evaluate import Pictures, losses
from training.job import TrainJob
from training.launch import launch
from training.learner import Learner, Place
from training.loop import Outcome, train
from training.notice import Notice, Terminated
from training.progress import Point
from training.roster import FILE as ROSTER_FILE
from training.shards import ShardFiles
from training.text import TextEncoder
from training.writer import Writer

MakeJob = Callable[..., TrainJob]


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    with workers(2, tmp_path_factory.mktemp("workers")) as started:
        yield started


def losses_of(place: Place, job: TrainJob, tower: str, steps: int) -> tuple[list[float], list[float], str]:
    """Losses and norms of the first steps, and the hash of the state after them."""
    vae = None if job.autoencoder is None else Path(job.autoencoder.path)
    of = space.build(job.patch_size, vae, place.device)
    learner = Learner(job, load(Manifest.open(job.manifest)), TextEncoder(tower), place, of)
    told = [learner.step(seen * job.batch_size) for seen in range(steps)]
    assert learner.sharded == (job.strategy == "fsdp")
    return [float(loss.detach()) for loss, _ in told], [float(n) for _, n in told], state_sha256(learner.state())


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"accumulation": 2, "gradient_checkpointing": True},
        {"network": {"kind": "dit", "preset": "nano"}, "gradient_checkpointing": True},
    ],
    ids=["", "accumulated and recomputed", "dit"],
)
def test_it_learns_what_a_whole_network_learns(
    make_job: MakeJob, tower: Path, pool: Workers, changes: dict[str, Any]
) -> None:
    as_whole(make_job, tower, pool, changes, steps=6)


@pytest.mark.slow
def test_it_learns_latents_as_a_whole_network_does(
    make_job: MakeJob, tower: Path, pool: Workers, autoencoder: Path
) -> None:
    as_whole(make_job, tower, pool, {"autoencoder": {"path": str(autoencoder)}, "patch_size": 1, **SMALL}, steps=2)


def as_whole(make_job: MakeJob, tower: Path, pool: Workers, changes: dict[str, Any], steps: int) -> None:
    found = {}
    for strategy in ("ddp", "fsdp"):
        job = make_job(workers=2, strategy=strategy, **changes)
        ranks = pool.run(2, losses_of, job, str(tower), steps)
        assert ranks[0][2] == ranks[1][2]
        assert ranks[0][1] == ranks[1][1]
        found[strategy] = [sum(both) / 2 for both in zip(*(rank[0] for rank in ranks), strict=True)], ranks[0][1]
    assert found["fsdp"][0] == pytest.approx(found["ddp"][0], rel=1e-5)
    assert found["fsdp"][1] == pytest.approx(found["ddp"][1], rel=1e-4)


def trained(
    place: Place, job: TrainJob, folder: str, tower: str, kill_at: int | None = None, notice_at: int | None = None
) -> tuple[Outcome, dict[int, float]] | str:
    """Trains to the end, or until, so many images after it began, all are killed or the last one is told it will be."""
    losses: dict[int, float] = {}

    def report(point: Point) -> None:
        losses.update({point.images: point.values["loss"]} if "loss" in point.values else {})

    is_last = place.rank == place.world_size - 1
    at = kill_at or (notice_at if is_last else None)
    notice = Notice(ends=False) if at is None else At(at // job.batch_size, kills=kill_at is not None)
    data, text = load(Manifest.open(job.manifest)), TextEncoder(tower, place.device)
    try:
        return train(job, folder=folder, data=data, text=text, place=place, report=report, notice=notice), losses
    except Terminated:
        return "terminated"


class At(Notice):
    """Strikes after a step: a notice, or a kill, which no worker survives to wait for the others in vain."""

    def __init__(self, step: int, *, kills: bool) -> None:
        super().__init__(ends=False)
        self._left = step
        self._kills = kills

    def take(self) -> bool:
        self._left -= 1
        if self._left == 0:
            if self._kills:
                raise Killed
            self.give(ends=True)
        return super().take()


def images(folder: Path) -> list[int]:
    return [checkpoint.read_info(path).images_seen for path in checkpoint.paths(f"{folder}/checkpoints")]


# few tensors, as each that is gathered is an exchange of its own
SMALL: dict[str, Any] = {"network": {"block_out_channels": (32,), "layers_per_block": 1, "attention_heads": 2}}
RICH: dict[str, Any] = {"precision": "bf16", "accumulation": 2, "ema": {"profiles": [0.05, 0.1], "snapshots": 4}}


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, RICH], ids=["", "rich"])
def test_a_killed_run_ends_in_the_same_bits(
    make_job: MakeJob, tower: Path, pool: Workers, tmp_path: Path, changes: dict[str, Any]
) -> None:
    job = make_job(workers=2, strategy="fsdp", **SMALL, **changes)
    (straight, losses), (other, _) = pool.run(2, trained, job, f"{tmp_path}/straight", str(tower))
    assert straight.state_sha256 == other.state_sha256
    with pytest.raises(Killed):
        pool.run(2, trained, job, f"{tmp_path}/killed", str(tower), 40)
    (resumed, again), _ = pool.run(2, trained, job, f"{tmp_path}/killed", str(tower))
    assert (resumed.resumed_from, resumed.state_sha256) == (32, straight.state_sha256)
    assert again == losses
    assert images(tmp_path / "killed") == [48, 64]
    assert [leg.topology["sharded"] for leg in straight.legs] == [1]
    assert straight.bundle is not None
    bundle = load_bundle(straight.bundle)
    assert bundle.self_test()
    path = f"{tmp_path}/straight/checkpoints/images-000000000064"
    averaged = checkpoint.read_part(path, "ema")[1]
    assert all(torch.equal(averaged[name], tensor) for name, tensor in bundle.unet.state_dict().items())
    if job.ema.profiles:
        for run in ("straight", "killed"):
            stored = averages.snapshots(f"{tmp_path}/{run}")
            assert [(of.step, of.sigma_rel) for of in stored] == [(s, p) for s in (2, 4, 6, 8) for p in (0.05, 0.1)]
        last = averages.reconstruct(stored, 0.05)
        held = checkpoint.read_part(path, "ema_0.05")[1]
        assert all(torch.allclose(last[name], tensor, rtol=1e-5, atol=1e-7) for name, tensor in held.items())


@pytest.mark.slow
def test_a_run_goes_on_whole_and_split_again(make_job: MakeJob, tower: Path, pool: Workers, tmp_path: Path) -> None:
    """Two workers, then one, which has nothing to split, then two: each reads what the others wrote."""
    settings: dict[str, Any] = {"workers": {"min": 1, "max": 2}, "strategy": "fsdp", **SMALL}
    job = make_job(**settings)
    one = train(
        job.model_copy(update={"workers": 0}), folder=f"{tmp_path}/one", data=load(Manifest.open(job.manifest)),
        text=TextEncoder(tower), place=Place(),
    )  # fmt: skip
    for count in (2, 1):  # each is killed three steps after it began
        with pytest.raises(Killed):
            pool.run(count, trained, job, f"{tmp_path}/changing", str(tower), 24)
    (last, _), _ = pool.run(2, trained, job, f"{tmp_path}/changing", str(tower))
    told = [(leg.images, leg.topology["workers"], leg.topology.get("sharded")) for leg in last.legs]
    assert told == [(0, 2, 1), (16, 1, None), (32, 2, 1)]
    assert last.metrics["loss"] == pytest.approx(one.metrics["loss"], rel=1e-5)
    # the other way round: what was split is taken up whole, and of any number of copies
    (ddp, _), _ = pool.run(2, trained, job.model_copy(update={"strategy": "ddp"}), f"{tmp_path}/changing", str(tower))
    assert (ddp.resumed_from, ddp.state_sha256) == (64, last.state_sha256)


@pytest.mark.slow
def test_its_checkpoints_are_evaluated_whole(make_job: MakeJob, tower: Path, pool: Workers, tmp_path: Path) -> None:
    asked = {"every": 64, "samples": 8, "loss_buckets": 2, "loss_pictures": 8}
    job = make_job(workers=2, strategy="fsdp", evaluation=asked, **SMALL)
    (outcome, _), _ = pool.run(2, trained, job, str(tmp_path), str(tower))
    prepared = prepare.prepare(job)
    (tmp_path / ROSTER_FILE).write_bytes(prepared.roster.to_parquet())
    found = evaluations.evaluate(EvaluationTask(job=job, folder=str(tmp_path)), JUDGES)
    assert found is not None
    assert found.images_seen == 64
    assert outcome.bundle is not None
    pictures = Pictures.of_set(load(prepared.manifest))
    whole = losses(load_bundle(outcome.bundle), pictures, None, buckets=2, seed=found.seed)
    assert [of.trained.value for of in found.loss] == pytest.approx([of.trained.value for of in whole], rel=1e-6)


@pytest.mark.slow
def test_a_notice_to_any_worker_makes_all_of_them_save(
    make_job: MakeJob, tower: Path, pool: Workers, tmp_path: Path
) -> None:
    job = make_job(workers=2, strategy="fsdp", checkpoint_every=10_000, **SMALL)
    assert pool.run(2, trained, job, str(tmp_path), str(tower), None, 24) == ["terminated"] * 2
    assert images(tmp_path) == [32]  # a step after it was given
    (resumed, losses), _ = pool.run(2, trained, job, str(tmp_path), str(tower))
    assert (resumed.resumed_from, sorted(losses)) == (32, [*range(8, 65, 8)])


@pytest.mark.slow
def test_a_damaged_share_is_passed_over_and_refused(
    make_job: MakeJob, tower: Path, pool: Workers, tmp_path: Path
) -> None:
    job = make_job(workers=2, strategy="fsdp", **SMALL)
    (straight, _), _ = pool.run(2, trained, job, str(tmp_path), str(tower))
    path = tmp_path / "checkpoints" / "images-000000000064"
    share = path / "00001-of-00002.safetensors"
    share.write_bytes(share.read_bytes()[:-1])
    with pytest.raises(UserError, match="is damaged: 00001-of-00002"):
        checkpoint.read_state(str(path), checkpoint.read_info(str(path)))
    with pytest.raises(UserError, match="is damaged: 00001-of-00002"):
        pool.run(2, taken_up, job, str(path), str(tower))
    (again, _), _ = pool.run(2, trained, job, str(tmp_path), str(tower))
    assert (again.resumed_from, again.state_sha256) == (48, straight.state_sha256)
    assert images(tmp_path) == [48, 64]
    assert checkpoint.problem(str(path)) is None


def taken_up(place: Place, job: TrainJob, path: str, tower: str) -> str:
    """The hash of a learner's state that was read from a checkpoint."""
    learner = Learner(job, load(Manifest.open(job.manifest)), TextEncoder(tower), place)
    return state_sha256(ShardFiles().read(path, checkpoint.read_info(path), into=learner.state()))


def saved(place: Place, job: TrainJob, folder: str, tower: str) -> None:
    """Writes one checkpoint; the last worker cannot write."""
    learner = Learner(job, load(Manifest.open(job.manifest)), TextEncoder(tower), place)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if place.rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))  # bytes of a file; less than a share has
    writer = Writer(folder, keep=1, write=ShardFiles().write_like(learner.state()))
    try:
        writer.save(learner.state(), info(8))
        writer.flush()
    finally:
        writer.close()
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.slow
def test_what_one_worker_cannot_write_fails_on_all_and_leaves_nothing(
    make_job: MakeJob, tower: Path, pool: Workers, tmp_path: Path
) -> None:
    job = make_job(workers=2, strategy="fsdp", **SMALL)
    with pytest.raises(OSError, match=r"on worker 1: .*File too large"):
        pool.run(2, saved, job, str(tmp_path / "checkpoints"), str(tower))
    assert list((tmp_path / "checkpoints").iterdir()) == []


def trained_on_s3(
    place: Place, environment: dict[str, str], job: TrainJob, folder: str, tower: str, kill_at: int | None = None
) -> tuple[Outcome, dict[int, float]] | str:
    os.environ.update(environment)
    storage._s3.cache_clear()
    return trained(place, job, folder, tower, kill_at)


@pytest.mark.slow
def test_a_split_run_on_s3_is_killed_and_resumed(make_job: MakeJob, tower: Path, pool: Workers, tmp_path: Path) -> None:
    job = make_job(workers=2, strategy="fsdp", **SMALL)
    (straight, _), _ = pool.run(2, trained, job, str(tmp_path / "local"), str(tower))
    (tmp_path / "s3").mkdir()
    with seaweed(tmp_path / "s3") as server:
        server.put("runs", "keep", b"")
        where: tuple[Any, ...] = (dict(server.environment), job, "s3://runs/split", str(tower))
        with pytest.raises(Killed):
            pool.run(2, trained_on_s3, *where, 40)
        (resumed, _), _ = pool.run(2, trained_on_s3, *where)
        assert (resumed.resumed_from, resumed.state_sha256) == (32, straight.state_sha256)
        kept = {key.rpartition("/")[2] for key in server.keys("runs") if "images-000000000064/" in key}
        assert kept == {f"0000{i}-of-00002.safetensors" for i in (0, 1)} | {"index.json", "checkpoint.json"}


@pytest.mark.ray
@pytest.mark.slow
def test_ray_train_workers_split_a_network_to_the_same_bits(
    ray_cluster: None, make_job: MakeJob, tower: Path, pool: Workers, tracking_uri: str, tmp_path: Path
) -> None:
    job = make_job(
        workers=2, strategy="fsdp", tracking={"uri": tracking_uri, "experiment": "split"}, **SMALL
    )  # fmt: skip
    (straight, _), _ = pool.run(2, trained, job, str(tmp_path / "straight"), str(tower))
    result = launch(job, text_encoder=str(tower))
    assert result.state_sha256 == straight.state_sha256
    assert [leg.topology["sharded"] for leg in result.legs] == [1]
    assert load_bundle(result.bundle).self_test()
