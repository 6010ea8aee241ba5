"""The training set: a manifest's kept rows as pictures and captions."""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from curation.errors import UserError
from curation.manifest import Decision, Manifest
from training import randomness
from training.conditioning import CAPTIONS, SEPARATOR, ConditioningConfig
from training.latents import latent_space
from training.order import Order
from training.randomness import Purpose
from training.roster import Roster
from training.sources import InMemory, ShapedInMemory, Source, base_side
from training.space import Space

if TYPE_CHECKING:
    from training.text_states import StoredStates

Options = tuple[tuple[str, float], ...]
"""What one row may be told: at least one text, each with its probability; they add up to 1."""


@dataclass(frozen=True)
class TrainingSet:
    """The rows of a roster, in its order.

    Attributes:
        roster: which inputs the N rows are.
        source: their pictures.
        captions: N texts, those that the manifest chose; "" where it has none.
        options: what each of the N rows is told, by the job's mix: its caption, without one.
        licences: rows by stated licence.
        classes: names of classes that rows are told, sorted; empty where they are told none.
        states: of their captions, where those were encoded into shards.
    """

    roster: Roster
    source: Source
    captions: tuple[str, ...]
    options: tuple[Options, ...]
    licences: dict[str, int]
    classes: tuple[str, ...] = ()
    states: StoredStates | None = None

    def __len__(self) -> int:
        return len(self.captions)

    @property
    def image_size(self) -> int:
        """The side, in pixels, that a network is built for."""
        return self.source.image_size

    @property
    def pictures(self) -> Tensor:
        """uint8 (N, 3, H, H), of a set in memory."""
        assert isinstance(self.source, InMemory), "these pictures are not in memory, or of several shapes"
        return self.source.pictures

    @property
    def frames(self) -> int | None:
        """F of films; None for pictures."""
        films = isinstance(self.source, InMemory) and self.source.pictures.ndim == 5
        return int(self.pictures.shape[1]) if films else None

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

    def samples(
        self, seed: int, index: Tensor, space: Space, device: torch.device, *, flip: bool
    ) -> tuple[Tensor, Tensor]:
        """What samples of one step, with these global indices (N,), show.

        Returns:
            Their rows, int64 (N,), and the clean pictures in a space, float32 (N, C, h, w) on the device.
        """
        rows = self.shown(seed, index)
        mirrored = randomness.uniform(seed, Purpose.FLIP, index) < 0.5 if flip else None
        for reader in (self.source, self.states):
            if reader is not None:
                reader.reached(self._orders[seed], int(index[0]))
        return rows, self.source.clean(rows, mirrored, space, device)

    def keep_latents(self, space: Space, *, flip: bool) -> bool:
        """Has pictures in memory encoded once, where a space is one of latents; whether it is and they are."""
        if latent_space(space) is None or not isinstance(self.source, InMemory | ShapedInMemory):
            return False
        self.source.keep_latents(space, flip=flip)
        return True

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
        rows = zip(self.roster.ids, self.options, self.source.digests(), strict=True)
        hashes = [
            hashlib.sha256(json.dumps([id_, options]).encode() + picture).digest() for id_, options, picture in rows
        ]
        return torch.from_numpy(np.frombuffer(b"".join(hashes), np.uint8).copy()).view(-1, 32)


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
    source: Source | None = None,
    states: StoredStates | None = None,
) -> TrainingSet:
    """Reads the rows of a roster, and decodes every picture once unless there is a source of them.

    Args:
        image_size: side of the pictures, where all are square; None: as in the manifest.
        caption_mix: the job's.
        roster: which of the rows; None: all that are kept.
        conditioning: what the rows are told.
        source: of the roster's pictures; None: the manifest, into memory.
        states: of the rows' captions; None: they are encoded while training.

    Raises:
        UserError: nothing is kept, a picture is missing or damaged, a size is not the one that was asked for, or a
            captioner of the mix wrote nothing.
    """
    check_mix(manifest, caption_mix)
    roster = roster or Roster.of_manifest(manifest)
    size = None
    if source is None and roster.shapes is None:
        size = picture_size(manifest) if image_size is None else image_size
    wanted = set(roster.ids)
    rows: list[tuple[str, str, Options, np.ndarray | None]] = []
    licences: Counter[str] = Counter()
    columns = ["id", "licence", *_columns_told(manifest, caption_mix, conditioning)]
    if source is None:
        columns.append("image")
    frames = frames_of(manifest)
    if frames is not None:
        columns.append("frames")
    for batch in manifest.batches(columns, decision=Decision.KEPT):
        for row in batch.to_pylist():
            if row["id"] not in wanted:
                continue
            picture = None if source is not None else decode(row["id"], row["image"], size, frames)
            if row.get("frames") != frames:
                raise UserError(
                    f"row {row['id'][:12]} has {row.get('frames')} frames, not {frames}",
                    field="manifest",
                    remedy="restore the manifest, or curate again",
                )
            rows.append((row["id"], row["caption"] or "", _told(row, caption_mix, conditioning), picture))
            licences[row["licence"] or "unstated"] += 1
    if not rows:
        picture_size(manifest)  # says so
    rows.sort(key=lambda row: row[0])
    if tuple(row[0] for row in rows) != roster.ids:
        raise AssertionError(f"{manifest.uri} holds {len(rows)} of the {len(roster)} rows of the training set")
    return TrainingSet(
        roster=roster,
        source=source or _in_memory(roster, [row[3] for row in rows if row[3] is not None]),
        captions=tuple(row[1] for row in rows),
        options=tuple(row[2] for row in rows),
        licences=dict(licences),
        classes=classes_of(manifest, conditioning.classes) if conditioning.reads_classes else (),
        states=states,
    )


def _columns_told(manifest: Manifest, mix: Mapping[str, float] | None, conditioning: ConditioningConfig) -> list[str]:
    """Columns of what rows are told."""
    columns, column = ["caption"], conditioning.classes.partition(".")[0]
    if (mix is not None or column == "captions") and _has_captions(manifest):
        columns.append("captions")
    if conditioning.reads_classes and column not in columns:
        columns.append(column)
    return columns


def _told(row: Mapping[str, Any], mix: Mapping[str, float] | None, conditioning: ConditioningConfig) -> Options:
    """What a row is told."""
    options = options_of(row["caption"] or "", row.get("captions") or (), mix)
    if conditioning.kind == "text":
        return options
    named = _class(row, conditioning.classes) if conditioning.reads_classes else ""
    return _merged([(conditioning.prompt(text, named), share) for text, share in options])


def texts_of(
    manifest: Manifest, roster: Roster, mix: Mapping[str, float] | None, conditioning: ConditioningConfig
) -> set[str]:
    """All texts that the rows of a roster may be told."""
    wanted = set(roster.ids)
    columns = ["id", *_columns_told(manifest, mix, conditioning)]
    return {
        text
        for batch in manifest.batches(columns, decision=Decision.KEPT)
        for row in batch.to_pylist()
        if row["id"] in wanted
        for text, _ in _told(row, mix, conditioning)
    }


def _in_memory(roster: Roster, pictures: list[np.ndarray]) -> Source:
    """Of a roster's pictures, uint8 (H, W, 3) each."""
    if roster.shapes is None:
        return InMemory(_stacked(pictures))
    of = torch.from_numpy(roster.shapes.of[roster.slots].astype(np.int64))
    parts: list[Tensor] = []
    for number, (width, height) in enumerate(roster.shapes.sizes):
        mine = [pictures[i] for i in (of == number).nonzero().flatten().tolist()]
        for picture in mine:
            if picture.shape != (height, width, 3):
                raise UserError(
                    f"a picture of {picture.shape[1]} x {picture.shape[0]} pixels is said to have {width} x {height}",
                    field="manifest",
                    remedy="restore the manifest, or curate again",
                )
        parts.append(_stacked(mine, (height, width)))
    return ShapedInMemory(parts, of, base_side(roster.shapes.sizes))


def _stacked(pictures: list[np.ndarray], size: tuple[int, int] = (0, 0)) -> Tensor:
    """uint8 (N, 3, H, W); of films (N, F, 3, H, W)."""
    array = np.stack(pictures) if pictures else np.zeros((0, *size, 3), np.uint8)
    return torch.from_numpy(array).movedim(-1, -3).contiguous()


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


def decode(row: str, image: dict[str, bytes] | None, side: int | None = None, frames: int | None = None) -> np.ndarray:
    """A row's picture: uint8 (H, W, 3); a film's frames, (F, H, W, 3).

    Args:
        side: that it must have; None: any.
        frames: F of a film, whose frames stand one below the other; None for a picture.

    Raises:
        UserError: it is missing or damaged, or of another size.
    """
    picture = _decode(row, image)
    if side is not None and picture.shape != (side * (frames or 1), side, 3):
        raise UserError(
            f"row {row[:12]} has a picture of {picture.shape[1]} x {picture.shape[0]} pixels, "
            f"not {side} x {side * (frames or 1)}",
            field="image_size",
            remedy="train at the size that the manifest was curated for, or curate again at this one",
        )
    return picture if frames is None else picture.reshape(frames, -1, picture.shape[1], 3)


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
