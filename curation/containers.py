"""Pictures inside containers: a tar's members, a Parquet file's cells, the frames of a folder; each has a location.

A location says everything that reading needs (container, offset and size; or row group, row and column), so that any
worker can read any member without an index. Members are read in the order asked for; those that follow one another in
one container share its open file, and of a Parquet column no more than a few cells are in memory at a time.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from curation import storage
from curation.errors import UserError
from curation.manifest import Reason

_MARK = "member:["
_FRAMES_MARK = b"cleanplate frames\n"
_FRAMES_AT_A_TIME = 8
_CELLS = 16  # cells of a column that are held at a time
_READ_AHEAD = 2**20  # bytes of a Parquet column chunk that are read at a time


class MemberError(Exception):
    """Why there are no bytes: a reason for the member's row, and what was found."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


def tar_member(container: str, offset: int, size: int) -> str:
    """The location of `size` bytes at `offset` of an uncompressed tar."""
    return _location("tar", container, offset, size)


def parquet_cell(container: str, row_group: int, row: int, column: str) -> str:
    """The location of one cell of bytes.

    Args:
        container: the location of a Parquet file.
        row_group: its number in the file.
        row: its number in the row group.
        column: name of the column; `image.bytes` is the field `bytes` of the struct `image`.
    """
    return _location("parquet", container, row_group, row, column)


def broken_member(reason: str, detail: str) -> str:
    """The location of an input that was found, and that has no bytes to read."""
    return _location("broken", str(reason), detail)


def frame_folder(frames: Sequence[tuple[str, int | None, datetime | None]]) -> str:
    """The location of a folder of frames.

    Args:
        frames: of each file in order its location, size and time.
    """
    told = [[location, size, None if at is None else at.timestamp()] for location, size, at in frames]
    return "member:" + json.dumps(["frames", told], ensure_ascii=False, separators=(",", ":"))


def frames_of(location: str) -> list[str]:
    """The locations of the files that a location of `frame_folder` stands for, in order; empty for any other."""
    if not location.startswith(_FRAME_FOLDER):
        return []
    return [frame for frame, _, _ in json.loads(location.removeprefix("member:"))[1]]


def known_by(location: str) -> str | None:
    """What of a member's location tells it from another, None of what is no member.

    A frame folder is known by its files' names, sizes and times, wherever it lies.
    """
    if not is_member(location):
        return None
    if not location.startswith(_FRAME_FOLDER):
        return location
    return json.dumps([[frame.rsplit("/", 1)[-1], *rest] for frame, *rest in json.loads(location[7:])[1]])


_FRAME_FOLDER = _MARK + '"frames"'


def pack(frames: Sequence[bytes]) -> bytes:
    """The bytes of a frame folder: a mark, then of each file in order its length (8 bytes, big-endian) and its bytes.

    The mark is `cleanplate frames` and a line feed. No two lists of files give the same bytes; the id of a frame
    folder's row is their sha256.
    """
    return _FRAMES_MARK + b"".join(struct.pack(">Q", len(frame)) + frame for frame in frames)


def unpack(data: bytes) -> list[bytes] | None:
    """The inverse of `pack`; None for any other bytes."""
    if not data.startswith(_FRAMES_MARK) or len(data) == len(_FRAMES_MARK):
        return None
    frames, position = [], len(_FRAMES_MARK)
    while position < len(data):
        if position + 8 > len(data):
            return None
        (length,) = struct.unpack_from(">Q", data, position)
        position += 8 + length
        if position > len(data):
            return None
        frames.append(data[position - length : position])
    return frames


def is_member(location: str) -> bool:
    """Whether a location is one of those above, and not a path or a URL."""
    return location.startswith(_MARK)


def _location(kind: str, *parts: str | int) -> str:
    return "member:" + json.dumps([kind, *parts], ensure_ascii=False, separators=(",", ":"))


def read_members(locations: Sequence[str], max_bytes: int) -> Iterator[bytes | MemberError]:
    """The bytes of each member, or why there are none, in order; see `MemberReader`."""
    with MemberReader(max_bytes) as reader:
        yield from reader.read(locations)


class MemberReader:
    """Reads members, and keeps the last container open for the next one.

    Keep a reader as long as the process asks for members in order: Parquet has no way to the middle of a row group but
    through its beginning, and a reader that was there already goes on from where it was. Not for several threads.

    Args:
        max_bytes: a larger member is `too_large`; of a tar it is not read at all.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._tar: tuple[str, BinaryIO] | None = None
        self._cells: _Cells | None = None

    def __enter__(self) -> MemberReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the open files."""
        if self._tar is not None:
            self._tar[1].close()
        if self._cells is not None:
            self._cells.close()
        self._tar = self._cells = None

    def read(self, locations: Sequence[str]) -> Iterator[bytes | MemberError]:
        """The bytes of each member, or why there are none, in order."""
        for location in locations:
            yield self._found(location)

    def _found(self, location: str) -> bytes | MemberError:
        kind = ""
        try:
            kind, *parts = json.loads(location.removeprefix("member:"))
            if kind == "broken":
                raise MemberError(*parts)
            if kind == "frames":
                return self._from_folder([(location, size) for location, size, _ in parts[0]])
            return self._from_tar(*parts) if kind == "tar" else self._from_parquet(*parts)
        except MemberError as error:
            return error
        except (
            Exception
        ) as error:  # the libraries of stores raise what they like, and one member must not stop the rest
            self.close()  # what an open file is worth after a fault is not known
            return _why(error, kind)

    def _from_tar(self, container: str, offset: int, size: int) -> bytes:
        self._limit(size)
        if self._tar is None or self._tar[0] != container:
            self.close()
            self._tar = (container, storage.open_file(container))
        file = self._tar[1]
        file.seek(offset)
        data = file.read(size)
        if len(data) < size:
            raise MemberError(Reason.TRUNCATED, f"{len(data)} of {size} bytes are in the tar")
        return data

    def _from_folder(self, frames: Sequence[tuple[str, int | None]]) -> bytes:
        self._limit(sum(size or 0 for _, size in frames))
        remote = storage.is_remote(frames[0][0])
        with ThreadPoolExecutor(_FRAMES_AT_A_TIME if remote else 1) as threads:
            found = list(threads.map(partial(_frame, limit=self._max_bytes), (location for location, _ in frames)))
        self._limit(sum(map(len, found)))
        return pack(found)

    def _from_parquet(self, container: str, row_group: int, row: int, column: str) -> bytes:
        place = (container, row_group, column)
        if self._cells is None or self._cells.place != place or row < self._cells.start:
            self.close()
            self._cells = _Cells(*place)
        cell = self._cells.cell(row)
        if not cell.is_valid:
            raise MemberError(Reason.NO_IMAGE, "the cell is null")
        buffer = cell.as_buffer()
        self._limit(buffer.size)
        return bytes(buffer.to_pybytes())

    def _limit(self, size: int) -> None:
        if size > self._max_bytes:
            raise MemberError(Reason.TOO_LARGE, f"{size} bytes")


def _frame(location: str, limit: int) -> bytes:
    try:
        with storage.open_file(location) as file:
            return file.read(limit + 1)
    except FileNotFoundError:
        name = location.rsplit("/", 1)[-1]
        raise MemberError(Reason.NOT_FOUND, f"its frame {name} is not there") from None


def _why(error: Exception, kind: str) -> MemberError:
    if isinstance(error, UserError):
        return MemberError(Reason.UNREADABLE, error.message)
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return MemberError(Reason.NOT_FOUND, "its container is not there")
    detail = (getattr(error, "strerror", None) or str(error) or type(error).__name__)[:200]
    # pyarrow calls a damaged page an OSError without a number, or an invalid value.
    damaged = isinstance(error, pa.ArrowException | LookupError | ValueError) or (
        isinstance(error, OSError) and error.errno is None and kind == "parquet"
    )
    return MemberError(Reason.CORRUPT if damaged else Reason.UNREADABLE, detail)


class _Cells:
    """One column of one row group, read forward a few cells at a time."""

    def __init__(self, container: str, row_group: int, column: str) -> None:
        self.place = (container, row_group, column)
        self.start = 0  # row number of the first cell held
        self._held: Any = None
        self._file = storage.open_file(container)
        try:
            self._batches = pq.ParquetFile(self._file, buffer_size=_READ_AHEAD, pre_buffer=False).iter_batches(
                batch_size=_CELLS, row_groups=[row_group], columns=[column], use_threads=False
            )
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        self._file.close()

    def cell(self, row: int) -> Any:
        """The cell of a row not before `start`. Raises LookupError when there are not so many."""
        while self._held is None or row >= self.start + len(self._held):
            batch = next(self._batches, None)
            if batch is None:
                raise LookupError(f"the row group has no row {row}")
            self.start += 0 if self._held is None else len(self._held)
            name, _, field = self.place[2].rpartition(".")
            if self.place[2] in batch.schema.names:
                self._held = batch.column(self.place[2])
            else:
                self._held = batch.column(name).field(field)
        return self._held[row - self.start]
