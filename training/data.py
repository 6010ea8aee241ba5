"""The training set in memory: a manifest's kept rows as pictures and captions."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from curation.errors import UserError
from curation.manifest import Decision, Manifest
from training.text import Conditioning, TextEncoder

STATES_CAP_BYTES = 2 << 30  # of encoded captions kept in memory; above it they are encoded batch by batch


@dataclass(frozen=True)
class TrainingSet:
    """Kept rows in the order of their ids.

    Attributes:
        manifest_id: the manifest they came from.
        digest: sha256 over the sorted ids: which inputs the model was trained on.
        pictures: uint8 (N, 3, H, H).
        captions: N texts; "" where the manifest has none.
        licences: rows by stated licence.
    """

    manifest_id: str
    digest: str
    pictures: Tensor
    captions: tuple[str, ...]
    licences: dict[str, int]

    def __len__(self) -> int:
        return len(self.captions)

    @property
    def image_size(self) -> int:
        return int(self.pictures.shape[-1])

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


def load(manifest: Manifest, image_size: int | None = None) -> TrainingSet:
    """Decodes every kept row once.

    Raises:
        UserError: nothing is kept, a picture is missing or damaged, or a size is not the one that was asked for.
    """
    size = picture_size(manifest) if image_size is None else image_size
    rows: list[tuple[str, str, np.ndarray]] = []
    licences: Counter[str] = Counter()
    for batch in manifest.batches(["id", "caption", "licence", "image"], decision=Decision.KEPT):
        for row in batch.to_pylist():
            picture = _decode(row["id"], row["image"])
            if picture.shape != (size, size, 3):
                raise UserError(
                    f"row {row['id'][:12]} has a picture of {picture.shape[1]} x {picture.shape[0]} pixels, "
                    f"not {size} x {size}",
                    field="image_size",
                    remedy="train at the size that the manifest was curated for, or curate again at this one",
                )
            rows.append((row["id"], row["caption"] or "", picture))
            licences[row["licence"] or "unstated"] += 1
    if not rows:
        picture_size(manifest)  # says so
    rows.sort(key=lambda row: row[0])
    return TrainingSet(
        manifest_id=manifest.id,
        digest=training_set_digest([row[0] for row in rows]),
        pictures=torch.from_numpy(np.stack([row[2] for row in rows])).permute(0, 3, 1, 2).contiguous(),
        captions=tuple(row[1] for row in rows),
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

    def __init__(self, text: TextEncoder, captions: tuple[str, ...], *, cap: int = STATES_CAP_BYTES) -> None:
        self._text = text
        self._captions = captions
        distinct = sorted({"", *captions})
        number = {caption: i for i, caption in enumerate(distinct)}
        self._number = torch.tensor([number[caption] for caption in captions])
        self._empty = number[""]
        self._encoded: Conditioning | None = None
        if len(distinct) * text.length * text.width * 4 <= cap:
            self._encoded = text.encode(distinct, chunk=32).cropped()

    def lookup(self, rows: Tensor, dropped: Tensor) -> Conditioning:
        """What to condition the training rows (N,) on; the empty caption where `dropped`."""
        if self._encoded is None:
            pairs = zip(rows.tolist(), dropped.tolist(), strict=True)
            return self._text.encode(["" if drop else self._captions[row] for row, drop in pairs], chunk=len(rows))
        number = torch.where(dropped, self._empty, self._number[rows])
        return self._encoded[number.to(self._encoded.states.device)]
