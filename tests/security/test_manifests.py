"""A manifest from elsewhere: names that lead out of its folder, links, counts that are none, types that run code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curation.errors import UserError
from curation.manifest import Manifest
from curation.report.pictures import Album
from tests.curation.test_manifest import published, rows
from tests.security.test_pictures import RAN, things

__all__ = ["things"]  # a fixture


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return published(tmp_path / "theirs", rows("a", "b"))


def edited(manifest: Manifest, change: Callable[[dict[str, Any]], Any]) -> str:
    path = Path(manifest.uri) / "manifest.json"
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))
    return manifest.uri


NAMES = ["../outside.parquet", "/tmp/outside.parquet", "a/../../outside.parquet", "s3://bucket/x", "..", "", "a\0b"]


@pytest.mark.parametrize("name", NAMES)
def test_parts_lie_in_its_folder(manifest: Manifest, name: str) -> None:
    uri = edited(manifest, lambda raw: raw["files"][0].update(name=name))
    with pytest.raises(UserError, match="damaged: files"):
        Manifest.open(uri)


def test_a_part_that_is_a_link_is_not_followed(manifest: Manifest, tmp_path: Path) -> None:
    part = Path(manifest.uri) / manifest.info.files[0].name
    shutil.move(part, tmp_path / "outside.parquet")
    part.symlink_to(tmp_path / "outside.parquet")
    opened = Manifest.open(manifest.uri)
    for look in (opened.table, opened.verify, lambda: opened.schema):
        with pytest.raises(UserError, match="leads out"):
            look()


@pytest.mark.parametrize("folder", ["../../elsewhere", "/etc", "", 3, None, ["a"]])
def test_the_newest_lies_beside_its_name(manifest: Manifest, folder: Any) -> None:
    output = Path(manifest.uri).parent
    (output / "latest.json").write_text(json.dumps({"folder": folder}))
    with pytest.raises(UserError, match="damaged"):
        Manifest.open(str(output))


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw["files"][0].update(rows=10**15),
        lambda raw: raw["files"][0].update(rows=-1),
        lambda raw: raw.update(rows=10**15),
        lambda raw: raw.update(files=[], rows=0),
        lambda raw: (raw["files"][0].update(rows=10**15), raw.update(rows=10**15)),
    ],
)
def test_counts_are_those_of_the_files(manifest: Manifest, change: Callable[[dict[str, Any]], Any]) -> None:
    uri = edited(manifest, change)
    with pytest.raises(UserError, match="damaged"):
        Manifest.open(uri).table()


def test_values_of_extension_types_are_not_made(manifest: Manifest, things: pa.Array) -> None:
    path = Path(manifest.uri) / manifest.info.files[0].name
    table = pq.read_table(path).slice(0, 1)
    index = table.schema.get_field_index("title")
    pq.write_table(table.set_column(index, "title", things), path)
    uri = edited(manifest, lambda raw: (raw["files"][0].update(rows=1), raw.update(rows=1)))
    for look in (lambda: Manifest.open(uri).table().to_pylist(), lambda: list(Manifest.open(uri).batches(["title"]))):
        with pytest.raises(UserError, match="extension type"):
            look()
    assert RAN == []


def test_a_report_shows_nothing_of_another_s_work(manifest: Manifest, tmp_path: Path) -> None:
    """A manifest says where its measured units lay; another's are not shown because it says so."""
    units = tmp_path / "others" / ".work" / "measure"
    units.mkdir(parents=True)
    table = rows("a", "b", image={"bytes": b"private", "path": None})
    pq.write_table(table, units / "unit-0.parquet")

    def shown(folder: Path) -> Any:
        uri = edited(manifest, lambda raw: raw.update(work={"folder": str(folder), "units": ["0"]}))
        return Album(Manifest.open(uri), {})._from_work({0: {"id": "a"}, 1: {"id": "b"}})

    assert shown(units) == {}
    own = tmp_path / "theirs" / ".work" / "measure"
    shutil.copytree(units, own)
    assert shown(own) == {0: b"private", 1: b"private"}
    own.joinpath("unit-0.parquet").unlink()
    assert shown(own) == {}
    with pytest.raises(UserError, match="damaged: work"):
        Manifest.open(edited(manifest, lambda raw: raw["work"].update(units=["../../../others/unit-0"])))
