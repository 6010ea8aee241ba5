"""`cleanplate average`: from a run with stored averages to a version of another length, through the command."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.average import Averaged
from pipelines.register import RegisterJob
from pipelines.register import run as register
from tests.pipelines.test_cli import Cleanplate, cleanplate
from tests.pipelines.world import World
from training.bundle import load_bundle
from training.tracking import resolve, training_set

__all__ = ["cleanplate"]  # a fixture

pytestmark = pytest.mark.slow  # networks are trained, in seconds each


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tower: Path, empty_store: Path) -> World:
    return World.make(tmp_path_factory.mktemp("world"), tower, empty_store)


@pytest.fixture(scope="module")
def run_folder(world: World) -> Path:
    result = world.train(ema={"profiles": [0.05, 0.1], "snapshots": 2})
    return Path(result.bundle).parent


def test_a_bundle_of_another_length_is_written_and_leads_back(
    cleanplate: Cleanplate, world: World, run_folder: Path, tmp_path: Path
) -> None:
    into = tmp_path / "longer"
    done = cleanplate("average", str(run_folder), "--sigma-rel", "0.1", "--into", str(into), "--json")
    assert done.returncode == 0, done.stderr
    told = Averaged.model_validate_json(done.stdout.splitlines()[-1])
    assert (told.bundle, told.sigma_rel, told.stored) == (str(into / "bundle"), 0.1, 4)
    longer, kept = load_bundle(told.bundle), load_bundle(run_folder / "bundle")
    assert longer.info.ema_sigma_rel == 0.1
    assert longer.info.training_set_digest == kept.info.training_set_digest == told.training_set_digest
    theirs = kept.unet.state_dict()
    assert any(not weights.equal(theirs[name]) for name, weights in longer.unet.state_dict().items())
    # the folder alone leads to the training set, and registering it finds the run
    assert training_set(resolve(told.bundle)).info.digest == told.training_set_digest
    version = register(RegisterJob(name="longer", bundle=told.bundle, tracking_uri=world.tracking_uri))
    assert version.run_id is not None
    assert len(training_set(version, tracking_uri=world.tracking_uri)) == 13
    shown = cleanplate("average", str(run_folder), "--sigma-rel", "0.05", "--into", str(tmp_path / "shorter"))
    assert "register it with" in shown.stdout


def test_mistakes_exit_2(cleanplate: Cleanplate, run_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    (tmp_path / "full" / "bundle").mkdir(parents=True)
    (tmp_path / "full" / "bundle" / "cleanplate.json").write_text("{}")
    for arguments, words in (
        ([str(tmp_path / "absent"), "--sigma-rel", "0.1", "--into", str(tmp_path / "new")], "no averages in"),
        ([str(run_folder), "--sigma-rel", "0.25", "--into", str(tmp_path / "new")], "can be made from"),
        ([str(run_folder), "--sigma-rel", "3", "--into", str(tmp_path / "new")], "'--sigma-rel'"),
        ([str(run_folder), "--sigma-rel", "0.1", "--into", str(tmp_path / "full")], "a bundle in"),
        ([str(run_folder), "--sigma-rel", "0.1", "--into", str(tmp_path / "taken")], "cannot write"),
    ):
        done = cleanplate("average", *arguments)
        assert done.returncode == 2, (arguments, done.stdout)
        assert words in done.stderr
    assert not (tmp_path / "new").exists()
