"""Selectors of pictures: of a file that somebody hands in, and of a manifest's row."""

from __future__ import annotations

import hashlib
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from curation import storage
from curation.errors import UserError
from curation.fetch import FetchConfig
from curation.hashes import perceptual, pixel_hash
from curation.images import ImageConfig, ImageError, decode
from curation.manifest import Manifest
from curation.selectors import normal
from curation.takedowns.events import Selector

MAX_BYTES = FetchConfig().max_bytes
"""Whatever is larger was fetched by no job that left the limit alone."""

_COLUMNS = ("id", "uri", "final_uri", "pixel_hash", "phash", "colour_layout")


def of_file(path: str) -> Selector:
    """The selector of a picture's file, local or s3://: the same bytes, the same pixels, and what looks like it.

    A large JPEG's pixels are hashed at a smaller scale that depends on the job (decision 17); for jobs of another scale
    than the default the perceptual hash finds what its pixel hash does not.

    Raises:
        UserError: when there is no such file, it is too large, or no picture.
    """
    field = "--picture"
    try:
        size = storage.info(path).size
        if size is not None and size > MAX_BYTES:
            raise UserError(
                f"{path} has {size:,} bytes, more than {MAX_BYTES:,}", field=field, remedy="give a smaller copy of it"
            )
        with storage.open_file(path) as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error}", field=field, remedy="give a picture's file") from None
    try:
        return of_bytes(data)
    except ImageError as error:
        raise UserError(
            f"{path} is not a picture that can be read: {error.reason} ({error.detail})",
            field=field,
            remedy="give the picture as PNG or JPEG, or select it by --sha256 or --uri",
        ) from None


def of_bytes(data: bytes) -> Selector:
    """The selector of a picture's original bytes.

    Raises:
        ImageError: when they are not an image that is accepted.
    """
    picture = decode(data, ImageConfig())
    found = perceptual(picture)
    return Selector(
        kind="picture",
        value=hashlib.sha256(data).hexdigest(),
        pixel_hash=pixel_hash(picture.pixels),
        phash=found.phash,
        colour_layout=found.colour_layout,
    )


def of_row(manifest: str, row: str) -> list[Selector]:
    """The selectors of a manifest's row: its bytes and what looks like it, by its own columns; no picture is fetched.

    Args:
        manifest: its folder, or a folder of manifests.
        row: the row's id or its uri; where several rows have that uri, all of them are meant.

    Returns:
        Of a row with a picture its sha256 and the picture; of one that was never decoded its place.

    Raises:
        UserError: when there is no such manifest or row.
    """
    opened = Manifest.open(manifest)
    wanted = normal("uri", row)
    found: dict[Selector, None] = {}
    for batch in opened.batches([c for c in _COLUMNS if c in opened.schema.names]):
        rows = pa.Table.from_batches([batch])
        here = pc.or_kleene(pc.equal(rows["id"], row.strip().lower()), pc.is_in(rows["uri"], pa.array([row, wanted])))
        for chosen in rows.filter(here).to_pylist():
            found |= dict.fromkeys(_of(chosen))
    if not found:
        raise UserError(
            f"the manifest at {opened.uri} has no row with the id or uri {row!r}",
            field="--row",
            remedy="give the value of its `id` or `uri` column",
        )
    return list(found)


def _of(row: dict[str, Any]) -> list[Selector]:
    if row.get("pixel_hash") is None:
        return [Selector.of("uri", row["uri"])]
    return [
        Selector.of("sha256", row["id"]),
        Selector(
            kind="picture",
            value=row["id"],
            pixel_hash=row["pixel_hash"],
            phash=row["phash"],
            colour_layout=row["colour_layout"],
        ),
    ]
