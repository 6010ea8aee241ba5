"""What workers do to make shards (`training.shard_job`): sort a manifest's rows into bins, and make a bin's files."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curation import storage
from curation.errors import UserError
from curation.manifest import Decision, Manifest
from training.data import decode
from training.data_shards import MIRRORED, Part, missing
from training.shard_columns import binary, payload

WORK = ".work"
"""Below a folder of shards: what is there while they are made."""
_TOGETHER = 16  # pictures that an autoencoder encodes at once
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


class Splitter:
    """Sorts the rows of one of the manifest's files into bins."""

    def __init__(self, told: dict[str, Any]) -> None:
        self._work = told["work"]
        self._manifest = Manifest.open(told["manifest"])

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[int]]:
        return {"rows": [self.run(item)["rows"] for item in _rows(batch)]}

    def run(self, item: Item) -> Item:
        index = int(item["index"])
        done = storage.join(self._work, f"split-{index:05d}")
        if not storage.exists(done):
            info = self._manifest.info
            part = Manifest(self._manifest.uri, info.model_copy(update={"files": [info.files[index]]}))
            rows = part.table(["id", "image"], decision=Decision.KEPT)
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
        self._arrays = [tuple(array) for array in told["arrays"]]
        self._block = int(told["spec"]["block"])
        self._encode = encoder(told)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[int]]:
        return {"rows": [self.run(item)["rows"] for item in _rows(batch)]}

    def run(self, item: Item) -> Item:
        told = json.loads(item["parts"])
        rows, place = self._sorted(int(item["index"]), [slot for wanted in told for slot in wanted["slots"]])
        for wanted in told:
            part = Part.model_validate(wanted["part"])
            if attempted(self._told["uri"], part.name) is None or missing(self._told["uri"], [part]):
                slots, blocks = (np.array(wanted[name], np.int64) for name in ("slots", "blocks"))
                made = [
                    self._table(
                        None if rows is None else rows.take([place[s] for s in mine.tolist()]), mine, part.shape
                    )
                    for mine in (slots[blocks == number] for number in range(part.blocks))
                ]
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

    def _table(self, rows: pa.Table | None, slots: np.ndarray, shape: int) -> pa.Table | None:
        """A block's rows; None where it has none."""
        if rows is None or not len(slots):
            return None
        channels, height, width = self._arrays[shape]
        pictures = np.stack([decode(row["id"], row["image"]) for row in rows.to_pylist()]).transpose(0, 3, 1, 2)
        pictures = np.ascontiguousarray(pictures)
        content = [hashlib.sha256(repr(p.shape).encode() + p.tobytes()).digest() for p in pictures]
        values = pictures.reshape(len(pictures), 3, -1).astype(np.int64)
        moments = np.concatenate([values.sum(axis=2), (values**2).sum(axis=2)], axis=1)
        columns = {
            "slot": pa.array(slots),
            "id": rows["id"].combine_chunks(),
            "content": pa.array(content, pa.binary(32)),
            "moments": pa.FixedSizeListArray.from_arrays(pa.array(moments.reshape(-1)), 6),
        }
        for name, array in self._encode(pictures).items():
            assert array.shape[1:] == (channels, height, width), "the plan knows the shape"
            columns[name] = binary(array)
        return pa.table(columns)

    def _write(self, part: Part, tables: list[pa.Table | None]) -> None:
        """Writes a file, and beside it what `shards.json` will say of it."""
        there = [table for table in tables if table is not None]
        pixels = self._told["autoencoder"] is None
        buffer = pa.BufferOutputStream()
        if there:
            names = [name for name in there[0].column_names if name not in ("pixels", "latents", MIRRORED)]
            plain = "zstd" if pixels else "none"  # latents are noise to a compressor
            compression = {name: "zstd" if name in names else plain for name in there[0].column_names}
            compression["moments.list.element"] = "zstd"
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
                "payloads": tuple("" if table is None else payload(table) for table in tables),
            }
        )
        storage.write_bytes(storage.join(self._told["uri"], part.name), data)
        text = told.model_dump_json().encode()
        storage.write_bytes(storage.join(self._told["uri"], WORK, f"{part.name}.json"), text)


def encoder(told: dict[str, Any]) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """From pictures, uint8 (N, 3, H, W), to what is stored of them."""
    if told["autoencoder"] is None:
        return lambda pictures: {"pixels": pictures}
    import tempfile

    import torch

    from training import space
    from training.folders import download

    place = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        download(told["autoencoder"], folder)
        latents = space.build(int(told["spec"]["patch_size"]), folder, place)

    def encoded(pictures: np.ndarray) -> np.ndarray:
        parts = torch.from_numpy(pictures).split(_TOGETHER)
        return torch.cat([latents.encode(part.to(place)).half().cpu() for part in parts]).numpy()

    def encode(pictures: np.ndarray) -> dict[str, np.ndarray]:
        found = {"latents": encoded(pictures)}
        if told["spec"]["mirrored"]:
            found[MIRRORED] = encoded(np.ascontiguousarray(pictures[..., ::-1]))
        return found

    return encode
