"""The evaluator of `cleanplate train`: with the embedded CLIP and network, on the checkpoints of a run."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from pipelines.evaluate_checkpoint import evaluate
from tests.pipelines.test_evaluate import METRICS
from tests.pipelines.world import World
from training import checkpoint_evaluation as evaluations
from training import kept
from training.bundle import read_info
from training.checkpoint_evaluation import EvaluationTask
from training.data import load
from training.learner import Place
from training.loop import train
from training.prepare import prepare
from training.text import TextEncoder

pytestmark = pytest.mark.slow


def test_checkpoints_are_judged_and_their_curves_drawn(tmp_path: Path, tower: Path, empty_store: Path) -> None:
    world = World.make(tmp_path, tower, empty_store)
    asked = {"every": 32, "samples": 8, "loss_buckets": 1, "loss_pictures": 8}
    job = world.job(evaluation=asked, milestones=32, keep_best_checkpoints=1, best_by="fd_efficientnet_lite0")
    prepared = prepare(job)
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "training_set.parquet").write_bytes(prepared.roster.to_parquet())
    train(job, folder=str(folder), data=load(world.manifest), text=TextEncoder(tower), place=Place())
    task = EvaluationTask(job=job, folder=str(folder))
    sizes = []
    for expected in ([64], [32, 64], [32, 64]):
        evaluate(task)
        assert evaluations.done(str(folder)) == expected
        sizes.append((folder / "evaluations" / "curves.png").stat().st_size)
    assert sizes[0] != sizes[1] == sizes[2]
    assert Image.open(io.BytesIO((folder / "evaluations" / "curves.png").read_bytes())).size[0] > 500
    both = {images: evaluations.read(str(folder), images) for images in (32, 64)}
    assert set(both[64].metrics) == METRICS
    assert both[64].metrics["clip_score"].floor is None
    assert "loss_held_out" not in both[64].values()
    assert both[64].bundle_sha256 is None
    found = kept.best_of(str(folder), "fd_efficientnet_lite0")
    assert found is not None
    assert found.value == min(told.metrics["fd_efficientnet_lite0"].samples.value for told in both.values())
    frame = read_info(folder / "evaluations" / "model")
    assert (frame.images_seen, frame.manifest_id) == (0, world.manifest.id)
