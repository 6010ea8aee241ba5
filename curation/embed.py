"""The second half of measuring a unit: the models that want pixels, on what `measure.Look` saw."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from curation import nsfw
from curation.clip import Clip
from curation.measure import EMBEDDINGS, Chunk, Columns, MeasureConfig, schema
from curation.sources import INPUTS
from curation.units import embedding_array


class Embed:
    """The models that want pixels: CLIP, and the classifiers beside it."""

    def __init__(self, config: MeasureConfig, clip: Clip | None) -> None:
        self._clip, self._columns = clip, config.columns
        self._nsfw = None if config.nsfw is None else config.nsfw.build()

    def __call__(self, inputs: pa.Table, columns: Columns, chunks: Iterator[Chunk]) -> pa.Table:
        """A table with the columns of `schema`, a row for every input in the same order.

        A moving picture's embedding is the mean of its frames', brought to length one; its score by a classifier is
        that of its worst frame.
        """
        dim = None if self._clip is None else self._clip.dim
        embeddings = np.zeros((inputs.num_rows, dim or 0), np.float16)
        frames: dict[int, list[np.ndarray]] = {}
        worst: dict[int, float] = {}
        for chunk in chunks:
            count = len(chunk.rows)
            if self._clip is not None and chunk.clip is not None:
                for row, embedding in zip(chunk.rows, self._clip.embed_images(chunk.clip[:count]), strict=True):
                    frames.setdefault(row, []).append(embedding)
            if self._nsfw is not None and chunk.nsfw is not None:
                for row, score in zip(chunk.rows, self._nsfw(chunk.nsfw[:count]), strict=True):
                    worst[row] = max(worst.get(row, 0.0), float(score), key=_badness)
        for row, found in frames.items():
            embeddings[row] = found[0] if len(found) == 1 else _mean(found)
        for row, score in worst.items():
            columns["safety"][row] = [{"concept": nsfw.CONCEPT, "score": score}]
        if "frames" in self._columns and dim is not None:
            several = {row: np.stack(found).astype("<f2").tobytes() for row, found in frames.items()}
            columns[EMBEDDINGS.name] = [several.get(row) for row in range(inputs.num_rows)]
        fields = schema(dim, self._columns)
        arrays = [inputs[name] for name in INPUTS.names]
        for field in list(fields)[len(arrays) :]:
            is_embedding = field.name == "embedding"
            arrays.append(embedding_array(embeddings) if is_embedding else pa.array(columns[field.name], field.type))
        return pa.Table.from_arrays(arrays, schema=fields)


def frame_embeddings(measured: pa.Table) -> list[np.ndarray | None] | None:
    """What each row's frames are to CLIP, (frames, dim); None where the job takes stills."""
    if EMBEDDINGS.name not in measured.column_names:
        return None
    dim = measured.schema.field("embedding").type.list_size
    cells = measured[EMBEDDINGS.name].to_pylist()
    return [None if cell is None else np.frombuffer(cell, "<f2").reshape(-1, dim) for cell in cells]


def _badness(score: float) -> float:
    return math.inf if math.isnan(score) else score  # a score that is no number is no acquittal


def _mean(embeddings: Sequence[np.ndarray]) -> np.ndarray:
    mean = np.asarray(np.mean(np.stack(embeddings), axis=0, dtype=np.float32))
    return np.asarray(mean / max(float(np.linalg.norm(mean)), 1e-12))
