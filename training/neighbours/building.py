"""Makes an index of the pictures that a model was trained on, from their manifests."""

from __future__ import annotations

import io
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from curation import storage
from curation.errors import UserError
from curation.manifest import INFO_FILE as MANIFEST_FILE
from curation.manifest import Decision, Manifest, now, write_part
from curation.takedowns.revocation import COLUMNS, PICTURE_COLUMNS
from training import folders
from training.data import decode, frames_of
from training.neighbours.calibration import MOST, Calibration
from training.neighbours.index import (
    INFO_FILE,
    PICTURES_FILE,
    TAKEDOWNS,
    Index,
    IndexInfo,
    schema,
)
from training.neighbours.leave_one_out import leave_one_out
from training.neighbours.spaces import (
    DIM,
    SAME,
    SPACES,
    Space,
    pixel_vector,
    spreads,
)
from training.roster import Roster

Embed = Callable[[Sequence[np.ndarray]], np.ndarray]
"""uint8 (H, W, 3) each, of any size, to unit vectors (N, D)."""

FEWEST = 3
FEWEST_HELD_OUT = 50
_TOLD = ("id", "creator", "licence", "uri", "image")
_BATCH = 256  # pictures whose vectors are made together
_ROW_GROUP = 4096


@dataclass(frozen=True)
class Trained:
    """A training set and its pictures.

    Attributes:
        bundle_sha256: of the model that was trained on it.
    """

    bundle_sha256: str
    roster: Roster
    manifest: Manifest


@dataclass(frozen=True)
class Thumbnails:
    """Which pictures may be shown small.

    Attributes:
        licences: by which.
        permit: whether a row's stated licence is one of them.
        revoked: ids of pictures that are not shown whatever their licence.
        side: in pixels, at most.
    """

    licences: tuple[str, ...]
    permit: Callable[[str | None], bool]
    revoked: frozenset[str] = frozenset()
    side: int = 64

    def of(self, row: Mapping[str, Any], picture: np.ndarray) -> bytes | None:
        """A WebP of a row's picture, uint8 (H, W, 3); None where it may not be shown."""
        if row["id"] in self.revoked or not self.permit(row["licence"]):
            return None
        image, buffer = Image.fromarray(picture), io.BytesIO()
        image.thumbnail((self.side, self.side), Image.Resampling.BOX)
        image.save(buffer, "WEBP", quality=80, method=4)
        return buffer.getvalue()


@dataclass
class _Rows:
    told: list[dict[str, Any]] = field(default_factory=list)
    owners: list[int] = field(default_factory=list)
    pixel: list[np.ndarray] = field(default_factory=list)
    clip: list[np.ndarray] = field(default_factory=list)

    def vectors(self, dim: int) -> dict[Space, np.ndarray]:
        empty = {"pixel": np.zeros((0, DIM), np.float16), "clip": np.zeros((0, dim), np.float16)}
        return {
            "pixel": np.concatenate([empty["pixel"], *self.pixel]),
            "clip": np.concatenate([empty["clip"], *self.clip]),
        }


def build(
    folder: Path,
    trained: Sequence[Trained],
    held_out: Sequence[tuple[Manifest, Roster]],
    embed: Embed,
    *,
    clip: str,
    dim: int,
    thumbnails: Thumbnails,
    ledgers: Sequence[str] = (),
    missing: Sequence[str] = (),
    device: str = "cpu",
) -> IndexInfo:
    """Writes an index. All or nothing: an older one in the folder is replaced when the new one is whole.

    Args:
        trained: the model's own training set first, and those of the models that it was made from.
        held_out: real pictures that the model was not trained on, which it is calibrated with; with fewer than fifty of
            them the training pictures stand in, one by one left out.
        embed: of the CLIP of this name and this many dimensions.
        ledgers, missing: as in `IndexInfo`.
        device: on which the pictures are held against each other.

    Raises:
        UserError: fewer than three pictures, one that is damaged, or a folder with other things in it.
    """
    folders.refuse_foreign(folder, INFO_FILE, "an index")
    frames = frames_of(trained[0].manifest)
    rows, seen, missing = _Rows(), set[str](), list(missing)
    for one in trained:
        before, wanted = len(seen), set(one.roster.ids)
        _read(rows, one.manifest, wanted - seen, embed, thumbnails, frames)
        overlap = len(wanted & seen)
        seen = {row["id"] for row in rows.told}
        if lacking := len(wanted) - overlap - (len(seen) - before):
            missing.append(f"{lacking} pictures that {one.manifest.uri} does not have any more")
    if len(rows.told) < FEWEST:
        raise UserError(
            f"{len(rows.told)} pictures have no neighbours to be measured by",
            field="model",
            remedy="index a model of more pictures",
        )
    owners = np.array(rows.owners, np.int64)
    vectors = rows.vectors(dim)
    spread = {space: spreads(space, vectors[space], owners, device) for space in SPACES}
    manifests = list({one.manifest.id: one.manifest for one in trained}.values())
    info = IndexInfo(
        bundle_sha256=trained[0].bundle_sha256,
        training_sets={one.bundle_sha256: one.roster.info.digest for one in trained},
        missing=tuple(missing),
        manifests=tuple(manifest.id for manifest in manifests),
        ledgers=tuple(ledgers),
        pictures=len(rows.told),
        frames=frames,
        clip=clip,
        dim=dim,
        thumbnails=sum(row["thumbnail"] is not None for row in rows.told),
        thumbnails_of=thumbnails.licences,
        calibration=Calibration(kind="leave_one_out", copies=0, ratios=()),
        created_at=now(),
    )
    index = Index(info, "", pa.Table.from_pylist(rows.told), owners, vectors, spread)
    info = info.model_copy(update={"calibration": _calibrated(index, held_out, embed, frames)})
    return _write(folder, info, rows, vectors, spread, manifests)


def _read(
    rows: _Rows, manifest: Manifest, wanted: set[str], embed: Embed, thumbnails: Thumbnails, frames: int | None
) -> None:
    """Adds the pictures of a manifest with these ids."""
    for row, shown, vectors in _embedded(_pictures(manifest, wanted, frames), embed):
        rows.owners += [len(rows.told)] * len(shown)
        facts = {name: row[name] for name in ("id", "creator", "licence", "uri")}
        rows.told.append({**facts, "thumbnail": thumbnails.of(row, shown[0])})
        rows.pixel.append(np.stack([pixel_vector(frame) for frame in shown]).astype(np.float16))
        rows.clip.append(vectors.astype(np.float16))


def _pictures(
    manifest: Manifest, wanted: set[str], frames: int | None
) -> Iterator[tuple[dict[str, Any], list[np.ndarray]]]:
    """The kept rows with these ids and their pictures, uint8 (H, W, 3): one, or the frames of a film.

    Raises:
        UserError: a picture that is damaged.
    """
    for batch in manifest.batches(list(_TOLD), decision=Decision.KEPT):
        rows = batch.filter(pa.array([id_ in wanted for id_ in batch["id"].to_pylist()], pa.bool_()))
        for row in rows.to_pylist():
            picture = decode(row["id"], row["image"], None, frames)
            yield row, [picture] if frames is None else list(picture)


def _embedded(
    found: Iterator[tuple[dict[str, Any], list[np.ndarray]]], embed: Embed
) -> Iterator[tuple[dict[str, Any], list[np.ndarray], np.ndarray]]:
    """With the CLIP's vectors (F, D), which are made of many pictures at a time."""
    while chunk := list(islice(found, _BATCH)):
        vectors = embed([frame for _, shown in chunk for frame in shown])
        ends = np.cumsum([len(shown) for _, shown in chunk])[:-1]
        for (row, shown), own in zip(chunk, np.split(vectors, ends), strict=True):
            yield row, shown, own


def _calibrated(
    index: Index, held_out: Sequence[tuple[Manifest, Roster]], embed: Embed, frames: int | None
) -> Calibration:
    """With held-out pictures, those of the first ids; or, where these are few, the training's without each."""
    ratios: list[tuple[float, float]] = []
    copies = 0
    for manifest, roster in held_out:
        for _, shown, vectors in _embedded(_pictures(manifest, set(roster.ids[:MOST]), frames), embed):
            found = index.search(shown, vectors)
            copy = any(float(found.apart[space].min()) <= SAME[space] for space in SPACES)
            copies += copy
            if not copy:
                ratios.append((found.nearest("pixel").ratio, found.nearest("clip").ratio))
    if len(ratios) >= FEWEST_HELD_OUT:
        return Calibration(kind="held_out", copies=copies, ratios=tuple(ratios))
    return leave_one_out(index)


def _write(
    folder: Path,
    info: IndexInfo,
    rows: _Rows,
    vectors: dict[Space, np.ndarray],
    spread: dict[Space, np.ndarray],
    manifests: Sequence[Manifest],
) -> IndexInfo:
    staging = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.partial")
    staging.mkdir(parents=True)
    try:
        _write_pictures(staging / PICTURES_FILE, info.dim, rows, vectors, spread)
        for number, manifest in enumerate(manifests):
            _write_slim(staging / TAKEDOWNS / str(number), manifest)
        files = sorted(path for path in staging.rglob("*") if path.is_file())
        named = {path.relative_to(staging).as_posix(): storage.sha256_of(path) for path in files}
        info = info.model_copy(update={"files": named})
        (staging / INFO_FILE).write_text(info.model_dump_json(indent=1), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        staging.rename(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return info


def _write_pictures(
    path: Path, dim: int, rows: _Rows, vectors: dict[Space, np.ndarray], spread: dict[Space, np.ndarray]
) -> None:
    fields = schema(dim)
    owners = np.array(rows.owners, np.int64)
    with pq.ParquetWriter(path, fields, compression="zstd") as writer:
        for start in range(0, len(owners), _ROW_GROUP):
            some = range(start, min(start + _ROW_GROUP, len(owners)))
            told = []
            for row in some:
                frame = row - int(np.searchsorted(owners, owners[row]))
                told.append({**(rows.told[owners[row]] if frame == 0 else {}), "frame": frame})
            columns = {
                name: pa.array([t.get(name) for t in told], fields.field(name).type) for name in fields.names[:6]
            }
            for space in SPACES:
                flat = pa.array(vectors[space][some].ravel(), pa.float16())
                columns[space] = pa.FixedSizeListArray.from_arrays(flat, vectors[space].shape[1])
                columns[f"{space}_spread"] = pa.array(spread[space][some], pa.float32())
            writer.write_table(pa.table([columns[name] for name in fields.names], schema=fields))


def _write_slim(folder: Path, manifest: Manifest) -> None:
    """A manifest of the same rows, with those columns only by which a takedown finds them, and no pictures."""
    names = [name for name in (*COLUMNS, *PICTURE_COLUMNS, "decision") if name in manifest.schema.names]
    rows = manifest.table(list(dict.fromkeys(names)))
    part, _ = write_part(str(folder / "part-00000.parquet"), rows)
    info = manifest.info.model_copy(update={"files": [part]})
    (folder / MANIFEST_FILE).write_text(info.model_dump_json(indent=1), encoding="utf-8")
