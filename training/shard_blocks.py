"""Blocks of shards while training: fetched through the cache before a run comes to them, and mapped."""

from __future__ import annotations

import bisect
import logging
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from curation import storage
from training.block_cache import BlockCache
from training.data_shards import Part, Places
from training.order import Order
from training.roster import Roster
from training.shard_faults import damaged, is_refusal, may_pass, refused

logger = logging.getLogger(__name__)

_AHEAD = 2  # windows
_THREADS = 2
_MAPPED = 4096  # blocks at once, at most, where there are no windows


class Format(Protocol):
    """What a kind of shards holds.

    Attributes:
        columns: that training reads.
    """

    columns: tuple[str, ...]

    def payload(self, table: pa.Table) -> str:
        """sha256 of a block's columns, as `Part.payloads` has it."""
        ...

    def pieces(self, table: pa.Table, places: Places) -> list[np.ndarray]:
        """A block as it is cached, one piece behind the other."""
        ...


class Blocks:
    """The blocks of some parts, for the rows of a roster."""

    def __init__(
        self,
        uri: str,
        parts: Sequence[Part],
        block: int,
        roster: Roster,
        layout: Format,
        *,
        cache: Path,
        cache_bytes: int,
    ) -> None:
        """Args:
        uri: the shards' folder, local or S3.
        block: slots of a block.
        cache: a folder on this machine for these blocks, of at most `cache_bytes`.
        """
        self.uri = uri
        self.places = Places.of(roster)
        self._block = block
        self._layout = layout
        self._cache = BlockCache(cache, cache_bytes)
        self._parts: dict[int, list[Part]] = {}
        for part in sorted(parts, key=lambda part: part.first):
            self._parts.setdefault(part.shape, []).append(part)
        window = roster.info.order.window
        self._window = window or block
        self._opened: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()
        self._most = _MAPPED if window is None else 4 * (window // block + 1) * max(1, len(self.places.counts))
        self._ahead: _Ahead | None = None

    def open(self, shape: int, block: int) -> np.ndarray:
        """A block's bytes as they are cached: uint8 (bytes,).

        Raises:
            UserError: it is missing or not what was written, or the storage refuses it.
        """
        mapped = self._opened.get((shape, block))
        if mapped is not None:
            self._opened.move_to_end((shape, block))
            return mapped
        mapped = self._cache.open(self._key(shape, block), lambda: self._fetch(shape, block))
        self._opened[shape, block] = mapped
        while len(self._opened) > self._most:
            self._opened.popitem(last=False)
        return mapped

    def columns(self, names: list[str]) -> Iterator[pa.Table]:
        """Some columns of all parts that have rows, part by part; raises as `open`."""
        for parts in self._parts.values():
            for part in parts:
                if sum(part.rows):
                    where = storage.join(self.uri, part.name)
                    system, path = storage.filesystem(where)
                    try:
                        yield pq.read_table(path, columns=names, filesystem=system)
                    except (pa.ArrowException, OSError, ValueError) as error:
                        raise _told(where, error) from None

    def _key(self, shape: int, block: int) -> str:
        part = self._part(shape, block)
        return f"{shape}-{part.payloads[block - part.first][:8]}-{block:08d}"

    def _part(self, shape: int, block: int) -> Part:
        parts = self._parts[shape]
        return parts[bisect.bisect_right(parts, block, key=lambda part: part.first) - 1]

    def _fetch(self, shape: int, block: int) -> list[np.ndarray]:
        """A block's pieces, as they are cached, from its row group."""
        part = self._part(shape, block)
        where = storage.join(self.uri, part.name)
        try:
            system, path = storage.filesystem(where)
            with pq.ParquetFile(path, filesystem=system, pre_buffer=True) as file:
                table = file.read_row_group(part.group(block), columns=list(self._layout.columns), use_threads=False)
            if self._layout.payload(table) != part.payloads[block - part.first]:
                raise ValueError(f"block {block} is not what was written")
        except (pa.ArrowException, OSError, ValueError) as error:
            raise _told(where, error) from None
        return self._layout.pieces(table, self.places)

    # --- before they are wanted ---

    def reached(self, order: Order, sample: int) -> None:
        """See `training.sources.Source.reached`."""
        if self._ahead is None or self._ahead.order is not order:
            self.close()
            self._ahead = _Ahead(self, order, sample, span=self._window)
        self._ahead.reached(sample)

    def close(self) -> None:
        """Ends the threads that read ahead."""
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None

    def of(self, slots: np.ndarray) -> list[tuple[int, int]]:
        """Shape and block of some slots, each once, in the order of their first slots."""
        shape, block = self.places.shape[slots].astype(np.int64), self.places.place[slots] // self._block
        _, first = np.unique(shape << 40 | block, return_index=True)
        return [(int(shape[i]), int(block[i])) for i in np.sort(first)]

    def want(self, shape: int, block: int, *, wait: bool) -> bool:
        """Gets a block into the cache; see `BlockCache.want`."""
        return self._cache.want(self._key(shape, block), lambda: self._fetch(shape, block), wait=wait)


def _told(where: str, error: Exception) -> Exception:
    """What to raise for a file that was not read."""
    if is_refusal(error):
        return refused(where, error)
    if may_pass(error) and not isinstance(error, FileNotFoundError):
        return error
    return damaged(where, error)


class _Ahead:
    """Threads that get the blocks of the samples to come."""

    def __init__(self, blocks: Blocks, order: Order, sample: int, *, span: int) -> None:
        self.order = order
        self._blocks = blocks
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
                wanted = self._blocks.of(slots)
                # another worker may be at one of them already: first those that nobody is at
                later = [block for block in wanted if not self._get(block, wait=False)]
                for block in later:
                    self._get(block, wait=True)
            except Exception as error:  # whoever wants the rows comes upon it, too, and says so
                logger.warning("could not read ahead: %s", error)

    def _get(self, block: tuple[int, int], *, wait: bool) -> bool:
        return self._ends or self._blocks.want(*block, wait=wait)
