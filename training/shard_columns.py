"""Columns of pictures in shards: fixed-size bytes, without a copy on the way to numpy."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa

from training.data_shards import MIRRORED


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


def binary(array: np.ndarray) -> pa.Array:
    """A column of pictures (N, C, h, w)."""
    size = array[0].nbytes
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(size), len(array), [None, pa.py_buffer(array.tobytes())])
