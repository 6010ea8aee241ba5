"""Work units: every input in exactly one, boundaries that stay when the list grows, results whole or not there."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.containers import parquet_cell
from curation.sources import INPUTS
from curation.units import Stage, cut, embedding_array, embedding_matrix, fingerprint, unit_key


def listed(names: list[str]) -> pa.Table:
    files = [{"uri": n, "location": f"/somewhere/{n}", "size": 9, "modified": datetime(2026, 1, 1)} for n in names]
    return pa.Table.from_pylist(files, schema=INPUTS)


@settings(deadline=None)
@given(names=st.lists(st.text(min_size=1, max_size=8), max_size=200), size=st.integers(1, 40))
def test_every_input_is_in_exactly_one_unit(names: list[str], size: int) -> None:
    units = list(cut(listed(names), size))
    assert [uri for unit in units for uri in unit["uri"].to_pylist()] == names
    assert all(unit.num_rows <= 2 * size for unit in units)
    assert all(unit.num_rows >= (size + 1) // 2 for unit in units[:-1])


@settings(deadline=None, max_examples=30)
@given(at=st.integers(0, 2000), removed=st.booleans())
def test_a_changed_list_changes_few_units(at: int, removed: bool) -> None:
    names = [f"{i:05d}.jpg" for i in range(2000)]
    changed = names[:at] + names[at + 1 :] if removed else [*names[:at], "new.jpg", *names[at:]]
    before = {unit_key(unit) for unit in cut(listed(names), 50)}
    after = [unit_key(unit) for unit in cut(listed(changed), 50)]
    assert sum(key not in before for key in after) <= 8 < len(after) / 3


def test_units_have_the_size_that_was_asked_on_average() -> None:
    sizes = [unit.num_rows for unit in cut(listed([f"{i}.jpg" for i in range(20_000)]), 100)]
    assert np.mean(sizes[:-1]) == pytest.approx(100, rel=0.1)


def test_a_units_name_is_of_what_is_in_it_and_not_of_where_it_lies() -> None:
    names = ["a.png", "b.png"]
    elsewhere = listed(names).set_column(1, "location", pa.array(["/x/a.png", "/x/b.png"]))
    assert unit_key(listed(names)) == unit_key(elsewhere)
    assert unit_key(listed(names)) != unit_key(listed(names[::-1]))
    larger = listed(names).set_column(3, INPUTS.field("size"), pa.array([9, 10], pa.int64()))
    assert unit_key(listed(names)) != unit_key(larger)


def test_what_only_its_place_identifies_is_another_unit_elsewhere() -> None:
    def at(*locations: str, size: int | None = None) -> str:
        files = [{"uri": "a", "location": at, "size": size, "modified": datetime(2026, 1, 1)} for at in locations]
        return unit_key(pa.Table.from_pylist(files, schema=INPUTS))

    assert at("s3://b/v1/a.jpg") != at("s3://b/v2/a.jpg"), "a table on S3: neither size nor time is known"
    left, right = (parquet_cell("/data/x.parquet", 0, 0, column) for column in ("left", "right"))
    assert at(left, size=9) != at(right, size=9)


def test_a_fingerprint_is_of_everything() -> None:
    assert fingerprint(1, {"a": 1, "b": [2]}) == fingerprint(1, {"b": [2], "a": 1})
    assert len({fingerprint(1, {}), fingerprint(2, {}), fingerprint(1, {"a": None})}) == 3


def test_a_stage_stores_units_whole(tmp_path: Path) -> None:
    stage = Stage("measure", str(tmp_path / "measure-x"))
    assert stage.done() == set()
    vectors = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float16)
    stage.write("k", pa.table({"id": ["a", "b", "c"], "embedding": embedding_array(vectors)}))
    (tmp_path / "measure-x" / ".unit-j.parquet.1234.partial").write_bytes(b"half")
    assert stage.done() == {"k"}
    assert np.array_equal(embedding_matrix(stage.read("k")["embedding"]), vectors)
    assert np.array_equal(embedding_matrix(stage.read("k")["embedding"].slice(1)), vectors[1:])
    assert stage.read("k", ["id"]).column_names == ["id"]
