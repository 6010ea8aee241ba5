"""Revocation: what entries select, what that reaches, and that it reaches what an opt-out reaches in curation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from curation.duplicates import Copies, DuplicatesConfig
from curation.errors import UserError
from curation.manifest import Manifest, named, schema
from curation.takedowns import Entry, Selector
from curation.takedowns.events import make_entry
from curation.takedowns.pictures import MAX_BYTES, of_bytes, of_file, of_row
from curation.takedowns.revocation import COLUMNS, PICTURE_COLUMNS, Revocations, Revoked
from tests.curation.pictures import drawing, encoded, noise
from tests.curation.takedowns.manifests import published, row_of
from tests.curation.takedowns.test_ledger import START

PICTURE = noise(1, (192, 160))
ORIGINAL = encoded(PICTURE)
REWRAPPED = encoded(PICTURE, compress_level=1)  # the same pixels
JPEG = encoded(PICTURE, "JPEG", quality=80)
SMALLER = encoded(PICTURE.resize((144, 120)))
MIRRORED = encoded(PICTURE.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
OTHER = encoded(noise(2))


def entry(*selectors: Selector, ground: str = "mine") -> Entry:
    return make_entry(
        requester="Jane",
        ground=ground,
        selectors=selectors,
        requested_at=START,
        reference=None,
        recorded_at=START,
    )


def rows() -> list[dict[str, Any]]:
    return [
        row_of(ORIGINAL, "https://a.org/original.png", creator="Jane"),
        row_of(REWRAPPED, "https://b.org/rewrapped.png"),
        row_of(JPEG, "https://b.org/copy.jpg"),
        row_of(SMALLER, "https://b.org/smaller.png"),
        row_of(MIRRORED, "https://b.org/mirrored.png"),
        row_of(OTHER, "https://b.org/other.png"),
    ]


def reached(manifest: Manifest, *entries: Entry) -> dict[str, str]:
    """By the file's name: how it is reached."""
    by_id = {row["id"]: row["uri"].rsplit("/", 1)[-1] for row in manifest.table(["id", "uri"]).to_pylist()}
    return {by_id[id_]: why.kind for id_, why in Revocations(entries).of_manifest(manifest).items()}


def test_a_creator_takes_the_near_copies_along_and_nothing_else(tmp_path: Path) -> None:
    manifest = published(tmp_path, rows()[:3], rows()[3:])
    jane = entry(Selector.of("creator", "JANE"))
    copies = dict.fromkeys(["rewrapped.png", "copy.jpg", "smaller.png"], "near_copy")
    assert reached(manifest, jane) == {"original.png": "direct"} | copies
    found = Revocations([jane]).of_manifest(manifest)
    (original, rewrapped, *_) = rows()
    assert found[original["id"]] == Revoked(jane.id, "direct")
    assert found[rewrapped["id"]] == Revoked(jane.id, "near_copy", original["id"], 1.0)
    assert all(0.9 < why.similarity <= 1 for why in found.values() if why.similarity is not None)


def test_the_job_s_own_reach_counts_where_it_is_longer(tmp_path: Path) -> None:
    jane = entry(Selector.of("creator", "Jane"))
    turned = {"duplicates": {"perceptual": {"turned": True}}}
    assert reached(published(tmp_path / "a", rows(), job=turned), jane)["mirrored.png"] == "near_copy"
    none = {"duplicates": {"exact": False, "pixel": False, "perceptual": None}}
    nonsense = {"duplicates": {"radius": "wide"}}
    expected = reached(published(tmp_path / "b", rows()), jane)
    assert len(expected) == 4
    assert reached(published(tmp_path / "c", rows(), job=none), jane) == expected
    assert reached(published(tmp_path / "d", rows(), job=nonsense), jane) == expected


@pytest.mark.parametrize("job", [{}, {"duplicates": {"perceptual": {"turned": True}}}])
@pytest.mark.parametrize("uploaded", [ORIGINAL, JPEG, MIRRORED])
def test_an_uploaded_picture_reaches_what_it_would_reach_as_a_row(
    tmp_path: Path, job: dict[str, Any], uploaded: bytes
) -> None:
    without = [row for row in rows() if row["id"] != of_bytes(uploaded).value]
    by_picture = reached(published(tmp_path / "a", without, job=job), entry(of_bytes(uploaded)))
    row = row_of(uploaded, "https://c.org/uploaded.png", decision="dropped")
    by_row = reached(published(tmp_path / "b", [row, *without], job=job), entry(Selector.of("uri", row["uri"])))
    assert by_picture == by_row
    assert set(by_picture.values()) <= {"near_copy"}


def test_a_row_that_was_not_kept_still_reaches_the_copy_that_was(tmp_path: Path) -> None:
    first, second, *rest = rows()
    manifest = published(tmp_path, [first | {"decision": "dropped", "reason": "duplicate_pixel"}, second, *rest])
    assert reached(manifest, entry(Selector.of("domain", "a.org"))) == dict.fromkeys(
        ["rewrapped.png", "copy.jpg", "smaller.png"], "near_copy"
    )


def test_the_same_bytes_elsewhere_are_revoked_also_without_a_picture(tmp_path: Path) -> None:
    blank = dict.fromkeys(PICTURE_COLUMNS)
    one, two = (row_of(ORIGINAL, uri) | blank for uri in ("a/1.png", "b/2.png"))
    manifest = published(tmp_path, [one | {"decision": "held"}, two])
    jane = entry(Selector.of("uri", "a/1.png"))
    assert Revocations([jane]).of_manifest(manifest) == {two["id"]: Revoked(jane.id, "near_copy", two["id"], 1.0)}


def test_a_neighbour_s_neighbour_is_another_picture(tmp_path: Path) -> None:
    first = row_of(ORIGINAL, "a.png")
    second = row_of(encoded(noise(3)), "b.png") | {
        "phash": first["phash"] ^ 0b111,
        "colour_layout": first["colour_layout"],
    }
    third = row_of(encoded(noise(4)), "c.png") | {
        "phash": first["phash"] ^ 0b111111,
        "colour_layout": first["colour_layout"],
    }
    manifest = published(tmp_path, [first, second, third])
    assert reached(manifest, entry(of_bytes(ORIGINAL))) == {"a.png": "direct", "b.png": "near_copy"}


def test_hashes_alone_do_not_make_a_copy(tmp_path: Path) -> None:
    red, blue = (row_of(encoded(drawing("circle", colour)), f"{colour}.png") for colour in ("red", "blue"))
    blue["phash"] = red["phash"]
    manifest = published(tmp_path, [red, blue])
    picture = of_bytes(encoded(drawing("circle", "red")))
    assert reached(manifest, entry(picture)) == {"red.png": "direct"}
    table = pa.Table.from_pylist([red, blue], schema=schema(None))
    assert [found is not None for found in Revocations([entry(picture)]).direct(table)] == [True, False]


@pytest.mark.parametrize("neighbours", [True, False])
def test_direct_is_by_selectors_and_pictures(neighbours: bool) -> None:
    picture, jane = entry(of_bytes(ORIGINAL)), entry(Selector.of("creator", "jane"), ground="later")
    there = schema(None, COLUMNS + PICTURE_COLUMNS)
    table = pa.Table.from_pylist(rows(), schema=there).select(["uri", *COLUMNS[2:], "id", *PICTURE_COLUMNS])
    found = Revocations([picture, jane]).direct(table, neighbours=neighbours)
    near = picture.id if neighbours else None
    assert found == [picture.id, near, near, near, None, None]
    assert Revocations([jane, picture]).direct(table, neighbours=neighbours)[0] == jane.id


def test_columns_that_an_older_manifest_lacks_select_nothing() -> None:
    revocations = Revocations([entry(Selector.of("creator", "jane"), Selector.of("domain", "a.org"), of_bytes(OTHER))])
    assert revocations.direct(pa.table({"id": ["x"], "uri": ["y"]})) == [None]
    assert revocations.direct(pa.table({"host": ["img.a.org"]})) != [None]
    assert revocations.direct(pa.table({"embedded": [named({"creator": "Jane"})]})) != [None]


class Unreadable(Manifest):
    """A manifest whose rows are out of reach."""

    def batches(self, *args: Any, **options: Any) -> Iterator[pa.RecordBatch]:
        raise AssertionError("read")


def test_an_empty_ledger_reads_nothing(tmp_path: Path) -> None:
    manifest = published(tmp_path, rows())
    unreadable = Unreadable(manifest.uri, manifest.info)
    assert Revocations([]).of_manifest(unreadable) == {}
    assert not Revocations([])
    with pytest.raises(AssertionError, match="read"):
        Revocations([entry(of_bytes(OTHER))]).of_manifest(unreadable)


PICTURES = [encoded(noise(seed, (48, 40))) for seed in range(4)]
_choices = st.tuples(st.integers(0, 3), st.sampled_from(["a.org", "b.org"]), st.sampled_from(["kept", "dropped"]))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(_choices, min_size=1, max_size=8), st.integers(0, 3))
def test_exact_copies_of_a_revoked_row_are_always_revoked(
    tmp_path_factory: pytest.TempPathFactory, chosen: list[tuple[int, str, str]], uploaded: int
) -> None:
    made = [
        row_of(PICTURES[n], f"https://{host}/{i}.png", host=host, decision=decision)
        for i, (n, host, decision) in enumerate(chosen)
    ]
    manifest = published(tmp_path_factory.mktemp("m"), made)
    entries = [entry(Selector.of("domain", "a.org")), entry(of_bytes(PICTURES[uploaded]))]
    found = Revocations(entries).of_manifest(manifest)
    revoked = {row["id"] for row in made if row["host"] == "a.org"} | {of_bytes(PICTURES[uploaded]).value}
    assert found.keys() == {row["id"] for row in made if row["decision"] == "kept" and row["id"] in revoked}


def test_it_is_what_spreading_over_all_rows_finds(tmp_path: Path) -> None:
    """Against `Copies.spread` over the whole set, as `decide.settle` does it, with hashes that lie close together."""
    chance = np.random.default_rng(5)
    base = row_of(ORIGINAL, "x")
    made = []
    for i in range(400):
        changed = {"id": f"{i:064x}", "uri": f"{i}.png", "pixel_hash": f"{chance.integers(300):064x}"}
        made.append(base | changed | {"phash": int(chance.integers(2**9)), "creator": "Jane" if i % 40 == 0 else None})
    manifest = published(tmp_path, made)
    found = Revocations([entry(Selector.of("creator", "jane"))]).of_manifest(manifest)
    ids, pixels = (np.array([row[name] for row in made], "S64") for name in ("id", "pixel_hash"))
    colours = np.stack([np.frombuffer(row["colour_layout"], np.uint8) for row in made])
    hashes = np.array([row["phash"] for row in made], np.uint64)
    marked = np.array([row["creator"] is not None for row in made])
    bindings = Copies(ids, pixels, hashes, colours, DuplicatesConfig().binding()).spread(marked)
    assert found.keys() == {made[i]["id"] for i in np.flatnonzero(marked | (bindings.of >= 0))}
    assert 10 < len(found) < 400


def test_a_row_of_a_manifest_is_selected_by_its_own_columns(tmp_path: Path) -> None:
    manifest = published(tmp_path, [*rows(), {"id": "0" * 64, "uri": "lost.png", "decision": "failed"}])
    original = rows()[0]
    expected = [Selector.of("sha256", original["id"]), of_bytes(ORIGINAL)]
    assert of_row(manifest.uri, original["id"]) == of_row(str(tmp_path), original["uri"]) == expected
    assert of_row(manifest.uri, "lost.png") == [Selector.of("uri", "lost.png")]
    with pytest.raises(UserError, match="no row with"):
        of_row(manifest.uri, "never seen")


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("<html>")
    (tmp_path / "large.png").write_bytes(b"")
    with open(tmp_path / "large.png", "r+b") as file:
        file.truncate(MAX_BYTES + 1)
    for name, words in (
        ("page.html", "looks like an HTML page"),
        ("large.png", "bytes, more than"),
        ("no", "cannot read"),
    ):
        with pytest.raises(UserError, match=words) as error:
            of_file(str(tmp_path / name))
        assert error.value.field == "--picture"
    (tmp_path / "ok.png").write_bytes(ORIGINAL)
    assert of_file(str(tmp_path / "ok.png")) == of_bytes(ORIGINAL)
