"""Measuring one work unit: from inputs to a table of everything that is known about them, decisions left open.

The stages run one after another in one process on one decode; each takes columns and adds columns. What a row measures
depends on its unit alone: the pictures of a unit share model batches, and no others do, so the same unit gives the same
bits wherever it runs.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from pydantic import BaseModel, ConfigDict

from curation import manifest, storage
from curation.clip import Clip, ClipConfig
from curation.fetch import FetchConfig, Fetched, Fetcher, host_and_domain, row_id
from curation.images import ImageConfig, ImageError, colour_layout, decode, encode, phash, pixel_hash, square
from curation.manifest import Reason
from curation.safety import SafetyScorer
from curation.sources import INPUTS


class MeasureConfig(BaseModel):
    """What a worker needs to know to measure; built from the job, shipped as values."""

    model_config = ConfigDict(frozen=True)

    fetch: FetchConfig
    images: ImageConfig
    image_size: int
    clip: ClipConfig
    concepts: dict[str, float]
    threads: int

    def build(self) -> Measure:
        return Measure(self)


# Columns of a measured unit beside its input's: those of the manifest that are measured, and why a row failed.
_MEASURED = (
    *("id", "final_uri", "host", "domain", "fetched_at", "bytes", "detail", "format", "width", "height"),
    *("pixel_hash", "phash", "colour_layout", "embedding", "safety", "image"),
)
_FAILED = (pa.field("failed_stage", pa.string()), pa.field("failed_reason", pa.string()))


def schema(embedding_dim: int) -> pa.Schema:
    """Columns of a measured unit: those of the input, then what was measured."""
    columns = manifest.schema(embedding_dim)
    return pa.schema([*INPUTS, *(columns.field(name) for name in _MEASURED), *_FAILED])


class Measure:
    """Fetch, decode, hash, embed and score: the models are loaded once, then units follow."""

    def __init__(self, config: MeasureConfig) -> None:
        import torch

        torch.set_num_threads(config.threads)
        self._config = config
        self._fetcher = Fetcher(config.fetch)
        self.clip: Clip = config.clip.build()
        self._scorer = SafetyScorer(config.concepts, self.clip)

    def __call__(self, inputs: pa.Table, unwanted: Sequence[int] = ()) -> pa.Table:
        """Measures the inputs of one unit.

        Args:
            inputs: a table with the columns of `sources.INPUTS`.
            unwanted: rows whose place is opted out: they are not fetched, and fail as `not_asked`.

        Returns:
            A table with the columns of `schema`, a row for every input in the same order.
        """
        rows: list[dict[str, Any]] = inputs.to_pylist()
        no_embedding = np.zeros(self.clip.dim, np.float16)
        batch = self._config.clip.batch_size
        for row in rows:
            row["id"] = row_id(row["uri"], None)
            row["host"], row["domain"] = host_and_domain(row["uri"])
            row["embedding"] = no_embedding
        for index in unwanted:
            rows[index] |= {"failed_stage": "fetch", "failed_reason": Reason.NOT_ASKED.value}
        wanted = [row for row in rows if "failed_stage" not in row]
        for start in range(0, len(wanted), batch):
            self._measure(wanted[start : start + batch])
        return pa.Table.from_pylist(rows, schema=schema(self.clip.dim))

    def _measure(self, rows: Sequence[dict[str, Any]]) -> None:
        decoded: list[tuple[dict[str, Any], np.ndarray]] = []
        for row, fetched in zip(rows, self._fetcher([r["location"] for r in rows]), strict=True):
            try:
                image = self._read(row, fetched)
                if image is not None:
                    decoded.append((row, self.clip.prepare(image)))
            except Exception as error:  # whatever one picture does, the others of its unit are not to suffer for it
                row |= {"failed_stage": "decode", "failed_reason": Reason.CORRUPT.value, "detail": repr(error)[:200]}
        if decoded:
            embeddings = self.clip.embed_images(np.stack([pixels for _, pixels in decoded]))
            scores = self._scorer.scores(embeddings)
            for (row, _), embedding, score in zip(decoded, embeddings, scores, strict=True):
                row["embedding"] = embedding.astype(np.float16)
                row["safety"] = [
                    {"concept": name, "score": s} for name, s in zip(self._scorer.thresholds, score, strict=True)
                ]

    def _read(self, row: dict[str, Any], fetched: Fetched) -> Image.Image | None:
        """Fills in what bytes and pixels say; returns the pixels, or None with the reason in the row."""
        row["fetched_at"], row["final_uri"] = fetched.at, fetched.final_uri
        if fetched.data is None:
            row |= {"failed_stage": "fetch", "failed_reason": fetched.reason, "detail": fetched.detail}
            return None
        row["id"] = row_id(row["uri"], fetched.data)
        row["bytes"] = len(fetched.data)
        side = self._config.image_size
        try:
            found = decode(fetched.data, self._config.images, max(self.clip.image_size, side))
        except ImageError as error:
            row |= {"failed_stage": "decode", "failed_reason": error.reason.value, "detail": error.detail}
            return None
        row |= {
            "format": found.format,
            "width": found.width,
            "height": found.height,
            "pixel_hash": pixel_hash(found.image),
            "phash": phash(found.image),
            "colour_layout": colour_layout(found.image),
            "image": {
                "bytes": encode(square(found.image, side, self._config.images)),
                "path": row["uri"].rsplit("/", 1)[-1],
            },
        }
        return found.image


def forget(rows: pa.Table, unwanted: Sequence[int]) -> pa.Table:
    """A measured unit as if the rows `unwanted` had not been asked for, whatever an earlier run learned of them.

    So the same input and job give the same manifest, whether a place was opted out before or after it was fetched.
    """
    if not unwanted:
        return rows
    kept = {*INPUTS.names, "host", "domain"}
    found = rows.to_pylist()
    for index in unwanted:
        row = {name: value if name in kept else None for name, value in found[index].items()}
        row |= {"id": row_id(str(row["uri"]), None), "failed_stage": "fetch", "failed_reason": Reason.NOT_ASKED.value}
        if "embedding" in row:
            row["embedding"] = [0.0] * len(found[index]["embedding"])
        found[index] = {name: row[name] for name in rows.column_names}
    return pa.Table.from_pylist(found, schema=rows.schema)


def unit_key(inputs: pa.Table, fingerprint: str) -> str:
    """The name of a unit: a hash of its inputs (names, sizes, times, stated metadata) and of what measures them."""
    h = hashlib.sha256(fingerprint.encode())
    for row in inputs.drop_columns(["location"]).to_pylist():
        h.update(json.dumps(row, sort_keys=True, default=str).encode())
    return h.hexdigest()[:32]


def write_unit(uri: str, rows: pa.Table) -> None:
    """Stores a measured unit whole or not at all; its presence is the marker that it is done."""
    buffer = io.BytesIO()
    pq.write_table(rows, buffer, compression="zstd")
    storage.write_bytes(uri, buffer.getvalue())


def read_unit(uri: str, columns: Sequence[str] | None = None) -> pa.Table:
    """A measured unit, or some columns of it."""
    system, path = storage.filesystem(uri)
    return pq.read_table(path, columns=None if columns is None else list(columns), filesystem=system, partitioning=None)
