"""What a curation's driver records: retries and why, rows that the next run asks again, metrics."""

from __future__ import annotations

import os
import signal
import socket
import urllib.request
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from curation import events, record, workers
from curation.errors import UserError
from curation.events import Begun, Ended, UnitHeld, UnitRetried
from curation.listing import Todo
from curation.manifest import Reason
from curation.metrics import CurationMetrics
from curation.observability import PORT_VARIABLE, RunObservability, offered
from curation.standing import Stage, Standing
from tests.curation.test_workers import listed, make, work

PACE = "cleanplate_curation_rows_per_second"


def told(output: Path, kind: type[Any]) -> list[Any]:
    return [entry.event for entry in events.read(record.folder_of(str(output))) if isinstance(entry.event, kind)]


def test_a_rerun_says_which_units_it_asks_again_and_why(tmp_path: Path) -> None:
    make(tmp_path, 3)
    found = listed(tmp_path, unit_size=8)
    (unit,) = found.units
    items = work(found)
    stage = found.stages["measure"]
    broken = stage.read(unit.key).to_pylist()
    for row in broken[:2]:
        row |= {"failed_stage": "fetch", "failed_reason": Reason.TIMEOUT.value, "id": "x", "pixel_hash": None}
    stage.write(unit.key, stage.read(unit.key).from_pylist(broken, schema=stage.read(unit.key).schema))
    for attempt in (2, 3):
        todo = found.todo()
        with record.recording(found, todo) as recorded:
            recorded.todo(todo)
            recorded.unit({**items[0], "failed": {"timeout": 2, "truncated": 1}})
        assert told(tmp_path / "out", UnitRetried)[-1] == UnitRetried(unit.key, "timeout 2", attempt, 2)
    assert told(tmp_path / "out", UnitHeld) == [UnitHeld(unit.key, {"timeout": 2})] * 2
    first, second = told(tmp_path / "out", Begun)
    assert (first.attempt, second.attempt) == (1, 2)
    assert (first.total, first.done, first.todo) == (3, 0, {"measure": 1, "captions": 1})
    assert first.like == record.like(found) != record.like(listed(tmp_path, quality=["blur"]))


def test_a_unit_says_what_it_took(tmp_path: Path) -> None:
    pictures = make(tmp_path, 2)
    (item,) = work(listed(tmp_path))
    assert item["bytes"] == sum(path.stat().st_size for path in pictures.iterdir())
    assert item["seconds"] > 0
    assert item["cpu_seconds"] > 0
    assert (item["node"], item["attempt"]) == ("", 0), "outside of Ray"


def test_metrics_are_offered_while_it_runs_and_only_where_asked_for(tmp_path: Path) -> None:
    make(tmp_path, 3)
    found = listed(tmp_path, observability={"metrics_port": 0})
    todo = found.todo()
    items = work(found)
    with offered(found.job.observability, _registry(found, todo, items)) as port:
        text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
    for line in (
        'cleanplate_curation_units_total{stage="measure"} 1.0',
        'cleanplate_curation_rows_failed_total{reason="timeout"} 2.0',
        'cleanplate_curation_rows_total{decision="kept",reason="passed"} 3.0',
        "cleanplate_curation_units_held_total 1.0",
        f"cleanplate_curation_fetched_bytes_total {float(items[0]['bytes'])}",
        'cleanplate_curation_stage_done_rows{stage="measure"} 2.0',
        "cleanplate_curation_workers 1.0",
    ):
        assert line in text.splitlines()
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics")


def _registry(found: Any, todo: Sequence[Todo], items: list[Any]) -> Any:
    with record.recording(found, todo) as recorded:
        assert recorded._metrics is not None
        recorded.unit({**items[0], "failed": {"timeout": 2}})
        recorded.rows({("kept", "captions", "passed"): 3})
        recorded.recorder.progress("measure", 2, 3)
    return recorded._metrics.registry


def test_a_stage_that_is_done_has_no_pace_any_more() -> None:
    metrics = CurationMetrics()
    stages = {"measure": Stage(9, 9, 2.0), "decide": Stage(1, 9, 3.0)}
    metrics.standing(Standing(0.0, "one", stages, 1, {}, {}))
    paces = {stage: metrics.registry.get_sample_value(PACE, {"stage": stage}) for stage in stages}
    assert paces == {"measure": 0.0, "decide": 3.0}


def test_who_asks_for_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PORT_VARIABLE, raising=False)
    assert RunObservability().port is None
    monkeypatch.setenv(PORT_VARIABLE, "9123")
    assert RunObservability().port == 9123
    assert RunObservability(metrics_port=0).port == 0
    monkeypatch.setenv(PORT_VARIABLE, "")
    assert RunObservability().port is None


def test_a_port_that_is_taken_is_a_mistake_that_is_found_at_once(tmp_path: Path) -> None:
    make(tmp_path, 1)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        found = listed(tmp_path, observability={"metrics_port": taken.getsockname()[1]})
        with pytest.raises(UserError, match="cannot be offered"), record.recording(found, found.todo()):
            raise AssertionError
    assert told(tmp_path / "out", Begun) == []


def test_how_it_is_watched_makes_no_other_manifest(tmp_path: Path) -> None:
    make(tmp_path, 1)
    watched = listed(tmp_path, observability={"metrics_port": 9, "prices": {"cpu_node": 1.0}})
    assert watched.job.identity() == listed(tmp_path).job.identity()
    assert watched.job.public() == listed(tmp_path).job.public(), "prices are nobody else's business"


class DiesOnce(workers.Worker):
    """A worker whose process is killed in the middle of the first unit that any of them takes."""

    def look(self, item: Any) -> Any:
        marker = Path(self._config.folders["measure"]) / "died"
        marker.parent.mkdir(parents=True, exist_ok=True)
        try:
            marker.touch(exist_ok=False)
        except FileExistsError:
            return super().look(item)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


@pytest.mark.ray
@pytest.mark.slow
def test_a_unit_whose_worker_is_killed_is_done_again_and_told_of(ray_cluster: None, tmp_path: Path) -> None:
    make(tmp_path, 12)
    found = listed(tmp_path)
    found = replace(found, policy=replace(found.policy, job=found.job.model_copy(update={"cpus_per_worker": 0.5})))
    todo = found.todo()
    with record.recording(found, todo) as recorded:
        for item in workers.run(found, todo, DiesOnce):
            recorded.unit(item)
    retried = told(tmp_path / "out", UnitRetried)
    assert retried
    assert {event.why for event in retried} == {"the process that had it ended, or its result was lost"}
    assert {event.attempt for event in retried} == {2}
    assert found.todo() == []
    (ended,) = told(tmp_path / "out", Ended)
    assert ended.how == "finished"
    assert ended.spent["worker_s"].keys() == {"cpu_node"}
