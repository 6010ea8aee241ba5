"""Moving pictures and buckets through listing, measuring and deciding, without Ray."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from curation import workers
from curation.decide import manifest_rows
from curation.engine import _decide
from curation.errors import UserError
from curation.hashes import perceptual
from curation.images import ImageConfig, decode
from curation.job import CurateJob
from curation.listing import Listing, listing
from curation.manifest import OPTIONAL
from curation.measure import schema
from curation.ruling import stored_unit
from tests.curation.films import dot, film, moving, spread_out
from tests.curation.pictures import encoded, noise


def listed(folder: Path, **fields: Any) -> Listing:
    source = {"kind": "folder", "path": str(folder / "films"), "sequences": "frames" in fields}
    job = {"source": source, "output": str(folder / "out"), "clip": None, "licences": {"unstated": "keep"}}
    return listing(CurateJob.model_validate(job | {"image_size": 32, "captions": []} | fields))


def rows_of(found: Listing) -> dict[str, dict[str, Any]]:
    """What the job's manifest would have, by uri."""
    worker = workers.Worker(workers.config_of(found))
    for todo in found.todo():
        worker.run(workers.item_of(todo))
    settled, start, rows = _decide(found, lambda *args, **more: None), 0, []
    for unit in found.units:
        end = start + unit.inputs.num_rows
        table = manifest_rows(found.policy, *stored_unit(found.stages, unit), settled.rows(start, end))
        rows += table.to_pylist()
        start = end
    return {row["uri"]: row for row in rows}


def reasons(found: Listing) -> dict[str, str]:
    return {uri: row["reason"] for uri, row in rows_of(found).items()}


@pytest.fixture
def films(tmp_path: Path) -> Path:
    """A film of each kind, a short one, a still and a broken one."""
    (tmp_path / "films").mkdir()
    files = {
        "right.gif": film(moving(8)),
        "left.png": film(moving(8, back=True), "PNG"),
        "blue.webp": film(moving(9, colour="blue"), "WEBP"),
        "short.gif": film([noise(1), noise(2), noise(3)]),
        "still.png": encoded(noise(4)),
        "cut.gif": film([noise(5), noise(6)])[:1500],
    }
    for name, data in files.items():
        (tmp_path / "films" / name).write_bytes(data)
    spread_out(tmp_path / "films" / "walk", [dot(i / 11, "green", y=0.1) for i in range(12)])
    return tmp_path


def test_every_film_is_one_row_and_a_strip_of_its_frames(films: Path) -> None:
    rows = rows_of(listed(films, frames=4))
    assert {uri: row["reason"] for uri, row in rows.items()} == {
        **dict.fromkeys(["right.gif", "left.png", "blue.webp", "walk/"], "passed"),
        **dict.fromkeys(["short.gif", "still.png"], "too_few_frames"),
        "cut.gif": "truncated",
    }
    assert [rows[uri]["source_frames"] for uri in ("right.gif", "blue.webp", "walk/", "still.png")] == [8, 9, 12, 1]
    short = rows["short.gif"]
    assert (short["decision"], short["rule"], short["score"], short["threshold"]) == ("dropped", "frames", 3, 4)
    assert short["image"] is None
    for uri in ("right.gif", "walk/"):
        assert rows[uri]["frames"] == len(rows[uri]["frame_phashes"]) == 4
        with Image.open(io.BytesIO(rows[uri]["image"]["bytes"])) as image:
            strip = np.asarray(image)
        assert strip.shape == (4 * 32, 32, 3)
        reds = [strip[i * 32 : i * 32 + 24].astype(int) for i in range(4)]
        dark = [np.where((frame < 200).any(axis=2))[1].mean() for frame in reds]
        assert dark == sorted(dark), "the disc goes to the right"
        assert dark[-1] - dark[0] > 8
    assert rows["walk/"]["image"]["path"] == "walk"
    assert rows["walk/"]["bytes"] == sum(p.stat().st_size for p in (films / "films" / "walk").iterdir())


def test_without_frames_a_film_is_its_first_frame_as_ever(films: Path) -> None:
    rows = rows_of(listed(films))
    still = rows["right.gif"]
    assert not OPTIONAL.names & still.keys()
    first = decode((films / "films" / "right.gif").read_bytes(), ImageConfig())
    assert still["phash"] == perceptual(first).phash
    assert rows["short.gif"]["reason"] == "passed"
    assert rows["walk/frame 1.png"]["reason"] == "passed"
    assert rows_of(listed(films, frames=4))["right.gif"]["pixel_hash"] == still["pixel_hash"]


def test_measures_of_other_frames_or_shapes_are_others_and_older_jobs_stay_what_they_were(films: Path) -> None:
    found = [listed(films, **fields) for fields in ({}, {"frames": 4}, {"frames": 5}, {"buckets": {"area": 4096}})]
    folders = {job.stages["measure"].folder for job in found}
    assert len(folders) == 4
    crop = listed(films, buckets={"area": 4096, "max_crop": 0.1})
    assert crop.stages["measure"].folder in folders, "how much may be cut off is the policy's"
    identity = found[0].identity()
    assert not {"frames", "buckets"} & identity.keys()
    assert "sequences" not in identity["source"]
    assert found[1].identity()["source"]["sequences"] is True
    names = schema(None).names
    assert not set(OPTIONAL.names) & set(names)


def test_frame_folders_want_frames(films: Path) -> None:
    with pytest.raises(UserError) as caught:
        listed(films, source={"kind": "folder", "path": str(films / "films"), "sequences": True})
    assert caught.value.field == "frames"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"frames": 4, "buckets": {}}, "buckets"),
        ({"buckets": {}, "images": {"fit": "pad"}}, "images.fit"),
        ({"frames": 64, "image_size": 2048}, "frames"),
        ({"frames": 16, "scorers": 1, "unit_size": 128}, "unit_size"),
    ],
)
def test_what_does_not_go_together_is_refused(films: Path, fields: dict[str, Any], field: str) -> None:
    with pytest.raises(UserError) as caught:
        listed(films, **fields)
    assert caught.value.field == field


def test_films_are_copies_when_all_of_their_frames_are(tmp_path: Path) -> None:
    """The same first frame, or the same frames the other way round, make no copy."""
    (tmp_path / "films").mkdir()
    there = moving(8)
    files = {
        "a there.png": film(there, "PNG"),
        "b there.webp": film(there, "WEBP"),
        "c there.webp": film(there, "WEBP", lossless=False, quality=70),
        "d back.png": film(there[::-1], "PNG"),
        "e stays.png": film([there[0], *(dot(0, y=i / 8) for i in range(1, 8))], "PNG"),
        "f turns blue.png": film([there[0], *moving(8, colour="blue")[1:]], "PNG"),
    }
    for name, data in files.items():
        (tmp_path / "films" / name).write_bytes(data)
    assert reasons(listed(tmp_path, frames=8)) == {
        "a there.png": "passed",
        "b there.webp": "duplicate_pixel",
        "c there.webp": "duplicate_perceptual",
        "d back.png": "passed",
        "e stays.png": "passed",
        "f turns blue.png": "passed",
    }


def opted_out(films: Path, column: str, value: str) -> dict[str, str]:
    (films / "optout.csv").write_text(f"{column}\n{value}\n")
    return reasons(listed(films, frames=4, optout=[{"path": str(films / "optout.csv")}]))


def test_an_optout_of_one_frame_s_file_is_one_of_its_film(films: Path) -> None:
    frame = films / "films" / "walk" / "frame 5.png"
    sampled = perceptual(np.asarray(dot(6 / 11, "green", y=0.1))).phash
    for column, value in (
        ("uri", "walk/frame 5.png"),
        ("uri", "walk/"),
        ("sha256", hashlib.sha256(frame.read_bytes()).hexdigest()),
        ("phash", f"{sampled:016x}"),
    ):
        found = opted_out(films, column, value)
        assert (found["walk/"], found["right.gif"]) == ("opted_out", "passed"), (column, value)


def test_an_opted_out_still_reaches_a_film_that_shows_it_and_a_film_its_frames(films: Path) -> None:
    """In any frame that is sampled, and also where only the one or the other is known."""
    later = moving(8)[4]
    (films / "films" / "poster.jpg").write_bytes(encoded(later.resize((160, 160)), "JPEG", quality=90))
    found = opted_out(films, "uri", "poster.jpg")
    assert (found["poster.jpg"], found["right.gif"]) == ("opted_out", "opted_out_near_copy")
    assert found["blue.webp"] == "passed"
    found = opted_out(films, "uri", "right.gif")
    assert (found["right.gif"], found["poster.jpg"]) == ("opted_out", "opted_out_near_copy")


def test_blank_frames_make_no_copies(tmp_path: Path) -> None:
    (tmp_path / "films").mkdir()
    black = Image.new("RGB", (64, 64))
    one = [black, *moving(6), black]
    two = [black, *(noise(i, (64, 64)) for i in range(6)), black]
    for name, frames in (("one.png", one), ("two.png", two)):
        (tmp_path / "films" / name).write_bytes(film(frames, "PNG"))
    (tmp_path / "optout.csv").write_text("uri\none.png\n")
    rows = rows_of(listed(tmp_path, frames=8, optout=[{"path": str(tmp_path / "optout.csv")}]))
    assert {uri: row["reason"] for uri, row in rows.items()} == {"one.png": "opted_out", "two.png": "passed"}
    assert rows["one.png"]["frame_phashes"][0] == 0 != rows["one.png"]["phash"]


def test_what_one_frame_s_file_forbids_holds_for_the_film(films: Path) -> None:
    info = PngImagePlugin.PngInfo()
    xmp = (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description xmlns:plus="http://ns.useplus.org/ldf/xmp/1.0/">'
        "<plus:DataMining>http://ns.useplus.org/ldf/vocab/DMI-PROHIBITED</plus:DataMining>"
        "</rdf:Description></rdf:RDF></x:xmpmeta>"
    )
    info.add_itxt("XML:com.adobe.xmp", xmp)
    (films / "films" / "walk" / "frame 6.png").write_bytes(encoded(dot(5 / 11, "green", y=0.1), pnginfo=info))
    assert rows_of(listed(films, frames=4))["walk/"]["rule"] == "rights.plus_data_mining"


def test_the_worst_frame_s_safety_is_the_film_s(tmp_path: Path) -> None:
    """To the bit what the frame has as a still, though the embedding of the film is the mean of its frames'."""
    (tmp_path / "films").mkdir()
    (tmp_path / "stills" / "films").mkdir(parents=True)
    frames = [*moving(3), noise(7, (64, 64)), dot(0.2, "blue")]
    (tmp_path / "films" / "film.png").write_bytes(film(frames, "PNG"))
    for i, frame in enumerate(frames):
        (tmp_path / "stills" / "films" / f"{i}.png").write_bytes(encoded(frame))
    scored = {"clip": {"batch_size": 4}, "safety": {"concepts": {"fire": 0.9, "sea": 0.9}}, "image_size": 32}
    stills = rows_of(listed(tmp_path / "stills", **scored, duplicates={"perceptual": None})).values()
    (row,) = rows_of(listed(tmp_path, frames=5, **scored)).values()
    worst = {c: max(s["score"] for r in stills for s in r["safety"] if s["concept"] == c) for c in ("fire", "sea")}
    assert {s["concept"]: s["score"] for s in row["safety"]} == worst
    mean = np.mean([np.array(r["embedding"], np.float32) for r in stills], axis=0)
    assert np.allclose(np.array(row["embedding"], np.float32), mean / np.linalg.norm(mean), atol=2e-3)
    limits = {"concepts": {"fire": 0.9, "sea": worst["sea"]}}
    (row,) = rows_of(listed(tmp_path, frames=5, **scored | {"safety": limits})).values()
    assert (row["reason"], row["rule"]) == ("unsafe", "safety.concepts.sea")


def test_pictures_of_all_shapes_are_cut_to_the_nearest_bucket(tmp_path: Path) -> None:
    (tmp_path / "films").mkdir()
    sizes = {"wide": (160, 90), "tall": (90, 160), "square": (100, 100), "banner": (400, 50), "large": (1600, 1000)}
    for i, (name, size) in enumerate(sizes.items()):
        kind = "JPEG" if name == "large" else "PNG"
        (tmp_path / "films" / name).write_bytes(encoded(noise(i, size), kind))
    rows = rows_of(listed(tmp_path, buckets={"area": 4096, "step": 8}))
    assert {uri: row["reason"] for uri, row in rows.items()} == {
        **dict.fromkeys(sizes, "passed"),
        "banner": "odd_shape",
    }
    assert (rows["banner"]["rule"], rows["banner"]["threshold"]) == ("buckets.max_crop", 0.25)
    assert rows["banner"]["score"] == pytest.approx(
        1 - (rows["banner"]["image_width"] / rows["banner"]["image_height"]) / 8
    )
    found = {}
    for uri, row in rows.items():
        if row["decision"] == "kept":
            with Image.open(io.BytesIO(row["image"]["bytes"])) as image:
                assert image.size == (row["image_width"], row["image_height"])
                found[uri] = image.size
    assert found["square"] == (64, 64)
    assert found["wide"] == found["tall"][::-1]
    assert found["large"] == (80, 48)
    assert all(width * height <= 4096 for width, height in found.values())
