"""The index's files, and the search in it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from curation import storage
from curation.errors import UserError
from curation.manifest import FileName, refuse_extensions
from training.neighbours.calibration import Calibration
from training.neighbours.spaces import DIM, SPACES, Space, distances, pixel_views, similarity, smallest

FOLDER = "neighbours"
INFO_FILE = "index.json"
PICTURES_FILE = "pictures.parquet"
TAKEDOWNS = "takedowns"
SCHEMA_VERSION = 1


class IndexInfo(BaseModel):
    """The contents of `index.json`. Its own sha256 names the index: it holds that of every other file."""

    model_config = ConfigDict(frozen=True)
    schema_version: int = SCHEMA_VERSION
    bundle_sha256: str = Field(description="of the `cleanplate.json` of the model that it is about")
    training_sets: dict[str, str] = Field(
        description="Merkle digest of each training set in it, by the sha256 of the bundle: the model's own and those "
        "of the models that it was made from"
    )
    missing: tuple[str, ...] = Field((), description="models that it was made from whose pictures are not in it")
    manifests: tuple[str, ...] = Field(description="ids of the manifests, in the order of the folders in `takedowns`")
    ledgers: tuple[str, ...] = Field((), description="takedown ledgers that were asked, and are to be asked again")
    pictures: int
    frames: int | None = Field(None, description="of each of them, where they are films")
    clip: str = Field(description="whose vectors it has")
    dim: int
    thumbnails: int = Field(description="pictures that may be shown small")
    thumbnails_of: tuple[str, ...] = Field(description="the licences by which")
    calibration: Calibration
    created_at: datetime
    files: dict[FileName, str] = Field({}, description="sha256 of every other file, by its path")


@dataclass(frozen=True)
class Picture:
    """What is told of a training picture. `thumbnail` is a WebP, or None where it may not be shown."""

    id: str
    creator: str | None
    licence: str | None
    uri: str | None
    thumbnail: bytes | None


@dataclass(frozen=True)
class Neighbour:
    """A training picture near to what was looked for.

    Attributes:
        place: in the index.
        ratio: the normalised distance, in the space in which it is nearer.
    """

    place: int
    ratio: float
    space: Space

    @property
    def similarity(self) -> float:
        return similarity(self.ratio)


def schema(dim: int) -> pa.Schema:
    """Of `pictures.parquet`. Rows of one picture follow each other; what is told of it stands in the first of them."""
    return pa.schema(
        [
            ("id", pa.string()),
            ("frame", pa.int32()),
            ("creator", pa.string()),
            ("licence", pa.string()),
            ("uri", pa.string()),
            ("thumbnail", pa.binary()),
            ("pixel", pa.list_(pa.float16(), DIM)),
            ("clip", pa.list_(pa.float16(), dim)),
            ("pixel_spread", pa.float32()),
            ("clip_spread", pa.float32()),
        ]
    )


class Index:
    """An index in memory: P pictures of N vectors in each space.

    Args:
        told: columns `id`, `creator`, `licence`, `uri`, `thumbnail` of the pictures.
        owners: int64 (N,), ascending: the picture of each vector.
        vectors: (N, D) of each space.
        spread: float32 (N,) of each space.
    """

    def __init__(
        self,
        info: IndexInfo,
        sha256: str,
        told: pa.Table,
        owners: np.ndarray,
        vectors: Mapping[Space, np.ndarray],
        spread: Mapping[Space, np.ndarray],
    ) -> None:
        self.info = info
        self.sha256 = sha256
        self._told = told
        self.owners = owners
        self.vectors = vectors
        self.spread = spread

    def __len__(self) -> int:
        return int(self._told.num_rows)

    @cached_property
    def ids(self) -> tuple[str, ...]:
        return tuple(self._told["id"].to_pylist())

    def picture(self, place: int) -> Picture:
        return Picture(**self._told.slice(place, 1).to_pylist()[0])

    def mask(self, ids: Collection[str]) -> np.ndarray:
        """bool (P,): the pictures with these ids."""
        wanted = set(ids)
        return np.array([id_ in wanted for id_ in self.ids], bool)

    def search(self, frames: Sequence[np.ndarray], embeddings: np.ndarray) -> Found:
        """How far every training picture is from a picture, or from a film: from the nearest of its frames.

        Args:
            frames: uint8 (H, W, 3) of each; one of a picture.
            embeddings: of each, unit vectors (F, D) of the index's CLIP.
        """
        apart: dict[Space, np.ndarray] = {}
        for number, frame in enumerate(frames):
            for space in SPACES:
                views = pixel_views(frame) if space == "pixel" else embeddings[number : number + 1]
                # one frame at a time, so that the last bits of a distance do not depend on the others
                found = distances(self.vectors[space], views)
                apart[space] = np.minimum(apart.get(space, found), found)
        return Found(self.owners, apart, self.spread)


@dataclass(frozen=True)
class Found:
    """Distances (N,) to all vectors of an index, by space."""

    owners: np.ndarray
    apart: Mapping[Space, np.ndarray]
    spread: Mapping[Space, np.ndarray]

    def nearest(self, space: Space, among: np.ndarray | None = None) -> Neighbour:
        """The nearest picture in a space.

        Args:
            among: bool (P,), at least one of them; None: all.
        """
        apart = self.apart[space]
        if among is not None:
            apart = np.where(among[self.owners], apart, np.inf)
        return self._neighbour(space, int(apart.argmin()))

    def best(self, k: int, without: np.ndarray) -> list[Neighbour]:
        """The k most similar of those that are among the k nearest in either space, most similar first.

        Args:
            without: bool (P,), pictures that are left out.
        """
        found: dict[int, Neighbour] = {}
        for space in SPACES:
            apart = np.where(without[self.owners], np.inf, self.apart[space])
            for row in self._rows(apart, k):
                neighbour = self._neighbour(space, row)
                known = found.get(neighbour.place)
                if known is None or neighbour.ratio < known.ratio:
                    found[neighbour.place] = neighbour
        return sorted(found.values(), key=lambda n: (n.ratio, n.place))[:k]

    def _rows(self, apart: np.ndarray, k: int) -> list[int]:
        """The nearest vectors of the k nearest pictures."""
        most = k
        while True:
            rows = smallest(apart, most).tolist()
            first: dict[int, int] = {}
            for row in rows:
                first.setdefault(int(self.owners[row]), row)
            if len(first) >= k or len(rows) < most:
                return list(first.values())[:k]
            most *= 2  # of films, several vectors are of one picture

    def _neighbour(self, space: Space, row: int) -> Neighbour:
        spread = float(self.spread[space][row])
        return Neighbour(int(self.owners[row]), float(self.apart[space][row]) / max(spread, 1e-12), space)


def read_info(folder: str | Path) -> IndexInfo:
    """The description of an index.

    Raises:
        UserError: none there, a damaged one, or one of a newer schema.
    """
    path = Path(folder) / INFO_FILE
    try:
        info = IndexInfo.model_validate_json(path.read_bytes())
    except OSError:
        raise UserError(
            f"no index of neighbours at {folder}", field="index", remedy="make one: `cleanplate index MODEL`"
        ) from None
    except ValidationError as error:
        raise UserError(f"{path} is damaged: {error}", field="index", remedy="make it again") from None
    if info.schema_version > SCHEMA_VERSION:
        raise UserError(f"{path} is of a newer cleanplate", field="index", remedy="upgrade, or make it again")
    return info


def load(folder: str | Path) -> Index:
    """Reads an index whole, after comparing every file with its sha256. Needs no Ray, no registry and no manifest.

    Raises:
        UserError: as `read_info`, or a file that is missing or was changed.
    """
    folder = Path(folder)
    info = read_info(folder)
    for name, expected in info.files.items():
        if not (folder / name).is_file() or storage.sha256_of(folder / name) != expected:
            raise UserError(f"{folder / name} is missing or was changed", field="index", remedy="make it again")
    try:
        for name in info.files:
            storage.below(str(folder), name)
        rows = pq.read_table(folder / PICTURES_FILE)
        refuse_extensions(rows.schema)
    except ValueError as error:
        raise UserError(f"the index at {folder} is damaged: {error}", field="index", remedy="make it again") from None
    first = rows.filter(pa.array(rows["frame"].to_numpy() == 0))
    vectors: dict[Space, np.ndarray] = {space: _matrix(rows[space]) for space in SPACES}
    return Index(
        info,
        storage.sha256_of(folder / INFO_FILE),
        first.select(["id", "creator", "licence", "uri", "thumbnail"]).combine_chunks(),
        np.cumsum(rows["frame"].to_numpy() == 0) - 1,
        vectors,
        {space: rows[f"{space}_spread"].to_numpy() for space in SPACES},
    )


def _matrix(column: pa.ChunkedArray) -> np.ndarray:
    flat: np.ndarray = np.concatenate([chunk.flatten().to_numpy() for chunk in column.chunks])
    return flat.reshape(len(column), -1)
