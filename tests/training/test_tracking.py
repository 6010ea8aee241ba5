"""MLflow on a real SQLite store: runs without doubled points, versions, aliases, and names that do not exist."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pytest
import torch

from curation.errors import UserError
from tests.training.test_bundle import describe
from training.bundle import DiffusionModel, load_bundle, write_bundle
from training.progress import Point
from training.schedules import CosineSchedule
from training.text import TextEncoder
from training.tracking import ModelVersion, Run, register, resolve
from training.unet import UnetConfig, build_unet


@pytest.fixture(scope="module")
def bundles(text: TextEncoder, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two bundles that differ in their state hash."""
    shape = UnetConfig(block_out_channels=(32,), layers_per_block=1, attention_heads=2)
    torch.manual_seed(1)
    unet = build_unet(shape, image_size=8, patch_size=2, text_width=text.width).eval()
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
