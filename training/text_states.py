"""Text states from shards (`training.text_shards`) while training: those of the captions that a step tells."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from curation.errors import UserError
from training.data_config import ShardsData
from training.data_shards import Part, Places, cache_of, read_info
from training.job import TrainJob
from training.order import Order
from training.roster import Roster
from training.shard_blocks import Blocks

_WORD = 8  # bytes of a number
_CACHE_BYTES = 20 * 2**30  # where pictures are in memory


class TextsSpec(BaseModel):
    """What shards of text states are made of, and how.

    Attributes:
        text_encoder: sha256 of the tower.
        base_digest, block, file_bytes: see `data_shards.ShardsSpec`.
        sources: captioners whose captions rows may be told; None: the chosen caption alone.
        length, width: L and W of the tower.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    version: int = 1
    manifest_id: str
    text_encoder: str
    base_digest: str
    block: int
    sources: tuple[str, ...] | None
    length: int
    width: int
    file_bytes: int

    @property
    def name(self) -> str:
        """Of the folder."""
        told = hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:8]
        return f"text-{self.manifest_id[:12]}-{self.text_encoder[:12]}-{told}"


class TextsInfo(BaseModel):
    """The contents of `shards.json`; `rows` are captions, block by block."""

    model_config = ConfigDict(frozen=True)
    spec: TextsSpec
    rows: int
    parts: tuple[Part, ...]

    @property
    def bytes(self) -> int:
        return sum(part.bytes for part in self.parts)


def cache_bytes(job: TrainJob) -> int:
    """Of the cache of text states on each machine, at most."""
    return job.data.cache_bytes if isinstance(job.data, ShardsData) else _CACHE_BYTES


def key_of(caption: str) -> int:
    """What stands for a caption in its block: 64 bits of its sha256."""
    return int.from_bytes(hashlib.sha256(caption.encode()).digest()[:8], "little")


def payload(table: pa.Table) -> str:
    """sha256 of a block's captions and their states."""
    h = hashlib.sha256(table["key"].to_numpy().tobytes())
    h.update(table["tokens"].to_numpy().tobytes())
    for of in table["states"]:
        h.update(of.as_buffer())
    return h.hexdigest()


class _States:
    """A block is the number of its captions, int64; their keys, sorted, uint64; where the tokens of each begin and the
    last ones end, int64; and the states of all tokens, float32."""

    columns: tuple[str, ...] = ("key", "tokens", "states")

    def payload(self, table: pa.Table) -> str:
        return payload(table)

    def pieces(self, table: pa.Table, places: Places) -> list[np.ndarray]:
        order = np.argsort(table["key"].to_numpy())
        table = table.take(pa.array(order))
        ends = np.concatenate([[0], np.cumsum(table["tokens"].to_numpy(), dtype=np.int64)]).astype(np.int64)
        states = [np.frombuffer(of.as_buffer(), np.uint8) for of in table["states"]]
        return [np.array([table.num_rows], np.int64), table["key"].to_numpy(), ends, *states]


class StoredStates:
    """Of the captions of a roster's rows."""

    def __init__(self, uri: str, info: TextsInfo, roster: Roster, *, cache: Path, cache_bytes: int) -> None:
        """Args:
        uri: the shards' folder, local or S3.
        cache: a folder on this machine for blocks in use, of at most `cache_bytes`.
        """
        spec = info.spec
        self._width = spec.width
        self._block = spec.block
        self._slots = torch.from_numpy(roster.slots)
        self._blocks = Blocks(
            uri, info.parts, spec.block, roster, _States(), cache=cache / spec.name, cache_bytes=cache_bytes
        )

    @classmethod
    def of(cls, uri: str, job: TrainJob, roster: Roster) -> StoredStates:
        """Those in a folder.

        Raises:
            UserError: there are none, or not of this set.
        """
        info = read_info(uri, TextsInfo)
        of_it = None if info is None else (info.spec.manifest_id, info.spec.base_digest)
        if info is None or of_it != (roster.info.manifest_id, roster.info.order_digest):
            raise UserError(
                f"no text states of this training set at {uri}", field="data", remedy="run `cleanplate train` again"
            )
        return cls(uri, info, roster, cache=cache_of(job), cache_bytes=cache_bytes(job))

    def read(self, rows: Tensor, captions: Sequence[str]) -> list[Tensor]:
        """The states of captions that N rows may be told, one each: float32 (tokens, W), before they are standardised.

        Raises:
            UserError: a row has no such caption there, or its block is missing or damaged.
        """
        slots = self._slots[rows].numpy()
        shape, block = self._blocks.places.shape[slots], self._blocks.places.place[slots] // self._block
        wanted = zip(shape.tolist(), block.tolist(), captions, strict=True)
        return [self._one(of_shape, number, caption) for of_shape, number, caption in wanted]

    def _one(self, shape: int, block: int, caption: str) -> Tensor:
        mapped = self._blocks.open(shape, block)
        count = int(mapped[:_WORD].view(np.int64)[0])
        keys = mapped[_WORD : _WORD * (1 + count)].view(np.uint64)
        key = np.uint64(key_of(caption))
        at = int(np.searchsorted(keys, key))
        if at == count or keys[at] != key:
            raise UserError(
                f"the text states at {self._blocks.uri} lack a caption of the training set",
                field="data",
                remedy=f"remove {self._blocks.uri} and run again",
            )
        head = _WORD * (2 + 2 * count)
        first, end = mapped[_WORD * (1 + count) : head].view(np.int64)[at : at + 2].tolist()
        size = 4 * self._width
        found = mapped[head + first * size : head + end * size].view(np.float32)
        return torch.from_numpy(found.reshape(-1, self._width).copy())

    def reached(self, order: Order, sample: int) -> None:
        """See `training.sources.Source.reached`."""
        self._blocks.reached(order, sample)

    def close(self) -> None:
        """Ends the threads that read ahead."""
        self._blocks.close()
