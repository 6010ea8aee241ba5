"""What a worker does with a unit, without Ray: the missing stages, and only the rows that may fare better."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curation import workers
from curation.engine import _funnel, _storage_errors
from curation.errors import UserError
from curation.job import CurateJob
from curation.listing import Listing, forget_downstream, listing
from curation.manifest import Reason
from curation.ruling import stored_unit
from tests.curation.pictures import encoded, noise


def listed(folder: Path, **fields: Any) -> Listing:
    job = {"source": {"kind": "folder", "path": str(folder / "pictures")}, "output": str(folder / "out"), "clip": None}
    settings = {"licences": {"unstated": "keep"}, "image_size": 32, "unit_size": 4}
    return listing(CurateJob.model_validate(job | settings | fields))


def work(found: Listing) -> list[Any]:
    worker = workers.Worker(workers.config_of(found))
    todo = found.todo()
    forget_downstream(found.job, todo)
    return [worker.run(workers.item_of(t)) for t in todo]


def make(folder: Path, count: int = 10) -> Path:
    pictures = folder / "pictures"
    pictures.mkdir()
    for i in range(count):
        (pictures / f"{i:02d}.png").write_bytes(encoded(noise(i)))
    return pictures


def test_what_is_stored_is_not_done_again(tmp_path: Path) -> None:
    make(tmp_path)
    first = work(listed(tmp_path))
    assert sum(item["rows"] for item in first) == 10
    assert all(item["stages"] == ("measure", "captions") for item in first)
    assert work(listed(tmp_path)) == []
    assert work(listed(tmp_path, duplicates={"exact": False})) == [], "a policy needs no measuring"
    again = work(listed(tmp_path, captions=[{"kind": "template", "text": "a {title}"}]))
    assert {item["stages"] for item in again} == {("captions",)}
    again = work(listed(tmp_path, quality=["blur"]))
    assert {item["stages"] for item in again} == {("measure", "captions")}


def test_only_rows_that_may_fare_better_are_measured_anew(tmp_path: Path) -> None:
    """A file that could not be read once is asked again; the rows beside it stay as they are stored."""
    pictures = make(tmp_path, 3)
    found = listed(tmp_path, unit_size=8)
    (unit,) = found.units
    work(found)
    stage = found.stages["measure"]
    broken = stage.read(unit.key).to_pylist()
    broken[1] |= {"failed_stage": "fetch", "failed_reason": Reason.UNREADABLE.value, "id": "x", "pixel_hash": None}
    good = stage.read(unit.key)
    stage.write(unit.key, good.from_pylist(broken, schema=good.schema))
    (pictures / "00.png").write_bytes(b"never read again")
    (todo,) = found.todo()
    assert todo.again == [1]
    done = work(found)
    assert done[0]["failed"] == {}
    assert stage.read(unit.key).equals(good)
    assert found.todo() == []


def test_a_worker_that_makes_pixels_and_one_that_takes_them_do_what_one_does(tmp_path: Path) -> None:
    make(tmp_path)
    one, two = listed(tmp_path), listed(tmp_path, output=str(tmp_path / "two"))
    work(one)
    looker, scorer = workers._Looker(workers.config_of(two)), workers._Scorer(workers.config_of(two))
    for todo in two.todo():
        batch = {name: [value] for name, value in workers._row(todo).items()}
        scorer(looker(batch))
    for name, stage in one.stages.items():
        for unit in one.units:
            assert stage.read(unit.key).equals(two.stages[name].read(unit.key))


def test_a_full_disk_is_told_as_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No space left") as caught, _storage_errors():
        raise OSError(28, "No space left on device")
    assert caught.value.field == "output"
    with pytest.raises(KeyError), _storage_errors():
        raise KeyError("a fault of ours")


def test_the_funnel_adds_up() -> None:
    from collections import Counter

    removed = Counter(
        {
            ("kept", "decide", "passed"): 5,
            ("failed", "fetch", "not_found"): 2,
            ("dropped", "rights", "opted_out"): 1,
            ("held", "licence", "licence_unstated"): 1,
            ("dropped", "duplicates", "duplicate_exact"): 1,
        }
    )
    steps = _funnel(10, removed)
    assert steps[0].model_dump() == {"stage": "fetch", "reached": 10, "removed": 2, "reasons": {"not_found": 2}}
    assert steps[-1].reached - steps[-1].removed == 5


@pytest.mark.parametrize("name", ["url", "image_url", "Source_URL", "somewhere"])
def test_where_a_picture_in_a_container_came_from_is_found_under_any_name(tmp_path: Path, name: str) -> None:
    table = pa.table({"image": pa.array([encoded(noise(1))]), name: ["  HTTPS://user:s3cret@a.example/x.jpg "]})
    pq.write_table(table, tmp_path / "pictures.parquet")
    found = listed(tmp_path, source={"kind": "parquet", "path": str(tmp_path / "pictures.parquet")})
    work(found)
    (row,) = found.stages["measure"].read(found.units[0].key, ["source_url", "host"]).to_pylist()
    assert row == {"source_url": "HTTPS://a.example/x.jpg", "host": "a.example"}


def test_a_sidecar_that_cannot_be_read_is_damage(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        for name, data in (("1.png", encoded(noise(1))), ("1.json", b'{"licence": '), ("2.png", encoded(noise(2)))):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    found = listed(tmp_path, source={"kind": "webdataset", "path": str(tmp_path / "shard.tar")})
    work(found)
    rows = found.stages["measure"].read(found.units[0].key, ["embedded"]).to_pylist()
    assert [row["embedded"] for row in rows] == [[{"name": "damaged", "value": "sidecar"}], None]


def test_units_with_the_same_inputs_are_done_once(tmp_path: Path) -> None:
    folder = {"kind": "folder", "path": str(make(tmp_path, 4))}
    found = listed(tmp_path, source={"kind": "union", "of": [folder, folder]}, unit_size=1)
    todo = found.todo()
    assert len({t.unit.key for t in todo}) == len(todo) < len(found.units)


def test_what_is_made_of_another_measurement_is_not_believed(tmp_path: Path) -> None:
    make(tmp_path, 2)
    found = listed(tmp_path)
    work(found)
    (unit,) = found.units
    captions = found.stages["captions"]
    captions.write(unit.key, captions.read(unit.key).replace_schema_metadata({workers.OF: b"another"}))
    with pytest.raises(UserError, match="another run"):
        stored_unit(found.stages, unit)
    assert [todo.stages for todo in found.todo()] == [("captions",)]
