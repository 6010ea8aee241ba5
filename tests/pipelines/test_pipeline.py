"""Several jobs as one: what is checked before anything runs, what goes on after a failure, what the steps are told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from curation.errors import UserError
from pipelines import config, pipeline
from pipelines.pipeline import PipelineJob
from tests.curation.pictures import encoded, noise

CURATE = {"kind": "curate", "source": {"kind": "folder", "path": "pictures"}, "output": "out"}
TRAIN = {"kind": "train", "manifest": "${curate.manifest}", "output": "training", "images": 64, "batch_size": 8}
REGISTER = {"kind": "register", "name": "drawings", "bundle": "${train.bundle}"}
GATES = {"kind": "promote"}
UNSAID = {name: TRAIN[name] for name in ("kind", "manifest")}
STEPS = [
    {"name": "curate", "job": CURATE},
    {"name": "train", "job": TRAIN},
    {"name": "register", "job": REGISTER},
    {"name": "promote", "job": GATES, "promotes": {"name": "drawings", "version": "${register.version}"}},
]


class Machine:
    """Runs steps as the verbs would: each says what it made, and fails where it is told to."""

    def __init__(self) -> None:
        self.ran: list[tuple[str, dict[str, Any], dict[str, str] | None]] = []
        self.fails: str | None = None

    def __call__(self, verb: str, job: str, promotes: dict[str, str] | None) -> tuple[int, dict[str, Any] | None]:
        self.ran.append((verb, yaml.safe_load(job), promotes))
        if verb == self.fails:
            return 3, None
        made = {"curate": {"manifest": "out/m-1"}, "train": {"bundle": "training/b"}, "register": {"version": 7}}
        return 0, made.get(verb, {})

    @property
    def verbs(self) -> list[str]:
        return [verb for verb, _, _ in self.ran]


def job(tmp_path: Path, steps: list[dict[str, Any]] = STEPS) -> PipelineJob:
    raw = {"kind": "pipeline", "name": "all", "steps": steps, "state": str(tmp_path / "state")}
    made: PipelineJob = config.build(raw)
    return made


def test_each_step_is_told_what_the_ones_before_it_made(tmp_path: Path) -> None:
    machine = Machine()
    done = pipeline.run(job(tmp_path), execute=machine)
    assert (done.failed, done.exit_code) == (None, 0)
    assert machine.verbs == ["curate", "train", "register", "promote"]
    assert machine.ran[1][1]["manifest"] == "out/m-1"
    assert machine.ran[2][1]["bundle"] == "training/b"
    assert machine.ran[3][2] == {"name": "drawings", "version": "7", "alias": "champion"}
    assert not list((tmp_path / "state").rglob("*.json")), "the next run begins anew"


def test_after_a_failure_it_goes_on_with_the_step_that_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = Machine()
    machine.fails = "register"
    failed = pipeline.run(job(tmp_path), execute=machine)
    assert (failed.failed, failed.exit_code, list(failed.steps)) == ("register", 3, ["curate", "train"])
    machine.fails, machine.ran = None, []
    assert pipeline.run(job(tmp_path), execute=machine).failed is None
    assert machine.verbs == ["register", "promote"]
    assert machine.ran[0][1]["bundle"] == "training/b"
    assert "[2/4] train: ended before" in capsys.readouterr().err


def test_a_changed_step_runs_again_and_so_do_those_after_it(tmp_path: Path) -> None:
    machine = Machine()
    machine.fails = "promote"
    pipeline.run(job(tmp_path), execute=machine)
    machine.fails, machine.ran = None, []
    steps = [STEPS[0], STEPS[1] | {"set": {"optimizer.lr": 1e-5}}, *STEPS[2:]]
    pipeline.run(job(tmp_path, steps), execute=machine)
    assert machine.verbs == ["train", "register", "promote"]
    assert machine.ran[0][1]["optimizer"]["lr"] == 1e-5


@pytest.mark.parametrize(
    ("steps", "field", "says"),
    [
        ([STEPS[0] | {"job": CURATE | {"image_siez": 32}}], "steps.curate.image_siez", "image_size"),
        ([STEPS[0], STEPS[1] | {"set": {"images": "many"}}], "steps.train.images", "many"),
        ([STEPS[1]], "steps", "no earlier step"),
        ([STEPS[0], STEPS[0]], "steps", "two steps"),
        ([{"name": "serve", "job": {"kind": "serve", "model": "models:/a@b"}}, STEPS[0]], "steps", "last"),
        ([{"name": "promote", "job": GATES}], "steps", "promotes"),
        ([{"name": "draw", "job": {"kind": "draw"}}], "steps.draw.kind", "draw"),
        ([STEPS[0] | {"job": "nowhere.yaml"}], "job", "nowhere.yaml"),
        ([STEPS[0], {"name": "train", "job": UNSAID}], "steps.train.output", "required"),
        ([STEPS[0], STEPS[1] | {"job": TRAIN | {"batch_size": 10, "workers": 3}}], "steps.train", "3"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_before_anything_runs(
    tmp_path: Path, steps: list[dict[str, Any]], field: str, says: str
) -> None:
    path = tmp_path / "pipeline.yaml"
    path.write_text(yaml.safe_dump({"kind": "pipeline", "steps": steps, "state": str(tmp_path / "state")}))
    machine = Machine()
    with pytest.raises(UserError) as caught:
        pipeline.run(config.load_job(str(path)), execute=machine)
    told = f"{caught.value.field}: {caught.value.message} {caught.value.remedy}"
    assert field in told
    assert says in told
    assert machine.ran == []


def test_what_a_step_did_not_say_is_told_with_what_it_said(tmp_path: Path) -> None:
    steps = [STEPS[0], STEPS[1] | {"job": TRAIN | {"manifest": "${curate.manifesto}"}}]
    with pytest.raises(UserError, match="manifesto") as caught:
        pipeline.run(job(tmp_path, steps), execute=Machine())
    assert caught.value.remedy == "it said manifest"
    assert "steps.train" in str(caught.value.field)


def test_job_files_travel_in_it(tmp_path: Path) -> None:
    """As it is sent to a cluster, where no file of this machine lies."""
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "curate.yaml").write_text(yaml.safe_dump(CURATE))
    (tmp_path / "all.yaml").write_text(
        yaml.safe_dump({"kind": "pipeline", "steps": [{"name": "curate", "job": "jobs/curate.yaml"}]})
    )
    loaded = config.load_job(str(tmp_path / "all.yaml"), ["steps.0.job.image_size=32"])
    assert loaded.steps[0].job == CURATE | {"image_size": 32}
    again = yaml.safe_load(config.to_yaml(loaded))
    assert config.build(again) == loaded


@pytest.mark.ray
@pytest.mark.slow
def test_by_the_command_from_pictures_to_a_version(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for i in range(8):
        (tmp_path / "pictures" / f"{i}.png").write_bytes(encoded(noise(i)))
    curate = CURATE | {
        "name": "drawings", "licences": {"unstated": "keep"}, "image_size": 32, "clip": {"model": "embedded"},
        "captions": [{"kind": "template", "text": "a drawing of noise"}],
    }  # fmt: skip
    train = TRAIN | {"network": {"preset": "nano"}, "patch_size": 4, "workers": 0, "sample": {"prompts": ["noise"]}}
    steps = [{"name": "curate", "job": curate}, {"name": "train", "job": train}, {"name": "register", "job": REGISTER}]
    path = tmp_path / "all.yaml"

    def command() -> subprocess.CompletedProcess[str]:
        path.write_text(yaml.safe_dump({"kind": "pipeline", "steps": steps}))
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
        environment["PYTHONPATH"] = str(Path(__file__).parents[2])
        asked = [sys.executable, "-m", "pipelines", "pipeline", str(path), "--json"]
        return subprocess.run(asked, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)

    steps[2]["job"] = REGISTER | {"bundle": "${train.folder}/elsewhere"}
    failed = command()
    assert failed.returncode == 2, failed.stdout + failed.stderr
    steps[2]["job"] = REGISTER
    done = command()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[2/3] train: ended before" in done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["steps"]["register"]["name"] == "drawings"
    assert (tmp_path / result["steps"]["train"]["bundle"] / "cleanplate.json").is_file()
