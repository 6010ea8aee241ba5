"""The training set in memory: a manifest's kept rows as pictures and captions."""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from curation.errors import UserError
from curation.manifest import Decision, Manifest
from training.conditioning import CAPTIONS, SEPARATOR, ConditioningConfig
from training.order import Order
from training.roster import Roster

Options = tuple[tuple[str, float], ...]
"""What one row may be told: at least one text, each with its probability; they add up to 1."""


@dataclass(frozen=True)
class TrainingSet:
    """The rows of a roster, in its order.

    Attributes:
        roster: which inputs the N rows are.
        pictures: uint8 (N, 3, H, H); films are (N, F, 3, H, H).
        captions: N texts, those that the manifest chose; "" where it has none.
        options: what each of the N rows is told, by the job's mix: its caption, without one.
        licences: rows by stated licence.
        classes: names of classes that rows are told, sorted; empty where they are told none.
    """

    roster: Roster
    pictures: Tensor
    captions: tuple[str, ...]
    options: tuple[Options, ...]
    licences: dict[str, int]
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.captions)

    @property
    def image_size(self) -> int:
        return int(self.pictures.shape[-1])

    @property
    def frames(self) -> int | None:
        """F of films; None for pictures."""
        return int(self.pictures.shape[1]) if self.pictures.ndim == 5 else None

    @cached_property
    def texts(self) -> list[str]:
        """All distinct texts that training may read, sorted."""
        return sorted({text for options in self.options for text, _ in options})

    def shown(self, seed: int, index: Tensor) -> Tensor:
        """The row that each global sample index (N,) shows: int64 (N,). See `training.order`."""
        if seed not in self._orders:
            self._orders[seed] = Order.of(self.roster, seed)
        slots = self._orders[seed].slots(index)
        return slots if len(self) == self.roster.info.base_rows else self._row[slots]

    @cached_property
    def _orders(self) -> dict[int, Order]:
        return {}

    @cached_property
    def _row(self) -> Tensor:
        """int64 (base_rows,): the row in each slot, -1 in an empty one."""
        row = torch.full((self.roster.info.base_rows,), -1)
        row[torch.from_numpy(self.roster.slots)] = torch.arange(len(self))
        return row

    @cached_property
    def contents(self) -> Tensor:
        """uint8 (N, 32): a hash of all of a row that training reads."""
        rows = zip(self.roster.ids, self.options, self.pictures.flatten(1).numpy(), strict=True)
        hashes = [
            hashlib.sha256(json.dumps([id_, options]).encode() + picture.tobytes()).digest()
            for id_, options, picture in rows
        ]
        return torch.from_numpy(np.frombuffer(b"".join(hashes), np.uint8).copy()).view(-1, 32)

    def channel_stats(self) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
        """Mean and standard deviation of each colour channel, in [-1, 1]."""
        histogram = [torch.bincount(self.pictures.select(-3, c).flatten(), minlength=256).double() for c in range(3)]
        values = torch.arange(256, dtype=torch.float64) / 127.5 - 1
        means = [float((h * values).sum() / h.sum()) for h in histogram]
        stds = [float(((h * (values - m) ** 2).sum() / h.sum()).sqrt()) for h, m in zip(histogram, means, strict=True)]
        return (means[0], means[1], means[2]), (stds[0], stds[1], stds[2])


def picture_size(manifest: Manifest) -> int:
    """The side of the manifest's training-size pictures, read from its first kept row.

    Raises:
        UserError: no row is kept, or the picture is damaged.
    """
    for batch in manifest.batches(["id", "image"], decision=Decision.KEPT):
        if batch.num_rows:
            row = batch.slice(0, 1).to_pylist()[0]
            return int(_decode(row["id"], row["image"]).shape[1])  # a film's frames stand one below the other
    raise UserError(
        f"the manifest {manifest.uri} keeps no picture ({manifest.info.counts})",
        field="manifest",
        remedy="loosen the curate job's policy, or give it more inputs",
    )


def frames_of(manifest: Manifest) -> int | None:
    """Frames of the films that a manifest keeps, read from its first kept row; None where it keeps pictures."""
    if "frames" not in manifest.schema.names:
        return None
    for batch in manifest.batches(["frames"], decision=Decision.KEPT):
        if batch.num_rows:
            found: int | None = batch["frames"][0].as_py()
            return found
    return None


def check_mix(manifest: Manifest, mix: Mapping[str, float] | None) -> None:
    """Whether every captioner of a mix wrote any kept row's caption. An older manifest, of one caption a row, passes.

    Raises:
        UserError: one of them did not.
    """
    if mix is None or not _has_captions(manifest):
        return
    found: set[str] = set()
    for batch in manifest.batches(["captions"], decision=Decision.KEPT):
        found |= set(pc.unique(pc.list_flatten(batch["captions"]).field("source")).to_pylist())
    missing = sorted(set(mix) - found)
    if missing:
        raise UserError(
            f"no kept row of the manifest has a caption by {missing[0]!r}",
            field="caption_mix",
            remedy=f"use {', '.join(sorted(found)) or 'null'}, or curate with more captions (caption_policy.keep)",
        )


def _has_captions(manifest: Manifest) -> bool:
    return "captions" in manifest.schema.names


def options_of(caption: str, captions: Sequence[Mapping[str, str]], mix: Mapping[str, float] | None) -> Options:
    """What a row is told: of each captioner of the mix its first caption, by weight; `caption` where there is none.

    Args:
        caption: the row's chosen one, or "".
        captions: all of the row's, each with `text` and `source`.
    """
    first: dict[str, str] = {}
    for known in captions:
        first.setdefault(known["source"], known["text"])
    drawn = [(first[source], weight) for source, weight in sorted((mix or {}).items()) if source in first]
    total = sum(weight for _, weight in drawn)
    return tuple((text, weight / total) for text, weight in drawn) or ((caption, 1.0),)


def load(
    manifest: Manifest,
    image_size: int | None = None,
    caption_mix: Mapping[str, float] | None = None,
    roster: Roster | None = None,
    conditioning: ConditioningConfig = CAPTIONS,
) -> TrainingSet:
    """Decodes every row of a roster once.

    Args:
        image_size: side of the pictures; None: as in the manifest.
        caption_mix: the job's.
        roster: which of the rows; None: all that are kept.
        conditioning: what the rows are told.

    Raises:
        UserError: nothing is kept, a picture is missing or damaged, a size is not the one that was asked for, or a
            captioner of the mix wrote nothing.
    """
    size = picture_size(manifest) if image_size is None else image_size
    check_mix(manifest, caption_mix)
    roster = roster or Roster.of_manifest(manifest)
    wanted = set(roster.ids)
    rows: list[tuple[str, str, Options, np.ndarray]] = []
    licences: Counter[str] = Counter()
    columns = ["id", "caption", "licence", "image"]
    column = conditioning.classes.partition(".")[0]
    if (caption_mix is not None or column == "captions") and _has_captions(manifest):
        columns.append("captions")
    if conditioning.reads_classes and column not in columns:
        columns.append(column)
    frames = frames_of(manifest)
    if frames is not None:
        columns.append("frames")
    for batch in manifest.batches(columns, decision=Decision.KEPT):
        for row in batch.to_pylist():
            if row["id"] not in wanted:
                continue
            picture = _decode(row["id"], row["image"])
            strip = (size * (frames or 1), size, 3)
            if picture.shape != strip or row.get("frames") != frames:
                raise UserError(
                    f"row {row['id'][:12]} has a picture of {picture.shape[1]} x {picture.shape[0]} pixels, "
                    f"not {strip[1]} x {strip[0]}",
                    field="image_size",
                    remedy="train at the size that the manifest was curated for, or curate again at this one",
                )
            if frames is not None:
                picture = picture.reshape(frames, size, size, 3)
            caption = row["caption"] or ""
            options = options_of(caption, row.get("captions") or (), caption_mix)
            if conditioning.kind != "text":
                named = _class(row, conditioning.classes) if conditioning.reads_classes else ""
                options = _merged([(conditioning.prompt(text, named), share) for text, share in options])
            rows.append((row["id"], caption, options, picture))
            licences[row["licence"] or "unstated"] += 1
    if not rows:
        picture_size(manifest)  # says so
    rows.sort(key=lambda row: row[0])
    if tuple(row[0] for row in rows) != roster.ids:
        raise AssertionError(f"{manifest.uri} holds {len(rows)} of the {len(roster)} rows of the training set")
    return TrainingSet(
        roster=roster,
        pictures=torch.from_numpy(np.stack([row[3] for row in rows])).movedim(-1, -3).contiguous(),
        captions=tuple(row[1] for row in rows),
        options=tuple(row[2] for row in rows),
        licences=dict(licences),
        classes=classes_of(manifest, conditioning.classes) if conditioning.reads_classes else (),
    )


def classes_of(manifest: Manifest, column: str) -> tuple[str, ...]:
    """The classes that the kept rows are of, sorted.

    Args:
        column: of `ConditioningConfig.classes`.

    Raises:
        UserError: no such column, or one that says nothing.
    """
    name = column.partition(".")[0]
    if name not in manifest.schema.names:
        raise UserError(
            f"the manifest has no column {name!r}", field="conditioning.classes", remedy="name one that it has"
        )
    found = {
        _class(row, column) for batch in manifest.batches([name], decision=Decision.KEPT) for row in batch.to_pylist()
    } - {""}
    if not found:
        raise UserError(
            f"no kept row of the manifest says its class in {column}",
            field="conditioning.classes",
            remedy="name another column, or captions.NAME of a captioner that the curate job keeps",
        )
    bad = next((named for named in sorted(found) if SEPARATOR in named), None)
    if bad is not None:
        raise UserError(
            f"the class {bad!r} holds {SEPARATOR!r}, which parts class and caption",
            field="conditioning.classes",
            remedy="name it otherwise",
        )
    return tuple(sorted(found))


def _class(row: Mapping[str, Any], column: str) -> str:
    """The class of a row, or ""."""
    name, _, captioner = column.partition(".")
    if name != "captions":
        return str(row[name] or "").strip()
    return next((told["text"].strip() for told in row["captions"] or () if told["source"] == captioner), "")


def _merged(options: Sequence[tuple[str, float]]) -> Options:
    """Equal texts as one."""
    shares: dict[str, float] = {}
    for text, share in options:
        shares[text] = shares.get(text, 0.0) + share
    return tuple(shares.items())


def _decode(row: str, image: dict[str, bytes] | None) -> np.ndarray:
    """uint8 (H, W, 3)."""
    try:
        if image is None or image["bytes"] is None:
            raise ValueError("it has no picture")
        with Image.open(io.BytesIO(image["bytes"])) as picture:
            return np.asarray(picture.convert("RGB"))
    except (ValueError, OSError, UnidentifiedImageError) as error:
        raise UserError(
            f"kept row {row[:12]} cannot be trained on: {error}",
            field="manifest",
            remedy="check the manifest (cleanplate inspect), restore it or curate again",
        ) from None
