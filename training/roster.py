"""The roster of a run: the exact inputs that it trains on, and their places in the order of samples.

The order is a function of the base set: the rows that the base manifest kept, sorted by id, are its slots. What was
taken out since, by a ledger or in a derived manifest, leaves an empty slot and moves no other (`training.order`). A
run's folder and its MLflow run keep the roster as `training_set.parquet`, so that proofs and traces need no manifest.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from curation import storage
from curation.errors import UserError
from curation.manifest import Decision, Manifest, refuse_extensions
from training import merkle
from training.evaluation_config import held_out

FILE = "training_set.parquet"
NO_LEDGER = "none"
_INFO = b"cleanplate"
_SHAPES = b"cleanplate.shapes"
_SIZES = ("image_width", "image_height")  # columns of a manifest whose pictures are of several shapes


class OrderInfo(BaseModel):
    """What a run's order of samples depends on beside its seed and its roster (`training.order`).

    Attributes:
        window: slots of a window; None where the order is whole.
        block: slots of a block.
        batch_size: samples of a step, all of one shape; None where there is one shape only.
    """

    model_config = ConfigDict(frozen=True)
    window: int | None = None
    block: int | None = None
    batch_size: int | None = None


@dataclass(frozen=True)
class Shapes:
    """The shapes of a base set's pictures.

    Attributes:
        sizes: (width, height) of each shape, in pixels, sorted.
        of: int16 (base_rows,), which of them a slot's picture has; -1 where that is not known.
    """

    sizes: tuple[tuple[int, int], ...]
    of: np.ndarray

    @property
    def digest(self) -> str:
        return hashlib.sha256(repr(self.sizes).encode() + self.of.astype("<i2").tobytes()).hexdigest()


class RosterInfo(BaseModel):
    """What a roster belongs to; in its file's metadata.

    Attributes:
        digest: Merkle digest of the ids.
        base_rows: slots of the base set.
        base_digest, removed_digest: Merkle digests of the ids of all slots and of the empty ones.
        ledger_uri: the takedown ledgers that were asked, with commas between them; "none" where none was named.
        ledger_version: what they held, in the same order.
        excluded_rows: rows that the manifest keeps and these ledgers revoke.
        held_out_rows: rows of the others that were not trained on either, to measure by.
        held_out_share, held_out_seed: which ones follows from these (`evaluation_config.held_out`).
        order: how samples are ordered.
        shapes: (width, height) of the base set's pictures; empty where all have one shape.
        shapes_digest: of which slot has which.
    """

    model_config = ConfigDict(frozen=True)
    manifest_id: str
    manifest_uri: str
    digest: str
    base_rows: int
    base_digest: str
    removed_digest: str
    ledger_uri: str = NO_LEDGER
    ledger_version: str = NO_LEDGER
    excluded_rows: int = 0
    held_out_rows: int = 0
    held_out_share: float = 0.0
    held_out_seed: int = 0
    order: OrderInfo = OrderInfo()
    shapes: tuple[tuple[int, int], ...] = ()
    shapes_digest: str = ""

    @property
    def order_digest(self) -> str:
        """A digest of what a sample's slot depends on beside job and seed: the base set, and the shapes in it."""
        if not self.shapes:
            return self.base_digest
        return hashlib.sha256(f"{self.base_digest}{self.shapes_digest}".encode()).hexdigest()


@dataclass(frozen=True)
class Roster:
    """N inputs.

    Attributes:
        ids: sorted.
        slots: int64 (N,), ascending: the place of each in the base set.
        shapes: of the base set's pictures; None where all have one shape.
    """

    ids: tuple[str, ...]
    slots: np.ndarray
    info: RosterInfo
    shapes: Shapes | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def removed(self) -> np.ndarray:
        """bool (base_rows,): the slots that are empty."""
        gone = np.ones(self.info.base_rows, bool)
        gone[self.slots] = False
        return gone

    def slots_of(self, ids: Collection[str]) -> np.ndarray:
        """int64: the slots of those of some ids that are in the set."""
        wanted = set(ids)
        return self.slots[[id_ in wanted for id_ in self.ids]] if wanted else self.slots[:0]

    def only(self, ids: Collection[str]) -> Roster:
        """Some of them, to look at; what it belongs to is still said of all."""
        wanted = set(ids)
        there = np.array([id_ in wanted for id_ in self.ids], bool)
        return replace(self, ids=tuple(id_ for id_ in self.ids if id_ in wanted), slots=self.slots[there])

    def ordered(self, order: OrderInfo) -> Roster:
        """The same inputs in another order."""
        return replace(self, info=self.info.model_copy(update={"order": order}))

    @classmethod
    def of_manifest(
        cls,
        manifest: Manifest,
        revoked: Collection[str] = (),
        *,
        ledger_uri: str = NO_LEDGER,
        ledger_version: str = NO_LEDGER,
        held_out_share: float = 0.0,
        seed: int = 0,
    ) -> Roster:
        """The rows that a manifest keeps, without those that were revoked since and those that are held out.

        A derived manifest's base set are the rows that it keeps or that its own base kept (`was_kept`).

        Args:
            seed: of the share that is held out.

        Raises:
            UserError: when nothing is left.
        """
        ids, kept, sizes = _base(manifest)
        order = np.argsort(ids, kind="stable")
        ids, kept = ids[order], kept[order]
        shapes = None if sizes is None else _shapes(sizes[order])
        there = kept & ~np.isin(ids, np.array(sorted(revoked), "S64")) if revoked else kept
        excluded = int((kept & ~there).sum())
        if kept.any() and not there.any():
            raise UserError(
                f"every row that {manifest.uri} keeps has been revoked since",
                field="manifest",
                remedy="curate other pictures",
            )
        base = ids.astype(str)
        apart = np.zeros(len(base), bool)
        if held_out_share:
            apart = there & np.array([held_out(seed, id_, held_out_share) for id_ in base.tolist()], bool)
            there = there & ~apart
        if apart.any() and not there.any():
            raise UserError("everything is held out", field="evaluation.holdout", remedy="use a smaller share")
        present = base[there]
        info = RosterInfo(
            manifest_id=manifest.id,
            manifest_uri=storage.absolute(manifest.uri),
            digest=merkle.digest(present.tolist()),
            base_rows=len(ids),
            base_digest=merkle.digest(base.tolist()),
            removed_digest=merkle.digest(base[~there].tolist()),
            ledger_uri=ledger_uri,
            ledger_version=ledger_version,
            excluded_rows=excluded,
            held_out_rows=int(apart.sum()),
            held_out_share=held_out_share,
            held_out_seed=seed if held_out_share else 0,
            shapes=() if shapes is None else shapes.sizes,
            shapes_digest="" if shapes is None else shapes.digest,
        )
        return cls(tuple(present.tolist()), np.flatnonzero(there), info, shapes)

    def to_parquet(self) -> bytes:
        """Columns `id` and `slot`, and in the schema's metadata `RosterInfo` as JSON under `cleanplate`, and the slots'
        shapes under `cleanplate.shapes`."""
        rows = pa.table({"id": pa.array(self.ids, pa.string()), "slot": pa.array(self.slots, pa.int64())})
        buffer = io.BytesIO()
        metadata = {_INFO: self.info.model_dump_json().encode()}
        if self.shapes is not None:
            metadata[_SHAPES] = base64.b64encode(
                pa.compress(self.shapes.of.astype("<i2").tobytes(), "zstd", asbytes=True)
            )
        rows = rows.replace_schema_metadata(metadata)
        pq.write_table(rows, buffer, compression="zstd")
        return buffer.getvalue()

    @classmethod
    def from_parquet(cls, data: bytes, where: str) -> Roster:
        """The inverse of `to_parquet`.

        Args:
            where: where it was read, for the error.

        Raises:
            UserError: when it is damaged, or its ids are not those of its digest.
        """
        try:
            file = pq.ParquetFile(pa.BufferReader(data))
            refuse_extensions(file.schema_arrow)
            rows = file.read()
            info = RosterInfo.model_validate_json((rows.schema.metadata or {})[_INFO])
            ids, slots = rows["id"].to_pylist(), rows["slot"].to_numpy().copy()
            if merkle.digest(ids) != info.digest or ids != sorted(ids):
                raise ValueError("its ids are not those of its digest")
            if (np.diff(slots, prepend=-1) <= 0).any() or (len(slots) and slots[-1] >= info.base_rows):
                raise ValueError("its slots are not those of a set")
            shapes = _stored_shapes(info, rows.schema.metadata)
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError, ValidationError) as error:
            raise UserError(
                f"the training set at {where} is damaged: {error}",
                field="training_set",
                remedy="restore the file; the run's folder and its MLflow run both have one",
            ) from None
        return cls(tuple(ids), slots, info, shapes)


def slots_by_part(manifest: Manifest) -> list[np.ndarray]:
    """For each of a manifest's files, the slots of the rows that it keeps, in its order: int64."""
    files = manifest.info.files
    alone = [Manifest(manifest.uri, manifest.info.model_copy(update={"files": [file]})) for file in files]
    found = [_base(part)[:2] for part in alone]
    ids = np.concatenate([ids for ids, _ in found])
    slots = np.empty(len(ids), np.int64)
    slots[np.argsort(ids, kind="stable")] = np.arange(len(ids))
    ends = np.cumsum([len(ids) for ids, _ in found])
    return [part[kept] for part, (_, kept) in zip(np.split(slots, ends[:-1]), found, strict=True)]


def _stored_shapes(info: RosterInfo, metadata: Mapping[bytes, bytes]) -> Shapes | None:
    if not info.shapes:
        return None
    packed = base64.b64decode(metadata[_SHAPES])
    of = np.frombuffer(pa.decompress(packed, 2 * info.base_rows, "zstd", asbytes=True), "<i2").astype(np.int16)
    shapes = Shapes(info.shapes, of)
    if shapes.digest != info.shapes_digest:
        raise ValueError("its shapes are not those of its digest")
    return shapes


def _shapes(sizes: np.ndarray) -> Shapes | None:
    """Of sizes (B, 2), 0 where one is not known; None where none is."""
    known = (sizes > 0).all(axis=1)
    if not known.any():
        return None
    found, of = np.unique(sizes[known], axis=0, return_inverse=True)
    numbers = np.full(len(sizes), -1, np.int16)
    numbers[known] = of.reshape(-1)
    return Shapes(tuple((int(width), int(height)) for width, height in found), numbers)


def _base(manifest: Manifest) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """The base set in the manifest's order: ids (B,) S64; bool (B,), which it keeps itself; and int32 (B, 2), width
    and height of their pictures, where the manifest tells them."""
    there = manifest.schema.names
    before = ["was_kept"] if "was_kept" in there else []
    told = [name for name in _SIZES if name in there]
    ids, kept, sizes = [np.zeros(0, "S64")], [np.zeros(0, bool)], [np.zeros((0, 2), np.int32)]
    for batch in manifest.batches(["id", "decision", *before, *told]):
        keeps = pc.equal(batch["decision"], Decision.KEPT.value)
        slots = pc.or_(keeps, pc.fill_null(batch["was_kept"], False)) if before else keeps
        chosen = batch["id"].filter(slots)
        ids.append(np.array(chosen.to_pylist(), "S64") if len(chosen) else ids[0])
        kept.append(np.asarray(keeps.filter(slots).to_numpy(zero_copy_only=False), bool))
        if told:
            columns = [pc.fill_null(batch[name].filter(slots), 0).to_numpy(zero_copy_only=False) for name in told]
            sizes.append(np.stack(columns, axis=1).astype(np.int32))
    return np.concatenate(ids), np.concatenate(kept), np.concatenate(sizes) if told else None
