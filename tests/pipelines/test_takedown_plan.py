"""Takedowns to the end, on a real registry: the plan and its jobs, status step by step, and the audit record."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import ray
import yaml

from curation.errors import UserError
from curation.manifest import Decision, Manifest
from pipelines import config, takedown_plan, takedown_status
from pipelines.serve import endpoint
from pipelines.takedown_planner import Plan
from pipelines.takedown_status import EntryStatus
from serving.job import ServeJob
from serving.takedowns import check
from tests.pipelines.world import AGAIN, World
from training import merkle, tracking
from training.exposure import exposures
from training.launch import launch

pytestmark = pytest.mark.slow  # networks are trained, in seconds each


@pytest.fixture
def world(tmp_path: Path, tower: Path, empty_store: Path) -> World:
    """One version of drawings, champion and candidate; checkpoints every eight images are kept."""
    made = World.make(tmp_path, tower, empty_store)
    version = made.register(made.train(milestones=8))
    tracking.set_alias("drawings", "candidate", version.version, tracking_uri=made.tracking_uri)
    return made


def planned(world: World, entry: str, out: str = "plan", **options: object) -> Plan:
    return takedown_plan.run(
        entry,
        out=str(world.root / out),
        ledger=world.ledger.uri,
        tracking_uri=world.tracking_uri,
        **options,  # type: ignore[arg-type]
    )


def status(world: World, entry: str) -> EntryStatus:
    (found,) = takedown_status.run(entry, ledger=world.ledger.uri, tracking_uri=world.tracking_uri).entries
    return found


def done(found: EntryStatus) -> dict[str, bool]:
    return {f"{step.what} {step.subject}": step.done for step in found.steps}


def actions(world: World, entry: str) -> list[tuple[str, str]]:
    return [(a.what, a.subject) for a in world.ledger.read().actions_of(entry)]


def late_picture(world: World) -> tuple[str, int]:
    """Of the pictures without a near-copy the one that was first seen last, and when."""
    roster = tracking.training_set(
        tracking.find("models:/drawings/1", tracking_uri=world.tracking_uri), tracking_uri=world.tracking_uri
    )
    alone = set(roster.ids) - {world.id_of("picture 0"), world.id_of(AGAIN)}
    last = exposures(roster, 0, 64, alone)[-1]
    assert last.first is not None
    return last.id, last.first


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_plan_names_what_is_affected_and_can_be_made_twice(world: World) -> None:
    entry = world.ask("domain", "b.example")
    plan = planned(world, entry.id[:8])
    (derive,) = plan.manifests
    assert (derive.manifest, derive.rows, derive.derived) == (world.manifest.uri, 4, None)
    assert derive.command is not None
    assert derive.command.startswith(f"cleanplate recheck {world.manifest.uri} --ledger {world.ledger.uri} --out ")
    (version,) = plan.versions
    assert (version.model, version.aliases, version.certain) == ("models:/drawings/1", ("candidate", "champion"), True)
    roster = tracking.training_set(
        tracking.find("drawings", tracking_uri=world.tracking_uri), tracking_uri=world.tracking_uri
    )
    seen = exposures(roster, 0, 64, world.ids_at("b.example"))
    assert (version.pictures, version.times, version.first) == (4, sum(e.times for e in seen), seen[0].first)
    assert {move.alias for move in plan.aliases} == {"models:/drawings@champion", "models:/drawings@candidate"}

    first, recorded = files(Path(plan.folder)), actions(world, entry.id)
    assert set(first) == {"plan.json", "plan.md", "plan.sh", "retrain-drawings.yaml", "register-drawings.yaml"}
    assert [what for what, _ in recorded] == ["version_tagged", "plan_written"]
    tags = tracking.find("drawings", tracking_uri=world.tracking_uri).tags
    assert tags[f"takedown.{entry.id[:12]}"] == "affected"
    assert planned(world, entry.id) == plan
    assert files(Path(plan.folder)) == first
    assert actions(world, entry.id) == recorded
    assert Plan.model_validate_json(first["plan.json"]) == plan


def test_the_jobs_are_the_versions_own(world: World, tmp_path: Path) -> None:
    plan = planned(world, world.ask("domain", "b.example").id)
    (retraining,) = plan.retrainings
    job = config.load_job(f"{plan.folder}/{retraining.train_job}", kind="train")
    assert job.identity() == world.job().identity()
    assert (job.manifest, job.ledger) == (plan.manifests[0].into, world.ledger.uri)
    assert (job.output, job.tracking) == (str(world.root / "training"), world.job().tracking)
    register = config.load_job(f"{plan.folder}/{retraining.register_job}", ["bundle=x"], kind="register")
    assert (register.name, register.alias, register.tracking_uri) == ("drawings", None, world.tracking_uri)
    script = (Path(plan.folder) / "plan.sh").read_text()
    assert subprocess.run(["sh", "-n"], input=script, text=True, check=True).returncode == 0
    result = tmp_path / "a result.json"
    result.write_text('trained on 64 images\n{"bundle": "/a folder/bundle"}\n')
    call = f"{next(c for c in plan.commands if c.startswith('bundle_of'))}\nbundle_of '{result}'"
    told = subprocess.run(["sh", "-c", call], capture_output=True, text=True, check=True)
    assert told.stdout == "/a folder/bundle\n"
    order = [line.split()[1] for line in plan.commands if line.startswith("cleanplate")]
    assert order == ["recheck", "train", "register", "register", "register", "takedown"]


def test_a_checkpoint_from_before_is_named_and_what_it_saves(world: World) -> None:
    id_, first = late_picture(world)
    assert first >= 8  # or there is nothing to save
    plan = planned(world, world.ask("sha256", id_).id)
    (retraining,) = plan.retrainings
    assert retraining.images_saved == first // 8 * 8
    assert retraining.checkpoint is not None
    assert retraining.checkpoint.endswith(f"images-{retraining.images_saved:012d}")
    assert retraining.share_saved == retraining.images_saved / 64
    assert retraining.claim is not None
    job = yaml.safe_load((Path(plan.folder) / retraining.train_job).read_text())
    assert job["resume_from"] == retraining.checkpoint
    page = (Path(plan.folder) / "plan.md").read_text()
    assert retraining.claim in page
    # what the plan promises holds: from the checkpoint, and from scratch
    world.recheck(output=plan.manifests[0].into)
    resumed = config.load_job(f"{plan.folder}/{retraining.train_job}", ["name=resumed"], kind="train")
    scratch = config.load_job(f"{plan.folder}/{retraining.train_job}", ["name=scratch", "resume_from=null"])
    ends = [launch(job, text_encoder=str(world.tower)) for job in (resumed, scratch)]
    assert ends[0].resumed_from == retraining.images_saved
    assert ends[0].state_sha256 == ends[1].state_sha256


def test_why_there_is_no_checkpoint_is_said(world: World) -> None:
    roster = tracking.training_set(
        tracking.find("drawings", tracking_uri=world.tracking_uri), tracking_uri=world.tracking_uri
    )
    earliest = exposures(roster, 0, 64, set(roster.ids))[0]
    assert earliest.first == 0
    plan = planned(world, world.ask("sha256", earliest.id).id)
    (retraining,) = plan.retrainings
    assert (retraining.checkpoint, retraining.claim, retraining.images_saved) == (None, None, 0)
    assert "image 1 shows" in str(retraining.from_scratch)
    assert "from scratch" in (Path(plan.folder) / "plan.md").read_text()
    # whatever else was revoked leaves with the pictures of an entry, and counts for its checkpoint too
    later = planned(world, world.ask("sha256", late_picture(world)[0], "2").id, "later")
    assert later.retrainings[0].checkpoint is None


def test_status_moves_step_by_step_to_resolved(world: World) -> None:
    entry = world.ask("sha256", world.id_of("picture 0"))
    served = {"tracking_uri": world.tracking_uri, "takedowns": "refuse", "cache": str(world.root / "cache")}
    champion = ServeJob.model_validate({"model": "models:/drawings@champion", **served})
    with pytest.raises(UserError, match="nobody has examined"):
        check(champion)
    assert done(status(world, entry.id)) == {
        "examined versions": False,
        f"derived {world.manifest.id}": False,
        "retrained drawings": False,
        "moved models:/drawings@candidate": False,
        "moved models:/drawings@champion": False,
    }
    plan = planned(world, entry.id)
    ray_was_up = ray.is_initialized()  # other tests may share their cluster with this process
    with pytest.raises(UserError, match="taken down"), endpoint(champion):
        pytest.fail("it is served")
    assert ray.is_initialized() == ray_was_up
    found = status(world, entry.id)
    assert (found.state, done(found)["examined versions"]) == ("open", True)

    derived = world.recheck(output=plan.manifests[0].into)
    kept = set(derived.table(["id"], decision=Decision.KEPT)["id"].to_pylist())
    everything = set(world.manifest.table(["id"])["id"].to_pylist())
    assert everything - kept == {world.id_of("picture 0"), world.id_of(AGAIN)}
    assert done(status(world, entry.id))[f"derived {world.manifest.id}"]

    job = config.load_job(f"{plan.folder}/{plan.retrainings[0].train_job}", kind="train")
    result = launch(job, text_encoder=str(world.tower))
    version = world.register(result, alias=None)
    assert version.version == "2"
    found = status(world, entry.id)
    assert (found.state, done(found)["retrained drawings"]) == ("open", True)
    check(champion.model_copy(update={"model": "models:/drawings/2"}))  # it heeded the entry
    proof = merkle.prove(tracking.training_set(version, tracking_uri=world.tracking_uri).ids, world.id_of("picture 0"))
    assert (proof.kind, merkle.verify(proof, version.tags["training_set_digest"])) == ("absence", True)

    for alias in ("champion", "candidate"):
        assert status(world, entry.id).state == "open"
        tracking.set_alias("drawings", alias, "2", tracking_uri=world.tracking_uri)
    found = status(world, entry.id)
    assert found.state == "resolved"
    assert all(done(found).values())
    tags = {v.version: v.tags[f"takedown.{entry.id[:12]}"] for v in tracking.versions(tracking_uri=world.tracking_uri)}
    assert tags == {"1": "affected", "2": "unaffected"}  # also of the version that came after the plan
    check(champion)
    assert planned(world, entry.id, "again").manifests[0].command is None
    with pytest.raises(UserError, match="taken down"):
        check(champion.model_copy(update={"model": "models:/drawings/1"}))

    told = [what for what, _ in actions(world, entry.id)]
    assert told.index("plan_written") < told.index("manifest_derived") < told.index("version_retrained")
    assert told.count("entry_resolved") == 1
    assert told.count("version_refused") >= 1
    moved = [subject for what, subject in actions(world, entry.id) if what == "alias_moved"]
    assert sorted(moved) == ["models:/drawings@candidate", "models:/drawings@champion"]
    before = actions(world, entry.id)
    status(world, entry.id)
    assert actions(world, entry.id) == before
    # an alias that goes back opens the entry again
    tracking.set_alias("drawings", "champion", "1", tracking_uri=world.tracking_uri)
    assert status(world, entry.id).state == "open"


def test_what_cannot_be_told_is_treated_as_affected(world: World) -> None:
    tracking.register(
        tracking.resolve("drawings", tracking_uri=world.tracking_uri, cache=str(world.root / "cache")).bundle,
        "sketches", alias="champion", tracking_uri=world.tracking_uri,
    )  # fmt: skip
    entry = world.ask("domain", "absent.example")
    plan = planned(world, entry.id)
    assert plan.manifests == []
    assert plan.unaffected == ["models:/drawings/1"]
    (version,) = plan.versions
    assert (version.model, version.certain) == ("models:/sketches/1", False)
    assert "unknown: treat as affected" in (Path(plan.folder) / "plan.md").read_text()
    tag = f"takedown.{entry.id[:12]}"
    tags = {v.name: v.tags[tag] for v in tracking.versions(tracking_uri=world.tracking_uri)}
    assert tags == {"drawings": "unaffected", "sketches": "unknown"}
    assert status(world, entry.id).state == "open"
    tracking.set_alias("sketches", "champion", "1", tracking_uri=world.tracking_uri)
    assert "may have been trained" in str([s.detail for s in status(world, entry.id).steps])


def test_withdrawn_and_absent_entries(world: World) -> None:
    entry = world.ask("domain", "b.example")
    world.ledger.withdraw(entry.id, by="Jane Doe", why="mistake")
    with pytest.raises(UserError, match="was withdrawn"):
        planned(world, entry.id)
    assert status(world, entry.id).state == "withdrawn"
    with pytest.raises(UserError, match="no entries"):
        planned(world, "ffff")
    other = world.ask("domain", "c.example", "2")
    found = takedown_status.run(None, ledger=world.ledger.uri, tracking_uri=world.tracking_uri)
    assert [e.entry for e in found.entries] == [other.id]
    assert "1 entry" in takedown_status.summary(found)[0]
    assert "1 open" in takedown_status.summary(found)[0]


def test_manifests_that_nothing_was_trained_on_are_derived_too(tmp_path: Path, empty_store: Path, tower: Path) -> None:
    world = World.make(tmp_path, tower, empty_store)
    entry = world.ask("domain", "b.example")
    plan = planned(world, entry.id)
    assert [d.manifest for d in plan.manifests] == [world.manifest.uri]  # it lies beside the ledger
    assert plan.versions == []
    elsewhere = World.publish(tmp_path / "elsewhere")
    plan = planned(world, entry.id, manifests=[elsewhere.uri])
    assert len(plan.manifests) == 1  # the same manifest, at another place
    assert status(world, entry.id).state == "open"
    world.recheck(Manifest.open(plan.manifests[0].manifest), output=plan.manifests[0].into)
    assert status(world, entry.id).state == "resolved"
    # what was derived for one entry may keep the pictures of another
    second = world.ask("domain", "c.example", "2")
    (derive,) = planned(world, second.id).manifests
    assert (derive.derived, derive.rows) == (None, 4)
    assert status(world, second.id).state == "open"


def test_strangers_words_have_no_power_in_the_page(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    entry = world.ledger.append_entry(
        requester="<script>alert(1)</script> [bold]x[/bold]",
        ground="# not a heading\n\n- nor a list",
        selectors=world.ask("domain", "b.example").selectors,
    )
    plan = planned(world, entry.id)
    page = (Path(plan.folder) / "plan.md").read_text()
    assert "<script>" not in page
    assert "\n# not" not in page
    takedown_status.show(takedown_status.run(entry.id, ledger=world.ledger.uri, tracking_uri=world.tracking_uri))
    assert "[bold]x[/bold]" in capsys.readouterr().out
    assert json.loads(plan.model_dump_json())["requester"].startswith("<script>")
    assert "read " in takedown_plan.summary(plan)[-1]
