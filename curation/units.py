"""Work units: how an input list is cut into pieces that are done whole or not at all, and where their results lie.

A unit is a run of consecutive inputs. Where one ends is decided by the names of the inputs themselves, so that a file
that is added or removed changes the unit it falls into and no other. Every stage stores a unit's result as one file in
a folder that is named after all that the result depends on: a file that is there is a unit that is done.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curation import storage
from curation.containers import known_by
from curation.manifest import digest_rows, to_parquet

_AT_ONCE = 1 << 14


@dataclass(frozen=True)
class Unit:
    """A run of inputs, and which of them must not even be fetched."""

    key: str
    inputs: pa.Table  # columns of `sources.INPUTS`
    unwanted: list[int]


def cut(inputs: pa.Table, size: int) -> Iterator[pa.Table]:
    """Cuts an input list into units of `size` inputs on average, none shorter than half of it or longer than twice.

    A unit ends behind an input whose name's hash says so (content-defined chunking; Muthitacharoen et al. 2001, LBFS),
    which is why an insertion moves no boundary but those nearby.
    """
    least, most = (size + 1) // 2, 2 * size
    chance = max(1, size - least)
    start = 0
    for index, uri in enumerate(texts_of(inputs, "uri")):
        length = index + 1 - start
        if length >= most or (length >= least and _chance(uri) % chance == 0):
            yield inputs.slice(start, length)
            start = index + 1
    if start < inputs.num_rows:
        yield inputs.slice(start)


def texts_of(inputs: pa.Table, column: str) -> Iterator[str]:
    """The values of a column of text, a few at a time: a list of all would be the largest thing that a driver holds."""
    for batch in inputs.select([column]).to_batches(max_chunksize=_AT_ONCE):
        yield from batch.column(0).to_pylist()


def _chance(uri: str) -> int:
    return int.from_bytes(hashlib.blake2b(uri.encode(), digest_size=8).digest(), "little")


def unit_key(inputs: pa.Table) -> str:
    """The name of a unit: a hash of its inputs' names, sizes, times and stated metadata.

    Where an input lies does not count where size and time tell it from another: a folder may move. What has neither,
    and what is inside a container, is known by its place alone; a frame folder is known by its files.
    """
    known = pc.and_(inputs["size"].is_valid(), inputs["modified"].is_valid())
    inside = pa.array([known_by(location) for location in inputs["location"].to_pylist()], pa.string())
    place = pc.coalesce(inside, pc.if_else(known, None, inputs["location"]))
    return digest_rows(inputs.set_column(inputs.column_names.index("location"), "location", place))[:32]


def fingerprint(*identity: Any) -> str:
    """What results depend on, as 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Stage:
    """A stage's results for all units: one file each below `folder`."""

    name: str
    folder: str

    def file(self, key: str) -> str:
        return storage.join(self.folder, f"unit-{key}.parquet")

    def done(self) -> set[str]:
        """The keys of the units that are there."""
        names = (info.base_name for info in storage.list_files(self.folder))
        return {name[5:-8] for name in names if name.startswith("unit-") and name.endswith(".parquet")}

    def write(self, key: str, rows: pa.Table) -> None:
        """Stores a unit whole or not at all."""
        storage.write_bytes(self.file(key), to_parquet(rows))

    def remove(self, key: str) -> None:
        """Forgets a stored unit."""
        system, path = storage.filesystem(self.file(key))
        system.delete_file(path)

    def read(self, key: str, columns: Sequence[str] | None = None) -> pa.Table:
        """A stored unit, or some columns of it."""
        system, path = storage.filesystem(self.file(key))
        wanted = None if columns is None else list(columns)
        return pq.read_table(path, columns=wanted, filesystem=system, partitioning=None)


def embedding_array(embeddings: np.ndarray) -> pa.Array:
    """(N, dim) as a column of float16 lists."""
    flat = pa.array(np.ascontiguousarray(embeddings, np.float16).ravel())
    return pa.FixedSizeListArray.from_arrays(flat, embeddings.shape[1])


def embedding_matrix(column: pa.ChunkedArray) -> np.ndarray:
    """The inverse of `embedding_array`."""
    array = column.combine_chunks()
    array = array.chunk(0) if isinstance(array, pa.ChunkedArray) else array
    values: np.ndarray = array.flatten().to_numpy(zero_copy_only=False)
    return values.reshape(len(array), array.type.list_size)
