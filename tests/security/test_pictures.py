"""Pictures, tables and shards from elsewhere that name what lies outside their folder. What is wrong inside a picture
is `tests/curation/hostile.py`'s."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import TypeAdapter

from curation.errors import UserError
from curation.fetch import FetchConfig, Fetcher
from curation.job import CurateJob
from curation.sources import SourceConfig
from tests.security.planted import SECRET, secret

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def fetched(source: dict[str, Any]) -> list[tuple[str | None, bytes | None]]:
    """Of each input why there are no bytes, or its bytes."""
    config: Any = TypeAdapter(SourceConfig).validate_python(source)
    found = Fetcher(FetchConfig())(config.inputs()["location"].to_pylist())
    return [(each.reason, each.data) for each in found]


def ways_out(folder: Path, outside: Path) -> list[str]:
    """Names of a file outside a folder."""
    return [str(outside), f"file://{outside}", f"../{outside.parent.name}/secret.png", "link.png", "inner/secret.png"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a picture of its own, a link to one within, and two to what lies outside."""
    made = tmp_path / "pictures"
    made.mkdir()
    (made / "own.png").write_bytes(b"own")
    (made / "within.png").symlink_to("own.png")
    (made / "link.png").symlink_to(secret(tmp_path / "private"))
    (made / "inner").symlink_to(tmp_path / "private")
    return made


def test_links_of_a_folder_lead_nowhere_else(folder: Path) -> None:
    source = {"kind": "folder", "path": str(folder)}
    assert fetched(source) == [("refused_address", None), (None, b"own"), (None, b"own")]
    assert fetched({**source, "outside": True}) == [(None, SECRET), (None, b"own"), (None, b"own")]


def test_a_folder_that_is_a_link_itself_is_read(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "here").symlink_to(folder)
    assert (None, b"own") in fetched({"kind": "folder", "path": str(tmp_path / "here")})


def test_frames_are_no_way_out(folder: Path, tmp_path: Path) -> None:
    film = tmp_path / "films" / "film"
    film.mkdir(parents=True)
    for number in (1, 2):
        (film / f"{number}.png").symlink_to(tmp_path / "private" / "secret.png")
    source = {"kind": "folder", "path": str(tmp_path / "films"), "sequences": True}
    assert fetched(source) == [("refused_address", None)]
    ((_, data),) = fetched({**source, "outside": True})
    assert data is not None
    assert data.count(SECRET) == 2


def test_a_table_names_files_of_its_own_folder(folder: Path, tmp_path: Path) -> None:
    names = ["own.png", "./within.png", *ways_out(folder, tmp_path / "private" / "secret.png")]
    (folder / "t.csv").write_text("path\n" + "\n".join(names))
    source = {"kind": "table", "path": str(folder / "t.csv")}
    found = fetched(source)
    assert found[:2] == [(None, b"own")] * 2
    assert found[2:] == [("refused_address", None)] * 5
    assert [data for _, data in fetched({**source, "outside": True})[2:]] == [SECRET] * 5


def test_a_row_of_parquet_without_bytes_names_files_of_its_own_folder(folder: Path, tmp_path: Path) -> None:
    names = ["own.png", *ways_out(folder, tmp_path / "private" / "secret.png")]
    cells = pa.array([{"bytes": None, "path": name} for name in names], IMAGE)
    pq.write_table(pa.table({"image": cells}), folder / "0.parquet")
    found = fetched({"kind": "parquet", "path": str(folder / "0.parquet")})
    assert found == [(None, b"own"), *[("refused_address", None)] * 5]


def test_a_shard_that_is_a_link_out_is_said_to_be_one(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "shards").mkdir()
    pq.write_table(pa.table({"image": [{"bytes": b"own", "path": None}]}), tmp_path / "elsewhere" / "blob")
    (tmp_path / "shards" / "0.parquet").symlink_to("../elsewhere/blob")
    (tmp_path / "shards" / "0.tar").symlink_to("../elsewhere/blob")
    source = {"kind": "parquet", "path": str(tmp_path / "shards")}
    for kind in ("parquet", "webdataset"):
        with pytest.raises(UserError, match="is a link that leads out"):
            fetched({**source, "kind": kind})
    assert fetched({**source, "outside": True}) == [(None, b"own")]
    assert fetched({**source, "path": str(tmp_path / "shards" / "{0,0}.parquet")})[0] == (None, b"own")


def test_lists_of_urls_name_no_files(tmp_path: Path) -> None:
    outside = secret(tmp_path)
    (tmp_path / "urls.txt").write_text(f"{outside}\nfile://{outside}\n../{outside.name}\n")
    assert fetched({"kind": "http", "path": str(tmp_path / "urls.txt")}) == [("bad_url", None)] * 3


def test_where_files_may_lie_is_no_part_of_a_job_s_identity() -> None:
    fields = {"source": {"kind": "folder", "path": "p"}, "output": "out"}
    job = CurateJob.model_validate(fields)
    again = CurateJob.model_validate({**fields, "source": {**fields["source"], "outside": True}})  # type: ignore[dict-item]
    assert job.identity() == again.identity()
    assert "outside" not in job.identity()["source"]


RAN: list[str] = []


class Thing(pa.ExtensionType):
    """A type whose values are programs, as Ray Data registers one that unpickles them."""

    def __init__(self, storage: pa.DataType = pa.binary()) -> None:  # noqa: B008
        super().__init__(storage, "tests.thing")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage: pa.DataType, serialized: bytes) -> Thing:
        return cls(storage)

    def __arrow_ext_scalar_class__(self) -> type[pa.ExtensionScalar]:
        return Running


class Running(pa.ExtensionScalar):
    def as_py(self, **options: Any) -> str:
        RAN.append("ran")
        return "ran"


@pytest.fixture
def things() -> Any:
    RAN.clear()
    pa.register_extension_type(Thing())
    yield pa.ExtensionArray.from_storage(Thing(), pa.array([b"run me"], pa.binary()))
    pa.unregister_extension_type("tests.thing")


def test_values_of_extension_types_are_not_made(things: pa.Array, folder: Path) -> None:
    assert things.to_pylist() == RAN == ["ran"], "the type does what is feared"
    RAN.clear()
    nested = pa.StructArray.from_arrays([things], ["inner"])
    table = pa.table({"url": ["own.png"], "title": things, "other": nested, "image": pa.array([b"x"], pa.binary())})
    pq.write_table(table, folder / "t.parquet")
    assert fetched({"kind": "parquet", "path": str(folder / "t.parquet")}) == [(None, b"x")]
    assert fetched({"kind": "table", "path": str(folder / "t.parquet")}) == [(None, b"own")]
    for column in ("title", "other"):
        source: Any = TypeAdapter(SourceConfig).validate_python(
            {"kind": "table", "path": str(folder / "t.parquet"), "column": column}
        )
        with pytest.raises(UserError, match="holds no text"):
            source.inputs()
    assert RAN == []
