"""Latents of pictures in memory: each encoded once, and to the bit those of shards."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from curation.manifest import Manifest
from tests.training.conftest import many, write_manifest
from training import kept_latents, prepare, shard_job, space
from training.bundle import read_info
from training.data import TrainingSet, load
from training.dependencies import Statement
from training.job import TrainJob
from training.latents import LatentSpace, digest
from training.learner import Place
from training.loop import Outcome, train
from training.progress import Point
from training.retraining import earliest
from training.roster import Roster
from training.shard_reader import Shards
from training.sources import ShapedInMemory
from training.text import TextEncoder

MakeJob = Callable[..., TrainJob]
CPU = torch.device("cpu")
ROWS = many(37)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return write_manifest(tmp_path_factory.mktemp("base"), ROWS)


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures passed through an autoencoder, call by call."""
    found: list[int] = []
    encode = LatentSpace.encode

    def noting(self: LatentSpace, pictures: Tensor) -> Tensor:
        found.append(len(pictures))
        return encode(self, pictures)

    monkeypatch.setattr(LatentSpace, "encode", noting)
    return found


def test_a_pictures_latents_are_its_own_to_the_bit(base: Manifest, autoencoder: Path) -> None:
    latents, pictures = LatentSpace(autoencoder), load(base).pictures
    whole = kept_latents.steady(latents, pictures)
    assert torch.equal(whole, torch.cat([kept_latents.steady(latents, part) for part in pictures.split(5)]))
    torch.testing.assert_close(whole.float(), latents.encode(pictures), rtol=1e-3, atol=1e-3)
    films = pictures[:36].view(9, 4, *pictures.shape[1:])
    of_films = kept_latents.steady(space.build(1, autoencoder, frames=4), films)
    assert torch.equal(of_films.transpose(1, 2).flatten(0, 1), whole[:36])


@pytest.mark.parametrize("flip", [True, False])
def test_memory_holds_what_shards_do(
    make_job: MakeJob, base: Manifest, autoencoder: Path, tmp_path: Path, encoded: list[int], flip: bool
) -> None:
    """Also where some of the rows that shards hold are not trained on."""
    data = {"kind": "shards", "window": 12, "block": 12, "cache": str(tmp_path / "cache")}
    job = make_job(manifest=base.uri, data=data, autoencoder={"path": str(autoencoder)}, flip=flip)
    prepared = prepare.prepare(job)
    planned = prepare.shards(prepared)
    assert planned is not None
    info = shard_job.make(planned, base, prepared.roster, autoencoder=str(autoencoder))
    roster = Roster.of_manifest(base, set(prepared.roster.ids[3:9])).ordered(job.data.order(None))
    shards = Shards(planned.uri, info, roster, cache=tmp_path / "cache", cache_bytes=2**20)
    memory, latents = load(base, roster=roster), LatentSpace(autoencoder)
    assert memory.keep_latents(latents, flip=flip)
    encoded.clear()
    draw = torch.Generator().manual_seed(0)
    for size in (1, 5, 31, 64, 64, 64, 64):
        rows = torch.randint(31, (size,), generator=draw)
        mirrored = torch.rand(size, generator=draw) < 0.5 if flip else None
        assert torch.equal(
            memory.source.clean(rows, mirrored, latents, CPU), shards.clean(rows, mirrored, latents, CPU)
        )
    calls = len(encoded)
    assert set(encoded) == {16}
    every = torch.arange(31)
    for mirrored in (None, every >= 0) if flip else (None,):
        memory.source.clean(every, mirrored, latents, CPU)
    seen = len(encoded)
    assert seen - calls <= 2  # a few that no batch had shown
    for mirrored in (None, every >= 0) if flip else (None,):
        memory.source.clean(every, mirrored, latents, CPU)
    assert len(encoded) == seen


def test_of_several_shapes_and_of_another_space(autoencoder: Path, encoded: list[int]) -> None:
    draw = torch.Generator().manual_seed(0)
    parts = [torch.randint(0, 256, (3, 3, side, 8), generator=draw, dtype=torch.uint8) for side in (8, 16)]
    source = ShapedInMemory(parts, torch.tensor([0, 1, 1, 0, 0, 1]), 8)
    latents = LatentSpace(autoencoder)
    source.keep_latents(latents, flip=True)
    rows, mirrored = torch.tensor([1, 5]), torch.tensor([False, True])
    expected = kept_latents.steady(latents, torch.stack([parts[1][0], parts[1][2].flip(-1)])).float()
    encoded.clear()
    for _ in range(3):
        assert torch.equal(source.clean(rows, mirrored, latents, CPU), expected)
    assert encoded == [16]
    assert source.clean(rows, mirrored, space.PatchSpace(1), CPU).shape == (2, 3, 16, 8)


def test_what_does_not_fit_is_encoded_again_and_said(
    base: Manifest, autoencoder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    data, latents = load(base), LatentSpace(autoencoder)
    expected = kept_latents.steady(latents, data.pictures).float()
    data.keep_latents(latents, flip=False)
    monkeypatch.setattr(kept_latents, "CAP_BYTES", 37 * 4 * 4 * 4 * 2 - 1)
    with caplog.at_level(logging.WARNING, "training.kept_latents"):
        for _ in range(2):
            assert torch.equal(data.source.clean(torch.arange(37), None, latents, CPU), expected)
    assert [record.message.partition("use ")[2] for record in caplog.records] == [
        "`data: {kind: shards}`, which encodes it once"
    ]


def test_a_run_is_resumed_to_the_bit_and_says_how_it_encoded_and_by_what(
    make_job: MakeJob, base: Manifest, autoencoder: Path, text: TextEncoder, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    known = {"path": str(autoencoder), "sha256": digest(autoencoder)}
    word = {"by": "Jane", "ground": "its data card", "date": "2026-01-02"}
    small = {"block_out_channels": (32,), "layers_per_block": 1, "attention_heads": 2}
    job = make_job(
        manifest=base.uri, autoencoder={**known, "statement": word}, network=small, images=32, flip=True,
        conditioning_images=4, milestones=8,
    )  # fmt: skip

    def run(folder: str, report: Callable[[Point], None] | None = None) -> Outcome:
        data: TrainingSet = load(base)
        latents = LatentSpace(autoencoder)
        return train(
            job, folder=str(tmp_path / folder), data=data, text=text, place=Place(), space=latents, report=report
        )

    def stop(point: Point) -> None:
        if point.images == 24:
            raise KeyboardInterrupt

    straight = run("straight")
    with pytest.raises(KeyboardInterrupt):
        run("killed", stop)
    assert run("killed").state_sha256 == straight.state_sha256
    assert [leg.topology["kept_latents"] for leg in straight.legs] == [1]
    assert straight.bundle is not None
    (made_from,) = read_info(straight.bundle).depends_on
    assert (made_from.sha256, made_from.vouched) == (known["sha256"], Statement.model_validate(word))
    assert job.public()["autoencoder"]["statement"] == word
    unsaid = job.model_validate({**job.model_dump(), "autoencoder": known})
    assert job.identity() == unsaid.identity()
    roster = Roster.of_manifest(base)
    last = {roster.ids[int(load(base).shown(0, torch.tensor([31]))[0])]}
    point = earliest(str(tmp_path / "straight"), roster, last, job)
    assert point is not None
    monkeypatch.setattr(TrainingSet, "keep_latents", lambda *_, **__: False)  # as it was before
    run("older")
    assert earliest(str(tmp_path / "older"), roster, last, job) is None
