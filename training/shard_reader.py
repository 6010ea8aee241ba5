"""Reading shards while training: the pictures that a step shows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from curation.errors import UserError
from training.data_config import ShardsData
from training.data_shards import Places, ShardsInfo, cache_of, folder_of, opened, spec_of
from training.job import TrainJob
from training.order import Order
from training.roster import Roster
from training.shard_blocks import Blocks
from training.shard_columns import bytes_of, payload
from training.sources import Stats, base_side
from training.space import Space

_HEAD = 8  # bytes of a cached block's count of rows, before its table


class _Pictures:
    """A block is the number of its rows, int64; a table int32 (block,) with the row of each of its places, -1 for none;
    and the pictures, those that are mirrored behind the others."""

    def __init__(self, block: int, columns: tuple[str, ...]) -> None:
        self.columns = ("slot", *columns)
        self._block = block

    def payload(self, table: pa.Table) -> str:
        return payload(table)

    def pieces(self, table: pa.Table, places: Places) -> list[np.ndarray]:
        count = np.array([table.num_rows], np.int64)
        rows = np.full(self._block, -1, np.int32)
        rows[places.place[table["slot"].to_numpy()] % self._block] = np.arange(table.num_rows)
        return [count, rows, *(bytes_of(table, name) for name in self.columns[1:])]


class Shards:
    """A source of pictures (`training.sources.Source`): the rows of a roster, in shards."""

    def __init__(self, uri: str, info: ShardsInfo, roster: Roster, *, cache: Path, cache_bytes: int) -> None:
        """Args:
        uri: the shards' folder, local or S3.
        roster: rows are its inputs.
        cache: a folder on this machine for blocks in use, of at most `cache_bytes`.
        """
        self.image_size = base_side(info.sizes)
        self._info = info
        self._roster = roster
        self._block = info.spec.block
        self._slots = torch.from_numpy(roster.slots)
        self.blocks = Blocks(
            uri,
            info.parts,
            info.spec.block,
            roster,
            _Pictures(info.spec.block, info.spec.columns),
            cache=cache / info.spec.name,
            cache_bytes=cache_bytes,
        )
        self._places = self.blocks.places

    @classmethod
    def of(cls, job: TrainJob, roster: Roster) -> Shards | None:
        """The source of a job's pictures; None where they are read into memory.

        Raises:
            UserError: the shards are not there, or others.
        """
        if not isinstance(job.data, ShardsData):
            return None
        spec = spec_of(job, roster)
        uri = folder_of(job, spec)
        return cls(uri, opened(uri, spec), roster, cache=cache_of(job), cache_bytes=job.data.cache_bytes)

    # --- rows ---

    def clean(self, rows: Tensor, mirrored: Tensor | None, space: Space, device: torch.device) -> Tensor:
        slots = self._slots[rows].numpy()
        shape, place = int(self._places.shape[slots[0]]), self._places.place[slots]
        turned = np.zeros(len(slots), bool) if mirrored is None else mirrored.numpy()
        stored = self._info.spec.autoencoder is not None
        found = np.empty((len(slots), self._info.row_bytes(shape)), np.uint8)
        for block in np.unique(place // self._block).tolist():
            mine = np.flatnonzero(place // self._block == block)
            found[mine] = self._rows(shape, block, place[mine] % self._block, turned[mine] & stored)
        pictures = torch.from_numpy(found.view(self._info.spec.dtype).reshape(len(slots), *self._info.arrays[shape]))
        if stored:
            return pictures.to(device).float()
        if mirrored is not None:
            pictures = torch.where(mirrored[:, None, None, None], pictures.flip(-1), pictures)
        return space.encode(pictures.to(device))

    def _rows(self, shape: int, block: int, place: np.ndarray, turned: np.ndarray) -> np.ndarray:
        """The bytes (N, bytes of one) of pictures at places in a block."""
        mapped = self.blocks.open(shape, block)
        count = int(mapped[:_HEAD].view(np.int64)[0])
        end = _HEAD + 4 * self._block
        row = mapped[_HEAD:end].view(np.int32)[place].astype(np.int64)
        if (row < 0).any():
            raise UserError(
                f"the shards at {self.blocks.uri} lack rows of the training set",
                field="data.folder",
                remedy=f"remove {self.blocks.uri} and run again",
            )
        pictures = mapped[end:].reshape(-1, self._info.row_bytes(shape))
        found: np.ndarray = pictures[row + count * turned]
        return found

    def reached(self, order: Order, sample: int) -> None:
        self.blocks.reached(order, sample)

    def close(self) -> None:
        """Ends the threads that read ahead."""
        self.blocks.close()

    # --- all rows ---

    def digests(self) -> Iterator[bytes]:
        content = np.zeros((self._roster.info.base_rows, 32), np.uint8)
        for table in self.blocks.columns(["slot", "content"]):
            content[table["slot"].to_numpy()] = bytes_of(table, "content")
        made = (self._info.spec.autoencoder or "").encode()
        for slot in self._roster.slots.tolist():
            yield content[slot].tobytes() + made

    def channel_stats(self) -> Stats:
        there = ~self._roster.removed
        area = np.array([width * height for width, height in self._info.sizes])
        totals, pixels = np.zeros(6, np.float64), 0
        for table in self.blocks.columns(["slot", "moments"]):
            slots = table["slot"].to_numpy()
            moments = table["moments"].combine_chunks().flatten().to_numpy().reshape(-1, 6)[there[slots]]
            totals += moments.sum(axis=0)
            pixels += int(area[self._places.shape[slots[there[slots]]]].sum())
        mean = totals[:3] / pixels
        deviation = np.sqrt(np.maximum(totals[3:] / pixels - mean**2, 0))
        means, deviations = (mean / 127.5 - 1).tolist(), (deviation / 127.5).tolist()
        return (means[0], means[1], means[2]), (deviations[0], deviations[1], deviations[2])
