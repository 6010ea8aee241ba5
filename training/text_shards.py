"""Shards of text states: what a tower makes of a manifest's captions, encoded once where they do not fit into memory.

    <folder>/text-<manifest id>-<tower's sha256>-<hash of `TextsSpec`>/
        part-0-00000.parquet    as of pictures (`training.data_shards`), by the same blocks of slots
        shards.json             `TextsInfo`

A row group holds the captions that a block's rows may be told, each once: `key` (`key_of`), `tokens`, and `states`, its
own tokens' states as float32 (tokens, W), before they are standardised. They were encoded one at a time, so that they
are, to the bit, those that would be kept in memory, whatever else is in the set.
"""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from curation import storage
from curation.errors import UserError
from curation.manifest import Manifest
from training import captions, text
from training.data import classes_of, options_of, texts_of
from training.data_config import ShardsData
from training.data_shards import WINDOWS, Part, Places, folder_of, parts_of, read_info
from training.folders import download
from training.job import TrainJob
from training.roster import Roster
from training.shard_job import How, OnStage, make_with
from training.text_states import TextsInfo, TextsSpec, cache_bytes, key_of, payload

_BLOCK = 256  # slots, where pictures are in memory
_FILE_BYTES = 256 * 2**20  # the same


@dataclass(frozen=True)
class TextsPlan:
    """Text states before they are made.

    Attributes:
        counts: slots of each shape.
        most: captions that a row may be told.
    """

    uri: str
    spec: TextsSpec
    counts: tuple[int, ...]
    most: int

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        row_bytes = self.most * self.spec.length * self.spec.width * 4
        return tuple(
            part
            for shape, count in enumerate(self.counts)
            for part in parts_of(shape, count, self.spec.block, row_bytes, self.spec.file_bytes)
        )

    def info(self, parts: tuple[Part, ...]) -> TextsInfo:
        return TextsInfo(spec=self.spec, rows=sum(sum(part.rows) for part in parts), parts=parts)

    def known(self) -> TextsInfo | None:
        return read_info(self.uri, TextsInfo)


def plan_of(
    job: TrainJob, manifest: Manifest, roster: Roster, tower: Path, *, cap: int | None = None
) -> TextsPlan | None:
    """What a job's text states come to, where they do not fit into memory; None where they do.

    Args:
        tower: its folder, on this machine.
        cap: bytes that fit; None: `captions.STATES_CAP_BYTES`.
    """
    cap = captions.STATES_CAP_BYTES if cap is None else cap
    length, width = text.dimensions(tower)
    classes = len(classes_of(manifest, job.conditioning.classes)) if job.conditioning.reads_classes else 0
    of_one = (length + (job.conditioning.kind == "both")) * (width + classes) * 4
    most = 1 if job.caption_mix is None else len(job.caption_mix)
    if (len(roster) * most + 1) * of_one <= cap:
        return None
    if len(texts_of(manifest, roster, job.caption_mix, job.conditioning) | {""}) * of_one <= cap:
        return None
    shards = job.data if isinstance(job.data, ShardsData) else None
    spec = TextsSpec(
        manifest_id=roster.info.manifest_id,
        text_encoder=text.digest(tower),
        base_digest=roster.info.order_digest,
        block=_BLOCK if shards is None else shards.block,
        sources=None if job.caption_mix is None else tuple(sorted(job.caption_mix)),
        length=length,
        width=width,
        file_bytes=_FILE_BYTES if shards is None else shards.file_bytes,
    )
    return TextsPlan(storage.absolute(folder_of(job, spec)), spec, Places.of(roster).counts, most)


def make(
    plan: TextsPlan,
    manifest: Manifest,
    roster: Roster,
    tower: str,
    *,
    workers: int = 0,
    gpus: int = 0,
    on_stage: OnStage | None = None,
) -> TextsInfo:
    """Makes what is missing of a plan's text states; arguments and errors are those of `shard_job.make`.

    Args:
        tower: its folder, on storage that all workers reach.
    """
    columns = ("caption", "captions") if "captions" in manifest.schema.names else ("caption",)
    how = How("texts", columns, {"text_encoder": storage.absolute(tower)}, gpus)
    return make_with(how, plan, manifest, roster, workers=workers, on_stage=on_stage)


def encodes_batch_by_batch(folder: str, resume_from: str | None = None) -> bool:
    """Whether a run goes on from a checkpoint of the time when captions that do not fit were encoded by each batch,
    which gives them other last bits."""
    from training import checkpoint

    for path in (*reversed(checkpoint.paths(storage.join(folder, "checkpoints"))), resume_from):
        with contextlib.suppress(UserError):  # a damaged one is passed over, as the loop does
            if path is not None:
                return checkpoint.read_info(path).topology.get("resident_captions") == 0
    return False


def refuse_small_cache(job: TrainJob, info: TextsInfo) -> None:
    """Raises UserError where what is read at a time does not fit a machine's cache: each block would be fetched again
    for every row of it."""
    if isinstance(job.data, ShardsData):
        blocks = sum(part.blocks for part in info.parts)
        needed = min(info.bytes, WINDOWS * info.bytes * job.data.window // (info.spec.block * max(blocks, 1)))
        field, remedy = "data.cache_bytes", "make the cache larger or the window smaller"
    else:
        needed = info.bytes
        field, remedy = "data.kind", "use `data: {kind: shards}`, which reads them window by window"
    if needed > cache_bytes(job):
        raise UserError(
            f"the captions' states that are read at a time are {needed:,} bytes, and the cache has room for "
            f"{cache_bytes(job):,}",
            field=field,
            remedy=remedy,
        )


class Texts:
    """What a worker makes; see `training.shard_maker.Contents`."""

    def __init__(self, told: dict[str, Any]) -> None:
        self.compression = {"key": "none", "tokens": "zstd", "states": "none"}  # states are noise to a compressor
        self._mix = None if told["spec"]["sources"] is None else dict.fromkeys(told["spec"]["sources"], 1.0)
        place = "cuda" if torch.cuda.is_available() else "cpu"
        with tempfile.TemporaryDirectory() as scratch:
            download(told["text_encoder"], Path(scratch))
            self._tower = text.TextEncoder(scratch, place)

    def table(self, rows: pa.Table, slots: np.ndarray, shape: int) -> pa.Table:
        """Of the captions of N rows, each once."""
        found = dict.fromkeys(
            caption
            for row in rows.to_pylist()
            for caption, _ in options_of(row["caption"] or "", row.get("captions") or (), self._mix)
        )
        keys = np.array([key_of(caption) for caption in found], np.uint64)
        assert len(np.unique(keys)) == len(keys), "two captions of a block have one key"
        states = []
        for caption in found:
            of, mask = self._tower.tokens([caption])
            states.append(of[0, : int(mask.sum())].cpu().numpy())
        return pa.table(
            {
                "key": pa.array(keys),
                "tokens": pa.array([len(of) for of in states], pa.int32()),
                "states": pa.array([of.tobytes() for of in states], pa.large_binary()),
            }
        )

    def payload(self, table: pa.Table) -> str:
        return payload(table)
