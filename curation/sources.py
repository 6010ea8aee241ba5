"""Where inputs are listed: a folder of pictures, or a table of paths and URLs.

A source turns into one Arrow table with a row for every input, in a stated order, whatever the inputs later turn out
to be. It reads names and metadata only; bytes are fetched by `fetch`.
"""

from __future__ import annotations

import io
import os
import re
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Protocol

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field

from curation import storage
from curation.errors import UserError
from curation.manifest import TIME

INPUTS = pa.schema(
    [
        ("uri", pa.string()),  # its name in the manifest: relative inside a local folder, else the full URL
        ("location", pa.string()),  # where its bytes are
        ("dataset", pa.string()),
        ("size", pa.int64()),  # of local and S3 files: with `modified` it tells a changed file from the old one
        ("modified", TIME),
        ("title", pa.string()),
        ("creator", pa.string()),
        ("licence", pa.string()),
        ("licence_url", pa.string()),
        ("metadata", pa.map_(pa.string(), pa.string())),  # every other column of the metadata table, as text
    ]
)
STATED = ("title", "creator", "licence", "licence_url")
_ALIASES = {"license": "licence", "license_url": "licence_url", "author": "creator"}


class Source(Protocol):
    """A listing of inputs."""

    def inputs(self) -> pa.Table:
        """The inputs with the columns of `INPUTS`.

        Raises:
            UserError: when the listing itself cannot be read.
        """
        ...


class FolderSource(BaseModel):
    """Every file below a folder, in name order; hidden files and the metadata table itself are not inputs.

    A row of the metadata table that names a file which is not there is an input too, and fails as `not_found`. Links to
    folders are not followed. Bytes of a name that are not UTF-8 are written as backslash escapes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["folder"] = "folder"
    path: str = Field(description="folder or s3:// prefix with the pictures")
    metadata: str | None = Field(
        None, description="CSV or Parquet table with `path` (below the folder), title, creator, licence, licence_url, …"
    )
    dataset: str = Field("folder", description="name of the collection, for the manifest's `dataset` column")

    def inputs(self) -> pa.Table:
        if not storage.is_dir(self.path):
            raise UserError(
                f"no folder at {self.path}", field="source.path", remedy="give the folder that holds the pictures"
            )
        remote = storage.is_remote(self.path)
        root = self.path.rstrip("/") if remote else storage.filesystem(self.path)[1]
        found = _remote_files(root) if remote else _local_files(root)
        table = None if self.metadata is None else self._metadata_location()
        files = {
            name: file
            for name, file in found.items()
            if not any(part.startswith(".") for part in name.split("/")) and file["location"] != table
        }
        rows = {} if self.metadata is None else _rows_by_path(self.metadata, "source.metadata")
        names = sorted(files.keys() | rows.keys())
        if not names:
            raise UserError(f"the folder {self.path} is empty", field="source.path", remedy="put pictures into it")
        return _table(
            {
                "uri": storage.join(root, name) if remote else name,
                "location": storage.join(root, name),
                "dataset": self.dataset,
                **files.get(name, {}),
                **rows.get(name, {}),
            }
            for name in names
        )

    def _metadata_location(self) -> str:
        assert self.metadata is not None
        return self.metadata if storage.is_remote(self.metadata) else str(storage.filesystem(self.metadata)[1])


class TableSource(BaseModel):
    """A CSV, TSV or Parquet table with a column of URLs (`http(s)://`, `s3://`) or local paths, in table order.

    User names and passwords inside a URL are used to fetch it and stand in no manifest.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["table", "parquet"] = "table"
    path: str = Field(description="the table, local or s3://")
    column: str | None = Field(None, description="column with the locations; `url`, `uri` or `path` when not given")
    dataset: str = Field("table", description="name of the collection, for the manifest's `dataset` column")

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
        folder = self.path.rpartition("/")[0]
        rows = []
        for row in table.to_pylist():
            location = str(row.pop(column) or "")
            uri = re.sub(r"^(https?://)[^/@]*@", r"\1", location)
            if "://" not in location and not location.startswith("/") and folder:
                location = storage.join(folder, location)
            known = {} if storage.is_remote(location) else _known(storage.local_path(location))
            rows.append({"uri": uri, "location": location, "dataset": self.dataset, **known, **_stated(row)})
        return _table(rows)


SourceConfig = Annotated[FolderSource | TableSource, Field(discriminator="kind")]


def _remote_files(root: str) -> dict[str, dict[str, Any]]:
    inside = storage.filesystem(root)[1]
    return {
        (name := info.path[len(inside) :].lstrip("/")): {
            "location": storage.join(root, name),
            "size": info.size,
            "modified": info.mtime,
        }
        for info in storage.list_files(root, recursive=True)
    }


def _local_files(root: str) -> dict[str, dict[str, Any]]:
    files = {}

    def unreadable(error: OSError) -> None:
        raise UserError(
            f"cannot list {error.filename!r} ({error.strerror})",
            field="source.path",
            remedy="make the folder readable, or move it out of the source: nothing is left out in silence",
        )

    for folder, _, names in os.walk(os.fsencode(root), onerror=unreadable):
        for name in names:
            path = os.path.join(folder, name)
            relative = os.path.relpath(path, os.fsencode(root)).decode("utf-8", "backslashreplace")
            files[relative] = {"location": storage.local_location(path), **_known(path)}
    return files


def _known(path: bytes) -> dict[str, Any]:
    """Size and time of a local file; nothing where there is none, and fetching it will say so in its row."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return {}
    return {"size": status.st_size, "modified": datetime.fromtimestamp(status.st_mtime, UTC)}


def read_table(path: str, field: str) -> pa.Table:
    """A CSV, TSV or Parquet file with every column of a CSV as text.

    Raises:
        UserError: naming `field`, when the file is absent or is not such a table.
    """
    try:
        data = storage.read_bytes(path)
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"no table at {path}", field=field, remedy="give a .csv, .tsv or .parquet file") from None
    try:
        if path.endswith((".parquet", ".pq")):
            return pq.read_table(io.BytesIO(data))
        delimiter = "\t" if path.endswith(".tsv") else ","
        parse = pacsv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
        names = pacsv.open_csv(io.BytesIO(data), parse_options=parse).schema.names
        convert = pacsv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()), null_values=[""], strings_can_be_null=True
        )
        return pacsv.read_csv(io.BytesIO(data), parse_options=parse, convert_options=convert)
    except pa.ArrowInvalid as error:
        raise UserError(
            f"{path} cannot be read as a table: {error}", field=field, remedy="check its header and its quoting"
        ) from None


def _rows_by_path(path: str, field: str) -> dict[str, dict[str, Any]]:
    table = read_table(path, field)
    if "path" not in table.column_names:
        raise UserError(
            f"{path} has no column `path`; it has {', '.join(table.column_names)}",
            field=field,
            remedy="add a column `path` with each picture's place below the folder",
        )
    rows: dict[str, dict[str, Any]] = {}
    for row in table.to_pylist():
        name = str(row.pop("path") or "").removeprefix("./")
        if name in rows:
            raise UserError(f"{path} names {name} twice", field=field, remedy="keep one row for each picture")
        if name.startswith("/") or ".." in name.split("/"):
            raise UserError(f"{path} names {name}, outside the folder", field=field, remedy="use paths below it")
        rows[name] = _stated(row)
    return rows


def _stated(row: dict[str, Any]) -> dict[str, Any]:
    """Splits a metadata row into the manifest's own columns and the rest."""
    stated: dict[str, Any] = {}
    rest = []
    for name, value in row.items():
        if value is None or value == "":
            continue
        column = _ALIASES.get(name.lower(), name.lower())
        if column in STATED:
            stated.setdefault(column, str(value))
        else:
            rest.append((column, str(value)))
    return {**stated, "metadata": rest}


def _table(rows: Any) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=INPUTS)
