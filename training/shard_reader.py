"""Reading shards while training: the rows that a step shows, from blocks that were fetched before it came to them."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from curation import storage
from curation.errors import UserError
from training.block_cache import BlockCache
from training.data_config import ShardsData
from training.data_shards import Part, Places, ShardsInfo, folder_of, opened, spec_of
from training.folders import cache_root
from training.job import TrainJob
from training.order import Order
from training.roster import Roster
from training.shard_columns import bytes_of, payload
from training.shard_faults import damaged, is_refusal, may_pass, refused
from training.sources import Stats, base_side
from training.space import Space

logger = logging.getLogger(__name__)

_HEAD = 8  # bytes of a cached block's count of rows, before its table
_AHEAD = 2  # windows
_THREADS = 2


class Shards:
    """A source of pictures (`training.sources.Source`): the rows of a roster, in shards.

    A cached block is the number of its rows, int64; a table int32 (block,) with the row of each of its places, -1 for
    none; and the pictures, those that are mirrored behind the others.
    """

    def __init__(self, uri: str, info: ShardsInfo, roster: Roster, *, cache: Path, cache_bytes: int) -> None:
        """Args:
        uri: the shards' folder, local or S3.
        roster: rows are its inputs.
        cache: a folder on this machine for blocks in use, of at most `cache_bytes`.
        """
        self.image_size = base_side(info.sizes)
        self._uri = uri
        self._info = info
        self._roster = roster
        self._places = Places.of(roster)
        self._block = info.spec.block
        self._slots = torch.from_numpy(roster.slots)
        self._cache = BlockCache(cache / info.spec.name, cache_bytes)
        self._parts: dict[int, list[Part]] = {}
        for part in info.parts:
            self._parts.setdefault(part.shape, []).append(part)
        self._window = window = roster.info.order.window or self._block
        self._opened: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()
        self._most = 4 * (window // self._block + 1) * max(1, len(self._places.counts))
        self._ahead: _Ahead | None = None

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
        cache = cache_root() / "blocks" if job.data.cache is None else Path(job.data.cache)
        return cls(uri, opened(uri, spec), roster, cache=cache, cache_bytes=job.data.cache_bytes)

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
        mapped = self._opened.get((shape, block))
        if mapped is None:
            mapped = self._cache.open(self._key(shape, block), lambda: self._fetch(shape, block))
            self._opened[shape, block] = mapped
            while len(self._opened) > self._most:
                self._opened.popitem(last=False)
        else:
            self._opened.move_to_end((shape, block))
        count = int(mapped[:_HEAD].view(np.int64)[0])
        end = _HEAD + 4 * self._block
        row = mapped[_HEAD:end].view(np.int32)[place].astype(np.int64)
        if (row < 0).any():
            raise UserError(
                f"the shards at {self._uri} lack rows of the training set",
                field="data.folder",
                remedy=f"remove {self._uri} and run again",
            )
        pictures = mapped[end:].reshape(-1, self._info.row_bytes(shape))
        found: np.ndarray = pictures[row + count * turned]
        return found

    def _key(self, shape: int, block: int) -> str:
        part = self._part(shape, block)
        return f"{shape}-{part.payloads[block - part.first][:8]}-{block:08d}"

    def _part(self, shape: int, block: int) -> Part:
        return next(part for part in self._parts[shape] if part.first <= block < part.first + part.blocks)

    def _fetch(self, shape: int, block: int) -> list[np.ndarray]:
        """A block's pieces, as they are cached, from its row group.

        Raises:
            UserError: it is missing or not what `shards.json` says.
        """
        part = self._part(shape, block)
        columns = self._info.spec.columns
        where = storage.join(self._uri, part.name)
        try:
            system, path = storage.filesystem(where)
            with pq.ParquetFile(path, filesystem=system, pre_buffer=True) as file:
                table = file.read_row_group(part.group(block), columns=["slot", *columns], use_threads=False)
            if payload(table) != part.payloads[block - part.first]:
                raise ValueError(f"block {block} is not what was written")
        except (pa.ArrowException, OSError, ValueError) as error:
            raise _told(where, error) from None
        count = np.array([table.num_rows], np.int64)
        rows = np.full(self._block, -1, np.int32)
        rows[self._places.place[table["slot"].to_numpy()] % self._block] = np.arange(table.num_rows)
        return [count, rows, *(bytes_of(table, name) for name in columns)]

    # --- before they are wanted ---

    def reached(self, order: Order, sample: int) -> None:
        if self._ahead is None or self._ahead.order is not order:
            self.close()
            self._ahead = _Ahead(self, order, sample, span=self._window)
        self._ahead.reached(sample)

    def close(self) -> None:
        """Ends the threads that read ahead."""
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None

    def blocks_of(self, slots: np.ndarray) -> list[tuple[int, int]]:
        """Shape and block of some slots, each once, in the order of their first slots."""
        shape, block = self._places.shape[slots].astype(np.int64), self._places.place[slots] // self._block
        _, first = np.unique(shape << 40 | block, return_index=True)
        return [(int(shape[i]), int(block[i])) for i in np.sort(first)]

    def want(self, shape: int, block: int, *, wait: bool) -> bool:
        """Gets a block into the cache; see `BlockCache.want`."""
        return self._cache.want(self._key(shape, block), lambda: self._fetch(shape, block), wait=wait)

    # --- all rows ---

    def digests(self) -> Iterator[bytes]:
        content = np.zeros((self._roster.info.base_rows, 32), np.uint8)
        for table in self._columns(["slot", "content"]):
            content[table["slot"].to_numpy()] = bytes_of(table, "content")
        made = (self._info.spec.autoencoder or "").encode()
        for slot in self._roster.slots.tolist():
            yield content[slot].tobytes() + made

    def channel_stats(self) -> Stats:
        there = ~self._roster.removed
        area = np.array([width * height for width, height in self._info.sizes])
        totals, pixels = np.zeros(6, np.float64), 0
        for table in self._columns(["slot", "moments"]):
            slots = table["slot"].to_numpy()
            moments = table["moments"].combine_chunks().flatten().to_numpy().reshape(-1, 6)[there[slots]]
            totals += moments.sum(axis=0)
            pixels += int(area[self._places.shape[slots[there[slots]]]].sum())
        mean = totals[:3] / pixels
        deviation = np.sqrt(np.maximum(totals[3:] / pixels - mean**2, 0))
        means, deviations = (mean / 127.5 - 1).tolist(), (deviation / 127.5).tolist()
        return (means[0], means[1], means[2]), (deviations[0], deviations[1], deviations[2])

    def _columns(self, names: list[str]) -> Iterator[pa.Table]:
        for part in self._info.parts:
            if sum(part.rows):
                where = storage.join(self._uri, part.name)
                system, path = storage.filesystem(where)
                try:
                    yield pq.read_table(path, columns=names, filesystem=system)
                except (pa.ArrowException, OSError, ValueError) as error:
                    raise _told(where, error) from None


def _told(where: str, error: Exception) -> Exception:
    """What to raise for a file that was not read."""
    if is_refusal(error):
        return refused(where, error)
    if may_pass(error) and not isinstance(error, FileNotFoundError):
        return error
    return damaged(where, error)


class _Ahead:
    """Threads that get the blocks of the samples to come."""

    def __init__(self, shards: Shards, order: Order, sample: int, *, span: int) -> None:
        self.order = order
        self._shards = shards
        self._span = span
        self._step = max(1, span // 4)
        self._reached = sample
        self._next = sample
        self._ends = False
        self._moved = threading.Condition()
        self._threads = [threading.Thread(target=self._run, name="shards", daemon=True) for _ in range(_THREADS)]
        for thread in self._threads:
            thread.start()

    def reached(self, sample: int) -> None:
        with self._moved:
            self._reached = sample
            self._next = max(self._next, sample)
            self._moved.notify_all()

    def close(self) -> None:
        with self._moved:
            self._ends = True
            self._moved.notify_all()
        for thread in self._threads:
            thread.join()

    def _take(self) -> int | None:
        """The first of the next samples to get ready; None when there is nothing more to do."""
        with self._moved:
            while not self._ends and self._next >= self._reached + _AHEAD * self._span:
                self._moved.wait()
            if self._ends:
                return None
            first = self._next
            self._next += self._step
            return first

    def _run(self) -> None:
        while (first := self._take()) is not None:
            try:
                slots = self.order.slots(torch.arange(first, first + self._step)).numpy()
                wanted = self._shards.blocks_of(slots)
                # another worker may be at one of them already: first those that nobody is at
                later = [block for block in wanted if not self._get(block, wait=False)]
                for block in later:
                    self._get(block, wait=True)
            except Exception as error:  # whoever wants the rows comes upon it, too, and says so
                logger.warning("could not read ahead: %s", error)

    def _get(self, block: tuple[int, int], *, wait: bool) -> bool:
        return self._ends or self._shards.want(*block, wait=wait)
