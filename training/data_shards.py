"""Shards: a manifest's pictures, decoded once, or their latents, in blocks that are read at once.

    <folder>/<manifest id>-<hash of `ShardsSpec`>/
        part-0-00000.parquet    blocks of one shape, a row group each, rows in the order of their slots
        shards.json             `ShardsInfo`, written last: a folder without it is not whole

A part's columns are `slot`, `id`, `content` (sha256 of the decoded picture), `moments` (of each channel, the sum of its
values and of their squares), and `pixels` (uint8) or `latents` (float16), both as (C, h, w) in bytes; where samples are
mirrored, latents have a second column, `latents_mirrored`. A block without a kept row has no row group.

A shard holds what its manifest keeps, as the manifest does, also what a takedown ledger revoked since. What of it is
shown is the roster's to say.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from curation import storage
from curation.errors import UserError
from training.data_config import ShardsData
from training.folders import cache_root
from training.roster import Roster
from training.shard_faults import refusals_told

if TYPE_CHECKING:
    from training.job import TrainJob
    from training.text_states import TextsSpec

INFO_FILE = "shards.json"
PIXELS, LATENTS, MIRRORED = "pixels", "latents", "latents_mirrored"
WINDOWS = 4  # that a cache has room for, at least: two to read ahead, the one that is read, and what is left of it
Array = tuple[int, int, int]
Info = TypeVar("Info", bound=BaseModel)


class ShardsSpec(BaseModel):
    """What shards are made of, and how; a hash of it is in their folder's name.

    Attributes:
        base_digest: which base set their slots are of (`RosterInfo.order_digest`).
        block: slots of a block.
        autoencoder: sha256 of the one whose latents they hold; None for pixels.
        patch_size: space-to-depth factor of latents.
        mirrored: whether latents of mirrored pictures are there, too.
        file_bytes: of a part before compression, about.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    version: int = 1
    manifest_id: str
    base_digest: str
    block: int
    autoencoder: str | None = None
    patch_size: int = 1
    mirrored: bool = False
    file_bytes: int

    @property
    def name(self) -> str:
        """Of the folder."""
        return f"{self.manifest_id[:12]}-{hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:8]}"

    @property
    def column(self) -> str:
        return PIXELS if self.autoencoder is None else LATENTS

    @property
    def columns(self) -> tuple[str, ...]:
        """Of pictures."""
        return (LATENTS, MIRRORED) if self.mirrored else (self.column,)

    @property
    def dtype(self) -> np.dtype[np.generic]:
        return np.dtype(np.uint8 if self.autoencoder is None else np.float16)


class Part(BaseModel):
    """A file of shards: blocks of one shape, `first` and those after it.

    Attributes:
        shape: its number.
        rows: by block, how many are there.
        payloads: by block, sha256 of its slots and pictures.
    """

    model_config = ConfigDict(frozen=True)
    name: str
    shape: int
    first: int
    blocks: int
    bytes: int = 0
    sha256: str = ""
    rows: tuple[int, ...] = ()
    payloads: tuple[str, ...] = ()

    def group(self, block: int) -> int:
        """The row group of a block that has rows."""
        return sum(rows > 0 for rows in self.rows[: block - self.first])


class ShardsInfo(BaseModel):
    """The contents of `shards.json`.

    Attributes:
        sizes: by shape, width and height of its pictures, in pixels.
        arrays: by shape, (C, h, w) of a picture as it is stored.
    """

    model_config = ConfigDict(frozen=True)
    spec: ShardsSpec
    sizes: tuple[tuple[int, int], ...]
    arrays: tuple[Array, ...]
    rows: int
    parts: tuple[Part, ...]

    def row_bytes(self, shape: int) -> int:
        """Bytes of one picture."""
        return math.prod(self.arrays[shape]) * self.spec.dtype.itemsize


@dataclass(frozen=True)
class Places:
    """Where the slots of a base set stand: which shape, and which place among the slots of that shape.

    Attributes:
        shape: int16 (base_rows,).
        place: int64 (base_rows,).
        counts: slots of each shape.
    """

    shape: np.ndarray
    place: np.ndarray
    counts: tuple[int, ...]

    @classmethod
    def of(cls, roster: Roster) -> Places:
        base = roster.info.base_rows
        if roster.shapes is None:
            return cls(np.zeros(base, np.int16), np.arange(base), (base,))
        place = np.zeros(base, np.int64)
        counts = []
        for number in range(len(roster.shapes.sizes)):
            mine = np.flatnonzero(roster.shapes.of == number)
            place[mine] = np.arange(len(mine))
            counts.append(len(mine))
        return cls(roster.shapes.of, place, tuple(counts))


@dataclass(frozen=True)
class ShardsPlan:
    """What a job's shards come to before they are made.

    Attributes:
        uri: their folder.
        sizes, arrays: see `ShardsInfo`.
        counts: slots of each shape.
    """

    uri: str
    spec: ShardsSpec
    sizes: tuple[tuple[int, int], ...]
    arrays: tuple[Array, ...]
    counts: tuple[int, ...]

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        return tuple(
            part
            for shape, (count, array) in enumerate(zip(self.counts, self.arrays, strict=True))
            for part in parts_of(shape, count, self.spec.block, self.row_bytes(array), self.spec.file_bytes)
        )

    def row_bytes(self, array: Array) -> int:
        """Bytes of a row's pictures."""
        return math.prod(array) * self.spec.dtype.itemsize * len(self.spec.columns)

    def info(self, parts: tuple[Part, ...]) -> ShardsInfo:
        """What is written of them when they are made."""
        rows = sum(sum(part.rows) for part in parts)
        return ShardsInfo(spec=self.spec, sizes=self.sizes, arrays=self.arrays, rows=rows, parts=parts)

    def known(self) -> ShardsInfo | None:
        """What lies there already; raises as `stored`."""
        return stored(self.uri)

    @property
    def bytes(self) -> int:
        """Of all of them before compression, if no slot is empty."""
        return sum(count * self.row_bytes(array) for count, array in zip(self.counts, self.arrays, strict=True))

    def window_bytes(self, window: int) -> int:
        """Of the largest window."""
        return max(
            min(window, count) * self.row_bytes(array) for count, array in zip(self.counts, self.arrays, strict=True)
        )


def spec_of(job: TrainJob, roster: Roster) -> ShardsSpec:
    """What a job's shards are made with."""
    assert isinstance(job.data, ShardsData), "a set in memory has none"
    has_latents = job.autoencoder is not None
    return ShardsSpec(
        manifest_id=roster.info.manifest_id,
        base_digest=roster.info.order_digest,
        block=job.data.block,
        autoencoder=None if job.autoencoder is None else job.autoencoder.sha256,
        patch_size=job.patch_size if has_latents else 1,
        mirrored=has_latents and job.flip,
        file_bytes=job.data.file_bytes,
    )


def folder_of(job: TrainJob, spec: ShardsSpec | TextsSpec) -> str:
    """Where a job's shards lie; a set in memory may have some of its captions' states."""
    given = job.data.folder if isinstance(job.data, ShardsData) else None
    return storage.join(given or storage.join(job.output, "shards"), spec.name)


def cache_of(job: TrainJob) -> Path:
    """The folder on this machine for blocks in use."""
    given = job.data.cache if isinstance(job.data, ShardsData) else None
    return cache_root() / "blocks" if given is None else Path(given)


def plan_of(job: TrainJob, roster: Roster, *, size: int, channels: int, factor: int) -> ShardsPlan:
    """What a job's shards come to.

    Args:
        size: side of the pictures, where all are square.
        channels, factor: of the job's space (`space.geometry`).

    Raises:
        UserError: a cache that is too small for what is read at a time.
    """
    assert isinstance(job.data, ShardsData), "a set in memory has none"
    spec = spec_of(job, roster)
    sizes = ((size, size),) if roster.shapes is None else roster.shapes.sizes
    if spec.autoencoder is None:
        channels, factor = 3, 1
    arrays: tuple[Array, ...] = tuple((channels, height // factor, width // factor) for width, height in sizes)
    plan = ShardsPlan(folder_of(job, spec), spec, sizes, arrays, Places.of(roster).counts)
    needed = WINDOWS * plan.window_bytes(job.data.window)
    if needed > job.data.cache_bytes:
        raise UserError(
            f"{WINDOWS} windows are {needed:,} bytes, and the cache has room for {job.data.cache_bytes:,}",
            field="data.cache_bytes",
            remedy="make the cache larger or the window smaller",
        )
    return plan


def parts_of(shape: int, count: int, block: int, row_bytes: int, file_bytes: int) -> Iterator[Part]:
    """The files of a shape's slots."""
    together = max(1, file_bytes // (block * row_bytes))
    blocks = -(-count // block)
    for number, first in enumerate(range(0, blocks, together)):
        name = f"part-{shape}-{number:05d}.parquet"
        yield Part(name=name, shape=shape, first=first, blocks=min(together, blocks - first))


def stored(uri: str) -> ShardsInfo | None:
    """What the shards in a folder say of themselves; None where there are none, or not yet all.

    Raises:
        UserError: when it cannot be read, or the storage refuses.
    """
    return read_info(uri, ShardsInfo)


def read_info(uri: str, kind: type[Info]) -> Info | None:
    """As `stored`, of shards of a kind."""
    where = storage.join(uri, INFO_FILE)
    try:
        with refusals_told(where):
            return kind.model_validate_json(storage.read_bytes(where))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise UserError(
            f"{where} is damaged: {error.errors()[0]['msg']}", field="data.folder", remedy=f"remove {uri} and run again"
        ) from None


def opened(uri: str, spec: ShardsSpec) -> ShardsInfo:
    """The shards in a folder.

    Raises:
        UserError: there are none, or they are of something else.
    """
    info = stored(uri)
    if info is None:
        raise UserError(
            f"no shards at {uri}", field="data.folder", remedy="run `cleanplate train` again: it makes them"
        )
    refuse_other(uri, info.spec, spec)
    return info


def refuse_other(uri: str, found: BaseModel, spec: BaseModel) -> None:
    """Raises UserError for shards that were made of something else, or in another way: of another spec."""
    ours, theirs = spec.model_dump(), found.model_dump()
    differing = sorted(name for name in ours if ours[name] != theirs[name])
    if differing:
        told = ", ".join(f"{name} is {theirs[name]!r} there and not {ours[name]!r}" for name in differing)
        raise UserError(
            f"the shards at {uri} are others: {told}", field="data.folder", remedy=f"remove {uri} and run again"
        )


def missing(uri: str, parts: Sequence[Part]) -> list[Part]:
    """Those of some files that are not there, or not of their size."""
    sizes = {found.base_name: found.size for found in storage.list_files(uri)}
    return [part for part in parts if sizes.get(part.name) != part.bytes]
