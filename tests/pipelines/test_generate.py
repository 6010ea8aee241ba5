"""`cleanplate generate` without a server goes through the guards of a serve job."""

from __future__ import annotations

from pathlib import Path

import pytest

from curation.clip import ClipConfig
from curation.errors import UserError
from pipelines.generate import run, summary
from serving.job import ServeJob
from tests.serving import tiny

FEW = {"num_inference_steps": 2, "seed": 1}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> ClipConfig:
    return tiny.write_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, clip: ClipConfig) -> str:
    return str(tiny.write_bundle(tmp_path_factory.mktemp("bundle"), clip))


def test_the_rules_that_ship_hold_without_a_job(bundle: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="safety rules"):
        run("a beheading", str(tmp_path / "a.png"), FEW, server=None, model=bundle)
    assert list(tmp_path.iterdir()) == []


def test_without_a_job_it_says_that_nobody_looked(bundle: str, tmp_path: Path) -> None:
    made = run("a red apple", str(tmp_path / "a.png"), FEW, server=None, model=bundle)
    assert [Path(file).name for file in made.files] == ["a.png"]
    assert any("nothing looked" in line for line in summary(made))


def test_a_serve_job_brings_its_guards(bundle: str, clip: ClipConfig, tmp_path: Path) -> None:
    job = ServeJob.model_validate({"model": bundle, "safety": {"concepts": {"weapon": -0.99}}, "clip": clip})
    made = run("a red apple", str(tmp_path / "a.png"), FEW, server=None, model=None, job=job)
    assert (made.files, list(tmp_path.iterdir())) == ([], [])
    (withheld,) = made.withheld
    assert withheld["pixels_sha256"] is None
    lines = summary(made)
    assert any("withheld: weapon" in line for line in lines)
    assert not any("nothing looked" in line for line in lines)


def test_a_server_has_a_job_of_its_own(bundle: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        run("x", str(tmp_path / "a.png"), {}, server="http://127.0.0.1:9", model=None, job=ServeJob(model=bundle))
    assert caught.value.field == "--job"
