"""The best checkpoint of a run becomes a version, also where nobody asked for its bundle while it was trained."""

from __future__ import annotations

from pathlib import Path

import pytest

from curation.errors import UserError
from pipelines import register
from pipelines.register import RegisterJob
from tests.pipelines.world import World
from training import checkpoint, tracking
from training.bundle import read_info

pytestmark = pytest.mark.slow


def test_the_best_checkpoint_of_a_run_is_registered(tmp_path: Path, tower: Path, empty_store: Path) -> None:
    world = World.make(tmp_path, tower, empty_store)
    plain = world.train()
    job = RegisterJob(name="drawings", bundle=plain.bundle, which="best", tracking_uri=world.tracking_uri)
    for act in (register.plan, register.run):
        with pytest.raises(UserError, match="not known") as caught:
            act(job)
        assert caught.value.field == "which"
    # a rate that ruins what was learned: the last checkpoint is not the best
    ruinous = {"decay": "constant", "lr": 0.5, "warmup_images": 64}
    result = world.train(keep_best_checkpoints=1, optimizer=ruinous)
    losses = {info.images_seen: info.loss for info in map(checkpoint.read_info, kept_of(result.bundle))}
    assert result.best is not None
    assert result.best.value == losses[result.best.images_seen] == min(filter(None, losses.values()))
    assert result.best.images_seen < 64
    job = job.model_copy(update={"bundle": result.bundle})
    assert register.plan(job)["manifest_id"] == world.manifest.id
    version = register.run(job)
    assert version.tags["images_seen"] == str(result.best.images_seen)
    assert version.run_id == result.run_id
    assert len(tracking.training_set(version, tracking_uri=world.tracking_uri).ids) == 13
    beside = Path(result.bundle).parent / "bundle_best"
    assert read_info(beside).state_sha256 == version.tags["state_sha256"] != result.state_sha256
    assert register.run(job).version == version.version
    again = world.train(keep_best_checkpoints=1, optimizer=ruinous, bundle="best")
    assert again.best is not None
    assert again == result.model_copy(update={"best": result.best.model_copy(update={"bundle": str(beside)})})


def kept_of(bundle: str) -> list[str]:
    return checkpoint.paths(f"{Path(bundle).parent}/checkpoints")
