"""What workers do to make shards (`training.shard_job`): sort a manifest's rows into bins, and make a bin's files."""

from __future__ import annotations

import hashlib
import io
import json
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curation import storage
from curation.errors import UserError
from curation.manifest import Decision, Manifest
from training.data_shards import Part, missing

WORK = ".work"
"""Below a folder of shards: what is there while they are made."""
Item = dict[str, Any]


def attempted(uri: str, name: str) -> Part | None:
    """What is told of a file that an attempt made."""
    try:
        return Part.model_validate_json(storage.read_bytes(storage.join(uri, WORK, f"{name}.json")))
    except (FileNotFoundError, ValueError):
        return None


def _rows(batch: dict[str, Any]) -> list[Item]:
    """A batch of Ray Data as items."""
    return [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]


class Contents(Protocol):
    """What a kind of shards holds.

    Attributes:
        compression: of its columns, by their paths.
    """

    compression: dict[str, str]

    def table(self, rows: pa.Table, slots: np.ndarray, shape: int) -> pa.Table:
        """A block of N rows of the manifest, in the order of their slots (N,)."""
        ...

    def payload(self, table: pa.Table) -> str:
        """sha256 of what training reads of a block."""
        ...


def contents(told: dict[str, Any]) -> Contents:
    """What a worker makes, as the driver told it."""
    if told["kind"] == "texts":
        from training.text_shards import Texts

        return Texts(told)
    from training.shard_pictures import Pictures

    return Pictures(told)


class Splitter:
    """Sorts the rows of one of the manifest's files into bins."""

    def __init__(self, told: dict[str, Any]) -> None:
        self._work = told["work"]
        self._columns = list(told["columns"])
        self._manifest = Manifest.open(told["manifest"])

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[int]]:
        return {"rows": [self.run(item)["rows"] for item in _rows(batch)]}

    def run(self, item: Item) -> Item:
        index = int(item["index"])
        done = storage.join(self._work, f"split-{index:05d}")
        if not storage.exists(done):
            info = self._manifest.info
            part = Manifest(self._manifest.uri, info.model_copy(update={"files": [info.files[index]]}))
            rows = part.table(["id", *self._columns], decision=Decision.KEPT)
            slots, bins = np.frombuffer(item["slots"], np.int64), np.frombuffer(item["bins"], np.int32)
            rows = rows.append_column("slot", pa.array(slots))
            for number in np.unique(bins[bins >= 0]).tolist():
                buffer = io.BytesIO()
                pq.write_table(rows.filter(pa.array(bins == number)), buffer, compression="none")
                storage.write_bytes(storage.join(self._work, f"bin-{number:03d}", f"{index:05d}"), buffer.getvalue())
            storage.write_bytes(done, b"")
        return {"rows": int(item["rows"])}


class Maker:
    """Makes the files of one bin."""

    def __init__(self, told: dict[str, Any]) -> None:
        self._told = told
        self._contents = contents(told)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[int]]:
        return {"rows": [self.run(item)["rows"] for item in _rows(batch)]}

    def run(self, item: Item) -> Item:
        told = json.loads(item["parts"])
        rows, place = self._sorted(int(item["index"]), [slot for wanted in told for slot in wanted["slots"]])
        for wanted in told:
            part = Part.model_validate(wanted["part"])
            known = attempted(self._told["uri"], part.name)
            if known is None or missing(self._told["uri"], [known]):
                slots, blocks = (np.array(wanted[name], np.int64) for name in ("slots", "blocks"))
                made = []
                for mine in (slots[blocks == number] for number in range(part.blocks)):
                    of = None if rows is None else rows.take([place[slot] for slot in mine.tolist()])
                    made.append(self._contents.table(of, mine, part.shape) if of is not None and len(mine) else None)
                self._write(part, made)
        return {"rows": int(item["rows"])}

    def _sorted(self, number: int, slots: list[int]) -> tuple[pa.Table | None, dict[int, int]]:
        """What was sorted into a bin, and the row of each of its slots.

        Raises:
            UserError: some of it has gone since; then none of it counts any more.
        """
        folder = storage.join(self._told["work"], f"bin-{number:03d}")
        try:
            pieces = [
                pq.read_table(pa.BufferReader(storage.read_bytes(storage.join(folder, found.base_name))))
                for found in storage.list_files(folder)
            ]
        except FileNotFoundError:
            pieces = []
        rows = pa.concat_tables(pieces) if pieces else None
        place = {} if rows is None else {slot: i for i, slot in enumerate(rows["slot"].to_pylist())}
        if not place.keys() >= set(slots):
            storage.remove_tree(self._told["work"])
            raise UserError(
                f"sorted rows at {folder} have gone",
                field="data.folder",
                remedy="run the same command again; let one at a time make shards in a folder",
            )
        return rows, place

    def _write(self, part: Part, tables: list[pa.Table | None]) -> None:
        """Writes a file, and beside it what `shards.json` will say of it."""
        there = [table for table in tables if table is not None]
        buffer = pa.BufferOutputStream()
        if there:
            compression = self._contents.compression
            with pq.ParquetWriter(buffer, there[0].schema, compression=compression, use_dictionary=False,
                                  compression_level=None, write_statistics=False) as writer:  # fmt: skip
                for table in there:
                    writer.write_table(table, row_group_size=len(table))
        data = bytes(buffer.getvalue())
        told = part.model_copy(
            update={
                "bytes": len(data),
                "sha256": hashlib.sha256(data).hexdigest(),
                "rows": tuple(0 if table is None else table.num_rows for table in tables),
                "payloads": tuple("" if table is None else self._contents.payload(table) for table in tables),
            }
        )
        storage.write_bytes(storage.join(self._told["uri"], part.name), data)
        text = told.model_dump_json().encode()
        storage.write_bytes(storage.join(self._told["uri"], WORK, f"{part.name}.json"), text)
