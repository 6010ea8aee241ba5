"""A small fire: workers and drivers killed while a heap is curated, and nothing lost, doubled or changed.

`python -m tests.bench.fire` is the large one.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.bench.fire import books, compare, listed, plan, write_heap
from tests.curation.hostile import listed_as


def test_the_heap_has_as_many_files_as_were_asked_for(tmp_path: Path) -> None:
    hostile = write_heap(tmp_path, 250, big=2**12)
    names = listed(tmp_path / "pictures")
    assert len(names) == 250
    assert len(hostile) == 25
    assert hostile.keys() <= set(names)
    assert all(name.endswith(listed_as(item.name)) for name, item in hostile.items())


def test_a_plan_kills_workers_and_drivers_early_and_late() -> None:
    kills = plan(16, 150, random.Random(0))
    assert len(kills) == 16
    assert {kill.kind for kill in kills} == {"worker", "helper", "raylet", "driver", "everything"}
    assert [kill.at for kill in kills[-2:]] == [150, None]
    moments = [kill.at for kill in kills[:-1]]
    assert moments == sorted(moments)
    assert kills == plan(16, 150, random.Random(0))


@pytest.mark.parametrize(
    ("rows", "fault"),
    [
        ({}, None),
        ({"b.jpg": None}, "rows too few"),
        ({"c.jpg": "kept"}, "rows too many"),
        ({"b.jpg": "failed"}, "is truncated, not passed"),
        ({"b.jpg": "lost"}, "decisions"),
    ],
)
def test_the_judge_sees_what_is_wrong_with_books(
    tmp_path: Path, rows: dict[str, str | None], fault: str | None
) -> None:
    (tmp_path / "heap").mkdir()
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / "heap" / name).write_bytes(b"")
    decided = {uri: d for uri, d in ({"a.jpg": "kept", "b.jpg": "kept"} | rows).items() if d is not None}
    reasons = ["truncated" if decision == "failed" else "passed" for decision in decided.values()]
    table = pa.table({"uri": list(decided), "decision": list(decided.values()), "reason": reasons})
    manifest = tmp_path / "manifest"
    manifest.mkdir()
    (manifest / "manifest.json").write_text(json.dumps({"counts": Counter(decided.values())}))
    pq.write_table(table, manifest / "part-00000.parquet")
    found = books(manifest, tmp_path / "heap", {})
    assert (found == []) if fault is None else any(fault in line for line in found)
    pq.write_table(table, manifest / "part-00001.parquet")
    assert any("rows too many" in line for line in books(manifest, tmp_path / "heap", {}))


@pytest.mark.ray
@pytest.mark.slow
def test_a_small_fire(tmp_path: Path) -> None:
    report = compare(tmp_path, inputs=400, kills=3, unit_size=20)
    assert all(kill.hit for kill in report.kills)
    assert report.fire.reruns >= 2
    assert report.differing == []
    assert report.wrong == []
    counts = report.peace.result["counts"]
    assert all(counts[decision] > 0 for decision in ("kept", "dropped", "held", "failed"))
    assert sum(counts.values()) == 400
    # What is stored is read, not made again: a kill costs what two workers have in hand, two results each, and a rerun
    # asks once more for the unit of the link to itself, which may be readable by then.
    assert report.fire.redone <= 4 * len(report.kills) + 2 * report.fire.reruns
