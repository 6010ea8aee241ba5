"""Where the tensors of a checkpoint lie: each whole in the file of its part, or in pieces in the files of the workers.

    weights.safetensors, …                one file per part, with whole tensors
    00000-of-00002.safetensors, …         one file per worker; index.json says which piece of which tensor lies where

Both are read by ranges of bytes, so a worker need not read what is another's.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from curation import storage
from curation.manifest import FileName

INDEX_FILE = "index.json"
_SUFFIX = ".safetensors"
# dtypes by their names in a safetensors file
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


class Piece(BaseModel):
    """A block of a tensor.

    Attributes:
        file: where it lies, row by row, from byte `start` on.
        offset: its place in the tensor, an index per dimension.
        size: its sides.
    """

    model_config = ConfigDict(frozen=True)
    file: FileName
    start: int
    offset: tuple[int, ...]
    size: tuple[int, ...]


class Stored(BaseModel):
    """A tensor in a checkpoint. `dtype` is safetensors' name."""

    model_config = ConfigDict(frozen=True)
    dtype: str
    size: tuple[int, ...]
    pieces: tuple[Piece, ...]

    @property
    def torch_dtype(self) -> torch.dtype:
        return _DTYPES[self.dtype]


class Index(BaseModel):
    """The contents of `index.json`: all tensors by `part/name`."""

    model_config = ConfigDict(frozen=True)
    tensors: dict[str, Stored]


@dataclass(frozen=True)
class Header:
    """Where the tensors of a safetensors file lie: dtype, size and first byte, by name."""

    tensors: dict[str, tuple[str, tuple[int, ...], int]]

    @classmethod
    def of(cls, beginning: bytes) -> Header:
        """Of the file's first bytes: eight with the length of the header, and the header."""
        length = int.from_bytes(beginning[:8], "little")
        told: dict[str, Any] = json.loads(beginning[8 : 8 + length])
        told.pop("__metadata__", None)
        return cls(
            {
                name: (entry["dtype"], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0])
                for name, entry in told.items()
            }
        )


def index_of(path: str, files: Sequence[str]) -> Index:
    """Where the tensors of a checkpoint lie.

    Args:
        files: those of the checkpoint.

    Raises:
        FileNotFoundError: one is missing.
        ValueError: the index, or the beginning of a file, is damaged.
    """
    if INDEX_FILE in files:
        return Index.model_validate_json(storage.read_bytes(storage.join(path, INDEX_FILE)))
    found = {}
    for file in files:
        with storage.open_file(storage.join(path, file)) as stream:
            beginning = stream.read(8)
            header = Header.of(beginning + stream.read(int.from_bytes(beginning, "little")))
        for name, (dtype, size, start) in header.tensors.items():
            piece = Piece(file=file, start=start, offset=(0,) * len(size), size=size)
            found[f"{file.removesuffix(_SUFFIX)}/{name}"] = Stored(dtype=dtype, size=size, pieces=(piece,))
    return Index(tensors=found)


def read(stream: BinaryIO, piece: Piece, dtype: torch.dtype, first: Sequence[int], sides: Sequence[int]) -> Tensor:
    """A block of a piece.

    Args:
        stream: the piece's file.
        first: where the block begins, counted in the piece.
        sides: of the block.

    Raises:
        ValueError: the file ends before.
    """
    row = math.prod(piece.size[1:]) * dtype.itemsize  # along the first dimension; what is split is split along it
    begin, rows = (first[0], sides[0]) if piece.size else (0, 1)
    stream.seek(piece.start + begin * row)
    data = stream.read(rows * row)
    if len(data) != rows * row:
        raise ValueError(f"{piece.file} is too short")
    if not data:
        return torch.empty(tuple(sides), dtype=dtype)
    tensor = torch.frombuffer(bytearray(data), dtype=dtype).reshape((rows, *piece.size[1:]) if piece.size else ())
    for dimension in range(1, len(piece.size)):
        tensor = tensor.narrow(dimension, first[dimension], sides[dimension])
    return tensor


def read_whole(path: str, files: Sequence[str], part: str | None = None) -> dict[str, dict[str, Tensor]]:
    """The tensors of a checkpoint that lies in pieces, put together: by part, and by name.

    Args:
        part: the one to read; None: all.
    """
    found: dict[str, dict[str, Tensor]] = {}
    by_file: dict[str, list[tuple[Tensor, Piece]]] = {}
    for key, stored in index_of(path, files).tensors.items():
        its_part, _, name = key.partition("/")
        if part in (None, its_part):
            tensor = found.setdefault(its_part, {})[name] = torch.empty(stored.size, dtype=stored.torch_dtype)
            for piece in stored.pieces:
                by_file.setdefault(piece.file, []).append((tensor, piece))
    for file, wanted in by_file.items():
        with storage.open_file(storage.join(path, file)) as stream:
            for tensor, piece in wanted:
                place = tuple(slice(at, at + side) for at, side in zip(piece.offset, piece.size, strict=True))
                tensor[place] = read(stream, piece, tensor.dtype, (0,) * len(piece.size), piece.size)
    return found


def flat(state: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of a state by `part/name`."""
    return {f"{part}/{name}": tensor for part, tensors in state.items() for name, tensor in tensors.items()}
