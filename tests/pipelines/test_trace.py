"""Tracing, on a real registry: by every kind of subject, with counts that are checked by looking at every sample."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from curation.errors import UserError
from curation.manifest import Manifest
from pipelines import trace
from pipelines.cli import main
from pipelines.trace import InManifest, Trace
from pipelines.trace_version import VersionTrace
from pipelines.trainings import Training
from tests.curation.pictures import encoded, noise
from tests.curation.test_lineage import embedded_manifest
from tests.pipelines.world import AGAIN, World, seen_by_force
from tests.serving.tiny import write_clip
from training import tracking
from training.data import load
from training.learner import Place
from training.loop import train
from training.prepare import prepare
from training.progress import Point
from training.text import TextEncoder

pytestmark = pytest.mark.slow  # networks are trained, in seconds each


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tower: Path, empty_store: Path) -> World:
    """Version 1 of drawings is champion, sketches has one without the run that trained it, and a run has no version."""
    made = World.make(tmp_path_factory.mktemp("world"), tower, empty_store)
    first = made.train()
    made.register(first)
    made.register(first, "sketches", None, run=False)
    made.train(seed=7, images=24)
    return made


def traced(world: World, subject: str, **options: object) -> Trace:
    found = trace.run(subject, tracking_uri=world.tracking_uri, ledger=world.ledger.uri, **options)  # type: ignore[arg-type]
    assert isinstance(found, Trace)
    return found


def of(found: Trace, name: str) -> Training:
    """The training that has a version of this name."""
    (training,) = [t for t in found.trainings if name in [v.name for v in t.versions]]
    return training


def rows(found: InManifest) -> dict[str, str]:
    return {row.uri.rpartition("/")[2].removesuffix(".png"): row.how for row in found.rows}


def test_a_domain_leads_to_manifests_versions_and_aliases(world: World) -> None:
    found = traced(world, "domain:b.example")
    (manifest,) = found.manifests
    assert (manifest.uri, manifest.counts) == (world.manifest.uri, {"kept": 4})
    assert rows(manifest) == {f"picture-{i}": "selector" for i in (1, 4, 7, 10)}
    assert [(s.model, s.version, s.certain) for s in found.serving] == [("models:/drawings@champion", "1", True)]
    assert of(found, "drawings").verdict == "trained_on"
    assert {p.id for p in of(found, "drawings").pictures} == world.ids_at("b.example")
    # no run leads from this one to its training set: it is not said to be free of the pictures
    assert of(found, "sketches").verdict == "unknown"
    assert "without the run" in str(of(found, "sketches").why)
    (summary,) = trace.summary(found)
    assert "4 rows in 1 manifest" in summary
    assert "models:/drawings@champion" in summary
    assert "not known of 1 other" in summary


def test_every_sample_that_showed_a_picture_is_counted(world: World) -> None:
    found = traced(world, "domain:a.example")
    ids = world.ids_at("a.example") | {world.id_of(AGAIN)}
    runs = {run.run_id: run for run in tracking.runs(tracking_uri=world.tracking_uri)}
    counted = [t for t in found.trainings if t.verdict == "trained_on"]
    assert len(counted) == 2  # also the run that nothing was registered of
    for training in counted:
        run = runs[str(training.run_id)]
        roster = tracking.training_set(run.run_id, tracking_uri=world.tracking_uri)
        job = world.job(seed=int(run.tags["seed"]))
        shown = seen_by_force(job, roster.slots, roster.info.base_rows, int(run.tags["images"]))
        expected = {id_: shown[int(slot)] for id_, slot in zip(roster.ids, roster.slots, strict=True) if id_ in ids}
        assert {p.id: p.times for p in training.pictures} == {id_: len(when) for id_, when in expected.items()}
        assert {p.id: p.first for p in training.pictures} == {id_: min(w, default=None) for id_, w in expected.items()}
        assert training.times == sum(map(len, expected.values()))
        assert training.first == min(when[0] for when in expected.values() if when)
    assert {t.images for t in counted} == {64, 24}


def test_other_kinds_of_subject(world: World, tmp_path: Path) -> None:
    near = {"picture-0": "exact", "picture-0-again": "perceptual"}
    (tmp_path / "a.png").write_bytes(world.picture("picture 0"))
    for subject in (world.id_of("picture 0"), str(tmp_path / "a.png")):
        found = traced(world, subject)
        assert rows(found.manifests[0]) == near
        assert len(of(found, "drawings").pictures) == 2
    found = traced(world, "https://c.example/picture-2.png")
    assert (found.kind, rows(found.manifests[0])) == ("uri", {"picture-2": "selector"})
    assert rows(traced(world, "creator:painter c").manifests[0]).keys() == {f"picture-{i}" for i in (2, 5, 8, 11)}
    entry = world.ask("sha256", world.id_of("picture 0"), "for tracing")
    found = traced(world, entry.id[:12])
    assert (found.kind, found.subject) == ("entry", entry.id)
    assert rows(found.manifests[0]) == near
    world.ledger.withdraw(entry.id, by="Jane Doe", why="it was a test")


def test_what_stands_nowhere_was_trained_on_by_nothing_that_is_known(world: World) -> None:
    found = traced(world, "domain:absent.example")
    assert [len(m.rows) for m in found.manifests] == [0]
    assert of(found, "drawings").verdict == "not_trained_on"
    assert found.serving == []
    assert "trained on by nothing that is known" in trace.summary(found)[0]
    assert "no alias serves it" in trace.summary(found)[0]


def test_manifests_may_be_named_and_need_no_registry(world: World, tmp_path: Path) -> None:
    found = trace.run(
        "domain:b.example", manifests=[str(world.root / "manifests")], tracking_uri=f"sqlite:///{tmp_path}/none.db"
    )
    assert isinstance(found, Trace)
    assert [m.id for m in found.manifests] == [world.manifest.id]
    assert not (tmp_path / "none.db").exists()
    assert "what was trained is not known" in str(found.note)
    assert "what was trained is not known" in trace.summary(found)[0]
    with pytest.raises(UserError, match="no manifest"):
        trace.run("domain:b.example", manifests=[str(tmp_path)], tracking_uri=f"sqlite:///{tmp_path}/none.db")


def test_neighbours_are_refused_with_the_reason(world: World, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(world.picture("picture 0"))
    found = traced(world, str(tmp_path / "a.png"), neighbours=3)
    assert "has no embeddings" in str(found.manifests[0].note)
    assert "only a picture's file" in str(traced(world, "domain:b.example", neighbours=3).manifests[0].note)


def test_neighbours_are_told_apart_from_the_picture(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    clip = write_clip(tmp_path_factory.mktemp("clip"))
    manifest = embedded_manifest(tmp_path / "manifests", clip, clip.build(), range(6))
    (tmp_path / "a.png").write_bytes(encoded(noise(2)))
    nowhere = f"sqlite:///{tmp_path}/none.db"
    found = trace.run(str(tmp_path / "a.png"), manifests=[manifest.uri], tracking_uri=nowhere, neighbours=3)
    assert isinstance(found, Trace)
    (read,) = found.manifests
    assert [(row.uri, row.how) for row in read.rows] == [("2.png", "exact")]
    assert [row.how for row in read.neighbours] == ["clip"] * 3
    assert "2.png" not in {row.uri for row in read.neighbours}
    assert read.counts == {"kept": 1}


def test_the_command_ends_with_one_line(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["cleanplate", "trace", "domain:b.example", "--tracking-uri", world.tracking_uri]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    assert "models:/drawings@champion" in capsys.readouterr().out.splitlines()[-1]
    monkeypatch.setattr("sys.argv", [*words, "--json"])
    with pytest.raises(SystemExit):
        main()
    told = json.loads(capsys.readouterr().out)
    assert [s["model"] for s in told["serving"]] == ["models:/drawings@champion"]


def test_a_run_that_did_not_finish_is_counted_as_far_as_it_told(world: World) -> None:
    job = world.job(seed=11, name="broken")
    prepared = prepare(job)
    tags = {"seed": "11", "images": "64", "run_folder": prepared.folder, **tracking.roster_tags(prepared.roster)}
    run = tracking.Run.start(job.name, uri=world.tracking_uri, experiment="world", known_run_id=None, tags=tags)
    run.training_set(prepared.roster)
    points: list[Point] = []

    def report(point: Point) -> None:
        points.append(point)
        if point.images == 24:
            raise KeyboardInterrupt

    data = load(world.manifest, job.image_size, job.caption_mix, prepared.roster)
    with pytest.raises(KeyboardInterrupt):
        train(job, folder=prepared.folder, data=data, text=TextEncoder(world.tower), place=Place(), report=report)
    run.log(points)
    run.finish("FAILED")
    found = traced(world, "domain:b.example")
    (training,) = [t for t in found.trainings if t.run_id == run.run_id]
    assert (training.status, training.images, training.verdict) == ("FAILED", 24, "trained_on")
    assert "did not finish" in str(training.why)
    roster = prepared.roster
    shown = seen_by_force(job, roster.slots, roster.info.base_rows, 24)
    slots = roster.slots_of(world.ids_at("b.example"))
    assert training.times == sum(len(shown[int(slot)]) for slot in slots)


def test_a_version_tells_what_it_was_trained_on(world: World) -> None:
    entry = world.ask("domain", "a.example", "revoked by now")
    try:
        for subject in ("models:/drawings@champion", "models:/drawings/1"):
            found = trace.run(subject, tracking_uri=world.tracking_uri)
            assert isinstance(found, VersionTrace)
            assert (found.model, found.aliases) == ("models:/drawings/1", ("champion",))
            assert found.training_rows == 13
            assert found.domains == {"a.example": 4, "b.example": 4, "c.example": 4, "mirror.example": 1}
            assert (found.datasets, found.licences) == ({"noise": 13}, {"CC0-1.0": 13})
            assert [(a.relation, a.id) for a in found.manifests] == [("trained_on", world.manifest.id)]
            assert [a.uri for a in found.ledgers] == [world.ledger.uri]
            assert found.revoked is not None
            assert found.revoked.entries == {entry.id: 5}  # four, and the near-copy of one
            assert (found.revoked.rows, found.revoked.share) == (5, 5 / 13)
        assert "5 revoked by now (38.46%)" in trace.summary(found)[0]
    finally:
        world.ledger.withdraw(entry.id, by="Jane Doe", why="it was a test")
    with pytest.raises(UserError, match="no model is registered"):
        trace.run("models:/absent/1", tracking_uri=world.tracking_uri)


def test_a_manifest_that_is_gone_leaves_no_version_free_of_suspicion(
    tmp_path: Path, tower: Path, empty_store: Path
) -> None:
    world = World.make(tmp_path, tower, empty_store)
    world.register(world.train(images=16))
    id_ = world.id_of("picture 1")
    shutil.rmtree(world.manifest.uri)
    found = traced(world, "domain:b.example")
    assert [lost.uri for lost in found.unreadable] == [world.manifest.uri]
    assert of(found, "drawings").verdict == "unknown"
    assert "manifest cannot be read" in str(of(found, "drawings").why)
    assert [s.certain for s in found.serving] == [False]
    # what is named by its hash stands in the training set itself
    assert of(traced(world, id_), "drawings").verdict == "trained_on"
    assert of(traced(world, "0" * 64), "drawings").verdict == "unknown"


def test_a_derived_manifest_leads_back_to_its_base(tmp_path: Path, tower: Path, empty_store: Path) -> None:
    world = World.make(tmp_path, tower, empty_store)
    entry = world.ask("domain", "b.example")
    derived = world.recheck()
    world.register(world.train(manifest=derived.uri, images=16))
    found = trace.run("models:/drawings/1", tracking_uri=world.tracking_uri)
    assert isinstance(found, VersionTrace)
    assert [(a.relation, a.id) for a in found.manifests] == [("trained_on", derived.id), ("base", world.manifest.id)]
    assert (found.training_rows, found.domains.get("b.example")) == (9, None)
    assert found.revoked is not None
    assert found.revoked.rows == 0
    traces = traced(world, entry.id)
    assert of(traces, "drawings").verdict == "not_trained_on"
    (manifest,) = traces.manifests
    assert {row.decision for row in manifest.rows} == {"dropped"}
    assert Manifest.open(manifest.uri).id == derived.id


def test_it_can_be_printed(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    trace.show(traced(world, "domain:b.example"))
    shown = capsys.readouterr().out
    assert world.id_of("picture 1")[:12] in shown
    found = trace.run("models:/drawings/1", tracking_uri=world.tracking_uri)
    trace.show(found)
    assert "mirror.example 1" in capsys.readouterr().out
    assert Trace.model_validate_json(traced(world, "domain:b.example").model_dump_json()).kind == "domain"
