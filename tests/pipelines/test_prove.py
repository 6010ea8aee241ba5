"""`cleanplate prove`: from a registered version to a proof that a stranger checks."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from curation.errors import UserError
from curation.manifest import Manifest
from pipelines import prove
from pipelines.prove import Proven
from pipelines.register import RegisterJob
from pipelines.register import run as register
from tests.pipelines.test_cli import Cleanplate, cleanplate
from tests.training.conftest import many, row_id, write_manifest, write_tower
from training.job import TrainJob
from training.launch import launch
from training.tracking import ModelVersion

__all__ = ["cleanplate"]  # a fixture

SCRIPT = Path(__file__).parents[2] / "docs" / "verify_proof.py"
ROWS = many(9)
MEMBER = row_id(ROWS[0][1])
STRANGER = "0" * 64


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return write_manifest(tmp_path_factory.mktemp("manifests"), ROWS)


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory, manifest: Manifest, store: str) -> ModelVersion:
    """A model that was trained and registered, without anybody naming its run."""
    folder = tmp_path_factory.mktemp("training")
    job = TrainJob.model_validate(
        {
            "manifest": manifest.uri, "output": str(folder / "runs"), "patch_size": 1, "images": 16, "batch_size": 8,
            "network": {"block_out_channels": (32,), "layers_per_block": 1, "attention_heads": 2}, "workers": 0,
            "precision": "fp32", "sample": {"steps": 2}, "tracking": {"uri": store},
        }
    )  # fmt: skip
    trained = launch(job, text_encoder=str(write_tower(folder / "tower")))
    return register(RegisterJob(name="noise", bundle=trained.bundle, tracking_uri=store))


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: ModelVersion, store: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.chdir(tmp_path)


def test_a_proof_is_written_and_checked_without_any_store(
    cleanplate: Cleanplate, version: ModelVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    for asked, kind in ((MEMBER, "inclusion"), (STRANGER, "absence")):
        done = cleanplate("prove", asked, "--json")
        assert done.returncode == 0, done.stderr
        told = Proven.model_validate_json(done.stdout.splitlines()[-1])
        assert (told.kind, told.id, told.size, told.holds) == (kind, asked, 9, True)
        assert (told.model, told.version, told.proof) == ("noise", "1", "proof.json")
        assert told.digest == version.tags["training_set_digest"]
        with monkeypatch.context() as away:
            away.setenv("MLFLOW_TRACKING_URI", "sqlite:////nowhere/at/all.db")
            checked = cleanplate("prove", "--verify", "proof.json", "--digest", told.digest.upper())
            assert checked.returncode == 0
            assert "the proof holds" in checked.stdout
            assert ("was NOT among" in checked.stdout) == (kind == "absence")
        refused = cleanplate("prove", "--verify", "proof.json", "--digest", "f" * 64, "--json")
        assert (refused.returncode, json.loads(refused.stdout)["holds"]) == (1, False)
        alone = [sys.executable, "-I", "-S", str(SCRIPT), "proof.json", told.digest]
        assert subprocess.run(alone, check=False).returncode == 0


def test_a_version_is_named_in_several_ways(version: ModelVersion) -> None:
    digest = version.tags["training_set_digest"]
    for model, number in (
        ("models:/noise/1", None), ("models:/noise@champion", None), ("noise", None), ("noise", "1"), (None, "1"),
        (version.bundle, None),
    ):  # fmt: skip
        assert prove.run(MEMBER, model=model, version=number, out="p.json").digest == digest


def test_a_file_stands_for_its_sha256(manifest: Manifest) -> None:
    batch = next(manifest.batches(["id", "image"]))
    row = batch.slice(0, 1).to_pylist()[0]
    Path("picture.png").write_bytes(row["image"]["bytes"])
    assert hashlib.sha256(row["image"]["bytes"]).hexdigest() == row["id"]
    assert prove.run("picture.png", model=None, version=None, out="p.json").kind == "inclusion"


def test_registering_finds_the_run_beside_the_bundle(
    version: ModelVersion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert version.run_id is not None
    other = f"sqlite:///{tmp_path}/other.db"
    elsewhere = RegisterJob(name="noise", bundle=version.bundle, tracking_uri=other)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", other)
    lone = register(elsewhere)
    assert lone.run_id is None  # that server does not know the run
    with pytest.raises(UserError, match="not on record"):
        prove.run(MEMBER, model="noise", version=None, out="p.json")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give a SHA256"),
        ([MEMBER, "--verify", "x.json", "--digest", "0"], "give a SHA256"),
        (["--verify", "x.json"], "give a SHA256"),
        ([MEMBER, "--digest", "0"], "give a SHA256"),
        (["--verify", "/nowhere.json", "--digest", "0"], "no proof at"),
        (["no-such-file"], "neither the sha256 of a file nor a file"),
        ([MEMBER, "--model", "absent"], "no model is registered as absent"),
        ([MEMBER, "--version", "7"], "no version 7"),
    ],
)
def test_a_users_mistake_exits_2(cleanplate: Cleanplate, arguments: list[str], words: str) -> None:
    done = cleanplate("prove", *arguments)
    assert done.returncode == 2, done.stdout
    assert words in done.stderr


def test_what_is_no_proof_is_refused(cleanplate: Cleanplate) -> None:
    Path("x.json").write_text('{"kind": "inclusion"}')
    done = cleanplate("prove", "--verify", "x.json", "--digest", "0" * 64)
    assert (done.returncode, "this is no proof" in done.stderr) == (2, True)
