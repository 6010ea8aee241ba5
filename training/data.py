"""The training set in memory: a manifest's kept rows as pictures and captions."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow.compute as pc
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from curation.errors import UserError
from curation.manifest import Decision, Manifest
from training.text import Conditioning, TextEncoder

STATES_CAP_BYTES = 2 << 30  # of encoded captions kept in memory; above it they are encoded batch by batch


Options = tuple[tuple[str, float], ...]
"""What one row may be told: at least one text, each with its probability; they add up to 1."""


@dataclass(frozen=True)
class TrainingSet:
    """Kept rows in the order of their ids.

    Attributes:
        manifest_id: the manifest they came from.
        digest: sha256 over the sorted ids: which inputs the model was trained on.
        pictures: uint8 (N, 3, H, H).
        captions: N texts, those that the manifest chose; "" where it has none.
        options: what each of the N rows is told, by the job's mix: its caption, without one.
        licences: rows by stated licence.
    """

    manifest_id: str
    digest: str
    pictures: Tensor
    captions: tuple[str, ...]
    options: tuple[Options, ...]
    licences: dict[str, int]

    def __len__(self) -> int:
        return len(self.captions)

    @property
    def image_size(self) -> int:
        return int(self.pictures.shape[-1])

    @cached_property
    def texts(self) -> list[str]:
        """All distinct texts that training may read, sorted."""
        return sorted({text for options in self.options for text, _ in options})

    def channel_stats(self) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
        """Mean and standard deviation of each colour channel, in [-1, 1]."""
        histogram = [torch.bincount(self.pictures[:, c].flatten(), minlength=256).double() for c in range(3)]
        values = torch.arange(256, dtype=torch.float64) / 127.5 - 1
        means = [float((h * values).sum() / h.sum()) for h in histogram]
        stds = [float(((h * (values - m) ** 2).sum() / h.sum()).sqrt()) for h, m in zip(histogram, means, strict=True)]
        return (means[0], means[1], means[2]), (stds[0], stds[1], stds[2])


def training_set_digest(ids: list[str]) -> str:
    """sha256 over the sorted ids, each followed by a line feed."""
    return hashlib.sha256("".join(f"{row}\n" for row in sorted(ids)).encode()).hexdigest()


def picture_size(manifest: Manifest) -> int:
    """The side of the manifest's training-size pictures, read from its first kept row.

    Raises:
        UserError: no row is kept, or the picture is damaged.
    """
    for batch in manifest.batches(["id", "image"], decision=Decision.KEPT):
        if batch.num_rows:
            row = batch.slice(0, 1).to_pylist()[0]
            return int(_decode(row["id"], row["image"]).shape[0])
    raise UserError(
        f"the manifest {manifest.uri} keeps no picture ({manifest.info.counts})",
        field="manifest",
        remedy="loosen the curate job's policy, or give it more inputs",
    )


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
    manifest: Manifest, image_size: int | None = None, caption_mix: Mapping[str, float] | None = None
) -> TrainingSet:
    """Decodes every kept row once.

    Args:
        image_size: side of the pictures; None: as in the manifest.
        caption_mix: the job's.

    Raises:
        UserError: nothing is kept, a picture is missing or damaged, a size is not the one that was asked for, or a
            captioner of the mix wrote nothing.
    """
    size = picture_size(manifest) if image_size is None else image_size
    check_mix(manifest, caption_mix)
    rows: list[tuple[str, str, Options, np.ndarray]] = []
    licences: Counter[str] = Counter()
    columns = ["id", "caption", "licence", "image"]
    if caption_mix is not None and _has_captions(manifest):
        columns.append("captions")
    for batch in manifest.batches(columns, decision=Decision.KEPT):
        for row in batch.to_pylist():
            picture = _decode(row["id"], row["image"])
            if picture.shape != (size, size, 3):
                raise UserError(
                    f"row {row['id'][:12]} has a picture of {picture.shape[1]} x {picture.shape[0]} pixels, "
                    f"not {size} x {size}",
                    field="image_size",
                    remedy="train at the size that the manifest was curated for, or curate again at this one",
                )
            caption = row["caption"] or ""
            rows.append((row["id"], caption, options_of(caption, row.get("captions") or (), caption_mix), picture))
            licences[row["licence"] or "unstated"] += 1
    if not rows:
        picture_size(manifest)  # says so
    rows.sort(key=lambda row: row[0])
    return TrainingSet(
        manifest_id=manifest.id,
        digest=training_set_digest([row[0] for row in rows]),
        pictures=torch.from_numpy(np.stack([row[3] for row in rows])).permute(0, 3, 1, 2).contiguous(),
        captions=tuple(row[1] for row in rows),
        options=tuple(row[2] for row in rows),
        licences=dict(licences),
    )


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


class CaptionStates:
    """The captions of a training set, encoded.

    The tower is frozen, so every distinct caption is encoded once, in sorted order, and positions that none of them
    uses are cut off. Should the states not fit `cap` bytes, each batch encodes its own.
    """

    def __init__(self, text: TextEncoder, options: Sequence[Options], *, cap: int = STATES_CAP_BYTES) -> None:
        self._text = text
        self._distinct = sorted({"", *(caption for row in options for caption, _ in row)})
        number = {caption: i for i, caption in enumerate(self._distinct)}
        self._empty = number[""]
        # (N, S): the number of each of a row's captions, and where on [0, 1) the next one begins. The last one has no
        # end, so that rounding leaves no gap; a row with fewer captions is filled up with such, which no draw reaches.
        most = max(map(len, options), default=1)
        self._number = torch.full((len(options), most), self._empty)
        self._end = torch.full((len(options), most), 2.0, dtype=torch.float64)
        for row, told in enumerate(options):
            self._number[row, : len(told)] = torch.tensor([number[caption] for caption, _ in told])
            share = torch.tensor([share for _, share in told], dtype=torch.float64)
            self._end[row, : len(told) - 1] = share.cumsum(0)[:-1]
        self._encoded: Conditioning | None = None
        if len(self._distinct) * text.length * text.width * 4 <= cap:
            self._encoded = text.encode(self._distinct, chunk=32).cropped()

    def lookup(self, rows: Tensor, dropped: Tensor, draw: Tensor) -> Conditioning:
        """What to condition training rows on.

        Args:
            rows: int64 (N,).
            dropped: bool (N,), where the empty caption stands in.
            draw: float64 (N,) in [0, 1), which of a row's captions is told.
        """
        which = (draw[:, None] >= self._end[rows]).sum(dim=1)
        number = torch.where(dropped, self._empty, self._number[rows, which])
        if self._encoded is None:
            return self._text.encode([self._distinct[i] for i in number.tolist()], chunk=len(rows))
        return self._encoded[number.to(self._encoded.states.device)]
