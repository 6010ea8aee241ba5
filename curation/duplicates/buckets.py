"""The same searches on Ray, for sets beyond one machine's memory: bucketed files instead of a shuffle.

What may be equal or near lies in the same bucket: by the hash itself, by the key of a table of `hamming`, by the
cluster of `semantic`. Tasks write a shard of the rows into bucket files, then other tasks search one bucket each, with
the functions that one node uses, so the results are the same to the bit. A task's result is a file, written whole or
not at all, below a folder named by what is searched: a search that was killed goes on where it was.

Ray must be running, and the folder must be one that all its nodes see.
"""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from curation import storage
from curation.duplicates.classes import first_equal
from curation.duplicates.hamming import Table, Wanted, near_values, pairs_in_table, plan
from curation.duplicates.semantic import Neighbours, SemanticConfig, assign, fit, merged, within

_BYTES = 1 << 27  # about what a shard or a bucket holds
_LEAST_BUCKETS = 4

Arrays = dict[str, np.ndarray]
Task = Callable[[int], Arrays]


class OnRay:
    """The searches of `edges.Search` on Ray.

    Args:
        work: a folder, local to all nodes or on S3. Whoever has stored what was found may remove it.
    """

    def __init__(self, work: str) -> None:
        self._work = work

    def first_equal(self, words: np.ndarray) -> np.ndarray:
        """As `classes.first_equal`."""
        folder = self._folder("equal", words)
        shards = _write_shards(folder, {"words": words}, 8 * words.shape[1])
        buckets = _buckets(words.nbytes)
        _run(folder, "scattered", shards, _ScatterWords(folder, buckets))
        first = np.arange(len(words))
        for found in _run(folder, "equal", buckets, _FirstEqual(folder, shards)):
            first[found["row"]] = found["first"]
        return first

    def near_values(
        self, values: np.ndarray, radius: int, wanted: Wanted | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `hamming.near_values`; the pairs come in another order."""
        tables = plan(values, radius)
        if not tables or tables[0].key_bits == 0:
            return near_values(values, radius, wanted)
        folder = self._folder(f"near-{radius}{'' if wanted is None else '-between'}", values)
        shards = _write_shards(folder, {"values": values}, 8)
        bits = min((_buckets(values.nbytes) - 1).bit_length(), *(table.key_bits for table in tables))
        _run(folder, "scattered", shards, _ScatterHashes(folder, tables, bits))
        task = _NearHashes(folder, shards, tables, bits, radius, wanted)
        found = list(_run(folder, "near", len(tables) << bits, task))
        return np.concatenate([f["x"] for f in found]), np.concatenate([f["y"] for f in found])

    def neighbours(self, vectors: np.ndarray, config: SemanticConfig) -> Neighbours:
        """As `semantic.neighbours`."""
        rows = np.flatnonzero(vectors.any(axis=1))
        if not len(rows):
            return merged([], config)
        folder = self._folder(f"semantic {config.search()}", vectors)
        centroids = fit(vectors, rows, config)
        shards = _write_shards(folder, {"vectors": vectors}, 2 * vectors.shape[1])
        buckets = min(len(centroids), _buckets(2 * vectors.nbytes))
        _run(folder, "scattered", shards, _ScatterVectors(folder, centroids, buckets))
        found = _run(folder, "neighbours", buckets, _NearVectors(folder, shards, config))
        return merged([(f["row"], f["other"], f["cosine"]) for f in found], config)

    def _folder(self, name: str, array: np.ndarray) -> str:
        h = hashlib.sha256(f"{name} {array.dtype} {array.shape}".encode())
        h.update(np.ascontiguousarray(array).data)
        return storage.join(self._work, f"{name.split()[0]}-{h.hexdigest()[:32]}")


def _buckets(nbytes: int) -> int:
    """A power of two."""
    return max(_LEAST_BUCKETS, 1 << (nbytes // _BYTES).bit_length())


@dataclass(frozen=True)
class _ScatterWords:
    """Rows of a shard into buckets by their first word, mixed: a perceptual hash is not spread evenly."""

    folder: str
    buckets: int

    def __call__(self, shard: int) -> Arrays:
        start, words = _read_shard(self.folder, shard, "words")
        bits = np.uint64(64 - (self.buckets - 1).bit_length())
        bucket = (words[:, 0] * np.uint64(0x9E3779B97F4A7C15)) >> bits
        rows = start + np.arange(len(words))
        _scatter(self.folder, shard, "words", bucket, self.buckets, {"row": rows, "words": words})
        return {}


@dataclass(frozen=True)
class _FirstEqual:
    folder: str
    shards: int

    def __call__(self, bucket: int) -> Arrays:
        held = _gather(self.folder, self.shards, "words", bucket)
        first = held["row"][first_equal(held["words"])]
        later = first != held["row"]
        return {"row": held["row"][later], "first": first[later]}


@dataclass(frozen=True)
class _ScatterHashes:
    """Moved hashes of a shard into a bucket for each table and each beginning of its key."""

    folder: str
    tables: tuple[Table, ...]
    bits: int

    def __call__(self, shard: int) -> Arrays:
        _, values = _read_shard(self.folder, shard, "values")
        for number, table in enumerate(self.tables):
            moved = table.move(values, np.empty_like(values))
            bucket = moved >> np.uint64(table.width - self.bits)
            _scatter(self.folder, shard, f"table-{number:04d}", bucket, 1 << self.bits, {"moved": moved})
        return {}


@dataclass(frozen=True)
class _NearHashes:
    folder: str
    shards: int
    tables: tuple[Table, ...]
    bits: int
    radius: int
    wanted: Wanted | None

    def __call__(self, place: int) -> Arrays:
        number, bucket = place >> self.bits, place & ((1 << self.bits) - 1)
        moved = _gather(self.folder, self.shards, f"table-{number:04d}", bucket)["moved"]
        x, y = pairs_in_table(moved, self.tables, number, self.radius)
        if self.wanted is not None:
            keep = self.wanted(x, y)
            x, y = x[keep], y[keep]
        return {"x": x, "y": y}


@dataclass(frozen=True)
class _ScatterVectors:
    """Embeddings of a shard into buckets of whole clusters."""

    folder: str
    centroids: np.ndarray
    buckets: int

    def __call__(self, shard: int) -> Arrays:
        start, vectors = _read_shard(self.folder, shard, "vectors")
        there = np.flatnonzero(vectors.any(axis=1))
        homes = np.concatenate(
            [assign(vectors[part], self.centroids) for part in np.array_split(there, len(there) // 4096 + 1)]
        )
        twice = np.repeat(there, homes.shape[1])
        held = {"row": start + twice, "home": homes.ravel(), "vector": vectors[twice]}
        bucket = homes.ravel() * self.buckets // len(self.centroids)
        _scatter(self.folder, shard, "vectors", bucket, self.buckets, held)
        return {}


@dataclass(frozen=True)
class _NearVectors:
    folder: str
    shards: int
    config: SemanticConfig

    def __call__(self, bucket: int) -> Arrays:
        held = _gather(self.folder, self.shards, "vectors", bucket)
        order = np.argsort(held["home"], kind="stable")
        clusters = np.split(order, np.flatnonzero(np.diff(held["home"][order])) + 1)
        found = [within(held["row"][m], held["vector"][m], self.config) for m in clusters]
        row, other, cosine = (np.concatenate(column) for column in zip(*found, strict=True))
        return {"row": row, "other": other, "cosine": cosine}


def _run(folder: str, stage: str, count: int, task: Task) -> Any:
    """The results of task(0) ... task(count - 1), as they lie in the folder; those that are missing are made on Ray."""
    there = {info.base_name for info in storage.list_files(folder)}
    missing = [{"number": n} for n in range(count) if _name(stage, n) not in there]
    if missing:
        data = _ray_data()
        dataset = data.from_items(missing, override_num_blocks=len(missing)).map_batches(
            _each, batch_size=1, fn_kwargs={"folder": folder, "stage": stage, "task": task}
        )
        for _ in dataset.iter_rows():
            pass
    return (_read(storage.join(folder, _name(stage, n))) for n in range(count))


def _ray_data() -> Any:
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    return ray.data


def _each(batch: dict[str, Any], folder: str, stage: str, task: Task) -> dict[str, Any]:
    for number in batch["number"].tolist():
        _write(storage.join(folder, _name(stage, number)), task(number))
    return {"number": batch["number"]}


def _name(stage: str, number: int) -> str:
    return f"{stage}-{number:06d}.npz"


def _write_shards(folder: str, arrays: Arrays, row_bytes: int) -> int:
    """Cuts arrays of the same length into files; returns how many."""
    there = {info.base_name for info in storage.list_files(folder)}
    height, length = max(1, _BYTES // row_bytes), len(next(iter(arrays.values())))
    shards = max(1, -(-length // height))
    height = -(-length // shards) if length else 1
    for shard in range(shards):
        if _name("shard", shard) not in there:
            start = shard * height
            part = {name: array[start : start + height] for name, array in arrays.items()}
            _write(storage.join(folder, _name("shard", shard)), {"start": np.array(start), **part})
    return shards


def _read_shard(folder: str, shard: int, name: str) -> tuple[int, np.ndarray]:
    held = _read(storage.join(folder, _name("shard", shard)))
    return int(held["start"]), held[name]


def _scatter(folder: str, shard: int, name: str, bucket: np.ndarray, buckets: int, arrays: Arrays) -> None:
    order = np.argsort(bucket, kind="stable")
    ends = np.searchsorted(bucket[order], np.arange(buckets + 1))
    for number in range(buckets):
        part = order[ends[number] : ends[number + 1]]
        target = storage.join(folder, f"{name}-{number:06d}", _name("shard", shard))
        _write(target, {key: array[part] for key, array in arrays.items()})


def _gather(folder: str, shards: int, name: str, bucket: int) -> Arrays:
    parts = [_read(storage.join(folder, f"{name}-{bucket:06d}", _name("shard", n))) for n in range(shards)]
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def _write(uri: str, arrays: Arrays) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    storage.write_bytes(uri, buffer.getvalue())


def _read(uri: str) -> Arrays:
    with np.load(io.BytesIO(storage.read_bytes(uri)), allow_pickle=False) as held:
        return {name: held[name] for name in held.files}
