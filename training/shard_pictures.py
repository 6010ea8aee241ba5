"""What shards of pictures hold of a manifest's rows: pixels or latents, and what is asked of all rows."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from training.data import decode
from training.data_shards import LATENTS, MIRRORED, PIXELS
from training.shard_columns import binary, payload


class Pictures:
    """See `training.shard_maker.Contents`."""

    def __init__(self, told: dict[str, Any]) -> None:
        self._arrays = [tuple(array) for array in told["arrays"]]
        self._encode = encoder(told)
        pictures = dict.fromkeys((PIXELS, LATENTS, MIRRORED), "zstd" if told["autoencoder"] is None else "none")
        others = dict.fromkeys(("slot", "id", "content", "moments.list.element"), "zstd")
        self.compression = others | pictures  # latents are noise to a compressor

    def payload(self, table: pa.Table) -> str:
        return payload(table)

    def table(self, rows: pa.Table, slots: np.ndarray, shape: int) -> pa.Table:
        channels, height, width = self._arrays[shape]
        pictures = np.stack([decode(row["id"], row["image"]) for row in rows.to_pylist()]).transpose(0, 3, 1, 2)
        pictures = np.ascontiguousarray(pictures)
        content = [hashlib.sha256(repr(p.shape).encode() + p.tobytes()).digest() for p in pictures]
        values = pictures.reshape(len(pictures), 3, -1).astype(np.int64)
        moments = np.concatenate([values.sum(axis=2), (values**2).sum(axis=2)], axis=1)
        columns = {
            "slot": pa.array(slots),
            "id": rows["id"].combine_chunks(),
            "content": pa.array(content, pa.binary(32)),
            "moments": pa.FixedSizeListArray.from_arrays(pa.array(moments.reshape(-1)), 6),
        }
        for name, array in self._encode(pictures).items():
            assert array.shape[1:] == (channels, height, width), "the plan knows the shape"
            columns[name] = binary(array)
        return pa.table(columns)


def encoder(told: dict[str, Any]) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """From pictures, uint8 (N, 3, H, W), to what is stored of them."""
    if told["autoencoder"] is None:
        return lambda pictures: {"pixels": pictures}
    import tempfile

    import torch

    from training import space
    from training.folders import download
    from training.kept_latents import steady

    place = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        download(told["autoencoder"], folder)
        latents = space.build(int(told["spec"]["patch_size"]), folder, place)

    def encoded(pictures: np.ndarray) -> np.ndarray:
        return steady(latents, torch.from_numpy(pictures).to(place)).cpu().numpy()

    def encode(pictures: np.ndarray) -> dict[str, np.ndarray]:
        found = {"latents": encoded(pictures)}
        if told["spec"]["mirrored"]:
            found[MIRRORED] = encoded(np.ascontiguousarray(pictures[..., ::-1]))
        return found

    return encode
