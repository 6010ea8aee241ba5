"""A takedown that reaches a student through its teacher alone: traced, proven, refused, planned, and made good."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from curation.errors import UserError
from curation.takedowns import Entry
from pipelines import config, prove, takedown_plan, takedown_status, trace
from pipelines.promote import PromoteJob, RightsGate
from pipelines.promote import run as promote
from pipelines.takedown_planner import Plan
from pipelines.takedown_status import EntryStatus
from pipelines.trace import Trace
from pipelines.trace_version import VersionTrace
from pipelines.trainings import Training
from serving.job import ServeJob
from serving.takedowns import check
from tests.pipelines.world import World
from training import autoencoding, distillation, merkle, tracking
from training.autoencoder_job import AutoencoderJob
from training.dependencies import Dependency, Statement, to_tag
from training.distill_job import DistillJob
from training.launch import launch

pytestmark = pytest.mark.slow  # networks are trained, in seconds each

PICTURE = "picture 5"


@dataclass
class Student:
    """`drawings/1` was trained on all pictures. One of them was taken down, and then `pupil/1` was distilled: on the
    others, from that teacher. An alias points at the pupil alone."""

    world: World
    entry: Entry

    @classmethod
    def make(cls, root: Path, tower: Path, store: Path) -> Student:
        world = World.make(root, tower, store)
        world.register(world.train(sample={"steps": 4}), alias=None)
        entry = world.ask("sha256", world.id_of(PICTURE))
        made = cls(world, entry)
        made.register(made.distil("models:/drawings/1"), "champion")
        return made

    def distil(self, teacher: str, **changes: Any) -> distillation.DistillResult:
        fields = {
            "name": "pupil", "teacher": teacher, "output": str(self.world.root / "students"), "steps": 2,
            "method": {"kind": "progressive", "teacher_steps": 4, "images_per_stage": 16}, "batch_size": 8,
            "precision": "fp32", "tracking": {"uri": self.world.tracking_uri, "experiment": "world"},
            "ledger": self.world.ledger.uri,
        }  # fmt: skip
        return distillation.launch(DistillJob.model_validate({**fields, **changes}))

    def register(self, result: distillation.DistillResult, alias: str | None) -> tracking.ModelVersion:
        uri = self.world.tracking_uri
        return tracking.register(result.bundle, "pupil", alias=alias, tracking_uri=uri, run_id=result.run_id)

    def plan(self, out: str = "plan") -> Plan:
        return takedown_plan.run(
            self.entry.id, out=str(self.world.root / out), ledger=self.world.ledger.uri,
            tracking_uri=self.world.tracking_uri,
        )  # fmt: skip

    def status(self) -> EntryStatus:
        ledger, uri = self.world.ledger.uri, self.world.tracking_uri
        (found,) = takedown_status.run(self.entry.id, ledger=ledger, tracking_uri=uri).entries
        return found

    def trace(self, subject: str) -> Any:
        return trace.run(subject, ledger=self.world.ledger.uri, tracking_uri=self.world.tracking_uri)

    def of(self, found: Trace, model: str) -> Training:
        (training,) = [t for t in found.trainings if model in [v.model for v in t.versions]]
        return training

    def served(self, model: str) -> ServeJob:
        uri, cache = self.world.tracking_uri, str(self.world.root / "cache")
        return ServeJob.model_validate({"model": model, "tracking_uri": uri, "takedowns": "refuse", "cache": cache})


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory, tower: Path, empty_store: Path) -> Student:
    """Shared: who changes what another test looks at changes it back."""
    return Student.make(tmp_path_factory.mktemp("student"), tower, empty_store)


@pytest.fixture
def fresh(tmp_path: Path, tower: Path, empty_store: Path) -> Student:
    return Student.make(tmp_path, tower, empty_store)


def test_a_picture_leads_to_the_student_through_its_teacher(
    student: Student, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    world, id_ = student.world, student.world.id_of(PICTURE)
    found = student.trace(id_)
    pupil = student.of(found, "models:/pupil/1")
    assert (pupil.verdict, pupil.own_verdict, pupil.why) == ("trained_on", "not_trained_on", None)
    assert [(t.title, t.verdict, t.pictures) for t in pupil.through] == [
        ("its teacher models:/drawings/1", "trained_on", 1)
    ]
    assert student.of(found, "models:/drawings/1").through == []
    (serving,) = found.serving
    assert (serving.model, serving.certain, serving.through) == (
        "models:/pupil@champion", True, ["models:/drawings/1"],
    )  # fmt: skip
    trace.show(found)
    assert (
        "pupil version 1: through its teacher models:/drawings/1, which was trained on them" in capsys.readouterr().out
    )
    assert "only through a model that it was made from" in trace.summary(found)[0]
    # what neither was trained on reaches neither
    absent = student.trace("f" * 64)
    assert student.of(absent, "models:/pupil/1").verdict == "not_trained_on"
    assert absent.serving == []

    # the other way round: the version leads to its teacher, of which a picture is revoked
    told = student.trace("models:/pupil/1")
    assert isinstance(told, VersionTrace)
    (teacher,) = told.made_from
    assert (teacher.kind, teacher.name, teacher.through, teacher.training_rows) == (
        "teacher", "models:/drawings/1", None, 13,
    )  # fmt: skip
    assert told.revoked is not None
    assert teacher.revoked is not None
    assert (told.revoked.rows, teacher.revoked.rows, teacher.notes) == (0, 1, [])
    assert "made from 1 other model, 1 picture of theirs revoked" in trace.summary(told)[0]
    trace.show(told)
    assert "teacher models:/drawings/1: 13 pictures" in capsys.readouterr().out

    # one proof for each digest
    monkeypatch.setenv("MLFLOW_TRACKING_URI", world.tracking_uri)
    proven = prove.run(id_, model="models:/pupil/1", version=None, out=str(tmp_path / "proof.json"))
    (behind,) = proven.made_from
    assert (proven.kind, behind.kind, behind.size, behind.why) == ("absence", "inclusion", 13, None)
    assert behind.digest == tracking.find("models:/drawings/1").tags["training_set_digest"]
    assert prove.check(str(behind.proof), str(behind.digest)).holds
    assert not prove.check(str(behind.proof), proven.digest).holds
    said = "made from its teacher noise: the picture was among the 13 pictures of its training set"
    assert said in prove.summary(proven)


def test_the_student_is_refused_as_its_teacher_is_and_made_good_in_order(fresh: Student) -> None:
    student = fresh
    world, entry = student.world, student.entry.id[:12]
    for model in ("models:/drawings/1", "models:/pupil@champion"):
        with pytest.raises(UserError, match=f"nobody has examined it for entry {entry}"):
            check(student.served(model))
    # the teacher's tags count for the student, also where nobody has looked at that
    tracking.tag_version("drawings", "1", {f"takedown.{entry}": "affected"}, tracking_uri=world.tracking_uri)
    with pytest.raises(UserError, match=r"its teacher models:/drawings/1\) was trained on pictures"):
        check(student.served("models:/pupil@champion"))
    gate = promote(
        "pupil", "1", PromoteJob(tracking_uri=world.tracking_uri, rights=RightsGate()), alias="candidate"
    ).gates
    (rights,) = [g for g in gate if g.gate == "rights"]
    assert rights.outcome == "failed"
    assert "made from its teacher models:/drawings/1" in rights.detail

    plan = student.plan()
    assert {v.model: (v.certain, v.pictures, v.through) for v in plan.versions} == {
        "models:/drawings/1": (True, 1, []),
        "models:/pupil/1": (True, 0, ["teacher models:/drawings/1"]),
    }
    assert [(r.instead_of, r.verb, r.teacher, r.takes) for r in plan.retrainings] == [
        ("models:/drawings/1", "train", None, {}),
        ("models:/pupil/1", "distill", None, {"teacher": "retrain-drawings.yaml"}),
    ]
    assert plan.not_retrained == {}
    order = [line.split()[1] for line in plan.commands if line.startswith("cleanplate")]
    assert order == ["recheck", "train", "register", "distill", "register", "register", "takedown"]
    page = (Path(plan.folder) / "plan.md").read_text()
    assert "through its teacher models:/drawings/1" in page
    assert "distilled again from what `retrain-drawings.yaml` makes" in page
    tags = {v.name: v.tags[f"takedown.{entry}"] for v in tracking.versions(tracking_uri=world.tracking_uri)}
    assert tags == {"drawings": "affected", "pupil": "affected"}
    assert student.plan() == plan

    # run the plan, as its script would
    world.recheck(output=plan.manifests[0].into)
    retrained = launch(config.load_job(f"{plan.folder}/retrain-drawings.yaml"), text_encoder=str(world.tower))
    second = world.register(retrained, alias=None)
    steps = {f"{s.what} {s.subject}": s.done for s in student.status().steps}
    assert (steps["retrained drawings"], steps["retrained pupil"]) == (True, False)
    job = config.load_job(f"{plan.folder}/distill-pupil.yaml", [f"teacher={retrained.bundle}"], kind="distill")
    version = student.register(distillation.launch(job), None)
    assert version.tags["parent_version"] == f"drawings/{second.version}"
    found = student.status()
    assert found.state == "open"  # the alias points at the old one still
    assert "trained on the pictures, through its teacher models:/drawings/1" in str([s.detail for s in found.steps])
    tracking.set_alias("pupil", "champion", version.version, tracking_uri=world.tracking_uri)
    found = student.status()
    assert found.state == "resolved", found.steps
    check(student.served("models:/pupil@champion"))
    with pytest.raises(UserError, match="taken down"):
        check(student.served("models:/pupil/1"))
    told = [(a.what, a.subject) for a in world.ledger.read().actions_of(student.entry.id)]
    assert ("version_retrained", "models:/pupil/2") in told
    assert ("alias_moved", "models:/pupil@champion") in told
    # planned again, a student whose teacher has a sound successor is distilled from that
    tracking.set_alias("pupil", "champion", "1", tracking_uri=world.tracking_uri)
    (again,) = student.plan("again").retrainings
    assert (again.verb, again.teacher, again.takes) == ("distill", "models:/drawings/2", {})
    assert config.load_job(f"{world.root}/again/distill-pupil.yaml").teacher == "models:/drawings/2"


def test_the_script_hands_the_new_teacher_to_the_student(student: Student, tmp_path: Path) -> None:
    plan = student.plan()
    tool = tmp_path / "bin" / "cleanplate"
    tool.parent.mkdir()
    tool.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\necho progress\necho "{{\\"bundle\\": \\"/made/by/$1\\"}}"\n'
    )
    tool.chmod(0o755)
    path = f"{tool.parent}:{os.environ['PATH']}"
    subprocess.run(["sh", f"{plan.folder}/plan.sh"], check=True, capture_output=True, env={"PATH": path})
    calls = [line.replace(plan.folder, ".") for line in (tmp_path / "calls").read_text().splitlines()]
    assert calls[1:-1] == [
        "train ./retrain-drawings.yaml --json",
        "register ./register-drawings.yaml --set bundle=/made/by/train",
        "distill ./distill-pupil.yaml --set teacher=/made/by/train --json",
        "register ./register-pupil.yaml --set bundle=/made/by/distill",
        "register ./register-pupil.yaml --set bundle=/made/by/distill --set alias=champion",
    ]


def test_what_is_not_known_of_a_teacher_counts_as_affected(student: Student) -> None:
    world = student.world
    other = world.ask("domain", "absent.example", "2")
    lost = Dependency(kind="autoencoder", name="somebody's", sha256="b" * 64)
    info = tracking.find("models:/pupil/1", tracking_uri=world.tracking_uri)
    named = tracking.dependencies_of(info, tracking_uri=world.tracking_uri)
    for tag, why in (("[torn", "cannot be read"), (to_tag([*named, lost]), "autoencoder somebody's")):
        tracking.tag_version("pupil", "1", {"depends_on": tag}, tracking_uri=world.tracking_uri)
        pupil = student.of(student.trace("domain:absent.example"), "models:/pupil/1")
        assert (pupil.verdict, pupil.own_verdict) == ("unknown", "not_trained_on")
        assert why in str(pupil.why)
    plan = takedown_plan.run(
        other.id, out=str(world.root / "other"), ledger=world.ledger.uri, tracking_uri=world.tracking_uri
    )
    assert [(v.model, v.certain) for v in plan.versions] == [("models:/pupil/1", False)]
    assert plan.unaffected == ["models:/drawings/1"]
    # nothing but the student is to be made anew, from the teacher that it has
    (again,) = plan.retrainings
    assert (again.verb, again.teacher) == ("distill", "models:/drawings/1")
    tracking.tag_version("pupil", "1", {"depends_on": to_tag(named)}, tracking_uri=world.tracking_uri)


def test_a_statement_stands_in_for_what_nobody_can_look_up_and_is_shown(
    student: Student, capsys: pytest.CaptureFixture[str]
) -> None:
    world = student.world
    entry = world.ask("domain", "nowhere.example", "3")
    info = tracking.find("models:/pupil/1", tracking_uri=world.tracking_uri)
    named = tracking.dependencies_of(info, tracking_uri=world.tracking_uri)
    word = Statement(by="Jane", ground="its data card", date=date(2026, 1, 2))
    vouched = Dependency(kind="autoencoder", name="somebody's", sha256="b" * 64, statement=word)
    tracking.tag_version("pupil", "1", {"depends_on": to_tag([*named, vouched])}, tracking_uri=world.tracking_uri)
    found = student.trace("domain:nowhere.example")
    pupil = student.of(found, "models:/pupil/1")
    assert (pupil.verdict, pupil.through, pupil.why) == ("not_trained_on", [], None)
    assert [(through.name, through.statement) for through in pupil.stated] == [("somebody's", word)]
    trace.show(found)
    told = "its autoencoder somebody's: Jane stated on 2026-01-02 that it was not trained on"
    assert told in capsys.readouterr().out
    plan = takedown_plan.run(
        entry.id, out=str(world.root / "stated"), ledger=world.ledger.uri, tracking_uri=world.tracking_uri
    )
    assert set(plan.unaffected) == {"models:/drawings/1", "models:/pupil/1"}
    assert [told in note for note in plan.notes] == [True]
    page = (Path(plan.folder) / "plan.md").read_text()
    assert "a statement, not a proof" in page
    version = tracking.find("models:/pupil/1", tracking_uri=world.tracking_uri)
    assert version.tags[f"takedown.{entry.id[:12]}"] == "unaffected"
    (action,) = [a for a in world.ledger.read().actions_of(entry.id) if a.subject == "models:/pupil/1"]
    assert told in action.detail
    tracking.tag_version("pupil", "1", {"depends_on": to_tag(named)}, tracking_uri=world.tracking_uri)


def test_an_autoencoder_is_made_anew_before_what_draws_with_it(tmp_path: Path, tower: Path, empty_store: Path) -> None:
    world = World.make(tmp_path, tower, empty_store)
    told = {
        "manifest": world.manifest.uri, "output": str(tmp_path / "autoencoders"), "images": 16, "batch_size": 8,
        "precision": "fp32", "tracking": {"uri": world.tracking_uri, "experiment": "world"},
        "ledger": world.ledger.uri,
    }  # fmt: skip
    encoder = autoencoding.launch(AutoencoderJob.model_validate(told))
    entry = world.ask("sha256", world.id_of(PICTURE))
    network = {"block_out_channels": (32,), "layers_per_block": 1, "attention_heads": 2}
    world.register(world.train(network=network, autoencoder={"path": encoder.bundle}, images=16), "latent")
    found = Student(world, entry)
    training = found.of(found.trace(world.id_of(PICTURE)), "models:/latent/1")
    assert [(t.title, t.verdict, t.pictures) for t in training.through] == [
        ("its autoencoder autoencoder", "trained_on", 1)
    ]
    with pytest.raises(UserError, match="its autoencoder autoencoder"):
        check(found.served("models:/latent@champion"))

    plan = found.plan()
    first, second = plan.retrainings
    assert (first.verb, first.takes, second.verb) == ("autoencoder", {}, "train")
    assert second.takes == {"autoencoder.path": first.train_job}
    assert second.from_scratch == "its autoencoder is made anew"
    order = [line.split()[1] for line in plan.commands if line.startswith("cleanplate")]
    assert order == ["recheck", "autoencoder", "train", "register", "register", "takedown"]
    assert f'--set "autoencoder.path=$(bundle_of {plan.folder}/{first.train_job}.json)" --json' in "\n".join(
        plan.commands
    )

    world.recheck(output=plan.manifests[0].into)
    again = autoencoding.launch(config.load_job(f"{plan.folder}/{first.train_job}", kind="autoencoder"))
    job = config.load_job(f"{plan.folder}/{second.train_job}", [f"autoencoder.path={again.bundle}"], kind="train")
    version = world.register(launch(job, text_encoder=str(tower)), "latent")
    assert version.version == "2"
    assert found.status().state == "resolved"
    check(found.served("models:/latent@champion"))


def test_a_copy_of_the_teachers_set_is_enough(student: Student, empty_store: Path) -> None:
    """The teacher is not registered where the student is: its training set is known all the same."""
    world = student.world
    distilled = student.distil(str(next((world.root / "training").iterdir()) / "bundle"), name="lone")
    # a run that nothing was registered of leads to its teacher, too
    (of_run,) = [t for t in student.trace(world.id_of(PICTURE)).trainings if t.name == "lone"]
    assert (of_run.versions, of_run.own_verdict) == ([], "not_trained_on")
    assert [t.title for t in of_run.through] == ["its teacher models:/drawings/1"]
    uri = f"sqlite:///{shutil.copy(empty_store, world.root / 'other.db')}"
    run = tracking.Run.start(
        "lone", uri=uri, experiment="x", known_run_id=None, tags={"manifest_id": world.manifest.id}
    )
    kept = tracking.resolve(distilled.bundle)
    run.training_set(tracking.training_set(kept))
    (dependency,) = tracking.dependencies_of(kept, tracking_uri=uri)
    run.dependencies({dependency.sha256: tracking.dependency_set(kept, dependency, tracking_uri=uri)})
    tracking.register(distilled.bundle, "lone", tracking_uri=uri, run_id=run.run_id)
    found = trace.run(world.id_of(PICTURE), tracking_uri=uri, ledger=world.ledger.uri)
    assert isinstance(found, Trace)
    assert [t.title for t in student.of(found, "models:/lone/1").through] == ["its teacher noise"]
    plan = takedown_plan.run(student.entry.id, out=str(world.root / "lone"), ledger=world.ledger.uri, tracking_uri=uri)
    assert plan.not_retrained == {"models:/lone/1": "its teacher is not registered here: register it, and plan again"}
    digest = tracking.find("lone", tracking_uri=uri).tags["training_set_digest"]
    assert merkle.verify(merkle.prove(tracking.training_set(kept).ids, world.id_of(PICTURE)), digest)
