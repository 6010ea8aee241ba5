"""MLflow on a real SQLite store: runs without doubled points, versions, aliases, and names that do not exist."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pytest
import torch

from curation.errors import UserError
from tests.training.conftest import many, row_id, write_manifest
from tests.training.test_bundle import describe
from training.bundle import DiffusionModel, load_bundle, write_bundle
from training.network import build
from training.progress import Point
from training.roster import Roster
from training.schedules import CosineSchedule
from training.text import TextEncoder
from training.tracking import (
    ModelVersion,
    Run,
    find,
    register,
    resolve,
    roster_tags,
    runs_of,
    set_alias,
    tag_version,
    training_set,
    versions,
)
from training.unet import UnetConfig


@pytest.fixture(scope="module")
def bundles(text: TextEncoder, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two bundles that differ in their state hash."""
    shape = UnetConfig(block_out_channels=(32,), layers_per_block=1, attention_heads=2)
    torch.manual_seed(1)
    unet = build(shape, channels=12, side=4, width=text.width).eval()
    model = DiffusionModel(
        unet=unet, text=text, betas=CosineSchedule().betas(), prediction="sample", image_size=8, patch_size=2
    )
    root = tmp_path_factory.mktemp("bundles")
    for name in ("1", "2"):
        write_bundle(root / name, model, describe().model_copy(update={"state_sha256": name, "patch_size": 2}))
    return [str(root / "1"), str(root / "2")]


@pytest.fixture(scope="module")
def registered(bundles: list[str], tracking_uri: str) -> list[ModelVersion]:
    first = register(bundles[0], "shapes", alias="champion", tracking_uri=tracking_uri, extra_tags={"note": "x"})
    second = register(bundles[1], "shapes", alias="candidate", tracking_uri=tracking_uri)
    return [first, second]


def start(uri: str, known: str | None = None) -> Run:
    return Run.start("shapes", uri=uri, experiment="test", known_run_id=known, tags={"manifest_id": "m"})


def point(images: int, loss: float) -> Point:
    return Point(images=images, time=images / 10, values={"loss": loss, "lr": 0.1})


def test_a_resumed_run_doubles_no_point(tracking_uri: str, tmp_path: Path) -> None:
    run = start(tracking_uri)
    run.log([point(8, 0.9), point(16, 0.8), point(24, 0.7)])
    again = start(tracking_uri, run.run_id)
    assert again.run_id == run.run_id
    again.log([point(16, 0.8), point(24, 0.7), point(32, 0.6)])
    again.log([point(32, 0.6)])
    client = mlflow.MlflowClient(tracking_uri)
    history = client.get_metric_history(run.run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(8, 0.9), (16, 0.8), (24, 0.7), (32, 0.6)]

    for attempt in (run, again):
        attempt.params({"unet": {"preset": "tiny"}, "images": 64})
        attempt.dataset(name="shapes", uri=str(tmp_path), digest="f" * 64)
    (tmp_path / "grid.png").write_bytes(b"png")
    again.artifact(tmp_path / "grid.png", "samples")
    again.finish("FINISHED", {"state_sha256": "s"})
    stored = client.get_run(run.run_id)
    assert stored.info.status == "FINISHED"
    assert stored.data.params == {"unet.preset": "tiny", "images": "64"}
    assert stored.data.tags["cleanplate.state_sha256"] == "s"
    assert [entry.dataset.digest for entry in stored.inputs.dataset_inputs] == ["f" * 36]
    assert [artifact.path for artifact in client.list_artifacts(run.run_id, "samples")] == ["samples/grid.png"]


def test_a_run_of_another_store_is_begun_anew(tracking_uri: str) -> None:
    assert start(tracking_uri, "0" * 32).run_id != "0" * 32


def test_an_alias_gives_the_bundle_back(
    registered: list[ModelVersion], bundles: list[str], tracking_uri: str, tmp_path: Path
) -> None:
    first, second = registered
    assert (first.version, second.version) == ("1", "2")
    for name in ("models:/shapes@champion", "shapes", "models:/shapes/1"):
        found = resolve(name, tracking_uri=tracking_uri, cache=str(tmp_path))
        assert (found.name, found.version) == ("shapes", "1")
        assert found.tags["manifest_id"] == "m" * 64
        assert found.tags["note"] == "x"
        assert found.tags["config_sha256"] == "c" * 64
        assert found.model_id == first.model_id
        assert Path(found.bundle).is_relative_to(tmp_path)
    assert load_bundle(found.bundle).info == load_bundle(bundles[0]).info
    other = resolve("models:/shapes@candidate", tracking_uri=tracking_uri, cache=str(tmp_path))
    assert other.version == "2"
    assert len(list(tmp_path.iterdir())) == 2  # each downloaded once


def test_the_same_bundle_is_one_version_and_the_alias_moves(
    bundles: list[str], tracking_uri: str, tmp_path: Path
) -> None:
    versions = [
        register(bundles[number], "moving", alias="champion", tracking_uri=tracking_uri).version for number in (0, 1, 0)
    ]
    assert versions == ["1", "2", "1"]
    assert resolve("moving", tracking_uri=tracking_uri, cache=str(tmp_path)).version == "1"


def test_a_version_leads_back_to_its_run(bundles: list[str], tracking_uri: str, tmp_path: Path) -> None:
    run = start(tracking_uri)
    version = register(bundles[0], "traced", alias=None, tracking_uri=tracking_uri, run_id=run.run_id)
    assert resolve("models:/traced/1", tracking_uri=tracking_uri, cache=str(tmp_path)).run_id == run.run_id
    outputs = mlflow.MlflowClient(tracking_uri).get_run(run.run_id).outputs
    assert [output.model_id for output in outputs.model_outputs] == [version.model_id]


def test_a_folder_is_a_model_too(bundles: list[str]) -> None:
    found = resolve(bundles[0])
    assert (found.name, found.version, found.bundle) == ("local", "0", bundles[0])


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("models:/shapes@nope", r"no alias nope.*candidate, champion"),
        ("models:/shapes/77", "no version 77"),
        ("absent", r"no model is registered as absent.*shapes"),
        ("some/folder", "no bundle at some/folder"),
        ("models:/a b", "names no model"),
        ("shapes@", "names no model"),
    ],
)
@pytest.mark.usefixtures("registered")
def test_what_does_not_exist_is_answered(model: str, message: str, tracking_uri: str) -> None:
    with pytest.raises(UserError, match=f"(?s){message}") as caught:
        resolve(model, tracking_uri=tracking_uri)
    assert caught.value.field == "model"


@pytest.mark.parametrize(
    ("name", "alias", "field"),
    [("two words", "champion", "name"), ("local", None, "name"), ("x", "Champion", "alias"), ("x", "v3", "alias")],
)
def test_bad_names_are_refused(bundles: list[str], name: str, alias: str | None, field: str, tracking_uri: str) -> None:
    with pytest.raises(UserError) as caught:
        register(bundles[0], name, alias=alias, tracking_uri=tracking_uri)
    assert caught.value.field == field


def test_a_store_that_mlflow_refuses_is_a_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="tracking URI"):
        resolve("x", tracking_uri=f"file://{tmp_path}")


def test_an_unknown_run_is_refused(bundles: list[str], tracking_uri: str) -> None:
    with pytest.raises(UserError, match="no run"):
        register(bundles[0], "traced", alias=None, tracking_uri=tracking_uri, run_id="0" * 32)


# --- what traces and takedowns ask ---


@pytest.fixture(scope="module")
def roster(tmp_path_factory: pytest.TempPathFactory) -> Roster:
    rows = many(6)
    return Roster.of_manifest(write_manifest(tmp_path_factory.mktemp("manifests"), rows), [row_id(rows[2][1])])


@pytest.fixture(scope="module")
def traced(
    text: TextEncoder, roster: Roster, tracking_uri: str, tmp_path_factory: pytest.TempPathFactory
) -> ModelVersion:
    """A version that leads to its run, whose artifacts hold the training set."""
    tags = {"config_sha256": "c", **roster_tags(roster)}
    run = Run.start("lineage", uri=tracking_uri, experiment="lineage", known_run_id=None, tags=tags)
    run.training_set(roster)
    run.finish("FINISHED")
    info = describe().model_copy(
        update={
            "training_set_digest": roster.info.digest,
            "training_set_digest_kind": "merkle",
            "manifest_id": roster.info.manifest_id,
            "excluded_rows": 1,
            "base_rows": 6,
            "ledger_uri": "s3://ledger",
            "takedown_ledger_version": "v7",
            "state_sha256": "lineage",
            "patch_size": 2,
            "job": {"seed": 5},
        }
    )
    folder = tmp_path_factory.mktemp("run")
    shape = UnetConfig(block_out_channels=(32,), layers_per_block=1, attention_heads=2)
    unet = build(shape, channels=12, side=4, width=text.width).eval()
    model = DiffusionModel(
        unet=unet, text=text, betas=CosineSchedule().betas(), prediction="sample", image_size=8, patch_size=2
    )
    write_bundle(folder / "bundle", model, info)
    (folder / "training_set.parquet").write_bytes(roster.to_parquet())
    return register(str(folder / "bundle"), "lineage", alias="champion", tracking_uri=tracking_uri, run_id=run.run_id)


def test_a_versions_tags_say_what_it_was_trained_on(traced: ModelVersion, roster: Roster, tracking_uri: str) -> None:
    found = find("models:/lineage/1", tracking_uri=tracking_uri)
    expected = {"training_set_digest_kind": "merkle", "base_rows": "6", "excluded_rows": "1", "seed": "5"}
    expected |= {"ledger_uri": "s3://ledger", "takedown_ledger_version": "v7", "images_seen": "64"}
    assert found.tags | expected == found.tags
    assert (found.bundle, found.run_id) == ("", traced.run_id)


def test_all_versions_are_listed_with_their_aliases(
    traced: ModelVersion, registered: list[ModelVersion], tracking_uri: str
) -> None:
    listed = {(v.name, v.version): v for v in versions(tracking_uri=tracking_uri)}
    assert listed["shapes", "1"].aliases == ("champion",)
    assert listed["shapes", "2"].aliases == ("candidate",)
    assert listed["lineage", "1"].tags == find("lineage", tracking_uri=tracking_uri).tags
    assert list(listed) == sorted(listed)


def test_runs_are_found_by_their_manifest(traced: ModelVersion, roster: Roster, tracking_uri: str) -> None:
    (run,) = runs_of([roster.info.manifest_id, "absent"], tracking_uri=tracking_uri)
    assert (run.run_id, run.name, run.status) == (traced.run_id, "lineage", "FINISHED")
    assert run.tags["training_set_digest"] == roster.info.digest
    assert runs_of([], tracking_uri=tracking_uri) == []


def test_a_training_set_comes_back_from_a_version_a_run_or_a_folder(
    traced: ModelVersion, roster: Roster, tracking_uri: str, registered: list[ModelVersion]
) -> None:
    for of in (find("lineage", tracking_uri=tracking_uri), str(traced.run_id), resolve(traced.bundle)):
        found = training_set(of, tracking_uri=tracking_uri)
        assert (found.ids, found.info) == (roster.ids, roster.info)
    forged = traced.model_copy(update={"tags": {**traced.tags, "training_set_digest": "0" * 64}})
    for of, why in (
        (registered[0], "before digests"),
        (traced.model_copy(update={"run_id": None}), "without the run"),
        (forged, "another digest"),
        ("0" * 32, "not among its artifacts"),
    ):
        with pytest.raises(UserError, match=why) as caught:
            training_set(of, tracking_uri=tracking_uri)
        assert caught.value.field == "model"


def test_tags_and_aliases_are_moved(bundles: list[str], tracking_uri: str) -> None:
    for bundle in bundles:
        register(bundle, "moved", alias="champion", tracking_uri=tracking_uri)
    tag_version("moved", "2", {"takedown.0123456789ab": "affected"}, tracking_uri=tracking_uri)
    assert find("moved", tracking_uri=tracking_uri).tags["takedown.0123456789ab"] == "affected"
    assert set_alias("moved", "champion", "1", tracking_uri=tracking_uri) == "2"
    assert set_alias("moved", "new", "2", tracking_uri=tracking_uri) is None
    assert find("moved", tracking_uri=tracking_uri).version == "1"
    for name, alias, version in (("moved", "champion", "9"), ("absent", "champion", "1"), ("moved", "V", "1")):
        with pytest.raises(UserError):
            set_alias(name, alias, version, tracking_uri=tracking_uri)
    with pytest.raises(UserError):
        tag_version("moved", "9", {}, tracking_uri=tracking_uri)
