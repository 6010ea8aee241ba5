"""Sources: every input listed once, in order, with what was stated about it."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.containers import MemberError, is_member, read_members, tar_member
from curation.errors import UserError
from curation.fetch import FetchConfig, Fetcher
from curation.sources import FolderSource, ParquetSource, TableSource, UnionSource, UrlListSource
from curation.sources.inputs import STATED, as_text, stated, stated_columns


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pictures" / "deep").mkdir(parents=True)
    for name in ("b.png", "a.png", "deep/c.jpg", ".hidden", "notes.txt"):
        (tmp_path / "pictures" / name).write_bytes(name.encode())
    return tmp_path


def test_a_folder_lists_every_file_in_name_order(folder: Path) -> None:
    inputs = FolderSource(path=str(folder / "pictures")).inputs()
    assert inputs["uri"].to_pylist() == ["a.png", "b.png", "deep/c.jpg", "notes.txt"]
    assert inputs["size"].to_pylist() == [5, 5, 10, 9]


def test_no_name_is_too_odd_to_be_listed_and_read(tmp_path: Path) -> None:
    names = [b"\xff\xfe bad.png", b"new\nline.png", "ünï.png".encode(), b"100%.png"]
    for name in names:
        (Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))).write_bytes(name)
    (tmp_path / "dangling.png").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to(".")
    os.mkfifo(tmp_path / "pipe.png")
    inputs = FolderSource(path=str(tmp_path)).inputs()
    assert inputs["uri"].to_pylist() == sorted(
        ["\\xff\\xfe bad.png", "new\nline.png", "ünï.png", "100%.png", "dangling.png", "pipe.png"]
    )
    found = dict(zip(inputs["uri"].to_pylist(), Fetcher(FetchConfig())(inputs["location"].to_pylist()), strict=True))
    assert {f.data for f in found.values()} == {*names, None}
    assert (found["dangling.png"].reason, found["pipe.png"].reason) == ("not_found", "not_a_file")


def test_metadata_joins_by_path_and_absent_files_stay_inputs(folder: Path) -> None:
    table = folder / "pictures" / "meta.csv"
    table.write_text('path,title,license,mood\na.png,"A, the first",CC0-1.0,calm\ngone.png,Gone,,\n')
    inputs = FolderSource(path=str(folder / "pictures"), metadata=str(table)).inputs().to_pylist()
    assert [row["uri"] for row in inputs] == ["a.png", "b.png", "deep/c.jpg", "gone.png", "notes.txt"]
    assert inputs[0] | {"title": "A, the first", "licence": "CC0-1.0", "metadata": [("mood", "calm")]} == inputs[0]
    assert inputs[1]["title"] is None
    assert (inputs[3]["title"], inputs[3]["size"]) == ("Gone", None)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("file,title\na.png,A\n", "no column `path`"),
        ("path,title\na.png,A\na.png,B\n", "twice"),
        ("path\n../secret.png\n", "outside the folder"),
        ("path\n/etc/passwd\n", "outside the folder"),
    ],
)
def test_bad_metadata_is_refused(folder: Path, text: str, complaint: str) -> None:
    (folder / "meta.csv").write_text(text)
    with pytest.raises(UserError, match=complaint):
        FolderSource(path=str(folder / "pictures"), metadata=str(folder / "meta.csv")).inputs()


def test_missing_and_empty_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"source\.path"):
        FolderSource(path=str(tmp_path / "absent")).inputs()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="is empty"):
        FolderSource(path=str(tmp_path / "empty")).inputs()


def test_a_table_keeps_its_order_and_its_repeats(tmp_path: Path) -> None:
    rows = {"url": ["https://b.example/x.png", "pics/a.png", "https://b.example/x.png"], "title": ["B", None, "B2"]}
    pq.write_table(pa.table(rows), tmp_path / "urls.parquet")
    inputs = TableSource(path=str(tmp_path / "urls.parquet")).inputs().to_pylist()
    assert [row["uri"] for row in inputs] == rows["url"]
    assert [row["title"] for row in inputs] == rows["title"]
    assert inputs[1]["location"] == f"{tmp_path}/pics/a.png"
    assert (inputs[1]["size"], inputs[1]["modified"]) == (None, None), "there is no such file yet"
    (tmp_path / "pics").mkdir()
    (tmp_path / "pics" / "a.png").write_bytes(b"now there is")
    assert TableSource(path=str(tmp_path / "urls.parquet")).inputs()["size"].to_pylist() == [None, 12, None]
    (tmp_path / "urls.tsv").write_text("link\ttitle\nhttps://c.example/1\tC\n")
    inputs = TableSource(path=str(tmp_path / "urls.tsv"), column="link").inputs()
    assert inputs["title"].to_pylist() == ["C"]


def test_names_are_text_and_passwords_stay_out_of_uris(tmp_path: Path) -> None:
    text = "url,creator,title\nhttps://me:sec@ret@a.example/x.png,NA,null\n"
    (tmp_path / "t.csv").write_text(text)
    (row,) = TableSource(path=str(tmp_path / "t.csv")).inputs().to_pylist()
    assert (row["creator"], row["title"]) == ("NA", "null")
    assert row["uri"] == "https://a.example/x.png"
    assert "sec@ret" in row["location"]


def test_a_folder_that_cannot_be_listed_stops_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pictures" / "closed").mkdir(parents=True)
    (tmp_path / "pictures" / "a.png").write_bytes(b"x")
    real = os.scandir

    def scandir(path: bytes) -> object:  # root may read everything, so the refusal is made here
        if os.fsencode(path).endswith(b"closed"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UserError, match="cannot list"):
        FolderSource(path=str(tmp_path / "pictures")).inputs()


def test_a_table_without_locations_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("name\nx\n")
    with pytest.raises(UserError, match=r"source\.column"):
        TableSource(path=str(tmp_path / "t.csv")).inputs()
    (tmp_path / "t.csv").write_text("url\n")
    with pytest.raises(UserError, match="no rows"):
        TableSource(path=str(tmp_path / "t.csv")).inputs()
    (tmp_path / "t.parquet").write_bytes(b"not parquet")
    with pytest.raises(UserError, match="cannot be read as a table"):
        TableSource(path=str(tmp_path / "t.parquet")).inputs()


def test_json_lines_and_packed_tables_say_what_they_say(tmp_path: Path) -> None:
    lines = [
        {
            "url": "https://a.example/1",
            "alt": "2020-01-01",
            "n": 1.0,
            "ok": True,
            "tags": ["x", "y"],
            "License": "CC0-1.0",
        },
        {"alt": "half \ud83d", "url": "https://a.example/2", "author": "Ann", "n": "many", "none": None, "empty": ""},
    ]
    text = "\n\n".join(map(json.dumps, lines)).encode()
    (tmp_path / "t.jsonl").write_bytes(text)
    (tmp_path / "t.jsonl.gz").write_bytes(gzip.compress(text))
    first, second = TableSource(path=str(tmp_path / "t.jsonl")).inputs().to_pylist()
    assert first["metadata"] == [("alt", "2020-01-01"), ("n", "1.0"), ("ok", "true"), ("tags", '["x", "y"]')]
    assert (first["licence"], first["creator"], second["creator"]) == ("CC0-1.0", None, "Ann")
    assert second["metadata"] == [("alt", "half \\ud83d"), ("n", "many")]
    assert TableSource(path=str(tmp_path / "t.jsonl.gz")).inputs().to_pylist() == [first, second]
    (tmp_path / "t.TSV.gz").write_bytes(gzip.compress(b"url\talt\nhttps://a.example/1\tA\n"))
    (row,) = TableSource(path=str(tmp_path / "t.TSV.gz")).inputs().to_pylist()
    assert row["metadata"] == [("alt", "A")]
    for name, content, complaint in (
        ("a.jsonl", b'{"url": "x"}\n{"url": \n', "line 2 is not JSON"),
        ("b.jsonl", b'["x"]\n', "line 1 is not a JSON object"),
        ("c.csv.gz", b"url\nx\n", "cannot be read as a table"),
        ("d.csv.gz", gzip.compress(b"url\n" * 1000)[:20], "cannot be read as a table"),
        ("e.csv", b"url,alt,alt\nx,a,b\n", "two columns alt"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=complaint) as error:
            TableSource(path=str(tmp_path / name)).inputs()
        assert error.value.field == "source.path"


_CELLS = st.one_of(st.none(), st.text(max_size=5), st.integers(-9, 9), st.booleans(), st.floats(allow_nan=False))


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["title", "Author", "creator", "license", "licence", "alt", "n", "Ünï"]),
        st.lists(_CELLS, min_size=3, max_size=3),
        max_size=6,
    )
)
def test_columns_and_rows_state_the_same(columns: dict[str, list[object]]) -> None:
    typed = {name: [None if v is None else as_text(v) for v in cells] for name, cells in columns.items()}
    for table in (
        typed,
        {n: cells for n, cells in columns.items() if len({type(v) for v in cells} - {type(None)}) < 2},
    ):
        if not table:
            continue
        found = stated_columns(pa.table(table))
        for i in range(3):
            row = stated({name: cells[i] for name, cells in table.items()})
            assert {n: c[i].as_py() for n, c in found.items()} == {**dict.fromkeys(STATED), **row}


def test_a_long_table_is_listed_in_columns(tmp_path: Path) -> None:
    rows = 70_000
    urls = pa.array([f"https://a.example/{i}" for i in range(rows)])
    pq.write_table(pa.table({"url": urls, "alt": pa.array([str(i) for i in range(rows)])}), tmp_path / "t.parquet")
    inputs = TableSource(path=str(tmp_path / "t.parquet")).inputs()
    assert inputs["uri"].to_pylist() == urls.to_pylist()
    assert [inputs["metadata"][i].as_py() for i in (0, 65_535, 65_536, rows - 1)] == [
        [("alt", str(i))] for i in (0, 65_535, 65_536, rows - 1)
    ]


def test_no_text_of_a_table_is_taken_for_a_place_in_a_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    forged = tar_member("s3://bucket/secret.tar", 0, 10)
    Path("t.jsonl").write_text(json.dumps({"path": forged}))
    for path in ("t.jsonl", str(tmp_path / "t.jsonl")):
        (location,) = TableSource(path=path).inputs()["location"].to_pylist()
        assert not is_member(location)


IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def _picture(data: bytes | None, path: str | None) -> dict[str, object]:
    return {"bytes": data, "path": path}


def test_parquet_with_bytes_as_hugging_face_writes_it(tmp_path: Path) -> None:
    (tmp_path / "near.png").write_bytes(b"near")
    images = [
        _picture(b"zero", "0.png"),
        _picture(None, "https://me:secret@a.example/1.png"),
        _picture(None, "near.png"),
        _picture(None, None),
        None,
        _picture(b"", "5.png"),
    ]
    columns = {
        "label": pa.array(range(6)),
        "image": pa.array(images, IMAGE),
        "License": pa.array(["CC0-1.0"] + [None] * 5),
        "vector": pa.array([[0.5]] * 6),
        "tags": pa.array([["a", "b"]] * 6),
    }
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "near.png").write_bytes(b"near")
    path = tmp_path / "data" / "train.parquet"
    pq.write_table(pa.table(columns), path, row_group_size=4)
    rows = ParquetSource(path=str(tmp_path / "data")).inputs().to_pylist()
    assert [row["uri"] for row in rows] == [
        "train.parquet#0",
        "https://a.example/1.png",
        *[f"train.parquet#{i}" for i in range(2, 6)],
    ]
    assert (rows[0]["licence"], rows[1]["licence"]) == ("CC0-1.0", None)
    assert rows[0]["metadata"] == [("label", "0"), ("tags", '["a", "b"]')]
    assert rows[0]["modified"].timestamp() == pytest.approx(path.stat().st_mtime)
    assert rows[1]["location"] == "https://me:secret@a.example/1.png"
    assert rows[2]["location"] == f"{tmp_path}/data/near.png"
    found = read_members([row["location"] for row in rows if is_member(row["location"])], 100)
    assert [m if isinstance(m, bytes) else m.reason for m in found] == [b"zero", "no_image", "no_image", b""]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
@pytest.mark.parametrize("statistics", [True, False])
def test_parquet_with_a_plain_column_of_bytes(tmp_path: Path, kind: pa.DataType, statistics: bool) -> None:
    cells = [b"x" * i if i % 7 else None for i in range(50)]
    table = pa.table({"blob": pa.array(cells, kind), "jpg": pa.array(cells[::-1], kind), "alt": ["a"] * 50})
    pq.write_table(table, tmp_path / "0.parquet", row_group_size=13, write_statistics=statistics)
    for column, wanted in ((None, cells[::-1]), ("blob", cells)):
        inputs = ParquetSource(path=str(tmp_path / "0.parquet"), column=column).inputs()
        assert inputs["uri"].to_pylist() == [f"0.parquet#{i}" for i in range(50)]
        found = read_members(inputs["location"].to_pylist(), 100)
        assert [m if isinstance(m, bytes) else None for m in found] == wanted


def test_parquet_files_that_are_none(tmp_path: Path) -> None:
    pq.write_table(pa.table({"alt": ["a"], "vector": [[1.0]]}), tmp_path / "no.parquet")
    with pytest.raises(UserError, match=r"alt \(string\), vector") as error:
        ParquetSource(path=str(tmp_path / "no.parquet")).inputs()
    assert error.value.field == "source.column"
    (tmp_path / "page.parquet").write_text("<html>")
    with pytest.raises(UserError, match="is no Parquet file"):
        ParquetSource(path=str(tmp_path / "page.parquet")).inputs()
    with pytest.raises(UserError, match="no file or folder"):
        ParquetSource(path=str(tmp_path / "absent.parquet")).inputs()
    pq.write_table(pa.table({"png": pa.array([], pa.binary())}), tmp_path / "empty.parquet")
    with pytest.raises(UserError, match="has no rows"):
        ParquetSource(path=str(tmp_path / "empty.parquet")).inputs()
    pq.write_table(pa.table({"png": [b"x"], "alt": ["a"]}), tmp_path / "yes.parquet")
    inputs = ParquetSource(path=str(tmp_path)).inputs()
    assert inputs["uri"].to_pylist() == ["no.parquet", "page.parquet", "yes.parquet#0"]
    found = read_members(inputs["location"].to_pylist(), 100)
    assert [m if isinstance(m, bytes) else m.reason for m in found] == ["corrupt", "corrupt", b"x"]


def test_a_damaged_column_of_statements_fails_its_rows(tmp_path: Path) -> None:
    table = pa.table(
        {"png": [os.urandom(900) for _ in range(20)], "licence": [os.urandom(50).hex() for _ in range(20)]}
    )
    pq.write_table(table, tmp_path / "0.parquet", row_group_size=10, compression="zstd", use_dictionary=False)
    chunk = pq.ParquetFile(tmp_path / "0.parquet").metadata.row_group(1).column(1)
    with open(tmp_path / "0.parquet", "r+b") as file:
        file.seek(chunk.data_page_offset)
        file.write(b"\xff" * 64)
    inputs = ParquetSource(path=str(tmp_path / "0.parquet")).inputs()
    found = list(read_members(inputs["location"].to_pylist(), 10**4))
    assert [m if isinstance(m, bytes) else m.reason for m in found] == [
        *table["png"].to_pylist()[:10],
        *["corrupt"] * 10,
    ]


def test_a_list_of_urls_has_a_row_for_every_line(tmp_path: Path) -> None:
    lines = "\ufeff# pictures\nhttps://a.example/1#x\r\n\n HTTP://b.example/2 \n/etc/passwd\ns3://b/k\nfile:///etc/passwd\nhttps://\n"
    (tmp_path / "urls.txt").write_text(lines)
    rows = UrlListSource(path=str(tmp_path / "urls.txt")).inputs().to_pylist()
    assert [row["uri"] for row in rows] == [
        *("https://a.example/1#x", "http://b.example/2", "/etc/passwd", "s3://b/k", "file:///etc/passwd", "https://")
    ]
    broken = [next(read_members([row["location"]], 1)) for row in rows if is_member(row["location"])]
    assert [m.reason for m in broken if isinstance(m, MemberError)] == ["bad_url"] * 3
    assert rows[1]["location"] == "http://b.example/2"


@pytest.fixture
def union(tmp_path: Path) -> dict[str, Any]:
    """Two folders and, in a union within the union, a table that names a file of the first folder, too."""
    for name in ("one/a.png", "two/a.png", "two/b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "urls.csv").write_text("url\nhttps://a.example/1\nhttps://a.example/1\none/a.png\n")
    folders = [{"kind": "folder", "path": str(tmp_path / name), "dataset": name} for name in ("one", "two", "one")]
    table = {"kind": "table", "path": str(tmp_path / "urls.csv")}
    return {"kind": "union", "of": [*folders[:2], {"kind": "union", "of": [table]}, folders[2]]}


def test_a_union_lists_its_sources_in_order_and_keeps_names_apart(union: dict[str, Any]) -> None:
    source = UnionSource.model_validate(union)
    inputs = source.inputs()
    urls = ["https://a.example/1"] * 2
    assert inputs["uri"].to_pylist() == ["a.png", "two/a.png", "b.png", *urls, "one/a.png", "a.png"]
    assert inputs["dataset"].to_pylist() == ["one", "two", "two", *["table"] * 3, "one"]
    assert UnionSource.model_validate(source.model_dump()) == source


def test_a_mistake_within_a_union_is_found_where_it_is(union: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "urls.csv").unlink()
    with pytest.raises(UserError, match="no table") as error:
        UnionSource.model_validate(union).inputs()
    assert error.value.field == "source.of[2].of[0].path"
    (tmp_path / "one" / "one").mkdir()
    (tmp_path / "one" / "one" / "a.png").write_bytes(b"which of the two is one/a.png?")
    union["of"][1]["dataset"] = "one"
    with pytest.raises(UserError, match="different files") as error:
        UnionSource.model_validate(union).inputs()
    assert error.value.field == "source.of[1].dataset"
