"""WebDataset tars: whatever a tar holds has its row, in whatever order it lies there."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation import storage
from curation.containers import MemberError, read_members
from curation.errors import UserError
from curation.sources import WebDatasetSource
from tests.curation.gcs import gcs


def _tar(path: Path | str, members: list[tuple[str, bytes]], **options: Any) -> str:
    with tarfile.open(path, "w", **options) as out:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
    return str(path)


def _rows(path: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = WebDatasetSource(path=path).inputs().to_pylist()
    return rows


def _bytes(rows: list[dict[str, Any]]) -> list[bytes | str]:
    found = read_members([row["location"] for row in rows], 2**30)
    return [str(member.reason) if isinstance(member, MemberError) else member for member in found]


def test_samples_keep_what_their_sidecars_say(tmp_path: Path) -> None:
    said = {"title": "T", "license": "CC0-1.0", "url": "https://a.example/x", "w": 3, "tags": ["a"], "none": None}
    path = _tar(
        tmp_path / "0.tar",
        [
            ("a/1.json", json.dumps(said | {"caption": "of the json"}).encode()),
            ("./b.JPG", b"B"),
            ("a/1.jpg", b"A"),
            ("b.txt", "grün\n".encode()),
            ("a/1.seg.png", b"S"),
            ("a/1.txt", b"of the text"),
            ("a/1.cls", b"7"),
            ("a/1.npy", b"\x93"),
            ("a/1.tags.json", b'{"mood": "calm"}'),
            ("a/1.prompt.txt", b"draw"),
            ("b.json", b"{broken"),
        ],
    )
    b, a, seg = _rows(path)
    assert [b["uri"], a["uri"], seg["uri"]] == ["0.tar#b.JPG", "0.tar#a/1.jpg", "0.tar#a/1.seg.png"]
    assert _bytes([b, a, seg]) == [b"B", b"A", b"S"]
    assert (a["title"], a["licence"], a["creator"], a["size"]) == ("T", "CC0-1.0", None, 1)
    assert dict(a["metadata"]) == {
        "caption": "of the text",
        "json.caption": "of the json",
        "url": "https://a.example/x",
        "w": "3",
        "tags": '["a"]',
        "cls": "7",
        "tags.mood": "calm",
        "prompt": "draw",
        "members": "npy",
    }
    assert seg["metadata"] == a["metadata"]
    assert dict(b["metadata"]) == {"caption": "grün", "json.unread": "no JSON"}
    assert a["modified"].timestamp() == pytest.approx(os.path.getmtime(path))


_KEYS = st.text(st.characters(codec="utf-8", exclude_characters="/.\0\\"), min_size=1, max_size=8)
_EXTENSIONS = st.sampled_from(["jpg", "PNG", "mask.webp", "txt", "json", "cls", "npy", "meta.json"])
_NAMES = st.builds(
    lambda folder, key, ext: f"{folder}{key}.{ext}", st.sampled_from(["", "x/", "y.z/"]), _KEYS, _EXTENSIONS
)
_CONTENT = st.one_of(
    st.binary(max_size=600), st.dictionaries(_KEYS, st.integers() | _KEYS).map(json.dumps).map(str.encode)
)


@settings(max_examples=60, deadline=None)
@given(members=st.dictionaries(_NAMES, _CONTENT, min_size=1, max_size=12), seed=st.randoms(use_true_random=False))
def test_the_order_of_members_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, members: dict[str, bytes], seed: random.Random
) -> None:
    path = tmp_path_factory.mktemp("tars") / "0.tar"
    listed = list(members.items())
    seen = []
    for _ in range(2):
        rows = _rows(_tar(path, listed, format=tarfile.PAX_FORMAT))
        data = dict(zip((row["uri"] for row in rows), _bytes(rows), strict=True))
        images = {f"0.tar#{n}": d for n, d in members.items() if n.lower().endswith(("jpg", "png", "webp"))}
        assert {uri: d for uri, d in data.items() if d != "no_image"} == images
        seen.append({(row["uri"], row["title"], tuple(row["metadata"])) for row in rows})
        assert len(seen[-1]) == len(rows)
        seed.shuffle(listed)
    assert {uri for uri, *_ in seen[0]} >= {f"0.tar#{n}" for n in members if n.endswith("jpg")}
    pictures = [{row for row in found if row[0] in images} for found in seen]
    assert pictures[0] == pictures[1]
    assert seen[0] == seen[1]


def test_what_is_no_picture_and_beside_none_fails_in_a_row_of_its_own(tmp_path: Path) -> None:
    path = _tar(
        tmp_path / "0.tar",
        [
            ("lost.txt", b"text"),
            ("README", b"hello"),
            ("lost.json", b'{"title": "Lost"}'),
            (".hidden", b"h"),
            ("a.jpg", b"A"),
        ],
    )
    rows = _rows(path)
    assert [row["uri"].partition("#")[2] for row in rows] == ["README", "lost.json", ".hidden", "a.jpg"]
    assert _bytes(rows) == ["no_image", "no_image", "no_image", b"A"]
    assert (rows[1]["title"], dict(rows[1]["metadata"])) == ("Lost", {"caption": "text"})


def test_a_name_that_comes_again_is_another_input(tmp_path: Path) -> None:
    path = _tar(
        tmp_path / "0.tar",
        [("a.jpg", b"1"), ("a.txt", b"one"), ("a.jpg", b"2"), ("a.jpg#2", b"x"), ("a.txt", b"two"), ("a.jpg", b"3")],
    )
    rows = _rows(path)
    found = zip((row["uri"] for row in rows), _bytes(rows), (dict(row["metadata"]) for row in rows), strict=True)
    assert list(found) == [
        ("0.tar#a.jpg", b"1", {"caption": "one", "members": "jpg#2"}),
        ("0.tar#a.jpg#2#", b"2", {"caption": "two"}),
        ("0.tar#a.jpg#3", b"3", {}),
    ]


def test_links_folders_devices_and_long_names(tmp_path: Path) -> None:
    long = "d/" * 80 + "ü" * 120 + ".jpg"
    with tarfile.open(tmp_path / "0.tar", "w", format=tarfile.GNU_FORMAT) as out:
        for kind, name, target in (
            (tarfile.DIRTYPE, "d", ""),
            (tarfile.REGTYPE, "d/a.jpg", ""),
            (tarfile.LNKTYPE, "hard.jpg", "d/a.jpg"),
            (tarfile.SYMTYPE, "d/soft.jpg", "../hard.jpg"),
            (tarfile.SYMTYPE, "d/out.jpg", "/etc/passwd"),
            (tarfile.SYMTYPE, "d/ring.jpg", "ring.jpg"),
            (tarfile.FIFOTYPE, "pipe.jpg", ""),
            (tarfile.REGTYPE, long, ""),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, target, 3 if kind == tarfile.REGTYPE else 0
            out.addfile(info, io.BytesIO(b"abc"))
    rows = _rows(str(tmp_path / "0.tar"))
    assert rows[-1]["uri"] == f"0.tar#{long}"
    assert _bytes(rows) == [b"abc", b"abc", b"abc", "not_found", "not_found", "not_a_file", b"abc"]


def test_names_that_are_no_text(tmp_path: Path) -> None:
    path = _tar(
        tmp_path / "0.tar", [("bad\udcff.jpg", b"A"), ("bad\udcff.txt", b"\xfftext")], format=tarfile.USTAR_FORMAT
    )
    (row,) = _rows(path)
    assert (row["uri"], dict(row["metadata"])) == ("0.tar#bad\\xff.jpg", {"caption": "\\xfftext"})


@pytest.mark.parametrize("cut", [512 + 300, 1024 + 100, 1536 + 1, 1536])
def test_a_cut_tar_lists_what_is_whole_and_one_row_for_the_rest(tmp_path: Path, cut: int) -> None:
    path = Path(_tar(tmp_path / "0.tar", [("a.jpg", b"A" * 400), ("b.jpg", b"B" * 400)]))
    path.write_bytes(path.read_bytes()[:cut])
    rows = _rows(str(path))
    whole = ["0.tar#a.jpg"] if cut >= 1024 else []
    assert [row["uri"] for row in rows] == [*whole, f"0.tar#damaged@{1024 if whole else 0}"]
    assert _bytes(rows) == [*[b"A" * 400 for _ in whole], "truncated"]


def test_a_tar_cut_between_members_or_broken_inside_says_so(tmp_path: Path) -> None:
    path = Path(_tar(tmp_path / "0.tar", [("a.jpg", b"A"), ("b.jpg", b"B"), ("c.jpg", b"C")]))
    whole = path.read_bytes()
    path.write_bytes(whole[:2048])
    assert [row["uri"] for row in _rows(str(path))] == ["0.tar#a.jpg", "0.tar#b.jpg", "0.tar#damaged@2048"]
    path.write_bytes(whole[:1100] + b"\xff" * 20 + whole[1120:])
    assert [row["uri"] for row in _rows(str(path))] == ["0.tar#a.jpg", "0.tar#damaged@1024"]
    size = b"\xff" * 11 + b"\xf0"  # a number below zero, which would lead back for ever
    header = bytearray(whole[1024:1536])
    header[124:136] = size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    path.write_bytes(whole[:1024] + bytes(header) + whole[1536:])
    assert [row["uri"] for row in _rows(str(path))] == ["0.tar#a.jpg", "0.tar#damaged@1024"]


def test_joined_tars_are_read_to_the_end(tmp_path: Path) -> None:
    first = Path(_tar(tmp_path / "0.tar", [("a.jpg", b"A")])).read_bytes()
    second = Path(_tar(tmp_path / "1.tar", [("b.jpg", b"B"), ("a.txt", b"of a")])).read_bytes()
    (tmp_path / "2.tar").write_bytes(first + second)
    a, b = _rows(str(tmp_path / "2.tar"))
    assert (a["uri"], dict(a["metadata"]), b["uri"]) == ("2.tar#a.jpg", {"caption": "of a"}, "2.tar#b.jpg")
    assert _bytes([a, b]) == [b"A", b"B"]


def test_a_header_cannot_claim_all_memory(tmp_path: Path) -> None:
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, 2**40
    (tmp_path / "0.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + b"\0" * 10240)
    (tmp_path / "1.tar").write_bytes(Path(_tar(tmp_path / "x", [("a.jpg", b"A")])).read_bytes())
    rows = _rows(str(tmp_path))
    assert [row["uri"] for row in rows] == ["0.tar#damaged@0", "1.tar#a.jpg"]


def test_shards_come_from_folders_and_patterns(tmp_path: Path) -> None:
    for i in (8, 9, 10, 11):
        _tar(tmp_path / f"s-{i:03}.tar", [(f"{i}.jpg", b"x")])
    (tmp_path / "s-008_stats.json").write_text("{}")
    names = [row["uri"] for row in _rows(f"{tmp_path}/s-{{008..010}}.tar")]
    assert names == ["s-008.tar#8.jpg", "s-009.tar#9.jpg", "s-010.tar#10.jpg"]
    assert [row["uri"] for row in _rows(f"{tmp_path}/s-0{{11,08}}.tar")] == ["s-011.tar#11.jpg", "s-008.tar#8.jpg"]
    assert [row["uri"] for row in _rows(str(tmp_path))] == [*names, "s-011.tar#11.jpg"]
    odd = _tar(tmp_path / "{x}.tar", [("a.jpg", b"x")])
    assert [row["uri"] for row in _rows(odd)] == ["{x}.tar#a.jpg"], "a file may be called so"


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        ("absent.tar", "no file or folder"),
        ("s-{0..2}.tar", "s-1.tar"),
        ("s-{0..}.tar", "no range and no list"),
        ("s-{0..99999999999}.tar", "no range and no list"),
        ("empty", r"no \.tar"),
        ("page.tar", "no member that can be read"),
        ("zip.tar", "is compressed"),
        ("s.tar.gz", "is compressed"),
        ("none.tar", "no member that can be read"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, path: str, complaint: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "page.tar").write_text("<html>" * 200)
    whole = Path(_tar(tmp_path / "s-0.tar", [("a.jpg", b"x")])).read_bytes()
    for name in ("zip.tar", "s.tar.gz"):
        (tmp_path / name).write_bytes(gzip.compress(whole))
    _tar(tmp_path / "none.tar", [])
    with pytest.raises(UserError, match=complaint) as error:
        _rows(f"{tmp_path}/{path}")
    assert error.value.field == "source.path"
    assert error.value.remedy


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with gcs() as uri:
        yield uri


def test_tars_in_a_bucket(bucket: str, tmp_path: Path) -> None:
    members = [
        (f"{i}.{ext}", os.urandom(20_000) if ext == "jpg" else b"text") for ext in ("jpg", "txt") for i in range(40)
    ]
    for i in range(3):
        storage.write_bytes(f"{bucket}/wds/{i}.tar", Path(_tar(tmp_path / "x.tar", members)).read_bytes())
    rows = _rows(f"{bucket}/wds")
    assert [row["uri"] for row in rows] == [f"{bucket}/wds/{s}.tar#{i}.jpg" for s in range(3) for i in range(40)]
    assert _bytes(rows) == [data for name, data in members if name.endswith("jpg")] * 3
    assert {dict(row["metadata"])["caption"] for row in rows} == {"text"}
    assert _rows(f"{bucket}/wds/{{0,1,2}}.tar") == rows
    with pytest.raises(UserError, match=r"wds/3\.tar"):
        _rows(f"{bucket}/wds/{{0..3}}.tar")
