"""`cleanplate distill` from a registered teacher to a registered student, with MLflow and a takedown between."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import pytest
import yaml

from curation.errors import UserError
from curation.manifest import Manifest
from pipelines import config, distill
from pipelines.register import RegisterJob
from pipelines.register import run as registered
from serving.admission import Limits
from serving.api import GenerationRequest
from serving.generator import Generator
from tests.training.conftest import opt_out, shapes, write_manifest
from training.bundle import load_bundle
from training.distillation import DistillResult
from training.job import TrainJob
from training.launch import launch
from training.tracking import (
    ModelVersion,
    dependencies_of,
    dependency_set,
    register,
    resolve,
    runs,
    training_set,
)

pytestmark = pytest.mark.slow  # networks are trained, in seconds each


@dataclass(frozen=True)
class Story:
    root: Path
    manifest: Manifest
    tracking_uri: str
    teacher: ModelVersion

    def job(self, **changes: Any) -> Any:
        given = {
            "kind": "distill", "name": "pupil", "teacher": "models:/shapes@champion",
            "output": str(self.root / "students"),
            "method": {"kind": "progressive", "teacher_steps": 8, "images_per_stage": 16}, "steps": 2,
            "precision": "fp32", "batch_size": 8, "tracking": {"uri": self.tracking_uri, "experiment": "students"},
        }  # fmt: skip
        path = self.root / "job.yaml"
        path.write_text(yaml.safe_dump({**given, **changes}))
        return config.load_job(str(path), kind="distill")

    def trained(self, **changes: Any) -> str:
        """The bundle of a teacher."""
        given = {
            "name": "shapes", "manifest": self.manifest.uri, "output": str(self.root / "training"), "patch_size": 1,
            "network": {"block_out_channels": (32, 32), "layers_per_block": 1, "attention_heads": 2}, "images": 32,
            "batch_size": 8, "precision": "fp32", "workers": 0, "sample": {"steps": 8, "guidance_scale": 2.0},
            "tracking": {"uri": self.tracking_uri, "experiment": "teachers"},
        }  # fmt: skip
        job = TrainJob.model_validate({**given, **changes})
        return launch(job, text_encoder=str(self.root / "text_encoder")).bundle


@pytest.fixture(scope="module")
def story(tower: Path, empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Story:
    root = tmp_path_factory.mktemp("story")
    shutil.copytree(tower, root / "text_encoder")
    shutil.copy(empty_store, root / "mlflow.db")
    uri = f"sqlite:///{root}/mlflow.db"
    story = Story(root, write_manifest(root / "manifests", shapes(8)), uri, None)  # type: ignore[arg-type]
    teacher = RegisterJob(name="shapes", bundle=story.trained(), tracking_uri=uri)
    return Story(root, story.manifest, uri, registered(teacher))


@pytest.fixture(scope="module")
def result(story: Story) -> DistillResult:
    return distill.run(story.job())


def test_a_plan_says_what_comes_of_it(story: Story) -> None:
    planned = distill.plan(story.job())
    assert planned["student_steps"] == [4, 2]
    assert (planned["teacher"], planned["teacher_evaluations"], planned["evaluations"]) == ("shapes/1", 16, 2)
    assert (planned["guidance_scale"], planned["images"], planned["training_rows"]) == (2.0, 32, 8)
    assert planned["other_set"] is False
    assert distill.plan(story.job(guidance_scale=3))["guidance_scale"] == 3
    assert distill.plan(story.job(guidance_scale=3))["run_folder"] != planned["run_folder"]


def test_the_student_is_a_version_whose_parent_is_the_teacher(story: Story, result: DistillResult) -> None:
    assert (result.teacher, result.images_seen, result.resumed_from) == ("shapes/1", 32, 0)
    assert (result.evaluations, result.teacher_evaluations) == (2, 16)
    version = register(result.bundle, "pupil", tracking_uri=story.tracking_uri, run_id=result.run_id)
    assert version.tags["parent_version"] == "shapes/1"
    assert version.tags["distilled_from"] == story.teacher.tags["bundle_sha256"]
    assert "parent_version" not in story.teacher.tags
    student = load_bundle(resolve("models:/pupil/1", tracking_uri=story.tracking_uri).bundle)
    assert student.info.distilled_from == story.teacher.tags["bundle_sha256"]
    assert student.self_test()
    roster = training_set(version, tracking_uri=story.tracking_uri)
    assert roster.info.digest == story.teacher.tags["training_set_digest"] == result.training_set_digest
    # what its teacher was trained on counts too: the version, the folder and the run lead there
    (dependency,) = student.info.depends_on
    assert (dependency.kind, dependency.name, dependency.through) == ("teacher", "shapes", None)
    assert dependency.sha256 == story.teacher.tags["bundle_sha256"]
    (told,) = (r for r in runs(tracking_uri=story.tracking_uri) if r.run_id == result.run_id)
    for of in (version, resolve(result.bundle), told):
        assert dependencies_of(of, tracking_uri=story.tracking_uri) == [dependency]
    for of, uri in ((version, story.tracking_uri), (resolve(result.bundle), "sqlite:////nowhere/at/all.db")):
        assert dependency_set(of, dependency, tracking_uri=uri).ids == roster.ids
    run = mlflow.MlflowClient(story.tracking_uri).get_run(result.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["cleanplate.parent_version"] == "shapes/1"
    assert run.data.params["method.teacher_steps"] == "8"
    assert run.data.metrics["student_steps"] == 2
    lines = distill.summary(result)
    assert any("8 times as many" in line for line in lines)
    assert not any("another set" in line for line in lines)


def test_a_finished_run_is_not_repeated(story: Story, result: DistillResult) -> None:
    written = (Path(result.bundle) / "cleanplate.json").stat().st_mtime_ns
    assert distill.run(story.job()) == result
    assert (Path(result.bundle) / "cleanplate.json").stat().st_mtime_ns == written


def test_it_is_served_with_one_evaluation_a_step(result: DistillResult) -> None:
    model = load_bundle(result.bundle)
    rows: list[int] = []
    model.unet.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    generator = Generator(resolve(result.bundle), model, None, Limits())
    generator.generate(GenerationRequest(prompt="a red circle", seed=1))
    assert rows == [1, 1]
    assert (generator.card.defaults.steps, generator.card.defaults.guidance_scale) == (2, 1.0)


def test_what_was_taken_down_since_is_left_out_and_the_teacher_is_said_to_have_seen_it(
    story: Story, result: DistillResult, tmp_path: Path
) -> None:
    ledger = tmp_path / "takedowns"
    gone = story.manifest.table(["id"])["id"].to_pylist()[0]
    entry = opt_out(ledger, gone)
    found = distill.run(story.job(ledger=str(ledger)))
    assert found.bundle != result.bundle
    assert found.excluded == {entry[:12]: 1}
    assert found.other_set
    assert gone not in training_set(resolve(found.bundle), tracking_uri=story.tracking_uri).ids
    assert any("another set" in line for line in distill.summary(found))


def test_mistakes_are_found_before_anything_starts(story: Story, result: DistillResult, tmp_path: Path) -> None:
    by_noise = story.trained(prediction="epsilon")
    other = write_manifest(tmp_path / "manifests", shapes(16))
    student = {"teacher": result.bundle, "steps": 1}
    for changes, field in (
        ({"teacher": "models:/nobody@champion"}, "model"),
        ({"teacher": by_noise}, "teacher"),
        ({**student, "method": {"kind": "progressive", "teacher_steps": 8}}, "method.teacher_steps"),
        ({**student, "method": {"kind": "consistency", "solver_steps": 8}}, "method.solver_steps"),
        ({"manifest": other.uri}, "manifest"),
        ({"manifest": str(tmp_path / "absent")}, "manifest"),
    ):
        with pytest.raises(UserError) as caught:
            distill.plan(story.job(**changes))
        assert caught.value.field == field
        assert caught.value.remedy
    with pytest.raises(UserError, match="use 32"):
        story.job(method={"kind": "progressive", "teacher_steps": 24}, steps=4)


def test_a_student_teaches_one_of_fewer_steps(story: Story, result: DistillResult) -> None:
    method = {"kind": "progressive", "teacher_steps": 2, "images_per_stage": 16}
    found = distill.run(story.job(teacher=result.bundle, method=method, steps=1))
    assert (found.evaluations, found.teacher_evaluations) == (1, 2)
    assert load_bundle(found.bundle).info.sampling.steps == 1


@pytest.mark.slow
def test_the_verb(story: Story, result: DistillResult) -> None:
    story.job()
    command = [sys.executable, "-m", "pipelines", "distill", str(story.root / "job.yaml")]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert DistillResult.model_validate_json(done.stdout.splitlines()[-1]) == result
    planned = subprocess.run([*command, "--dry-run"], capture_output=True, text=True, check=True)
    assert "student_steps" in planned.stdout


@pytest.mark.ray
@pytest.mark.slow
def test_two_workers_on_ray_make_the_same_student(story: Story, result: DistillResult) -> None:
    planned = distill.plan(story.job(workers=2, name="elsewhere"))
    assert (planned["workers"], planned["cpus"], planned["gpus"], planned["micro_batch"]) == (2, 2, 0, 4)
    found = distill.run(story.job(workers=2, name="elsewhere"))
    assert found.metrics["loss"] == pytest.approx(result.metrics["loss"], rel=1e-5)
    assert [leg.topology["workers"] for leg in (*result.legs, *found.legs)] == [1, 2]
    student = load_bundle(found.bundle)
    assert student.info.distilled_from == story.teacher.tags["bundle_sha256"]
    assert (found.images_seen, student.info.sampling.steps) == (32, 2)
