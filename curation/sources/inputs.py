"""The table of inputs that every source lists, and how a source's own columns become its columns."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation.manifest import TIME, is_extension

INPUTS = pa.schema(
    [
        ("uri", pa.string()),  # its name in the manifest: relative inside a local folder, else the full URL
        ("location", pa.string()),  # where its bytes are: a path, a URL, or a place of `containers`
        ("dataset", pa.string()),
        ("size", pa.int64()),  # of files and members, where it is known: with `modified` it tells a changed one
        ("modified", TIME),  # of the file, or of the container that it is in
        ("title", pa.string()),
        ("creator", pa.string()),
        ("licence", pa.string()),
        ("licence_url", pa.string()),
        ("metadata", pa.map_(pa.string(), pa.string())),  # whatever else was stated, as text
    ]
)
STATED = ("title", "creator", "licence", "licence_url")
ROWS = 2**16  # rows of a table that are worked on at a time
_ALIASES = {"license": "licence", "license_url": "licence_url", "author": "creator"}


class Source(Protocol):
    """A listing of inputs."""

    def inputs(self) -> pa.Table:
        """The inputs with the columns of `INPUTS`.

        Raises:
            UserError: when the listing itself cannot be read.
        """
        ...


def without_password(url: str) -> str:
    """A URL without the user name and password in it: they are used to fetch it and stand in no manifest."""
    return re.sub(_PASSWORD, r"\1", url)


_PASSWORD = r"^([A-Za-z][A-Za-z0-9+.-]*://)[^/?#]*@"  # of RE2, too


def without_passwords(urls: pa.Array) -> pa.Array:
    """`without_password` for a column of text."""
    return pc.replace_substring_regex(urls, _PASSWORD, r"\1")


def rows_table(rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Rows as dicts, some thousands at most."""
    return pa.Table.from_pylist(list(rows), schema=INPUTS)


def stated(row: Mapping[str, Any]) -> dict[str, Any]:
    """Splits what was stated about one input into the manifest's own columns and the rest."""
    found: dict[str, Any] = {}
    rest = []
    for name, value in row.items():
        if value is None or value == "":
            continue
        column = _column(name)
        if column in STATED:
            found.setdefault(column, as_text(value))
        else:
            rest.append((column, as_text(value)))
    return {**found, "metadata": rest}


def stated_columns(batch: pa.RecordBatch | pa.Table) -> dict[str, pa.Array]:
    """`stated` for a whole table at once; columns of bytes and nested columns other than lists of text are left out."""
    columns = [(_column(name), text_column(batch[name])) for name in batch.schema.names if readable(batch, name)]
    found = {
        name: pc.coalesce(*same)
        if (same := [c for n, c in columns if n == name])
        else pa.nulls(len(batch), pa.string())
        for name in STATED
    }
    rest = [(name, column) for name, column in columns if name not in STATED]
    return {**found, "metadata": _map([n for n, _ in rest], [c for _, c in rest], len(batch))}


def readable(batch: pa.RecordBatch | pa.Table | pa.Schema, name: str) -> bool:
    """Whether a column can stand in the manifest as text."""
    kind = (batch if isinstance(batch, pa.Schema) else batch.schema).field(name).type
    if is_extension(kind):
        return False
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        kind = kind.value_type
        return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
    bytes_ = pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)
    return not (bytes_ or pa.types.is_nested(kind))


def text_column(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """A column as text: null where it has nothing to say."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
        column = pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray) else column
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind):
        text = column.cast(pa.string())
    else:
        text = pa.array([None if v is None else as_text(v) for v in column.to_pylist()], pa.string())
    return pc.if_else(pc.equal(text, ""), None, text)


def as_text(value: Any) -> str:
    """A value as the manifest holds it: text as it is, true and lists and mappings as JSON."""
    if isinstance(value, bool | list | dict):
        value = json.dumps(value, ensure_ascii=False, default=str)
    return str(value).encode("utf-8", "backslashreplace").decode()  # JSON can hold half a character


def _column(name: str) -> str:
    name = as_text(name).lower()
    return _ALIASES.get(name, name)


def _map(names: list[str], columns: list[pa.Array], rows: int) -> pa.Array:
    """A map for each row with the columns that are not null, in the order of the columns."""
    valid = np.array([c.is_valid().to_numpy(zero_copy_only=False) for c in columns], bool).reshape(len(names), rows).T
    offsets = np.concatenate([[0], np.cumsum(valid.sum(axis=1))]).astype(np.int32)
    row, column = np.nonzero(valid)
    values = pa.concat_arrays([*columns, pa.array([], pa.string())]).take(pa.array(column * rows + row))
    keys = pa.array(names, pa.string()).take(pa.array(column))
    return pa.MapArray.from_arrays(pa.array(offsets), keys, values)
