"""`cleanplate index`: from a registered version to an index that comes back with it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from curation.clip import ClipConfig
from curation.errors import UserError
from pipelines import index as verb
from pipelines.index import IndexJob, ThumbnailsConfig
from tests.pipelines.world import AGAIN, World
from tests.serving import tiny
from training import tracking
from training.neighbours.index import INFO_FILE, load


@pytest.fixture(scope="module")
def world(tower: Path, empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    return World.make(tmp_path_factory.mktemp("world"), tower, empty_store)


@pytest.fixture(scope="module")
def version(world: World) -> tracking.ModelVersion:
    return world.register(world.train())


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> ClipConfig:
    return tiny.write_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def job(world: World, clip: ClipConfig) -> IndexJob:
    return IndexJob(
        model="models:/drawings@champion", clip=clip, out=str(world.root / "index"), tracking_uri=world.tracking_uri
    )


@pytest.mark.slow
def test_the_index_comes_back_with_the_version(world: World, version: tracking.ModelVersion, job: IndexJob) -> None:
    assert tracking.neighbours_of(version, tracking_uri=world.tracking_uri) is None
    entry = world.ask("domain", "b.example")
    done = verb.run(job)
    assert (done.attached, done.pictures, done.missing) == (True, 13, ())
    assert "leave one out" in done.calibrated_with
    again = tracking.resolve(job.model, tracking_uri=world.tracking_uri, cache=str(world.root / "cache"))
    assert again.tags["neighbours.sha256"] == done.sha256
    index = load(tracking.neighbours_of(again, tracking_uri=world.tracking_uri) or "")
    assert index.sha256 == done.sha256
    assert set(index.ids) == set(tracking.training_set(version, tracking_uri=world.tracking_uri).ids)
    assert index.info.training_sets == {version.tags["bundle_sha256"]: version.tags["training_set_digest"]}
    assert world.ledger.uri in index.info.ledgers
    shown = {picture.id for i in range(len(index)) if (picture := index.picture(i)).thumbnail is not None}
    assert shown == set(index.ids) - world.ids_at("b.example"), "what was taken down is in it, and is not shown"
    world.ledger.withdraw(entry.id, by="Jane", why="a test")
    creators = {index.picture(i).creator for i in range(len(index))}
    assert creators == {"Painter A", "Painter B", "Painter C", "Painter M"}
    assert world.id_of(AGAIN) in index.ids


@pytest.mark.slow
def test_an_index_that_was_changed_is_not_served(world: World, version: tracking.ModelVersion, job: IndexJob) -> None:
    verb.run(job.model_copy(update={"attach": True}))
    found = tracking.resolve(job.model, tracking_uri=world.tracking_uri, cache=str(world.root / "other"))
    tampered = found.model_copy(update={"tags": {**found.tags, "neighbours.sha256": "0" * 64}})
    with pytest.raises(UserError, match="was changed"):
        tracking.neighbours_of(tampered, tracking_uri=world.tracking_uri)


@pytest.mark.slow
def test_of_a_folder_it_lies_in_the_bundle(world: World, clip: ClipConfig) -> None:
    trained = Path(world.train().bundle)
    done = verb.run(IndexJob(model=str(trained), clip=clip, tracking_uri=world.tracking_uri))
    assert done.folder == str(trained / "neighbours")
    local = tracking.resolve(str(trained))
    assert tracking.neighbours_of(local) == trained / "neighbours"
    (trained / "neighbours" / INFO_FILE).unlink()
    assert tracking.neighbours_of(local) is None
    shutil.rmtree(trained / "neighbours")


def test_it_is_made_on_this_machine(job: IndexJob) -> None:
    with pytest.raises(UserError, match="no folder on this machine") as caught:
        verb.run(job.model_copy(update={"out": "s3://bucket/index"}))
    assert caught.value.field == "out"


@pytest.mark.parametrize(
    ("licence", "shown"),
    [
        ("CC0-1.0", True),
        ("https://creativecommons.org/licenses/by-sa/4.0/", True),
        ("CC BY 4.0", True),
        ("CC-BY-NC-4.0", False),
        ("CC-BY-ND-4.0", False),
        ("all rights reserved", False),
        (None, False),
    ],
)
def test_thumbnails_are_shown_by_licence(licence: str | None, shown: bool) -> None:
    assert ThumbnailsConfig().permit(licence) is shown
    assert ThumbnailsConfig(licences=("*",)).permit(licence)
    assert not ThumbnailsConfig(licences=()).permit(licence)
