"""Finding: which rows may be copies of which, with how alike they are, whatever the policy makes of it.

`find` measures once and gives `Edges`; a radius that shrinks, another colour tolerance or a semantic threshold that
moves above the stored floor only filters them. They can be stored, and `covers` says whether stored ones will do.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field

from curation import storage
from curation.duplicates.classes import digests, first_equal
from curation.duplicates.groups import Groups
from curation.duplicates.hamming import Wanted, between, near_values
from curation.duplicates.semantic import Neighbours, SemanticConfig, neighbours

EXACT, PIXEL, PERCEPTUAL, SEMANTIC, TURNED = 0, 1, 2, 3, 4
_VERSION = 1  # of what is found and how it is stored


class PerceptualConfig(BaseModel):
    """Two pictures are perceptual duplicates when hash and colours both agree.

    Turned and mirrored copies are off by default: an arrow to the left is not a copy of the arrow to the right, nor a
    page of mirrored letters one of the page. They cost seven more hashes of each picture and eight times the search.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    radius: int = Field(3, ge=0, le=15, description="largest Hamming distance between the 64-bit hashes")
    colour: float = Field(
        0.06, ge=0, le=1, description="largest mean difference of the 4x4 colour layouts, as a share of full scale"
    )
    turned: bool = Field(False, description="also the mirrored and the rotated by quarter turns")


class DuplicatesConfig(BaseModel):
    """Which copies count, and which of them stays. `null` for `perceptual` or `semantic` turns that search off."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    exact: bool = Field(True, description="the same bytes")
    pixel: bool = Field(True, description="the same pixels in another file")
    perceptual: PerceptualConfig | None = Field(PerceptualConfig(), description="what looks the same; null: nothing")
    semantic: SemanticConfig | None = Field(None, description="what shows the same, by embedding; null: nothing")
    prefer: tuple[Literal["licence", "resolution", "order"], ...] = Field(
        ("resolution", "order"), description="which copy stays, by what first; what decides nothing leaves it to order"
    )
    backend: Literal["auto", "one_node", "ray"] = Field("auto", description="where copies are searched for")
    ray_above: int = Field(200_000_000, ge=0, description="rows beyond which `auto` searches on Ray")

    @property
    def turned(self) -> bool:
        """Whether the hashes of turned pictures are asked for."""
        return self.perceptual is not None and self.perceptual.turned

    def binding(self) -> DuplicatesConfig:
        """The copies that an opt-out reaches, and the search for it: also those the job itself would keep.

        What counts as a copy by default always does: a job that keeps near copies apart does not thereby keep those of
        what is opted out.
        """
        own, least = self.perceptual or PerceptualConfig(), PerceptualConfig()
        reached = own.model_copy(
            update={"radius": max(own.radius, least.radius), "colour": max(own.colour, least.colour)}
        )
        return self.model_copy(update={"exact": True, "pixel": True, "perceptual": reached})


@dataclass(frozen=True)
class CopyInputs:
    """What is known of N pictures, in row order."""

    ids: np.ndarray | pa.Array  # (N,) strings: sha256 of the bytes
    pixel_hashes: np.ndarray | pa.Array  # (N,) strings: sha256 of the pixels
    phashes: np.ndarray  # (N,) uint64
    colours: np.ndarray  # (N, 48) uint8: 4x4 RGB
    turned: np.ndarray | None = None  # (N, 7) uint64: hashes of the other orientations, in any order; zeros for none
    embeddings: np.ndarray | None = None  # (N, D) float16, L2-normalised; zeros for none

    def __len__(self) -> int:
        return len(self.phashes)

    def key(self) -> str:
        """A hash of all that `find` reads."""
        h = hashlib.sha256(f"{_VERSION} {len(self)}".encode())
        for array in (digests(self.ids), digests(self.pixel_hashes), self.phashes, self.turned, self.embeddings):
            h.update(b"-" if array is None else f"{array.dtype} {array.shape}".encode())
            if array is not None:
                h.update(np.ascontiguousarray(array).data)
        return h.hexdigest()


class Search(Protocol):
    """The three searches whose cost grows with the set: on this machine, or on Ray (`buckets.OnRay`)."""

    def first_equal(self, words: np.ndarray) -> np.ndarray: ...

    def near_values(self, values: np.ndarray, radius: int, wanted: Wanted | None) -> tuple[np.ndarray, np.ndarray]: ...

    def neighbours(self, vectors: np.ndarray, config: SemanticConfig) -> Neighbours: ...


class OneNode:
    """The searches in this process."""

    def first_equal(self, words: np.ndarray) -> np.ndarray:
        return first_equal(words)

    def near_values(self, values: np.ndarray, radius: int, wanted: Wanted | None) -> tuple[np.ndarray, np.ndarray]:
        return near_values(values, radius, wanted)

    def neighbours(self, vectors: np.ndarray, config: SemanticConfig) -> Neighbours:
        return neighbours(vectors, config)


@dataclass(frozen=True)
class Edges:
    """What was found among N rows.

    Rows that are equal are told by the first of them, and the edges lie between such firsts, so that 10^5 blank
    pictures are one node and not 5 * 10^9 pairs. By kind:

    - PERCEPTUAL: a < b, first rows of two hashes; similarity is the share of the 64 bits that agree.
    - TURNED: a is the first row of its pixels, b that of a hash; some turned hash of a is near b's hash.
    - SEMANTIC: a < b, first rows of their pixels; similarity is the cosine.
    """

    same_bytes: np.ndarray  # (N,) int64: the first row with the same bytes
    same_pixels: np.ndarray  # (N,) int64: the first row with the same pixels
    same_hash: np.ndarray  # (N,) int64: the first row with the same perceptual hash
    a: np.ndarray  # (P,) int64
    b: np.ndarray  # (P,) int64
    kind: np.ndarray  # (P,) int8
    similarity: np.ndarray  # (P,) float32
    searched: Mapping[str, Any]  # what was searched for

    def covers(self, config: DuplicatesConfig) -> bool:
        """Whether these edges are all that `config` needs."""
        wanted, had = _searched(config), self.searched
        if wanted["semantic"] is not None and wanted["semantic"] != had["semantic"]:
            return False
        return bool(wanted["radius"] <= had["radius"] and wanted["turned"] <= had["turned"])

    def of(self, kind: int, least: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The edges of a kind from a similarity on: (a, b, similarity)."""
        chosen = (self.kind == kind) & (self.similarity >= np.float32(least))
        return self.a[chosen], self.b[chosen], self.similarity[chosen]

    def nearest(self) -> tuple[np.ndarray, np.ndarray]:
        """The semantic neighbour of every row: (N,) int64 row with other pixels, -1 for none; (N,) float32 cosine."""
        a, b, cosine = self.of(SEMANTIC)
        row, other, cosine = np.concatenate([a, b]), np.concatenate([b, a]), np.concatenate([cosine, cosine])
        order = np.lexsort((-other, cosine, row))  # the last of a row is the nearest
        nearest, similarity = np.full(len(self.same_pixels), -1), np.zeros(len(self.same_pixels), np.float32)
        nearest[row[order]], similarity[row[order]] = other[order], cosine[order]
        return nearest[self.same_pixels], similarity[self.same_pixels]

    def write(self, uri: str) -> None:
        """Stores them in a folder, local or on S3; a folder without its `edges.parquet` does not count."""
        rows = pa.table({name: getattr(self, name) for name in _ROWS})
        _write(storage.join(uri, "rows.parquet"), rows)
        edges = pa.table({name: getattr(self, name) for name in _EDGES})
        _write(
            storage.join(uri, "edges.parquet"), edges.replace_schema_metadata({"searched": json.dumps(self.searched)})
        )

    @classmethod
    def read(cls, uri: str) -> Edges | None:
        """What `write` stored; None where there is nothing."""
        try:
            edges = pq.read_table(io.BytesIO(storage.read_bytes(storage.join(uri, "edges.parquet"))))
        except FileNotFoundError:
            return None
        rows = pq.read_table(io.BytesIO(storage.read_bytes(storage.join(uri, "rows.parquet"))))
        columns = {name: rows[name].to_numpy() for name in _ROWS} | {name: edges[name].to_numpy() for name in _EDGES}
        return cls(**columns, searched=json.loads(edges.schema.metadata[b"searched"]))


_ROWS = ("same_bytes", "same_pixels", "same_hash")
_EDGES = ("a", "b", "kind", "similarity")


def _write(uri: str, table: pa.Table) -> None:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    storage.write_bytes(uri, buffer.getvalue())


def _searched(config: DuplicatesConfig) -> dict[str, Any]:
    perceptual, semantic = config.perceptual, config.semantic
    return {
        "radius": -1 if perceptual is None else perceptual.radius,
        "turned": config.turned,
        "semantic": None if semantic is None else semantic.search(),
    }


def find(rows: CopyInputs, config: DuplicatesConfig, *, work: str | None = None) -> Edges:
    """Everything that `config` may need to know of the rows.

    Args:
        rows: what is known of the pictures.
        config: how far to look; which kinds count does not matter.
        work: a folder, local or on S3, for the files of a search on Ray, which resumes from them; without one the
            search stays on this machine.
    """
    search: Search = OneNode()
    if work is not None and (config.backend == "ray" or (config.backend == "auto" and len(rows) > config.ray_above)):
        from curation.duplicates.buckets import OnRay

        search = OnRay(work)
    same_bytes = search.first_equal(digests(rows.ids))
    same_pixels = search.first_equal(digests(rows.pixel_hashes))
    same_hash = search.first_equal(rows.phashes[:, None])
    pictures = np.flatnonzero(same_pixels == np.arange(len(rows)))
    found = []
    if config.perceptual is not None:
        firsts = np.flatnonzero(same_hash == np.arange(len(rows)))
        found.append(_near(rows.phashes, firsts, config.perceptual.radius, search))
        if config.turned and rows.turned is not None and rows.turned.any():
            found.append(_near_turned(rows, firsts, pictures, config.perceptual.radius, search))
    if config.semantic is not None and rows.embeddings is not None and rows.embeddings.any():
        a, b, cosine = search.neighbours(rows.embeddings[pictures], config.semantic)
        found.append((pictures[a], pictures[b], np.full(len(a), SEMANTIC, np.int8), cosine))
    nothing = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int8), np.zeros(0, np.float32))
    a, b, kind, similarity = (np.concatenate(column) for column in zip(nothing, *found, strict=True))
    return Edges(same_bytes, same_pixels, same_hash, a, b, kind, similarity, _searched(config))


_Found = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def _near(phashes: np.ndarray, firsts: np.ndarray, radius: int, search: Search) -> _Found:
    groups = Groups.of(phashes[firsts])
    x, y = search.near_values(groups.values, radius, None)
    a, b = firsts[groups.first[groups.find(x)]], firsts[groups.first[groups.find(y)]]
    return _edges(np.minimum(a, b), np.maximum(a, b), PERCEPTUAL, x ^ y)


def _near_turned(rows: CopyInputs, firsts: np.ndarray, pictures: np.ndarray, radius: int, search: Search) -> _Found:
    assert rows.turned is not None
    pictures = pictures[rows.turned[pictures].any(axis=1)]
    turned = rows.turned[pictures]
    a, b = between(turned.ravel(), rows.phashes[firsts], radius, search.near_values)
    differ = turned.ravel()[a] ^ rows.phashes[firsts[b]]
    picture, other = pictures[a // turned.shape[1]], firsts[b]
    order = np.lexsort((np.bitwise_count(differ), other, picture))
    picture, other, differ = picture[order], other[order], differ[order]
    new = np.ones(len(order), bool)  # several turns of a picture may look alike: the nearest counts
    new[1:] = (picture[1:] != picture[:-1]) | (other[1:] != other[:-1])
    return _edges(picture[new], other[new], TURNED, differ[new])


def _edges(a: np.ndarray, b: np.ndarray, kind: int, differ: np.ndarray) -> _Found:
    order = np.lexsort((b, a))
    similarity = (1 - np.bitwise_count(differ[order]) / 64).astype(np.float32)
    return a[order], b[order], np.full(len(a), kind, np.int8), similarity
