"""`cleanplate status` and what `inspect` explains: from the files that runs leave, and from an endpoint."""

from __future__ import annotations

import dataclasses
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from curation import events, record, running, standing
from curation.errors import UserError
from curation.events import Begun, CheckpointWritten, EventLog, NodeLost, UnitHeld, UnitRetried
from curation.running import Recorder
from curation.standing import Stage, Standing
from pipelines import curate, status, status_page
from pipelines.cli import app
from pipelines.happenings import duration, explained, told
from serving.standing import ModelEntry, ModelList, RolloutStanding, VersionState
from tests.curation.test_workers import listed, make


def leave(folder: Path, *, verb: str = "curate", ends: bool = True) -> None:
    """What a run leaves behind, or one that is under way in this process."""
    begun = running.begun(events.read(str(folder)), verb, "heap", of="inputs", total=10, done=2, workers=3)
    recorder = Recorder(str(folder))
    if ends:
        with recorder.running(begun):
            recorder.progress("measure", 10, 10)
            recorder.tell(UnitRetried("unit-a", "node b was lost", 2))
            recorder.tell(UnitHeld("unit-b", {"timeout": 2}))
            recorder.tell(NodeLost("b", "cpu_node", "it went"))
            recorder.tell(CheckpointWritten(64, "/c", 1.0, 0.5))
        return
    log = EventLog(str(folder))
    log.write(begun)
    stands = Standing(time.time(), log.attempt, {"measure": Stage(4, 10, 2.0)}, 3, {"cpu_node": 2}, {"loss": 0.25})
    standing.write(log.folder, stands)


def test_a_run_under_way(tmp_path: Path) -> None:
    leave(tmp_path / "out" / ".work", ends=False)
    (found,) = status.run(str(tmp_path)).runs
    assert (found.state, found.attempt, found.workers, found.nodes) == ("running", 1, 3, {"cpu_node": 2})
    (stage,) = found.stages
    assert (stage.name, stage.done, stage.total, stage.per_second, stage.eta_seconds) == ("measure", 4, 10, 2.0, 3.0)
    assert found.values == {"loss": 0.25}


def test_a_run_that_ended_explains_itself(tmp_path: Path) -> None:
    leave(tmp_path, ends=True)
    (found,) = status.run(str(tmp_path)).runs
    assert (found.state, found.stages[0].done) == ("finished", 10)
    assert found.checkpoint is not None
    assert (found.checkpoint.images, found.checkpoint.path) == (64, "/c")
    assert found.explained == [
        "1 units were done again, whole or in part: node b was lost 1",
        "1 units have rows that the next run asks again: timeout 2",
        "1 times something was lost: a cpu_node 1",
    ]
    assert found.spent is not None
    leave(tmp_path, ends=False)
    (again,) = status.run(str(tmp_path)).runs
    assert (again.attempt, again.state, again.explained) == (2, "running", []), "the newest attempt is told of"


def test_who_died_and_who_is_silent_is_not_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave(tmp_path, ends=False)
    monkeypatch.setattr(status, "_SILENT_S", 0.0)
    assert status.run(str(tmp_path)).runs[0].state == "silent"
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    begun = running.begun(events.read(str(tmp_path)), "curate", "heap", of="inputs", total=1, done=0, workers=1)
    EventLog(str(tmp_path)).write(Begun(**{**vars(begun), "pid": child}))
    assert status.run(str(tmp_path)).runs[0].state == "gone"


def test_a_folder_without_runs_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run is known"):
        status.run(str(tmp_path))


def test_a_place_that_cannot_be_looked_into_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be looked into"):
        status.run(str(tmp_path / "file"))


def test_a_log_without_its_first_line_is_no_run(tmp_path: Path) -> None:
    EventLog(str(tmp_path / "headless")).write(NodeLost("b", "cpu_node", "it went"))
    with pytest.raises(UserError, match="no run is known"):
        status.run(str(tmp_path))
    leave(tmp_path / "whole")
    assert [Path(run.folder).name for run in status.run(str(tmp_path)).runs] == ["whole"]


def test_by_its_job_file(tmp_path: Path) -> None:
    job = {"kind": "curate", "source": {"kind": "folder", "path": str(tmp_path)}, "output": str(tmp_path / "out")}
    path = tmp_path / "curate.yaml"
    path.write_text(yaml.safe_dump(job))
    with pytest.raises(UserError, match="nothing is known"):
        status.run(str(path))
    leave(tmp_path / "out" / ".work")
    assert [run.state for run in status.run(str(path)).runs] == ["finished"]
    train = tmp_path / "train.yaml"
    train.write_text(yaml.safe_dump({"kind": "train", "manifest": "m", "output": str(tmp_path / "runs")}))
    leave(tmp_path / "runs" / "model-12345678", verb="train")
    leave(tmp_path / "runs" / "another-12345678", verb="train")
    leave(tmp_path / "runs" / "model-larger-12345678", verb="train")
    assert [Path(run.folder).name for run in status.run(str(train)).runs] == ["model-12345678"]


def test_the_steps_of_a_pipeline(tmp_path: Path) -> None:
    first = {"kind": "curate", "source": {"kind": "folder", "path": str(tmp_path)}, "output": str(tmp_path / "out")}
    train = {"kind": "train", "manifest": "${curate.manifest}", "output": str(tmp_path / "runs")}
    steps = [{"name": "curate", "job": first}, {"name": "train", "job": train}, {"name": "again", "job": train}]
    path = tmp_path / "pipeline.yaml"
    path.write_text(yaml.safe_dump({"kind": "pipeline", "steps": steps, "state": str(tmp_path / "state")}))
    state = tmp_path / "state" / "pipeline" / "state.json"
    state.parent.mkdir(parents=True)
    state.write_text(json.dumps({"curate": {"job_sha256": "x", "result": {}}}))
    leave(tmp_path / "out" / ".work")
    found = status.run(str(path))
    assert [(step.name, step.state) for step in found.steps] == [
        ("curate", "ended"),
        ("train", "next"),
        ("again", "waits"),
    ]
    assert [run.verb for run in found.runs] == ["curate"]


@contextmanager
def server(body: bytes, code: int = 200) -> Iterator[str]:
    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            right = self.path == "/v1/models" and self.headers["Authorization"] == "Bearer k"
            self.send_response(code if right else 401)
            self.end_headers()
            self.wfile.write(body if right else b"{}")

        def log_message(self, *args: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.server_port}"
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


def test_what_an_endpoint_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLEANPLATE_API_KEY", "k")
    versions = (
        VersionState(version="3", state="live", aliases=("champion",)),
        VersionState(version="4", state="failed", problem="no such bundle"),
    )
    entry = ModelEntry(
        id="drawings", created=1, version="3", alias="champion", manifest_id="m", size="32x32", sizes=("32x32",),
        steps=20, guidance_scale=2.5, sampler="ddim", rollout=RolloutStanding(versions=versions),
    )  # fmt: skip
    with server(ModelList(data=[entry]).model_dump_json().encode()) as url:
        found = status.run(url).served
    assert [(each.version, each.state, each.aliases, each.problem) for each in found] == [
        ("3", "live", ["champion"], None),
        ("4", "failed", [], "no such bundle"),
    ]
    with server(b"{}", 500) as url, pytest.raises(UserError, match="does not say what it serves"):
        status.run(url)


def test_the_command_tells_people_and_programs(tmp_path: Path) -> None:
    leave(tmp_path)
    shown = CliRunner().invoke(app, ["status", str(tmp_path)]).output
    for part in ("curate heap: finished", "measure", "node b was lost"):
        assert part in shown
    told_json = CliRunner().invoke(app, ["status", str(tmp_path), "--json"]).output
    assert status.Status.model_validate_json(told_json).runs[0].state == "finished"


def test_watching_elsewhere_than_on_a_terminal_says_what_changed(capsys: pytest.CaptureFixture[str]) -> None:
    def at(done: int, state: status.State) -> status.Status:
        stage = status.StageStatus(name="measure", done=done, total=9, per_second=None, eta_seconds=None)
        fields: dict[str, Any] = {"folder": "f", "verb": "curate", "name": "heap", "attempt": 1, "began": 0.0}
        return status.Status(runs=[status.RunStatus(**fields, of="inputs", workers=1, state=state, stages=[stage])])

    looks = iter([at(1, "running"), at(1, "running"), at(5, "running"), at(9, "finished")])
    last = status_page.watch(lambda: next(looks), every_s=0.0)
    assert last.runs[0].state == "finished"
    assert capsys.readouterr().out.splitlines() == [
        "curate heap: running; measure 1/9",
        "curate heap: running; measure 5/9",
        "curate heap: finished; measure 9/9",
    ]


def test_what_happened_in_words() -> None:
    assert explained([]) == []
    begun = Begun("train", "m", 1, "images", 64, 0, {}, 1, "here", 7)
    assert told(begun) == "train m began: 64 images"
    again = dataclasses.replace(begun, attempt=2, done=32)
    assert told(again) == "train m began, attempt 2: 64 images, 32 of them done before"
    assert (duration(61.4), duration(1e15)) == ("0:01:01", "more than a century")
    assert told(UnitRetried("u", "timeout 2", 3, 2)) == "unit u had 2 rows asked again (attempt 3): timeout 2"


def test_a_dry_run_reckons_by_an_earlier_attempt_at_the_like_of_it(tmp_path: Path) -> None:
    make(tmp_path, 8)
    found = listed(tmp_path, workers=2, observability={"prices": {"cpu_node": 36_000.0}})
    assert curate.plan(found.job)["estimate"]["basis"].startswith("unknown")
    with record.recording(found, found.todo()) as recorded:
        recorded.recorder.progress("measure", 0, 8)
        recorded.recorder.progress("measure", 4, 8)
        recorded.recorder.worked("", 2.0, 1.0)
    left = curate.plan(found.job)["estimate"]
    assert left["todo"] == 8
    assert left["basis"].startswith("measured: 2 a second and worker")
    assert left["worker_hours"] == pytest.approx(4 / 3600, abs=1e-4)
    assert left["price"] == {"cpu_node": pytest.approx(2.0 * 10, abs=0.1)}
