"""A network that is split over workers (FSDP2): it learns as a whole one does, and goes on at any number of workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from curation.manifest import Manifest
from tests.training.test_loop import Killed
from tests.training.workers import Workers, workers
from training import averages, checkpoint
from training.bundle import load_bundle
from training.checkpoint import state_sha256
from training.data import load
from training.job import TrainJob
from training.learner import Learner, Place
from training.loop import Outcome, train
from training.notice import Notice, Terminated
from training.progress import Point
from training.text import TextEncoder

MakeJob = Callable[..., TrainJob]


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    with workers(2, tmp_path_factory.mktemp("workers")) as started:
        yield started


def losses_of(place: Place, job: TrainJob, tower: str, steps: int) -> tuple[list[float], list[float], str]:
    """Losses and norms of the first steps, and the hash of the state after them."""
    learner = Learner(job, load(Manifest.open(job.manifest)), TextEncoder(tower), place)
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
    found = {}
    for strategy in ("ddp", "fsdp"):
        job = make_job(workers=2, strategy=strategy, **changes)
        ranks = pool.run(2, losses_of, job, str(tower), 6)
        assert ranks[0][2] == ranks[1][2]
        assert ranks[0][1] == ranks[1][1]
        found[strategy] = [sum(both) / 2 for both in zip(*(rank[0] for rank in ranks), strict=True)], ranks[0][1]
    assert found["fsdp"][0] == pytest.approx(found["ddp"][0], rel=1e-5)
    assert found["fsdp"][1] == pytest.approx(found["ddp"][1], rel=1e-4)


def trained(
    place: Place, job: TrainJob, folder: str, tower: str, kill_at: int | None = None, notice_at: int | None = None
) -> tuple[Outcome, dict[int, float]] | str:
    """Trains to the end, or until all are killed or the last one is told that it will be."""
    losses: dict[int, float] = {}

    def report(point: Point) -> None:
        losses.update({point.images: point.values["loss"]} if "loss" in point.values else {})

    is_last = place.rank == place.world_size - 1
    at = kill_at or (notice_at if is_last else None)
    notice = Notice(ends=True) if at is None else At(at // job.batch_size, kills=kill_at is not None)
    data, text = load(Manifest.open(job.manifest)), TextEncoder(tower, place.device)
    try:
        return train(job, folder=folder, data=data, text=text, place=place, report=report, notice=notice), losses
    except Terminated:
        return "terminated"


class At(Notice):
    """Strikes after a step: a notice, or a kill, which no worker survives to wait for the others in vain."""

    def __init__(self, step: int, *, kills: bool) -> None:
        super().__init__(ends=True)
        self._left = step
        self._kills = kills

    def take(self) -> bool:
        self._left -= 1
        if self._left == 0:
            if self._kills:
                raise Killed
            self.give()
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
    for count, kill_at in ((2, 24), (1, 40)):
        with pytest.raises(Killed):
            pool.run(count, trained, job, f"{tmp_path}/changing", str(tower), kill_at)
    (last, _), _ = pool.run(2, trained, job, f"{tmp_path}/changing", str(tower))
    told = [(leg.images, leg.topology["workers"], leg.topology.get("sharded")) for leg in last.legs]
    assert told == [(0, 2, 1), (16, 1, None), (32, 2, 1)]
    assert last.metrics["loss"] == pytest.approx(one.metrics["loss"], rel=1e-5)
    # the other way round: what was split is taken up whole, and of any number of copies
    (ddp, _), _ = pool.run(2, trained, job.model_copy(update={"strategy": "ddp"}), f"{tmp_path}/changing", str(tower))
    assert (ddp.resumed_from, ddp.state_sha256) == (64, last.state_sha256)


@pytest.mark.slow
def test_a_notice_to_any_worker_makes_all_of_them_save(
    make_job: MakeJob, tower: Path, pool: Workers, tmp_path: Path
) -> None:
    job = make_job(workers=2, strategy="fsdp", checkpoint_every=10_000, **SMALL)
    assert pool.run(2, trained, job, str(tmp_path), str(tower), None, 24) == ["terminated"] * 2
    assert images(tmp_path) == [32]  # a step after it was given
    (resumed, losses), _ = pool.run(2, trained, job, str(tmp_path), str(tower))
    assert (resumed.resumed_from, sorted(losses)) == (32, [*range(8, 65, 8)])
