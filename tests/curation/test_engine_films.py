"""Films, frame folders and stills through Ray Data to a published manifest, and what is taken down of them later."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import pytest
from PIL import Image

from curation.engine import curate
from curation.job import CurateJob
from curation.lineage import Query, find
from curation.listing import listing
from curation.manifest import Decision, Manifest
from curation.recheck import derive, sources
from curation.report.pictures import Album
from curation.takedowns import Ledger, Selector
from curation.takedowns.pictures import of_bytes
from curation.takedowns.revocation import Revocations
from tests.curation.films import dot, film, moving, spread_out
from tests.curation.pictures import encoded, noise

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def reasons(manifest: Manifest) -> dict[str, str]:
    rows = manifest.table(["uri", "reason"])
    return dict(zip(rows["uri"].to_pylist(), rows["reason"].to_pylist(), strict=True))


def test_films_are_curated_shown_and_taken_down(ray_cluster: None, tmp_path: Path) -> None:
    films = tmp_path / "films"
    films.mkdir()
    (films / "right.gif").write_bytes(film(moving(8)))
    (films / "left.gif").write_bytes(film(moving(8, back=True)))
    (films / "left again.webp").write_bytes(film(moving(8, back=True), "WEBP"))
    (films / "blue.webp").write_bytes(film(moving(9, colour="blue"), "WEBP"))
    (films / "still.png").write_bytes(encoded(noise(1)))
    (films / "broken.gif").write_bytes(b"GIF89a")
    walk = [dot(i / 11, "green", y=0.1) for i in range(12)]
    spread_out(films / "walk", walk)
    job = CurateJob.model_validate(
        {
            "source": {"kind": "folder", "path": str(films), "sequences": True},
            "output": str(tmp_path / "manifests"),
            "licences": {"unstated": "keep"},
            "captions": [],
            "clip": None,
            "frames": 4,
            "image_size": 32,
            "unit_size": 3,
        }
    )
    result = curate(listing(job))
    base = Manifest.open(result.manifest)
    assert reasons(base) == {
        **dict.fromkeys(["right.gif", "left again.webp", "blue.webp", "walk/"], "passed"),
        **{"left.gif": "duplicate_pixel", "still.png": "too_few_frames", "broken.gif": "not_an_image"},
    }
    for row in base.table(["image", "frames"], decision=Decision.KEPT).to_pylist():
        with Image.open(io.BytesIO(row["image"]["bytes"])) as image:
            assert (image.size, row["frames"]) == ((32, 4 * 32), 4)
    tiles = Album(base, {}).tiles(range(7))
    assert [tile.uri is not None for tile in tiles.values()].count(True) == 6

    # What a parent kept binds what comes later, frame by frame.
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "again.png").write_bytes(film(moving(8), "PNG"))
    (tmp_path / "more" / "blue back.webp").write_bytes(film(moving(9, colour="blue", back=True), "WEBP"))
    source = job.source.model_copy(update={"path": str(tmp_path / "more")})
    later = job.model_copy(update={"source": source, "parent": base.uri, "output": str(tmp_path / "later")})
    more = Manifest.open(curate(listing(later)).manifest)
    assert reasons(more) == {"again.png": "duplicate_pixel", "blue back.webp": "passed"}

    assert base.info.ledger is not None
    ledger = Ledger.open(base.info.ledger.uri)
    frame = hashlib.sha256((films / "walk" / "frame 3.png").read_bytes()).hexdigest()
    assert {found.uri for found in find(base, Query.of(f"sha256:{frame}"))} == {"walk/"}
    ledger.append_entry(requester="A", ground="mine", selectors=[Selector.of("sha256", frame)])
    shown = of_bytes(encoded(moving(8)[4].resize((160, 160)), "JPEG", quality=90))  # a frame of it, as a still
    ledger.append_entry(requester="B", ground="mine", selectors=[shown])
    reached = Revocations(ledger.read().in_force).of_manifest(base)
    child = Manifest.open(derive(sources(base), None).manifest)
    assert child.schema.names == base.schema.names
    left = {uri: reason for uri, reason in reasons(child).items() if reason != reasons(base)[uri]}
    # On its way back the disc is in other places when it is sampled.
    assert left == {"walk/": "opted_out", "right.gif": "opted_out_near_copy"}
    ids = dict(zip(*(base.table(["id", "uri"])[name].to_pylist() for name in ("id", "uri")), strict=True))
    assert {ids[id_] for id_ in reached} == left.keys(), "what training leaves out is what recheck takes out"
