"""The command line: exit codes, dry runs, JSON on the last line, and help that answers at once."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from pipelines.cli import main
from tests.curation.pictures import encoded, noise

VERBS = (
    "curate",
    "autoencoder",
    "train",
    "distill",
    "average",
    "register",
    "serve",
    "generate",
    "inspect",
    "prove",
    "submit",
    "demo",
)


@dataclass
class Ended:
    returncode: int
    stdout: str
    stderr: str


Cleanplate = Callable[..., Ended]


@pytest.fixture
def cleanplate(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cleanplate:
    """The command's own entry point, called in this process: a new one would import torch for every test."""

    def call(*arguments: str) -> Ended:
        monkeypatch.setattr("sys.argv", ["cleanplate", *arguments])
        code: object = 0
        try:
            main()
        except SystemExit as exit_:
            code = exit_.code or 0
        shown = capsys.readouterr()
        return Ended(int(str(code)), shown.out, shown.err)

    return call


@pytest.fixture
def job(tmp_path: Path) -> str:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(encoded(noise(0)))
    raw = {
        "kind": "curate",
        "source": {"kind": "folder", "path": str(tmp_path / "pictures")},
        "output": str(tmp_path / "out"),
        "workers": 2,
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(raw))
    return str(tmp_path / "job.yaml")


def test_help_names_every_verb_and_imports_nothing_heavy(cleanplate: Cleanplate) -> None:
    code = "import sys; from pipelines import cli; print([m for m in ('ray', 'torch', 'mlflow') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
    shown = cleanplate("--help").stdout
    assert all(verb in shown for verb in VERBS)
    for verb in VERBS:
        assert cleanplate(verb, "--help").returncode == 0


def test_a_dry_run_prints_the_job_and_its_resources_and_runs_nothing(
    cleanplate: Cleanplate, job: str, tmp_path: Path
) -> None:
    done = cleanplate("curate", job, "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    text, _, resources = done.stdout.rpartition("---\n")
    assert yaml.safe_load(text)["images"]["max_pixels"] == 100_000_000
    assert json.loads(resources) | {"inputs": 1, "units": 1, "workers": 2, "cpus": 2} == json.loads(resources)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["curate", "JOB", "--set", "source.path=/nowhere"], "source.path: no folder at /nowhere"),
        (["curate", "JOB", "--set", "optout=[{path: /nowhere.csv}]"], "optout[0].path: no table"),
        (["curate", "JOB", "--set", "clip.model=ViT-Z"], "clip.model"),
        (["curate", "JOB", "--set", "safety.concepts.haggis=null"], "safety.concepts.haggis"),
        (["curate", "JOB", "--set", "output=gopher://x/y"], "gopher"),
        (["curate", "/nowhere.yaml"], "no job file"),
        (["train", "JOB"], "is a curate job"),
        (["inspect", "/nowhere"], "no manifest at /nowhere"),
        (["generate", "x", "--out", "x.bmp"], "--out"),
        (["generate", "x", "--model", "/nowhere/bundle"], "model"),
        (["generate", "x", "--model", "any", "--steps", "0"], "num_inference_steps"),
        (["generate", "x", "--server", "http://127.0.0.1:9"], "cannot reach"),
        (["demo", "--set", "nonsense"], "--set"),
        (["curate"], "JOB.yaml"),
        (["unheard-of"], "unheard-of"),
    ],
)
def test_a_user_s_mistake_exits_2_with_one_clear_word(
    cleanplate: Cleanplate, job: str, arguments: list[str], words: str
) -> None:
    done = cleanplate(*[job if a == "JOB" else a for a in arguments])
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_submission_without_a_cluster_is_a_user_s_mistake(cleanplate: Cleanplate, job: str) -> None:
    done = cleanplate("submit", job, "--address", "http://127.0.0.1:9")
    assert done.returncode == 2, done.stderr
    assert "127.0.0.1:9" in done.stderr
    assert "remedy" in done.stderr
