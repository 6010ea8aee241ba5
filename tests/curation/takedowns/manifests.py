"""Manifests of a few drawn pictures, for the tests of takedowns."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from curation.hashes import perceptual, pixel_hash
from curation.images import ImageConfig, decode
from curation.manifest import (
    InputsInfo,
    LedgerInfo,
    Manifest,
    ManifestInfo,
    manifest_id,
    now,
    publish,
    schema,
    write_part,
)


def row_of(data: bytes, uri: str, **changes: Any) -> dict[str, Any]:
    """A kept row as curation would write it of a picture's bytes."""
    pixels = decode(data, ImageConfig()).pixels
    hashes = perceptual(pixels, turned=True)
    return {
        "id": hashlib.sha256(data).hexdigest(),
        "uri": uri,
        "pixel_hash": pixel_hash(pixels),
        "phash": hashes.phash,
        "phash_turned": list(hashes.turned),
        "colour_layout": hashes.colour_layout,
        "decision": "kept",
        "reason": "passed",
    } | changes


def published(
    output: Path, *parts: Sequence[dict[str, Any]], job: dict[str, Any] | None = None, ledger: LedgerInfo | None = None
) -> Manifest:
    """A manifest of these rows, a part for each list of them."""
    tables = [pa.Table.from_pylist(list(rows), schema=schema(None)) for rows in parts]
    staging = output / ".work" / "staging"
    written = [write_part(f"{staging}/part-{i:05d}.parquet", table) for i, table in enumerate(tables)]
    decisions = [decision for table in tables for decision in table["decision"].to_pylist()]
    info = ManifestInfo(
        id=manifest_id(job or {}, [digest for _, digest in written]),
        name="test",
        created_at=now(),
        code_version="0",
        job=job or {},
        clip=None,
        inputs=InputsInfo.of(uri for table in tables for uri in table["uri"].to_pylist()),
        rows=len(decisions),
        counts={decision: decisions.count(decision) for decision in set(decisions)},
        reasons={"passed": len(decisions)},
        rights=[],
        ledger=ledger,
        files=[part for part, _ in written],
    )
    return publish(str(staging), str(output), info)
