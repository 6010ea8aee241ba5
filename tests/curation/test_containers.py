"""Members of containers: each location gives its own bytes, or says why not, and the others never suffer for it."""

from __future__ import annotations

import io
import os
import tarfile
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation import storage
from curation.containers import (
    MemberError,
    MemberReader,
    broken_member,
    is_member,
    parquet_cell,
    read_members,
    tar_member,
)
from curation.manifest import Reason


def _read(*locations: str, max_bytes: int = 2**30) -> list[bytes | str]:
    return [str(m.reason) if isinstance(m, MemberError) else m for m in read_members(locations, max_bytes)]


@pytest.fixture
def tar(tmp_path: Path) -> tuple[str, list[str]]:
    """A tar of three members, and their locations."""
    path = tmp_path / "a b#{ü}.tar"
    with tarfile.open(path, "w") as out:
        for i in range(3):
            info = tarfile.TarInfo(f"{i}.jpg")
            info.size = 1000 * i + 1
            out.addfile(info, io.BytesIO(bytes([i]) * info.size))
    with tarfile.open(path) as found:
        return str(path), [tar_member(str(path), m.offset_data, m.size) for m in found]


def test_members_come_in_any_order_and_as_often_as_asked(tar: tuple[str, list[str]]) -> None:
    a, b, c = tar[1]
    assert _read(c, a, b, a) == [b"\2" * 2001, b"\0", b"\1" * 1001, b"\0"]


def test_one_bad_member_spoils_no_other(tar: tuple[str, list[str]], tmp_path: Path) -> None:
    path, (a, b, c) = tar
    os.mkfifo(tmp_path / "pipe")
    found = _read(
        a,
        tar_member(str(tmp_path / "gone.tar"), 0, 1),
        b,
        tar_member(path, 10**9, 5),
        broken_member(Reason.TRUNCATED, "cut"),
        tar_member(str(tmp_path / "pipe"), 0, 1),
        tar_member("ftp://x/y.tar", 0, 1),
        parquet_cell(path, 0, 0, "image"),
        c,
        max_bytes=1500,
    )
    assert found == [
        b"\0",
        "not_found",
        b"\1" * 1001,
        "truncated",
        "truncated",
        "unreadable",
        "unreadable",
        "corrupt",
        "too_large",
    ]


@settings(deadline=None)
@given(st.text(max_size=30), st.integers(0, 2**60), st.integers(0, 2**60), st.text(max_size=10))
def test_a_location_is_one_line_of_text_that_no_path_looks_like(name: str, a: int, b: int, column: str) -> None:
    for location in (tar_member(name, a, b), parquet_cell(name, a, b, column), broken_member(Reason.CORRUPT, name)):
        assert is_member(location)
        assert not storage.is_remote(location)
        assert pa.array([location])[0].as_py() == location
    assert not is_member(f"/{name}")
    assert not is_member(f"s3://{name}")


def test_containers_with_names_that_are_not_text(tar: tuple[str, list[str]], tmp_path: Path) -> None:
    odd = os.fsencode(tmp_path) + b"/\xff\xfe.tar"
    os.rename(tar[0], odd)
    with tarfile.open(os.fsdecode(odd)) as found:
        members = [tar_member(storage.local_location(odd), m.offset_data, m.size) for m in found]
    assert _read(*members)[0] == b"\0"


def _parquet(path: Path, cells: list[bytes | None], **options: object) -> str:
    image = pa.array(
        [{"bytes": c, "path": None} for c in cells], pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    )
    pq.write_table(pa.table({"image": image, "jpg": pa.array(cells, pa.binary())}), path, **options)
    return str(path)


def test_cells_of_structs_and_of_plain_columns(tmp_path: Path) -> None:
    cells = [None if i == 5 else f"cell {i}".encode() * i for i in range(100)]
    path = _parquet(tmp_path / "a.parquet", cells, row_group_size=40)
    for column in ("image.bytes", "jpg"):
        places = [parquet_cell(path, i // 40, i % 40, column) for i in range(100)]
        wanted = ["no_image" if c is None else c for c in cells]
        assert _read(*places) == wanted
        assert _read(*places[::-7]) == wanted[::-7], "backwards, and across row groups"
    assert _read(parquet_cell(path, 0, 40, "jpg"), parquet_cell(path, 9, 0, "jpg")) == ["corrupt", "corrupt"]
    assert _read(parquet_cell(path, 0, 0, "absent"), places[7], max_bytes=10) == ["corrupt", "too_large"]


def test_a_damaged_page_is_corrupt_and_the_next_row_group_is_sound(tmp_path: Path) -> None:
    path = _parquet(
        tmp_path / "a.parquet", [os.urandom(4000) for _ in range(20)], row_group_size=10, compression="zstd"
    )
    chunk = pq.ParquetFile(path).metadata.row_group(0).column(0)
    with open(path, "r+b") as file:
        file.seek(chunk.data_page_offset)
        file.write(b"\xff" * 64)
    found = _read(parquet_cell(path, 0, 3, "image.bytes"), parquet_cell(path, 1, 3, "image.bytes"))
    assert found[0] == "corrupt"
    assert len(found[1]) == 4000


def test_of_a_large_row_group_only_a_few_cells_are_in_memory(tmp_path: Path) -> None:
    size, cells = 100_000, 400
    path = _parquet(
        tmp_path / "a.parquet",
        [os.urandom(size) for _ in range(cells)],
        data_page_size=2**16,
        write_batch_size=8,
        use_dictionary=False,
    )
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    peak = 0
    for found in read_members([parquet_cell(path, 0, i, "image.bytes") for i in range(cells)], 2**20):
        assert isinstance(found, bytes)
        peak = max(peak, pa.total_allocated_bytes() - before)
    assert peak < cells * size / 4
    assert tracemalloc.get_traced_memory()[1] < cells * size / 4
    tracemalloc.stop()


def test_a_reader_goes_on_where_it_was(tmp_path: Path) -> None:
    path = _parquet(tmp_path / "a.parquet", [bytes([i]) for i in range(100)])
    places = [parquet_cell(path, 0, i, "jpg") for i in range(100)]
    with MemberReader(10) as reader:
        assert list(reader.read(places[:50])) == [bytes([i]) for i in range(50)]
        os.unlink(path)
        assert list(reader.read(places[50:])) == [bytes([i]) for i in range(50, 100)], "the file is not opened again"
        assert isinstance(next(reader.read(places[:1])), MemberError)


def test_a_fault_that_passes_costs_the_rows_that_met_it(tmp_path: Path) -> None:
    cells = [bytes([i]) * 100_000 for i in range(100)]
    path = _parquet(tmp_path / "a.parquet", cells, data_page_size=2**16, write_batch_size=8, compression="none")
    whole = Path(path).read_bytes()
    places = [parquet_cell(path, 0, i, "image.bytes") for i in range(100)]
    with MemberReader(10**6) as reader:
        assert list(reader.read(places[:2])) == cells[:2]
        os.truncate(path, 3_000_000)
        assert isinstance(next(reader.read(places[90:])), MemberError)
        Path(path).write_bytes(whole)
        assert list(reader.read(places[91:])) == cells[91:]
