"""The record of a run: how it stands, which nodes come and go, how it ends and what it took."""

from __future__ import annotations

from pathlib import Path

import pytest

from curation import events, running, standing
from curation.errors import UserError
from curation.events import Begun, Ended, Event, NodeJoined, NodeLost
from curation.running import Recorder
from curation.standing import Stage, priced


def begun(folder: Path) -> Begun:
    return running.begun(events.read(str(folder)), "curate", "heap", of="inputs", total=10, done=0, workers=2)


def told(folder: Path) -> list[Event]:
    return [entry.event for entry in events.read(str(folder))]


def test_how_it_stands_is_there_when_it_has_ended(tmp_path: Path) -> None:
    recorder = Recorder(str(tmp_path), prices={"cpu_node": 3600.0})
    with recorder.running(begun(tmp_path)):
        recorder.progress("measure", 4, 10)
        recorder.progress("measure", 8, 10, "failed 1")
        recorder.values({"loss": 0.5})
        recorder.worked("", 3.0, 2.0)
    found = standing.read(str(tmp_path))
    assert found is not None
    assert (found.stages["measure"].done, found.stages["measure"].total) == (8, 10)
    assert (found.workers, found.values, found.note) == (2, {"loss": 0.5}, "failed 1")
    ended = told(tmp_path)[-1]
    assert isinstance(ended, Ended)
    assert (ended.how, ended.why, ended.done) == ("finished", "", {"measure": 4})
    assert recorder.spent().worker_s == {"cpu_node": 3.0}
    assert recorder.spent().cpu_s >= 2.0
    assert ended.spent["node_s"].keys() == ended.spent["price"].keys() == {"cpu_node"}


@pytest.mark.parametrize(
    ("error", "how", "why"),
    [
        (UserError("no room", field="output", remedy="make some"), "failed", "output: no room\n  remedy: make some"),
        (KeyboardInterrupt(), "interrupted", "it was asked to end"),
        (ValueError("odd\nsecond line"), "failed", "ValueError: odd"),
    ],
)
def test_how_an_attempt_ended_is_told(tmp_path: Path, error: BaseException, how: str, why: str) -> None:
    with pytest.raises(type(error)), Recorder(str(tmp_path)).running(begun(tmp_path)):
        raise error
    ended = told(tmp_path)[-1]
    assert isinstance(ended, Ended)
    assert (ended.how, ended.why) == (how, why)


def test_attempts_are_counted(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        first = begun(tmp_path)
        assert first.attempt == number
        with Recorder(str(tmp_path)).running(first):
            pass


def test_nodes_that_come_and_go_are_told_of(tmp_path: Path) -> None:
    there = {"a" * 20: "cpu_node", "b" * 20: "gpu_node"}
    recorder = Recorder(str(tmp_path), nodes=lambda: dict(there))
    recorder.look()
    del there["b" * 20]
    there["c" * 20] = "cpu_node"
    recorder.look()
    assert recorder.lost == ["b" * 20]
    joined, lost = told(tmp_path)
    assert joined == NodeJoined("c" * 12, "cpu_node")
    assert isinstance(lost, NodeLost)
    assert (lost.node, lost.kind) == ("b" * 12, "gpu_node")
    recorder.worked("b" * 20, 5.0, 1.0)
    with recorder.running(begun(tmp_path)):
        pass
    assert recorder.spent().worker_s == {"gpu_node": 5.0}, "a lost node's kind is not forgotten"
    assert set(recorder.spent().node_s) == {"cpu_node", "gpu_node"}


def test_the_last_node_lost_is_told_last(tmp_path: Path) -> None:
    there = {"a": "cpu_node", "b": "cpu_node", "c": "cpu_node"}
    recorder = Recorder(str(tmp_path), nodes=lambda: dict(there))
    for node in ("", "b", "a"):
        there.pop(node, None)
        recorder.look()
    assert recorder.lost == ["b", "a"]
    there["b"] = "cpu_node"
    recorder.look()
    assert recorder.lost == ["a"]


def test_nodes_that_were_there_before_the_cluster_answered_did_not_join(tmp_path: Path) -> None:
    answers: list[dict[str, str]] = [{"a": "cpu_node"}]

    def asked() -> dict[str, str]:
        if recorder.spent().node_s:
            return answers[0]
        raise ConnectionError("not yet")

    recorder = Recorder(str(tmp_path), nodes=asked)
    recorder.look()
    recorder.look()
    answers[0] = {}
    recorder.look()
    assert [type(event) for event in told(tmp_path)] == [NodeLost]


def test_a_cluster_that_does_not_answer_and_an_observer_that_fails_stop_nobody(tmp_path: Path) -> None:
    class Fails:
        def event(self, event: Event) -> None:
            raise ZeroDivisionError

        def standing(self, standing: standing.Standing) -> None:
            raise ZeroDivisionError

    def gone() -> dict[str, str]:
        raise ConnectionError("no cluster")

    with Recorder(str(tmp_path), nodes=gone, observers=(Fails(),)).running(begun(tmp_path)) as recorder:
        recorder.progress("measure", 1, 1)
    assert [type(event) for event in told(tmp_path)] == [Begun, Ended]


def test_a_stage_that_stands_still_is_told_of_as_slower(tmp_path: Path) -> None:
    times = [0.0]
    recorder = Recorder(str(tmp_path), clock=lambda: times[-1])
    recorder.progress("measure", 0, 100)
    times.append(10.0)
    recorder.progress("measure", 20, 100)
    for now, pace in ((10.0, 2.0), (20.0, 2.0), (50.0, 0.5), (410.0, 0.05)):
        times.append(now)
        assert recorder._standing().stages["measure"].per_second == pytest.approx(pace)
    recorder.progress("measure", 100, 100)
    times.append(1_000_000.0)
    done_with = recorder._standing().stages["measure"]
    assert (done_with.done, done_with.per_second) == (100, pytest.approx(80 / 400)), "what it had, once it is done"


def test_the_time_that_is_left_follows_the_pace() -> None:
    assert Stage(2, 10, 4.0).eta_seconds == 2.0
    assert Stage(2, 10).eta_seconds is None
    assert Stage(10, 10).eta_seconds == 0.0


def test_prices_are_those_that_were_given() -> None:
    assert priced({"cpu_node": 7200.0, "gpu_node": 3600.0}, {"cpu_node": 0.25}) == {"cpu_node": 0.5}
    assert priced({"cpu_node": 7200.0}, {}) == {}


def test_what_cannot_be_read_is_no_standing(tmp_path: Path) -> None:
    assert standing.read(str(tmp_path)) is None
    (tmp_path / "events").mkdir()
    for text in ('{"stages": {"a": {"odd": 1}}}', "[]", '{"stages": [', "7"):
        (tmp_path / "events" / standing.FILE).write_text(text)
        assert standing.read(str(tmp_path)) is None
