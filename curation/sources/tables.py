"""Tables: of inputs given by URL or path, and of what is stated about inputs."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field

from curation import storage
from curation.containers import broken_member, is_member
from curation.errors import UserError
from curation.manifest import Reason, is_extension
from curation.sources.inputs import INPUTS, ROWS, as_text, stated_columns, text_column, without_passwords

_FORMATS = "a .csv, .tsv, .jsonl (also with .gz) or .parquet file"


class TableSource(BaseModel):
    """A CSV, TSV, JSONL or Parquet table with a column of URLs (`http(s)://`, `s3://`, `gs://`) or local paths.

    Inputs come in table order, and a location that stands there twice is two inputs. User names and passwords inside a
    URL are used to fetch it and stand in no manifest. A path that is not absolute is one below the table's folder; one
    that leads out of that folder fails as `refused_address`, unless `outside` is set.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["table"] = "table"
    path: str = Field(description="the table, local, s3:// or gs://")
    column: str | None = Field(None, description="column with the locations; `url`, `uri` or `path` when not given")
    dataset: str = Field("table", description="name of the collection, for the manifest's `dataset` column")
    outside: bool = Field(
        False, description="whether it may name files of any folder; yes only for a table of your own"
    )

    def inputs(self) -> pa.Table:
        table = read_table(self.path, "source.path")
        column = self.column or next((c for c in ("url", "uri", "path") if c in table.column_names), None)
        if column is None or column not in table.column_names:
            raise UserError(
                f"the table has no column {self.column or 'url, uri or path'}; it has {', '.join(table.column_names)}",
                field="source.column",
                remedy="name the column that holds the locations",
            )
        if table.num_rows == 0:
            raise UserError(f"the table {self.path} has no rows", field="source.path", remedy="list some inputs in it")
        parts = (table.slice(start, ROWS) for start in range(0, table.num_rows, ROWS))
        return pa.concat_tables(self._inputs(part, column) for part in parts)

    def _inputs(self, table: pa.Table, column: str) -> pa.Table:
        if is_extension(table.schema.field(column).type):
            raise UserError(
                f"the column {column} holds no text", field="source.column", remedy="name the one with the locations"
            )
        given = pc.fill_null(text_column(table[column]), "")
        locations = located(given, self.path, outside=self.outside)
        files = [_info(place) for place in locations.to_pylist()]
        columns = {
            "uri": without_passwords(given),
            "location": locations,
            "dataset": pa.repeat(self.dataset, table.num_rows),
            "size": pa.array([None if file is None else file.size for file in files], pa.int64()),
            "modified": pa.array([None if f is None else f.mtime for f in files], INPUTS.field("modified").type),
            **stated_columns(table.drop_columns([column])),
        }
        return pa.table(columns, schema=INPUTS)


def _info(location: str) -> Any:
    return None if storage.is_remote(location) or is_member(location) else storage.info(location)


def located(given: pa.Array, table: str, *, outside: bool) -> pa.Array:
    """Locations as a table gives them, those that are relative paths put below the table's folder.

    Args:
        outside: whether paths may lead out of it.
    """
    found = _placed(given, table)
    if outside:
        return found
    detail = "a path that leads out of the table's folder; source.outside follows it"
    refused = broken_member(Reason.REFUSED_ADDRESS, detail)
    folder = table.rpartition("/")[0] or "."

    def safe(place: str | None) -> bool:
        return not place or storage.is_remote(place) or storage.inside(folder, place)

    return pc.if_else(pa.array([safe(place) for place in found.to_pylist()], pa.bool_()), found, refused)


def _placed(given: pa.Array, table: str) -> pa.Array:
    folder = table.rpartition("/")[0] or "."
    absolute = pc.match_substring_regex(given, r"^(/|[A-Za-z][A-Za-z0-9+.-]*://)")
    if folder == "." and not any(map(is_member, given.to_pylist())):
        return given
    return pc.if_else(absolute, given, pc.binary_join_element_wise(folder.rstrip("/"), given, "/"))


def read_table(path: str, field: str) -> pa.Table:
    """A CSV, TSV, JSONL or Parquet file; of all but Parquet every column is text.

    Raises:
        UserError: naming `field`, when the file is absent or is not such a table.
    """
    try:
        data = storage.read_bytes(path)
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"no table at {path}", field=field, remedy=f"give {_FORMATS}") from None
    name = path.lower()
    try:
        if name.endswith(".gz"):
            data, name = gzip.decompress(data), name.removesuffix(".gz")
        table = _reader(name)(data)
    except (pa.ArrowInvalid, gzip.BadGzipFile, EOFError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read as a table: {error}", field=field, remedy="check its header and its quoting"
        ) from None
    twice = sorted({n for n in table.column_names if table.column_names.count(n) > 1})
    if twice:
        raise UserError(f"{path} has two columns {', '.join(twice)}", field=field, remedy="give each its own name")
    return table


def _reader(name: str) -> Callable[[bytes], pa.Table]:
    if name.endswith((".parquet", ".pq")):
        return lambda data: pq.read_table(io.BytesIO(data))
    if name.endswith((".jsonl", ".ndjson")):
        return _json_lines
    return lambda data: _delimited(data, "\t" if name.endswith(".tsv") else ",")


def _delimited(data: bytes, delimiter: str) -> pa.Table:
    parse = pacsv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    names = pacsv.open_csv(io.BytesIO(data), parse_options=parse).schema.names
    convert = pacsv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()), null_values=[""], strings_can_be_null=True
    )
    return pacsv.read_csv(io.BytesIO(data), parse_options=parse, convert_options=convert)


def _json_lines(data: bytes) -> pa.Table:
    """One JSON object a line. Arrow's own reader would turn text that looks like a time into another text."""
    parts: list[pa.Table] = []
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(io.BytesIO(data), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"line {number} is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise ValueError(f"line {number} is not a JSON object")
        rows.append(row)
        if len(rows) == ROWS:
            parts.append(_text_table(rows))
            rows = []
    parts.append(_text_table(rows))
    return pa.concat_tables(parts, promote_options="default")


def _text_table(rows: list[dict[str, Any]]) -> pa.Table:
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = (
        [None if (value := row.get(name)) is None or value == "" else as_text(value) for row in rows] for name in names
    )
    return pa.table([pa.array(column, pa.string()) for column in columns], names=[as_text(name) for name in names])
