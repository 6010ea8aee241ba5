"""The event log: what is written is read again, nothing secret stands in it, and it stops nobody."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from curation import events
from curation.events import Begun, CheckpointWritten, Ended, EventLog, NodeLost, UnitHeld, UnitRetried

BEGUN = Begun("curate", "drawings", 1, "inputs", 10, 0, {"measure": 3}, 2, "here", 7)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    told = [
        BEGUN,
        UnitRetried("u1", "node abc was lost", 2),
        UnitHeld("u2", {"timeout": 3}),
        NodeLost("abc", "cpu_node", "gone"),
        CheckpointWritten(64, "/c", 1.5, 0.25),
        Ended("finished", "", {"measure": 10}, {}, {"wall_s": 3.0}),
    ]
    log = EventLog(str(tmp_path))
    for event in told:
        log.write(event)
    entries = events.read(str(tmp_path))
    assert [entry.event for entry in entries] == told
    assert {entry.attempt for entry in entries} == {log.attempt}
    assert [entry.at for entry in entries] == sorted(entry.at for entry in entries)
    assert events.attempts_of(entries) == {"u1": 1}


def test_every_attempt_writes_a_file_of_its_own(tmp_path: Path) -> None:
    first, second = EventLog(str(tmp_path)), EventLog(str(tmp_path))
    for log in (first, second, first):
        log.write(BEGUN)
    assert {path.stem for path in (tmp_path / "events").iterdir()} == {first.attempt, second.attempt}
    assert len(events.read(str(tmp_path))) == 3


def test_half_a_line_and_events_of_a_later_version_are_passed_over(tmp_path: Path) -> None:
    log = EventLog(str(tmp_path))
    log.write(BEGUN)
    path = tmp_path / "events" / f"{log.attempt}.jsonl"
    later = json.loads(path.read_text()) | {"mood": "good"}
    lines = [json.dumps(later), '{"at": 1, "event": "sung"}', "[]", '{"at": 2, "event": "begun"}', '{"at": 3, "ev']
    with path.open("a") as file:
        file.write("\n".join(lines))
    assert [entry.event for entry in events.read(str(tmp_path))] == [BEGUN, BEGUN]
    assert events.read(str(tmp_path / "absent")) == []


def test_secrets_do_not_stand_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI")
    why = "s3 refused wJalrXUtnFEMI; postgres://me:hunter2@db/x; Bearer abcdefg https://a/b?w=3&access_token=mnopq "
    why += "https://a/?api_key=rstuv&X-Amz-Credential=xyzzy " + "long " * 500
    EventLog(str(tmp_path)).write(UnitRetried("u", why, 2))
    (path,) = (tmp_path / "events").iterdir()
    text = path.read_text()
    assert "[hidden]" in text
    assert "?w=3" in text
    assert not any(secret in text for secret in ("wJalrXUtnFEMI", "hunter2", "abcdefg", "mnopq", "rstuv", "xyzzy"))
    assert len(text) < 1_000


def test_no_half_of_a_secret_is_left_where_a_text_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI")
    EventLog(str(tmp_path)).write(UnitRetried("u", "x" * 490 + " wJalrXUtnFEMI", 2))
    (path,) = (tmp_path / "events").iterdir()
    assert "wJal" not in path.read_text()


def test_what_is_no_text_stops_nobody(tmp_path: Path) -> None:
    EventLog(str(tmp_path)).write(Ended("failed", "no such file: b\udcfcld.png", {}, {}, {"cpu_s": Path("odd")}))
    (entry,) = events.read(str(tmp_path))
    assert entry.event == Ended("failed", "no such file: b?ld.png", {}, {}, {"cpu_s": "odd"})


def test_a_log_that_cannot_be_written_stops_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "events").write_text("a file is in the way")
    log = EventLog(str(tmp_path))
    for _ in range(3):
        log.write(BEGUN)
    assert [record.levelname for record in caplog.records] == ["WARNING"], "said once"
    assert events.read(str(tmp_path)) == []


def test_a_flood_of_one_kind_is_counted_and_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "_MOST", 5)
    log = EventLog(str(tmp_path))
    for number in range(8):
        log.write(UnitHeld(f"u{number}", {"dns": 1}))
    log.write(BEGUN)
    assert log.left_out == {"unit_held": 3}
    assert len(events.read(str(tmp_path))) == 6


def test_in_a_store_the_file_is_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A local folder as one that nothing can be appended to; what is not due waits, and the end does not."""
    log = EventLog(str(tmp_path))
    log._remote = True
    log.write(BEGUN)
    log.write(UnitHeld("u", {"dns": 1}))
    assert [type(entry.event) for entry in events.read(str(tmp_path))] == [Begun]
    monkeypatch.setattr(events, "_REMOTE_EVERY_S", 0.0)
    log.flush()
    assert [type(entry.event) for entry in events.read(str(tmp_path))] == [Begun, UnitHeld]
    monkeypatch.setattr(events, "_REMOTE_EVERY_S", 60.0)
    log.write(UnitHeld("v", {"dns": 1}))
    log.write(Ended("failed", "no reason", {}, {}, {}))
    assert [type(entry.event) for entry in events.read(str(tmp_path))] == [Begun, UnitHeld, UnitHeld, Ended]
    assert len(os.listdir(tmp_path / "events")) == 1
