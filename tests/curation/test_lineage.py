"""Where pictures stand in a manifest: by name, by file, as copies, and what is near by CLIP."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from curation.clip import Clip, ClipConfig
from curation.errors import UserError
from curation.lineage import Query, clip_of, find, neighbours
from curation.manifest import (
    ClipInfo,
    InputsInfo,
    Manifest,
    ManifestInfo,
    manifest_id,
    now,
    publish,
    schema,
    write_part,
)
from curation.takedowns import Ledger, Selector
from curation.takedowns.pictures import of_bytes
from tests.curation.pictures import encoded, noise
from tests.curation.takedowns.manifests import published, row_of
from tests.serving.tiny import write_clip

APPLE, PEAR, PLUM = (encoded(noise(seed)) for seed in (1, 2, 3))
SAME_PIXELS = encoded(noise(1), compress_level=1)
LOOKS_ALIKE = encoded(noise(1), "JPEG", quality=90)
HOSTS = ("a.example", "pics.b.example", "c.example")


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def at(host: str, name: str, **more: Any) -> dict[str, Any]:
    return {"uri": f"https://{host}/{name}", "host": host} | more


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """An apple that was dropped for a file with its pixels, a JPEG of it, and two others, one of them dropped."""
    dropped = {"decision": "dropped", "reason": "duplicate_pixel"}
    rows = [
        row_of(APPLE, **at("a.example", "apple.png"), creator="Jane Doe", **dropped),
        row_of(PEAR, **at("pics.b.example", "pear.png"), creator="JANE DOE"),
        row_of(SAME_PIXELS, **at("c.example", "copy.png")),
        row_of(LOOKS_ALIKE, **at("c.example", "copy.jpg")),
        row_of(PLUM, **at("c.example", "plum.png"), decision="held", reason="rights_error"),
    ]
    return published(tmp_path_factory.mktemp("manifests"), rows[:3], rows[3:])


def told(manifest: Manifest, subject: str) -> dict[str, tuple[str, str]]:
    return {f.uri.rpartition("/")[2]: (f.how, f.decision) for f in find(manifest, Query.of(subject))}


def test_a_name_finds_rows_of_every_decision(manifest: Manifest) -> None:
    assert told(manifest, "domain:b.example") == {"pear.png": ("selector", "kept")}
    assert told(manifest, "https://c.example/plum.png") == {"plum.png": ("selector", "held")}
    assert told(manifest, "domain:absent.example") == {}


def test_a_dropped_picture_leads_to_the_copies_that_were_kept_instead(manifest: Manifest) -> None:
    copies = {"copy.png": ("pixel", "kept"), "copy.jpg": ("perceptual", "kept")}
    assert told(manifest, sha(APPLE)) == {"apple.png": ("exact", "dropped")} | copies
    assert told(manifest, f"sha256:{sha(APPLE)}") == told(manifest, sha(APPLE))
    by_creator = {"apple.png": ("selector", "dropped"), "pear.png": ("selector", "kept")} | copies
    assert told(manifest, "creator: jane doe") == by_creator
    found = find(manifest, Query.of(sha(APPLE)))
    assert [f.how for f in found] == ["exact", "pixel", "perceptual"]
    assert [f.of for f in found] == [None, sha(APPLE), sha(APPLE)]
    assert found[0].similarity == found[1].similarity == 1
    assert found[2].similarity is not None
    assert 1 - 3 / 64 <= found[2].similarity <= 1


def test_a_file_is_looked_for_exactly_then_by_pixels_then_by_looks(manifest: Manifest, tmp_path: Path) -> None:
    everything = {"apple.png", "copy.png", "copy.jpg"}
    for data, own in ((APPLE, "apple.png"), (SAME_PIXELS, "copy.png"), (LOOKS_ALIKE, "copy.jpg")):
        (tmp_path / "asked").write_bytes(data)
        found = told(manifest, str(tmp_path / "asked"))
        assert set(found) == everything
        assert found[own][0] == "exact"
        assert [how for name, (how, _) in found.items() if name != own].count("exact") == 0
    # a file that stands in no row is found by what it shows, also where a row was not kept
    (tmp_path / "asked").write_bytes(encoded(noise(1), compress_level=3))
    assert told(manifest, str(tmp_path / "asked")) == {
        "apple.png": ("pixel", "dropped"), "copy.png": ("pixel", "kept"), "copy.jpg": ("perceptual", "kept"),
    }  # fmt: skip
    (tmp_path / "asked").write_bytes(encoded(noise(3), "JPEG", quality=90))
    assert told(manifest, str(tmp_path / "asked")) == {"plum.png": ("perceptual", "held")}
    (tmp_path / "asked").write_bytes(encoded(noise(9)))
    assert told(manifest, str(tmp_path / "asked")) == {}


def test_colours_must_agree_as_they_must_for_copies(tmp_path: Path) -> None:
    grey = noise(5).convert("L")
    red = Image.merge("RGB", [grey, grey.point(lambda v: v // 3), grey.point(lambda v: v // 3)])
    blue = Image.merge("RGB", [grey.point(lambda v: v // 3), grey.point(lambda v: v // 3), grey])
    hashes = [of_bytes(encoded(picture)).phash or 0 for picture in (red, blue)]
    assert (hashes[0] ^ hashes[1]).bit_count() <= 3  # by luma alone they are one picture
    manifest = published(tmp_path / "m", [row_of(encoded(red), "red.png"), row_of(encoded(blue), "blue.png")])
    (tmp_path / "asked.jpg").write_bytes(encoded(red, "JPEG", quality=95))
    assert told(manifest, str(tmp_path / "asked.jpg")) == {"red.png": ("perceptual", "kept")}


def test_an_entry_is_known_by_the_beginning_of_its_id(manifest: Manifest, tmp_path: Path) -> None:
    ledger = Ledger.open(str(tmp_path / "ledger"))
    entry = ledger.append_entry(
        requester="J", ground="copyright", selectors=[Selector.of("domain", "b.example"), of_bytes(PLUM)]
    )
    state = ledger.read()
    for subject in (entry.id, entry.id[:12], f"entry:{entry.id[:3]}"):
        query = Query.of(subject, state)
        assert (query.kind, query.text) == ("entry", entry.id)
        assert {(f.uri.rpartition("/")[2], f.how) for f in find(manifest, query)} == {
            ("plum.png", "exact"), ("pear.png", "selector"),
        }  # fmt: skip
    assert Query.of(entry.id).kind == "sha256"  # without the ledger it is a hash like any other
    with pytest.raises(UserError, match="no entries"):
        Query.of("entry:ffff00", state)


def test_subjects_are_taken_for_what_they_look_like(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    kinds = {"DOMAIN:Example.COM": "domain", "creator:Doe, Jane": "creator", "a" * 64: "sha256", "dir/a.png": "uri"}
    assert {subject: Query.of(subject).kind for subject in kinds} == kinds
    for bad in ("sha256:abc", "domain:a b", "creator:  ", str(tmp_path / "notes.txt")):
        with pytest.raises(UserError):
            Query.of(bad)


def test_the_same_bytes_at_two_places_are_two_rows(tmp_path: Path) -> None:
    manifest = published(tmp_path, [row_of(PEAR, **at("a.example", "1.png")), row_of(PEAR, **at("b.example", "2.png"))])
    assert told(manifest, "domain:a.example") == {"1.png": ("selector", "kept"), "2.png": ("exact", "kept")}


# --- CLIP ---


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ClipConfig:
    return write_clip(tmp_path_factory.mktemp("clip"))


def embedded_manifest(folder: Path, config: ClipConfig, clip: Clip, seeds: range, name: str | None = None) -> Manifest:
    pictures = [encoded(noise(seed)) for seed in seeds]
    vectors = clip.embed_images(np.stack([clip.prepare(noise(seed)) for seed in seeds])).astype(np.float16)
    rows = [row_of(data, f"{seed}.png", embedding=v) for data, seed, v in zip(pictures, seeds, vectors, strict=True)]
    rows.append({"id": "f" * 64, "uri": "gone.png", "decision": "failed", "embedding": np.zeros(clip.dim, np.float16)})
    staging = folder / "staging"
    table = pa.Table.from_pylist(rows, schema=schema(clip.dim))
    part, digest = write_part(str(staging / "part-00000.parquet"), table)
    info = ManifestInfo(
        id=manifest_id({}, [digest]), name="near", created_at=now(), code_version="0",
        job={"clip": config.model_dump(mode="json")}, clip=ClipInfo(name=name or clip.name, dim=clip.dim),
        inputs=InputsInfo.of(row["uri"] for row in rows), rows=len(rows), counts={"kept": len(seeds)}, reasons={},
        rights=[], files=[part],
    )  # fmt: skip
    return publish(str(staging), str(folder), info)


def test_neighbours_are_the_nearest_by_cosine_and_never_the_picture(tmp_path: Path, config: ClipConfig) -> None:
    built = config.build()
    manifest = embedded_manifest(tmp_path, config, built, range(12))
    model = clip_of(manifest)
    asked = encoded(noise(4))
    found = neighbours(manifest, model, asked, 3, apart_from={sha(asked)})
    target = model.embed_images(model.prepare(noise(4))[None])[0]
    others = model.embed_images(np.stack([model.prepare(noise(seed)) for seed in range(12)])).astype(np.float16)
    cosines = {f"{seed}.png": float(v.astype(np.float32) @ target) for seed, v in enumerate(others) if seed != 4}
    nearest = sorted(cosines, key=lambda uri: -cosines[uri])[:3]
    assert [f.uri for f in found] == nearest
    assert [f.similarity for f in found] == pytest.approx([cosines[uri] for uri in nearest], abs=1e-4)
    assert {f.how for f in found} == {"clip"}
    everything = neighbours(manifest, model, asked, 100)
    assert len(everything) == 12  # the row without a picture is near nothing
    assert everything[0].uri == "4.png"


def test_neighbours_need_the_manifests_own_clip(manifest: Manifest, tmp_path: Path, config: ClipConfig) -> None:
    with pytest.raises(UserError, match="no embeddings"):
        clip_of(manifest)
    other = embedded_manifest(tmp_path, config, config.build(), range(2), name="another-clip")
    with pytest.raises(UserError, match="by another-clip"):
        clip_of(other)
