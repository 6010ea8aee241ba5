"""`cleanplate evaluate` on a real registry: what it draws on, what it writes, and what it leaves with the version."""

from __future__ import annotations

import json
from pathlib import Path

import mlflow
import numpy as np
import pytest
from PIL import Image

from curation.errors import UserError
from curation.manifest import Manifest
from pipelines import evaluate
from pipelines.evaluate import EvaluateJob, StoredMemorization, StoredMetric
from pipelines.evaluation_sets import gather, probes
from tests.pipelines.world import World
from tests.training.conftest import many, row_id, write_manifest
from training import tracking
from training.bundle import read_info
from training.evaluate import Evaluation, Pictures
from training.exposure import exposures
from training.tracking import ModelVersion

pytestmark = pytest.mark.slow  # networks are trained, in seconds each

METRICS = {"clip_score", "clip_retrieval", "fd_efficientnet_lite0", "kd_efficientnet_lite0", "precision", "recall"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tower: Path, empty_store: Path) -> World:
    """A version of drawings, thirteen pictures known to it."""
    made = World.make(tmp_path_factory.mktemp("world"), tower, empty_store)
    made.register(made.train())
    return made


@pytest.fixture(scope="module")
def holdout(world: World) -> Manifest:
    """Its twelve pictures, and twelve that it has not seen."""
    return write_manifest(world.root / "holdout", many(24))


def job(world: World, holdout: Manifest | None = None, **changes: object) -> EvaluateJob:
    fields: dict[str, object] = {
        "model": "models:/drawings/1",
        "holdout": holdout and holdout.uri,
        "samples": 10,
        "loss_buckets": 2,
        "memorization": {"probes": 4},
        "device": "cpu",
        "output": str(world.root / "evaluations"),
        "tracking_uri": world.tracking_uri,
        "ledger": world.ledger.uri,
    }
    return EvaluateJob.model_validate(fields | changes)


def version(world: World) -> ModelVersion:
    return tracking.resolve("models:/drawings/1", tracking_uri=world.tracking_uri, cache=str(world.root / "cache"))


@pytest.mark.slow
def test_an_evaluation_is_written_and_left_with_the_version(
    world: World, holdout: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(world.root / "cache"))
    asked = job(world, holdout)
    told = evaluate.plan(asked)
    assert told["samples"] == 14
    assert told["manifest"] == world.manifest.id
    done = evaluate.run(asked)
    found = Evaluation.model_validate_json((Path(done.folder) / "result.json").read_bytes())
    assert set(found.metrics) == METRICS
    assert len(found.prompts) == len(found.noise_seeds) == 14
    assert found.metrics["precision"].samples.n == 10, "probes are about copies alone"
    assert all(metric.floor is not None for metric in found.metrics.values())
    assert [bucket.held_out is not None for bucket in found.loss] == [True, True]
    assert found.memorization is not None
    assert found.memorization.samples == 14
    assert found.memorization.held_out == 12, "all there are"
    assert Image.open(Path(done.folder) / "pairs.png").size[0] > 100
    report = (Path(done.folder) / "report.md").read_text()
    assert "fd_efficientnet_lite0" in report
    assert "## Memorisation" in report
    assert any("drawings/1" in line or "report" in line for line in evaluate.summary(done))

    tags = version(world).tags
    stored = StoredMetric.model_validate_json(tags["eval.fd_efficientnet_lite0"])
    assert stored.value == found.metrics["fd_efficientnet_lite0"].samples.value
    assert stored.floor is not None
    gate = StoredMemorization.model_validate_json(tags["memorization"])
    assert (gate.verdict, gate.excess) == (found.memorization.verdict, found.memorization.excess)

    again = evaluate.run(asked)
    assert again.folder == done.folder
    assert again.evaluation.metrics == found.metrics, "prompts, noise and intervals are fixed"
    client = mlflow.MlflowClient(world.tracking_uri)
    run_id = str(version(world).run_id)
    history = client.get_metric_history(run_id, "eval/fd_efficientnet_lite0")
    assert [(metric.step, metric.value) for metric in history] == [(64, stored.value)]
    files = {Path(file.path).name for file in client.list_artifacts(run_id, "evaluation/1")}
    assert files == {"result.json", "report.md", "metrics.png", "pairs.png"}


def test_what_a_model_has_not_seen_is_held_out(world: World, holdout: Manifest) -> None:
    info = read_info(version(world).bundle)
    sets = gather(job(world, holdout, samples=100), version(world), info, world.manifest)
    new = {row_id(picture) for _, picture in many(24)} - {row_id(picture) for _, picture in many(12)}
    assert sets.held_out is not None
    assert set(sets.held_out.ids) == new
    assert len(sets.trained.ids) == 13
    assert set(sets.reference.ids) == set(sets.trained.ids)
    roster = tracking.training_set(version(world), tracking_uri=world.tracking_uri)
    shown = {seen.id: seen.times for seen in exposures(roster, 0, 64, sets.trained.ids)}
    assert dict(zip(sets.trained.ids, sets.trained.seen.tolist(), strict=True)) == shown
    assert sum(shown.values()) == 64


def test_without_held_out_pictures_the_floor_is_not_known(world: World) -> None:
    sets = gather(job(world), version(world), read_info(version(world).bundle), world.manifest)
    assert sets.held_out is None
    assert any("held-out" in note for note in sets.notes)


def test_what_was_revoked_is_looked_at_and_not_used_or_shown(tmp_path: Path, tower: Path, empty_store: Path) -> None:
    world = World.make(tmp_path, tower, empty_store)
    world.register(world.train())
    held = write_manifest(
        tmp_path / "holdout",
        many(24),
        host=lambda caption: "b.example",
        domain="b.example",
        uri=lambda caption: caption,
    )
    entry = world.ask("domain", "a.example")
    gone = world.ids_at("a.example")
    sets = gather(job(world, held), version(world), read_info(version(world).bundle), world.manifest)
    assert gone <= sets.revoked
    assert gone <= set(sets.trained.ids), "a model that knows them still does"
    assert not gone & set(sets.reference.ids)
    captions = {row["id"]: row["caption"] for row in world.manifest.table(["id", "caption"]).to_pylist()}
    assert not {captions[id_] for id_ in gone} & {*sets.prompts, *sets.probes}
    assert sets.held_out is not None
    world.ask("domain", "b.example", "2")
    with pytest.raises(UserError, match="pictures to compare with"):
        gather(job(world, held), version(world), read_info(version(world).bundle), world.manifest)
    assert entry.id


def test_probes_are_of_what_was_shown_most_copies_counted_together() -> None:
    pixels = np.zeros((5, 2, 2, 3), np.uint8)
    pixels[3], pixels[4] = 1, 2
    pictures = Pictures(list("abcde"), pixels, ["copy", "copy two", "copy three", "often", "seldom"])
    assert probes(pictures, np.array([2, 2, 2, 5, 1]), 2) == ["copy", "often"]
    assert probes(pictures, np.array([2, 2, 2, 5, 1]), 4) == ["copy", "often", "seldom", "copy"]
    assert probes(pictures, np.array([1, 1, 1, 5, 1]), 0) == []


def test_a_bundle_is_evaluated_without_a_registry(world: World) -> None:
    bundle = version(world).bundle
    done = evaluate.run(job(world, model=bundle, memorization=None, loss_buckets=0, samples=8))
    assert not done.logged
    found = json.loads((Path(done.folder) / "result.json").read_text())
    assert found["model"] == bundle
    assert found["memorization"] is None
    assert any("which pictures" in note for note in found["notes"])


def test_cmmd_takes_weights_by_path(world: World) -> None:
    asked = job(world, cmmd={"model": "ViT-B-32", "weights": "openai"}, memorization=None, samples=8)
    with pytest.raises(UserError, match="by path") as caught:
        evaluate.run(asked)
    assert caught.value.field == "cmmd.weights"


def test_reports_are_written_to_this_machine() -> None:
    with pytest.raises(ValueError, match="on this machine"):
        EvaluateJob(model="models:/drawings/1", output="s3://bucket/evaluations")
