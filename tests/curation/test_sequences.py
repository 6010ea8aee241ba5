"""Frame folders: which folders are one, in what order their frames come, and that they are read as one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from curation.containers import known_by, pack
from curation.errors import UserError
from curation.fetch import FetchConfig, Fetcher
from curation.sources import FolderSource
from curation.units import unit_key


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of two frame folders, pictures, and folders that are none."""
    for name in (
        *("walk/f2.png", "walk/f10.png", "walk/f1.png", "deep/run/001.JPG", "deep/run/002.jpg"),
        *("1.png", "2.png", "mixed/1.png", "mixed/2.png", "mixed/notes.txt", "one/1.png"),
        *("two/a1.png", "two/b2.png", "kinds/1.png", "kinds/2.gif", "deep/still.png"),
    ):
        (tmp_path / "pictures" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pictures" / name).write_bytes(name.encode())
    return tmp_path


def source(folder: Path, **fields: str) -> FolderSource:
    return FolderSource.model_validate({"path": str(folder / "pictures"), "sequences": True, **fields})


def test_a_folder_of_numbered_files_is_one_input_and_every_file_is_in_one(folder: Path) -> None:
    stills = FolderSource(path=str(folder / "pictures")).inputs()
    assert len(stills) == 16
    inputs = source(folder).inputs()
    assert inputs["uri"].to_pylist() == [
        *("1.png", "2.png", "deep/run/", "deep/still.png", "kinds/1.png", "kinds/2.gif", "mixed/1.png", "mixed/2.png"),
        *("mixed/notes.txt", "one/1.png", "two/a1.png", "two/b2.png", "walk/"),
    ]
    assert sum(inputs["size"].to_pylist()) == sum(stills["size"].to_pylist())


def test_frames_come_in_the_order_of_their_numbers(folder: Path) -> None:
    inputs = source(folder).inputs()
    places = dict(zip(inputs["uri"].to_pylist(), inputs["location"].to_pylist(), strict=True))
    walk, run, still = Fetcher(FetchConfig())([places["walk/"], places["deep/run/"], places["1.png"]])
    assert walk.data == pack([b"walk/f1.png", b"walk/f2.png", b"walk/f10.png"])
    assert run.data == pack([b"deep/run/001.JPG", b"deep/run/002.jpg"])
    assert still.data == b"1.png"


def test_a_frame_that_is_gone_or_too_many_of_them_fail_the_film(folder: Path) -> None:
    inputs = source(folder).inputs()
    (place,) = [row["location"] for row in inputs.to_pylist() if row["uri"] == "walk/"]
    (found,) = Fetcher(FetchConfig(max_bytes=30))([place])
    assert found.reason == "too_large"
    (folder / "pictures" / "walk" / "f2.png").unlink()
    (found,) = Fetcher(FetchConfig())([place])
    assert (found.data, found.reason, found.detail) == (None, "not_found", "its frame f2.png is not there")


def test_the_metadata_table_names_folders_with_or_without_a_slash(folder: Path) -> None:
    table = folder / "films.csv"
    table.write_text("path,title\nwalk,a walk\ndeep/run/,a run\n1.png,one\n")
    rows = {row["uri"]: row["title"] for row in source(folder, metadata=str(table)).inputs().to_pylist()}
    assert (rows["walk/"], rows["deep/run/"], rows["1.png"], rows["2.png"]) == ("a walk", "a run", "one", None)


@pytest.mark.parametrize(("text", "complaint"), [("walk/f1.png", "a frame of walk/"), ("walk\nwalk/", "twice")])
def test_a_row_about_a_single_frame_is_refused(folder: Path, text: str, complaint: str) -> None:
    (folder / "films.csv").write_text(f"path\n{text}\n")
    with pytest.raises(UserError, match=complaint) as caught:
        source(folder, metadata=str(folder / "films.csv")).inputs()
    assert caught.value.field == "source.metadata"


def test_a_film_is_known_by_its_frames_wherever_it_lies(folder: Path) -> None:
    first = source(folder).inputs()
    shutil.copytree(folder / "pictures", folder / "elsewhere" / "pictures")  # with the times of the files
    moved = source(folder / "elsewhere").inputs()
    assert moved["location"].to_pylist() != first["location"].to_pylist()
    assert unit_key(moved) == unit_key(first)
    (folder / "pictures" / "walk" / "f1.png").write_bytes(b"walk/f1.jpg")  # of the same size
    assert unit_key(source(folder).inputs()) != unit_key(first)
    assert known_by("pictures/1.png") is None
