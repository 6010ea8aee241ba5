"""Sources: every input listed once, in order, with what was stated about it."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curation.errors import UserError
from curation.fetch import FetchConfig, Fetcher
from curation.sources import FolderSource, TableSource


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
    text = "url,creator,title\nhttps://me:secret@a.example/x.png,NA,null\n"
    (tmp_path / "t.csv").write_text(text)
    (row,) = TableSource(path=str(tmp_path / "t.csv")).inputs().to_pylist()
    assert (row["creator"], row["title"]) == ("NA", "null")
    assert row["uri"] == "https://a.example/x.png"
    assert "secret" in row["location"]


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
