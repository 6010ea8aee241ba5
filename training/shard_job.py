"""Making shards (`training.data_shards`) from a manifest, once: by a Ray Data job, or in this process.

A manifest's rows lie in the order of its inputs, shards in that of the ids. So rows are first sorted into bins, each of
some consecutive files, and then every bin's files are made, one row group at a time. Both steps leave whole files only,
and a rerun does what is missing.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curation import storage
from curation.manifest import Decision, Manifest
from training.data import decode
from training.data_shards import (
    INFO_FILE,
    MIRRORED,
    Part,
    Places,
    ShardsInfo,
    ShardsPlan,
    missing,
    refuse_other,
    stored,
)
from training.roster import Roster, slots_by_part

OnStage = Callable[[str, int, int], None]
"""Told of a stage, rows done and rows in all."""
_WORK = ".work"
_BINS = 256  # at most, so that sorting makes few files of a large manifest
_TOGETHER = 16  # pictures that an autoencoder encodes at once
Item = dict[str, Any]


def make(
    plan: ShardsPlan,
    manifest: Manifest,
    roster: Roster,
    *,
    autoencoder: str | None = None,
    workers: int = 0,
    gpus: int = 0,
    on_stage: OnStage | None = None,
) -> ShardsInfo:
    """Makes what is missing of a plan's shards.

    Args:
        roster: of the manifest; which of its rows does not matter.
        autoencoder: its folder, on storage that all workers reach.
        workers: Ray Data's; 0 works in this process, without Ray.
        gpus: of each worker.

    Raises:
        UserError: a picture is missing or damaged, or shards of something else are in the folder.
    """
    known = stored(plan.uri)
    parts = {part.name: part for part in plan.parts}
    if known is not None:
        refuse_other(plan.uri, known, plan.spec)
        gone = {part.name for part in missing(plan.uri, known.parts)}
        done = {part.name: part for part in known.parts if part.name not in gone}
    else:
        done = {name: part for name in parts if (part := _made(plan.uri, name)) is not None}
        gone = {part.name for part in missing(plan.uri, list(done.values()))}
        done = {name: part for name, part in done.items() if name not in gone}
    todo = [part for part in plan.parts if part.name not in done]
    if known is not None and not todo:
        return known
    job = _Job(plan, manifest, roster, todo, autoencoder)
    for name, items, run in (("sort", job.splits(), _Splitter), ("shards", job.bins(), _Maker)):
        total, finished = sum(item["rows"] for item in items), 0
        for item in _run(run, job.told, items, workers, gpus):
            finished += item["rows"]
            if on_stage is not None:
                on_stage(name, finished, total)
    made = [done.get(part.name) or _made(plan.uri, part.name) for part in plan.parts]
    if any(part is None for part in made):
        raise AssertionError(f"{plan.uri} is not whole: this is a defect of cleanplate")
    whole = tuple(part for part in made if part is not None)
    rows = sum(sum(part.rows) for part in whole)
    info = ShardsInfo(spec=plan.spec, sizes=plan.sizes, arrays=plan.arrays, rows=rows, parts=whole)
    storage.write_bytes(storage.join(plan.uri, INFO_FILE), info.model_dump_json().encode())
    storage.remove_tree(storage.join(plan.uri, _WORK))
    return info


def _made(uri: str, name: str) -> Part | None:
    """What is told of a file that an attempt made."""
    try:
        return Part.model_validate_json(storage.read_bytes(storage.join(uri, _WORK, f"{name}.json")))
    except (FileNotFoundError, ValueError):
        return None


class _Job:
    """What is to be done, in items that a worker does one at a time."""

    def __init__(
        self, plan: ShardsPlan, manifest: Manifest, roster: Roster, todo: Sequence[Part], autoencoder: str | None
    ) -> None:
        self._slots = slots_by_part(manifest)
        self._places = Places.of(roster)
        self._bins = [list(part) for part in np.array_split(np.arange(len(plan.parts)), min(_BINS, len(plan.parts)))]
        self._parts = plan.parts
        self._todo = {part.name for part in todo}
        # of the bins only that are wanted now: what was sorted for others is no use
        key = hashlib.sha256("".join(sorted(self._todo)).encode()).hexdigest()[:12]
        self._block = plan.spec.block
        self.told: dict[str, Any] = {
            "uri": plan.uri,
            "spec": plan.spec.model_dump(mode="json"),
            "arrays": plan.arrays,
            "work": storage.join(plan.uri, _WORK, key),
            "manifest": storage.absolute(manifest.uri),
            "autoencoder": None if autoencoder is None else storage.absolute(autoencoder),
        }

    def _bin_of(self) -> np.ndarray:
        """int32 (base_rows,): the bin of each slot; -1 where none of its files is wanted, or its shape is not known."""
        block = self._places.place // self._block
        found = np.full(len(block), -1, np.int32)
        for number, members in enumerate(self._bins):
            for part in (self._parts[i] for i in members):
                if part.name in self._todo:
                    mine = (
                        (self._places.shape == part.shape) & (block >= part.first) & (block < part.first + part.blocks)
                    )
                    found[mine] = number
        return found

    def splits(self) -> list[Item]:
        bin_of = self._bin_of()
        items = []
        for index, slots in enumerate(self._slots):
            wanted = {"slots": slots.tobytes(), "bins": bin_of[slots].tobytes()}
            items.append({"kind": "split", "index": index, "rows": len(slots), **wanted})
        return items

    def bins(self) -> list[Item]:
        items = []
        there = np.concatenate([*self._slots, np.zeros(0, np.int64)])
        block, shape = self._places.place[there] // self._block, self._places.shape[there]
        for number, members in enumerate(self._bins):
            parts = [self._parts[i] for i in members if self._parts[i].name in self._todo]
            rows, told = 0, []
            for part in parts:
                mine = (shape == part.shape) & (block >= part.first) & (block < part.first + part.blocks)
                slots = np.sort(there[mine])
                rows += len(slots)
                places = self._places.place[slots] // self._block - part.first
                told.append({"part": part.model_dump(), "slots": slots.tolist(), "blocks": places.tolist()})
            if told:
                items.append({"kind": "bin", "index": number, "rows": rows, "parts": json.dumps(told)})
        return items


def _run(run: type[Any], told: dict[str, Any], items: list[Item], workers: int, gpus: int) -> Iterator[Item]:
    if workers == 0:
        worker = run(told)
        for item in items:
            yield worker.run(item)
        return
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    dataset = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        run,
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(workers, len(items))),
        fn_constructor_args=[told],
        num_cpus=1,
        num_gpus=gpus if run is _Maker and told["autoencoder"] is not None else 0,
    )
    yield from dataset.iter_rows()


def _rows(batch: dict[str, Any]) -> list[Item]:
    """A batch of Ray Data as items."""
    return [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]


class _Splitter:
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


class _Maker:
    """Makes the files of one bin."""

    def __init__(self, told: dict[str, Any]) -> None:
        self._told = told
        self._arrays = [tuple(array) for array in told["arrays"]]
        self._block = int(told["spec"]["block"])
        self._encode = _encoder(told)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[int]]:
        return {"rows": [self.run(item)["rows"] for item in _rows(batch)]}

    def run(self, item: Item) -> Item:
        folder = storage.join(self._told["work"], f"bin-{int(item['index']):03d}")
        pieces = [
            pq.read_table(pa.BufferReader(storage.read_bytes(storage.join(folder, found.base_name))))
            for found in storage.list_files(folder)
        ]
        rows = pa.concat_tables(pieces) if pieces else None
        place = {} if rows is None else {slot: i for i, slot in enumerate(rows["slot"].to_pylist())}
        for wanted in json.loads(item["parts"]):
            part = Part.model_validate(wanted["part"])
            if _made(self._told["uri"], part.name) is None or missing(self._told["uri"], [part]):
                slots, blocks = (np.array(wanted[name], np.int64) for name in ("slots", "blocks"))
                made = [
                    self._table(
                        None if rows is None else rows.take([place[s] for s in mine.tolist()]), mine, part.shape
                    )
                    for mine in (slots[blocks == number] for number in range(part.blocks))
                ]
                self._write(part, made)
        return {"rows": int(item["rows"])}

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
            columns[name] = _binary(array)
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
        storage.write_bytes(storage.join(self._told["uri"], _WORK, f"{part.name}.json"), text)


def payload(table: pa.Table) -> str:
    """sha256 of a block's slots and pictures."""
    h = hashlib.sha256(table["slot"].to_numpy().tobytes())
    for name in ("pixels", "latents", MIRRORED):
        if name in table.column_names:
            h.update(bytes_of(table, name).data)
    return h.hexdigest()


def bytes_of(table: pa.Table, name: str) -> np.ndarray:
    """A column of pictures as bytes: uint8 (rows, bytes of one)."""
    column = table[name].combine_chunks()
    size = column.type.byte_width
    data = np.frombuffer(column.buffers()[1], np.uint8)
    return data[column.offset * size : (column.offset + len(column)) * size].reshape(len(column), size)


def _binary(array: np.ndarray) -> pa.Array:
    size = array[0].nbytes
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(size), len(array), [None, pa.py_buffer(array.tobytes())])


def _encoder(told: dict[str, Any]) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
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
