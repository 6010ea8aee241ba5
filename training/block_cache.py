"""Blocks of shards on this machine's disk, as raw bytes that are mapped into memory: one folder for all processes.

A block is fetched once, by whoever wants it first, and decompressed once; then every process reads the rows that it
wants and no others. Files are whole or not there. Above a number of bytes those go that were used longest ago; whoever
has one mapped keeps it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

_LOCKS = 64
_SWEEPS = 32  # that a full turn over of the cache is spread over


class BlockCache:
    """A folder of at most about `cap` bytes."""

    def __init__(self, folder: Path, cap: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._cap = cap
        self._since = cap  # bytes written since the folder was looked through; at once, at the beginning

    def path(self, key: str) -> Path:
        """Where a block lies, if it is there."""
        return self._folder / f"{key}.rows"

    def open(self, key: str, fetch: Callable[[], Sequence[np.ndarray]]) -> np.ndarray:
        """A block's bytes, mapped: uint8 (bytes,).

        Args:
            fetch: gets its pieces, where it is not there.
        """
        while True:
            self.want(key, fetch)
            with contextlib.suppress(FileNotFoundError):  # it may have gone since
                found: np.ndarray = np.memmap(self.path(key), np.uint8, "r")
                return found

    def want(self, key: str, fetch: Callable[[], Sequence[np.ndarray]], *, wait: bool = True) -> bool:
        """Makes a block be there.

        Args:
            wait: for another process that is fetching it, or one in its neighbourhood.

        Returns:
            Whether it is there.
        """
        if self._touched(key):
            return True
        with self._lock(key, wait=wait) as locked:
            if not locked:
                return False
            if not self._touched(key):
                self._write(key, fetch())
        return True

    def _touched(self, key: str) -> bool:
        try:
            os.utime(self.path(key))
        except FileNotFoundError:
            return False
        return True

    def _write(self, key: str, pieces: Sequence[np.ndarray]) -> None:
        self._make_room(sum(piece.nbytes for piece in pieces))
        partial = self._folder / f".{key}.{uuid.uuid4().hex[:8]}.partial"
        try:
            with partial.open("wb") as file:
                for piece in pieces:
                    file.write(np.ascontiguousarray(piece).data)
            os.replace(partial, self.path(key))
        finally:
            partial.unlink(missing_ok=True)

    def _make_room(self, size: int) -> None:
        self._since += size
        if self._since <= self._cap // _SWEEPS:
            return
        self._since = size
        found = []
        for entry in os.scandir(self._folder):
            if entry.name.endswith(".rows"):
                with contextlib.suppress(FileNotFoundError):
                    told = entry.stat()
                    found.append((told.st_mtime_ns, told.st_size, entry.path))
        held = sum(size for _, size, _ in found)
        for _, bytes_, path in sorted(found):
            if held + self._since + self._cap // _SWEEPS <= self._cap:
                break
            Path(path).unlink(missing_ok=True)
            held -= bytes_

    @contextlib.contextmanager
    def _lock(self, key: str, *, wait: bool) -> Iterator[bool]:
        number = int.from_bytes(key.encode()[-8:], "big") % _LOCKS
        with (self._folder / f".lock-{number}").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True  # closing the file gives the lock back
