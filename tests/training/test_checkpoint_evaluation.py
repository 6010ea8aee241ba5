"""Checkpoints of a run, evaluated one by one from its folder alone, and what is kept by what they came to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.training.conftest import many, write_manifest
from tests.training.evaluators import JUDGES
from training import checkpoint, kept
from training import checkpoint_evaluation as evaluations
from training.bundle import load_bundle
from training.checkpoint_evaluation import EvaluationTask, Standings
from training.data import load
from training.job import TrainJob
from training.learner import Place
from training.loop import train
from training.prepare import prepare
from training.roster import FILE as ROSTER_FILE
from training.text import TextEncoder

MakeJob = Callable[..., TrainJob]
EVALUATION = {"every": 32, "samples": 8, "holdout": 0.3, "loss_buckets": 2, "loss_pictures": 8}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_manifest(tmp_path_factory.mktemp("manifests"), many(60)).uri


def trained(job: TrainJob, folder: Path, text: TextEncoder) -> EvaluationTask:
    """A run in a folder, as the driver leaves it before the first evaluation."""
    prepared = prepare(job)
    assert prepared.held_out is not None
    (folder / evaluations.FOLDER).mkdir(parents=True)
    (folder / ROSTER_FILE).write_bytes(prepared.roster.to_parquet())
    (folder / evaluations.FOLDER / evaluations.HELD_OUT_FILE).write_bytes(prepared.held_out.to_parquet())
    data = load(prepared.manifest, roster=prepared.roster)
    train(job, folder=str(folder), data=data, text=text, place=Place())
    return EvaluationTask(job=job, folder=str(folder))


@pytest.mark.slow
def test_the_newest_checkpoint_is_evaluated_first_and_each_once(
    make_job: MakeJob, pictures: str, text: TextEncoder, tmp_path: Path
) -> None:
    job = make_job(manifest=pictures, keep_checkpoints=9, evaluation=EVALUATION)
    task = trained(job, tmp_path, text)
    assert [checkpoint.images_of(path) for path in checkpoint.paths(f"{tmp_path}/checkpoints")] == [16, 32, 48, 64]
    assert evaluations.due(task) == [32, 64]
    found = evaluations.evaluate(task, JUDGES)
    assert found is not None
    assert (found.images_seen, evaluations.due(task), evaluations.done(str(tmp_path))) == (64, [32], [64])
    assert evaluations.read(str(tmp_path), 64) == found
    assert Image.open(evaluations.path_of(str(tmp_path), 64, "png")).size == (64, 8)
    assert evaluations.due(task.model_copy(update={"skip": (32,)})) == []
    older = evaluations.evaluate(task, JUDGES)
    assert older is not None
    assert (older.images_seen, older.prompts, older.noise_seeds) == (32, found.prompts, found.noise_seeds)
    assert older.values() != found.values(), "other weights draw other pictures"
    assert evaluations.evaluate(task, JUDGES) is None
    assert evaluations.busy(str(tmp_path)) is None

    values = found.values()
    assert set(values) >= {"clip_score", "clip_score_low", "fd_efficientnet_lite0_floor", "loss_held_out", "recall"}
    assert values["loss_held_out"] == pytest.approx((values["loss_held_out_0"] + values["loss_held_out_1"]) / 2)
    last = load_bundle(f"{tmp_path}/bundle")
    _, weights = checkpoint.read_part(f"{tmp_path}/checkpoints/images-000000000064", "ema")
    assert all((last.unet.state_dict()[name] == value).all() for name, value in weights.items())


@pytest.mark.slow
def test_the_best_by_a_metric_is_kept_and_made_a_bundle(
    make_job: MakeJob, pictures: str, text: TextEncoder, tmp_path: Path
) -> None:
    asked = {"manifest": pictures, "evaluation": EVALUATION | {"every": 8}, "keep_best_checkpoints": 1}
    job = make_job(**asked, best_by="loss_held_out", bundle="best", keep_checkpoints=8)
    task = trained(job, tmp_path, text)
    while evaluations.evaluate(task, JUDGES) is not None:
        pass
    scores = {images: evaluations.read(str(tmp_path), images).values() for images in range(8, 65, 8)}
    order = sorted(scores, key=lambda images: scores[images]["loss_held_out"])
    found = kept.settle(job.model_copy(update={"keep_checkpoints": 1}), str(tmp_path))
    assert found is not None
    assert (found.images_seen, found.value) == (order[0], scores[order[0]]["loss_held_out"])
    left = [checkpoint.images_of(path) for path in checkpoint.paths(f"{tmp_path}/checkpoints")]
    assert left == sorted({order[0], 64})
    assert found.bundle == f"{tmp_path}/bundle_best"
    info = load_bundle(found.bundle).info
    assert info.images_seen == order[0]
    assert info.metrics["loss_held_out"] == found.value
    _, state = checkpoint.load(found.checkpoint, checkpoint.read_info(found.checkpoint).identity)
    assert info.state_sha256 == checkpoint.state_sha256(state)
    for metric, better in (("clip_score", max), ("fd_efficientnet_lite0", min)):
        standing = Standings(str(tmp_path), metric)()
        assert min(standing.scores, key=standing.scores.__getitem__) == better(scores, key=lambda i: scores[i][metric])
