"""Parquet files with the pictures' bytes in a column: plain binary, or the `image` struct of Hugging Face."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field

from curation import storage
from curation.containers import broken_member, parquet_cell
from curation.errors import UserError
from curation.manifest import Reason
from curation.sources.files import Shard, shards
from curation.sources.inputs import INPUTS, readable, rows_table, stated_columns, text_column, without_passwords
from curation.sources.tables import located

_NAMES = ("image", "jpg", "jpeg", "png", "webp", "bytes", "image_bytes", "content")


class ParquetSource(BaseModel):
    """Every row of one or many Parquet files that hold the bytes of pictures, in the order of files and rows.

    An input is named `<file>#<row>`. A row of an `image` struct without bytes whose `path` is a URL or a path is read
    from there (and named by the URL, if it is one, so that an opt-out of the place finds it); a path that leads out of
    the file's folder fails as `refused_address`, unless `outside` is set. A row with neither is an input that fails.
    Columns of text and of numbers are what is stated about the picture; others are left out. A file that cannot be
    read, among others that can, is one input that fails.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["parquet"] = "parquet"
    path: str = Field(description="a file, a folder or prefix, or a pattern such as train-{000..010}.parquet")
    column: str | None = Field(
        None, description=f"column with the bytes; when not given, a struct with bytes, or one of {', '.join(_NAMES)}"
    )
    dataset: str = Field("parquet", description="name of the collection, for the manifest's `dataset` column")
    outside: bool = Field(
        False, description="whether a row or a link may name a file of any folder; yes only for your own"
    )

    def inputs(self) -> pa.Table:
        found = shards(self.path, (".parquet", ".pq"), outside=self.outside)
        tables, complaints = [], []
        for shard in found:
            try:
                tables += list(self._of(shard))
            except _UnfitError as error:
                complaints.append(error)
                tables.append(self._broken(shard, str(error)))
        if len(complaints) == len(found):
            first = complaints[0]
            raise UserError(f"{found[0].name}: {first}", field=first.field, remedy=first.remedy)
        table = pa.concat_tables([INPUTS.empty_table(), *tables])
        if table.num_rows == 0:
            raise UserError(f"{self.path} has no rows", field="source.path", remedy="give files that hold pictures")
        return table

    def _of(self, shard: Shard) -> Iterator[pa.Table]:
        try:
            file: BinaryIO = storage.open_file(shard.location)
        except OSError as error:
            raise _UnfitError(f"cannot be opened ({error.strerror or error})") from None
        with file:
            try:
                parquet = pq.ParquetFile(file, buffer_size=2**20, pre_buffer=False)
            except (pa.ArrowException, OSError) as error:
                raise _UnfitError(f"is no Parquet file ({str(error)[:200]})") from None
            column = self._column(parquet.schema_arrow)
            start = 0
            for group in range(parquet.num_row_groups):
                table = self._group(shard, parquet, group, column, start)
                yield table
                start += table.num_rows

    def _group(self, shard: Shard, parquet: pq.ParquetFile, group: int, column: str, start: int) -> pa.Table:
        schema: pa.Schema = parquet.schema_arrow
        is_struct = pa.types.is_struct(schema.field(column).type)
        cells = f"{column}.bytes" if is_struct else column
        rows = parquet.metadata.row_group(group).num_rows
        names = [n for n in schema.names if n != column and readable(schema, n)]
        given = pa.nulls(rows, pa.string())
        try:
            described = parquet.read_row_group(group, columns=names, use_threads=False)
            null = _nulls(parquet, group, cells)
            if is_struct and schema.field(column).type.get_field_index("path") >= 0 and null is not None:
                paths = parquet.read_row_group(group, columns=[f"{column}.path"], use_threads=False)[column]
                given = pc.if_else(null, text_column(pc.struct_field(paths, "path")), None)
        except (pa.ArrowException, OSError) as error:
            # The cells may be sound, but what was said about their rights is lost.
            locations = [broken_member(Reason.CORRUPT, f"row group {group}: {str(error)[:200]}")] * rows
            described, null = pa.table({"": pa.nulls(rows)}).drop_columns([""]), None
        else:
            locations = [parquet_cell(shard.location, group, row, cells) for row in range(rows)]
        named = [f"{shard.name}#{row}" for row in range(start, start + rows)]
        web = pc.fill_null(pc.match_substring_regex(given, "^https?://"), False)
        columns = {
            "uri": pc.if_else(web, without_passwords(given), pa.array(named, pa.string())),
            "location": pc.coalesce(
                located(given, shard.location, outside=self.outside), pa.array(locations, pa.string())
            ),
            "dataset": pa.repeat(self.dataset, rows),
            "size": pa.nulls(rows, pa.int64()),
            "modified": pa.array([shard.modified] * rows, INPUTS.field("modified").type),
            **(stated_columns(described) if described.num_columns else _nothing_stated(rows)),
        }
        return pa.table(columns, schema=INPUTS)

    def _column(self, schema: pa.Schema) -> str:
        fit = [field.name for field in schema if _holds_bytes(field.type)]
        structs = [name for name in fit if pa.types.is_struct(schema.field(name).type)]
        if self.column is not None:
            chosen = [self.column] if self.column in fit else []
        else:
            chosen = structs or [name for name in _NAMES if name in fit]
        if not chosen:
            raise _UnfitError(
                f"has no column {self.column or 'of pictures'} that holds bytes; it has "
                + ", ".join(f"{field.name} ({_short(field.type)})" for field in schema),
                field="source.column",
                remedy="name the column with the pictures' bytes",
            )
        return chosen[0]

    def _broken(self, shard: Shard, detail: str) -> pa.Table:
        row = {"uri": shard.name, "location": broken_member(Reason.CORRUPT, detail), "dataset": self.dataset}
        return rows_table([{**row, "size": shard.size, "modified": shard.modified}])


class _UnfitError(Exception):
    """Why a file is not one of pictures in Parquet."""

    def __init__(self, message: str, *, field: str = "source.path", remedy: str = "give Parquet files") -> None:
        super().__init__(message)
        self.field, self.remedy = field, remedy


def _nothing_stated(rows: int) -> dict[str, pa.Array]:
    return stated_columns(pa.table({"nothing": pa.nulls(rows, pa.string())}))


def _nulls(parquet: pq.ParquetFile, group: int, cells: str) -> pa.Array | None:
    """Which cells of a row group are null; None when none is. Bytes are read only where the footer leaves it open."""
    info = parquet.metadata.row_group(group)
    chunk = next(c for i in range(info.num_columns) if (c := info.column(i)).path_in_schema == cells)
    statistics = chunk.statistics
    if statistics is not None and statistics.has_null_count:
        if statistics.null_count == 0:
            return None
        if statistics.null_count == info.num_rows:
            return pa.array([True] * info.num_rows)
    null: list[Any] = []
    for batch in parquet.iter_batches(batch_size=16, row_groups=[group], columns=[cells], use_threads=False):
        column = batch.column(0)
        if pa.types.is_struct(column.type):
            column = pc.struct_field(column, "bytes")  # null also where the struct is
        null += column.is_null().to_pylist()
    return pa.array(null, pa.bool_())


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and not pa.types.is_struct(kind.field(index).type) and _holds_bytes(kind.field(index).type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _short(kind: pa.DataType) -> str:
    return "struct" if pa.types.is_struct(kind) else str(kind)
