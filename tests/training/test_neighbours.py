"""The index of training pictures: its arithmetic against brute force, its files, and what a takedown reaches in it."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from curation.errors import UserError
from curation.hashes import perceptual, pixel_hash
from curation.manifest import Manifest
from curation.takedowns.events import Selector, make_entry
from curation.takedowns.revocation import Revocations
from tests.training.conftest import derive, many, row_id, write_manifest
from tests.training.test_memorization import draw
from training.neighbours import building, spaces
from training.neighbours.building import Thumbnails, Trained
from training.neighbours.calibration import Calibration
from training.neighbours.index import INFO_FILE, PICTURES_FILE, TAKEDOWNS, Index, load
from training.roster import Roster

DIM = 8
SHOWN = Thumbnails(("CC0-1.0",), lambda licence: licence == "CC0-1.0")
VECTORS = arrays(np.float32, st.tuples(st.integers(1, 40), st.just(6)), elements=st.floats(-1, 1, width=16))


def embed(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Unit vectors of mean colours in quarters: a CLIP for tests."""
    small = [np.asarray(Image.fromarray(p).resize((2, 2), Image.Resampling.BOX), np.float32).ravel() for p in pictures]
    vectors = np.stack(small)[:, :DIM] / 255 - 0.5
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)


def made(folder: Path, manifest: Manifest, **options: Any) -> Index:
    roster = Roster.of_manifest(manifest)
    given: dict[str, Any] = {"clip": "quarters", "dim": DIM, "thumbnails": SHOWN, **options}
    held_out, bundle = given.pop("held_out", []), given.pop("bundle", "b" * 64)
    by = given.pop("embed", embed)
    building.build(folder / "neighbours", [Trained(bundle, roster, manifest)], held_out, by, **given)
    return load(folder / "neighbours")


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return draw(60, 0)


@pytest.fixture(scope="module")
def rows(pictures: np.ndarray) -> list[tuple[str, np.ndarray]]:
    return [(f"picture {i}", picture) for i, picture in enumerate(pictures)]


@pytest.fixture(scope="module")
def index(rows: list[tuple[str, np.ndarray]], tmp_path_factory: pytest.TempPathFactory) -> Index:
    folder = tmp_path_factory.mktemp("index")
    said = {"creator": "Jane Doe", "uri": lambda caption: f"https://a.example/{caption.split()[1]}.png"}
    return made(folder, write_manifest(folder / "manifests", rows, **said))


class TestArithmetic:
    @given(known=VECTORS, views=VECTORS)
    def test_distances_are_those_of_brute_force(self, known: np.ndarray, views: np.ndarray) -> None:
        apart = known.astype(np.float64)[:, None] - views.astype(np.float64)[None]
        expected = np.sqrt((apart**2).sum(-1)).min(axis=1)
        assert np.allclose(spaces.distances(known, views), expected, atol=2e-3)

    def test_blocks_do_not_show(self, monkeypatch: pytest.MonkeyPatch) -> None:
        known = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float16)
        whole = spaces.distances(known, known[:3])
        monkeypatch.setattr(spaces, "_BLOCK", 7)
        assert np.allclose(spaces.distances(known, known[:3]), whole, atol=1e-6)

    @given(values=st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, np.inf]), max_size=30), k=st.integers(0, 12))
    def test_the_smallest_in_order(self, values: list[float], k: int) -> None:
        expected = [i for i in sorted(range(len(values)), key=lambda i: (values[i], i)) if np.isfinite(values[i])][:k]
        assert spaces.smallest(np.array(values), k).tolist() == expected

    @given(vectors=VECTORS, data=st.data())
    def test_spread_is_the_mean_distance_to_the_nearest_others(self, vectors: np.ndarray, data: st.DataObject) -> None:
        owners = np.array(sorted(data.draw(st.integers(0, 9)) for _ in vectors))
        found = spaces.spreads("clip", vectors, owners)
        for row, vector in enumerate(vectors):
            apart = np.sqrt(((vectors.astype(np.float64) - vector) ** 2).sum(axis=1))
            if np.any(abs(apart - spaces.SAME["clip"]) < 1e-3):
                continue  # whether it is a copy is a matter of rounding
            others = np.sort(apart[(apart > spaces.SAME["clip"]) & (owners != owners[row])])[:10]
            assert found[row] == pytest.approx(others.mean() if len(others) else np.inf, abs=2e-3)

    def test_brightness_contrast_and_mirroring_do_not_count_and_small_moves_little(self, pictures: np.ndarray) -> None:
        picture = pictures[3]
        views = spaces.pixel_views(picture)
        assert views.shape == (50, spaces.DIM)
        dimmed = (picture * 0.6 + 30).astype(np.uint8)
        for copy in (
            picture,
            dimmed,
            picture[:, ::-1],
            np.pad(picture, ((1, 0), (1, 0), (0, 0)), mode="edge")[:16, :16],
        ):
            assert spaces.distances(spaces.pixel_vector(copy)[None], views)[0] < 0.1
        assert spaces.distances(spaces.pixel_vector(pictures[4])[None], views)[0] > 0.3

    def test_similarity(self) -> None:
        assert [spaces.similarity(r) for r in (0, 1, 2)] == [1, 0.5, 0.25]


class TestCalibration:
    @given(
        ratios=st.lists(st.tuples(st.floats(0, 2), st.floats(0, 2)), max_size=60),
        allowed=st.floats(0, 0.3),
        most=st.floats(0.1, 1),
    )
    def test_no_more_than_the_share_that_is_allowed(
        self, ratios: list[tuple[float, float]], allowed: float, most: float
    ) -> None:
        found = Calibration(kind="held_out", copies=0, ratios=tuple(ratios)).thresholds(allowed, most=most)
        if not ratios:
            assert (found.ratio, found.at_most) == ({"pixel": most, "clip": most}, 1.0)
            return
        taken = [p < found.ratio["pixel"] or c < found.ratio["clip"] for p, c in ratios]
        assert found.false_positives == pytest.approx(np.mean(taken))
        assert found.false_positives <= allowed
        assert found.false_positives < found.at_most <= 1
        assert max(found.ratio.values()) <= most

    def test_it_is_the_largest_such(self) -> None:
        ratios = tuple((i / 100, 1.0) for i in range(100))
        found = Calibration(kind="held_out", copies=0, ratios=ratios).thresholds(0.05, most=1)
        assert found.ratio["pixel"] == 0.05
        assert found.false_positives == 0.05

    def test_held_out_pictures_are_asked_where_there_are_enough_and_copies_among_them_are_not(
        self, rows: list[tuple[str, np.ndarray]], tmp_path: Path
    ) -> None:
        others = [(f"other {i}", picture) for i, picture in enumerate(draw(60, 1))]
        apart = write_manifest(tmp_path / "other", [*others, *rows[:3]])
        manifest = write_manifest(tmp_path / "manifests", rows)
        index = made(tmp_path, manifest, held_out=[(apart, Roster.of_manifest(apart))])
        assert (index.info.calibration.kind, index.info.calibration.copies) == ("held_out", 3)
        assert len(index.info.calibration.ratios) == 60

    def test_else_each_training_picture_is_held_against_the_others(self, index: Index) -> None:
        found = index.info.calibration
        assert (found.kind, len(found.ratios)) == ("leave_one_out", 60)
        vectors = index.vectors["clip"].astype(np.float64)
        apart = np.linalg.norm(vectors[:, None] - vectors[None], axis=2)
        apart[apart <= spaces.SAME["clip"]] = np.inf
        near = int(apart[0].argmin())
        others = np.sort(np.delete(apart[near], 0))[:10]
        assert found.ratios[0][1] == pytest.approx(apart[0, near] / others.mean(), rel=1e-2), "not in the spread either"


class TestSearch:
    def search(self, index: Index, picture: np.ndarray) -> Any:
        return index.search([picture], embed([picture]))

    def test_a_training_picture_finds_itself(self, index: Index, pictures: np.ndarray) -> None:
        for number in (0, 31):
            found = self.search(index, pictures[number])
            for space in spaces.SPACES:
                near = found.nearest(space)
                assert index.ids[near.place] == row_id(pictures[number])
                assert near.ratio < 0.05
            best = found.best(3, index.mask(()))
            assert index.picture(best[0].place).id == row_id(pictures[number])
            assert index.picture(best[0].place).uri == f"https://a.example/{number}.png"
            assert best[0].similarity > 0.95 > best[1].similarity >= best[2].similarity

    @given(k=st.integers(1, 80), gone=st.sets(st.integers(0, 59)), number=st.integers(0, 59))
    def test_what_is_left_out_is_never_found_and_the_rest_is(
        self, index: Index, pictures: np.ndarray, k: int, gone: set[int], number: int
    ) -> None:
        without = np.isin(np.arange(60), list(gone))
        best = self.search(index, pictures[number]).best(k, without)
        places = [neighbour.place for neighbour in best]
        assert not gone & set(places)
        assert len(set(places)) == len(places) == min(k, 60 - len(gone))

    def test_the_best_are_the_most_similar_of_the_nearest_in_either_space(self, index: Index) -> None:
        picture = draw(1, 5)[0]
        sought = {"clip": embed([picture]), "pixel": spaces.pixel_views(picture)}
        ratios: dict[int, float] = {}
        for space in spaces.SPACES:
            apart = index.vectors[space].astype(np.float64)[:, None] - sought[space].astype(np.float64)[None]
            nearest = np.sqrt((apart**2).sum(-1)).min(axis=1)
            for place in np.argsort(nearest)[:5].tolist():
                ratio = nearest[place] / index.spread[space][place]
                ratios[place] = min(ratios.get(place, np.inf), ratio)
        expected = sorted(ratios, key=ratios.__getitem__)[:5]
        best = self.search(index, picture).best(5, index.mask(()))
        assert [neighbour.place for neighbour in best] == expected
        assert [neighbour.ratio for neighbour in best] == pytest.approx([ratios[p] for p in expected], rel=1e-2)


class TestFiles:
    def test_thumbnails_only_by_licence_and_never_of_what_was_taken_down(
        self, rows: list[tuple[str, np.ndarray]], tmp_path: Path
    ) -> None:
        gone = row_id(rows[1][1])
        manifest = write_manifest(
            tmp_path / "manifests", rows, licence=lambda c: "CC0-1.0" if c in ("picture 0", "picture 1") else None
        )
        index = made(tmp_path, manifest, thumbnails=Thumbnails(("CC0-1.0",), SHOWN.permit, frozenset({gone})))
        shown = {i: index.picture(i).thumbnail for i in range(len(index)) if index.picture(i).thumbnail is not None}
        assert [index.ids[i] for i in shown] == [row_id(rows[0][1])]
        assert Image.open(io.BytesIO(next(iter(shown.values())) or b"")).size == (16, 16)
        assert index.info.thumbnails == 1

    @pytest.mark.parametrize("name", [PICTURES_FILE, f"{TAKEDOWNS}/0/manifest.json", INFO_FILE])
    def test_what_was_changed_is_not_read(self, rows: list[tuple[str, np.ndarray]], tmp_path: Path, name: str) -> None:
        made(tmp_path, write_manifest(tmp_path / "manifests", rows))
        path = tmp_path / "neighbours" / name
        path.write_bytes(path.read_bytes().replace(b"a", b"b", 1)[1:])
        with pytest.raises(UserError, match=r"changed|damaged"):
            load(tmp_path / "neighbours")

    def test_its_sha256_names_all_of_it(self, rows: list[tuple[str, np.ndarray]], tmp_path: Path) -> None:
        one = made(tmp_path / "one", write_manifest(tmp_path / "manifests", rows))
        other = made(tmp_path / "other", write_manifest(tmp_path / "fewer", rows[1:]))
        assert one.sha256 != other.sha256
        assert set(one.info.files) == {
            PICTURES_FILE,
            f"{TAKEDOWNS}/0/manifest.json",
            f"{TAKEDOWNS}/0/part-00000.parquet",
        }

    def test_too_few_pictures(self, rows: list[tuple[str, np.ndarray]], tmp_path: Path) -> None:
        with pytest.raises(UserError, match="neighbours"):
            made(tmp_path, write_manifest(tmp_path / "manifests", rows[:2]))

    def test_a_folder_with_other_things_in_it_is_left_alone(
        self, rows: list[tuple[str, np.ndarray]], tmp_path: Path
    ) -> None:
        manifest = write_manifest(tmp_path / "manifests", rows)
        (tmp_path / "neighbours").mkdir()
        (tmp_path / "neighbours" / "results.csv").write_text("years of work")
        with pytest.raises(UserError, match="something else than an index"):
            made(tmp_path, manifest)
        assert (tmp_path / "neighbours" / "results.csv").read_text() == "years of work"
        (tmp_path / "neighbours" / "results.csv").unlink()
        assert made(tmp_path, manifest).ids == made(tmp_path, manifest).ids, "an older index is replaced"

    def test_pictures_that_the_manifest_lost_are_said(self, rows: list[tuple[str, np.ndarray]], tmp_path: Path) -> None:
        roster = Roster.of_manifest(write_manifest(tmp_path / "manifests", rows))
        fewer = derive(tmp_path / "derived", rows, {"picture 0"})
        info = building.build(
            tmp_path / "index", [Trained("b" * 64, roster, fewer)], [], embed, clip="q", dim=DIM, thumbnails=SHOWN
        )
        assert info.pictures == 59
        assert "1 pictures" in info.missing[0]

    def test_two_training_sets_are_one_index(self, rows: list[tuple[str, np.ndarray]], tmp_path: Path) -> None:
        """A student's own and its teacher's, which overlap."""
        sets = [write_manifest(tmp_path / name, some) for name, some in (("own", rows[:30]), ("teacher", rows[20:]))]
        trained = [Trained(digit * 64, Roster.of_manifest(m), m) for digit, m in zip("ab", sets, strict=True)]
        info = building.build(tmp_path / "index", trained, [], embed, clip="q", dim=DIM, thumbnails=SHOWN)
        assert (info.pictures, info.missing, len(info.training_sets)) == (60, (), 2)
        assert info.manifests == tuple(manifest.id for manifest in sets)


class TestFilms:
    def test_the_nearest_frame_counts(self, pictures: np.ndarray, tmp_path: Path) -> None:
        strips = [(f"film {i}", pictures[3 * i : 3 * i + 3].reshape(48, 16, 3)) for i in range(12)]
        index = made(tmp_path, write_manifest(tmp_path / "manifests", strips, frames=3))
        assert (len(index), len(index.owners), index.info.frames) == (12, 36, 3)
        film = [*draw(2, 7), pictures[3 * 4 + 1]]
        found = index.search(film, embed(film))
        assert index.ids[found.nearest("pixel").place] == row_id(strips[4][1])
        best = found.best(5, index.mask(()))
        assert len({neighbour.place for neighbour in best}) == 5
        assert index.ids[best[0].place] == row_id(strips[4][1])


@pytest.mark.parametrize(
    ("kind", "value"), [("domain", "a.example"), ("creator", "Painter B"), ("sha256", None), ("uri", None)]
)
def test_a_takedown_reaches_in_the_index_what_it_reaches_in_the_manifest(
    kind: Any, value: str | None, tmp_path: Path
) -> None:
    """Near copies too, also those of rows that the manifest did not keep."""
    shown = {f"picture {i}": picture for i, (_, picture) in enumerate(many(9))}
    for name, of in (("again", "picture 0"), ("lost", "picture 1")):
        shown[name] = shown[of].copy()
        shown[name][0, 0] ^= 1
    host = {caption: f"{'abc'[i % 3]}.example" for i, caption in enumerate(shown)} | {"again": "mirror.example"}
    columns: dict[str, Callable[[str], Any]] = {
        "uri": lambda caption: f"https://{host[caption]}/{caption.replace(' ', '-')}.png",
        "host": host.__getitem__,
        "creator": lambda caption: f"Painter {host[caption][0].upper()}",
        "decision": lambda caption: "dropped" if caption == "lost" else "kept",
        "pixel_hash": lambda caption: pixel_hash(shown[caption]),
        "phash": lambda caption: perceptual(shown[caption]).phash,
        "colour_layout": lambda caption: perceptual(shown[caption]).colour_layout,
    }
    manifest = write_manifest(tmp_path / "manifests", list(shown.items()), **columns)
    values = {"sha256": row_id(shown["lost"]), "uri": "https://a.example/picture-0.png"}
    selector = Selector.of(kind, value or values[kind])
    at = manifest.info.created_at
    entry = make_entry(requester="J", ground="g", selectors=[selector], requested_at=at, reference=None, recorded_at=at)
    made(tmp_path, manifest)
    slim = Manifest.open(str(tmp_path / "neighbours" / TAKEDOWNS / "0"))
    reached = Revocations([entry]).of_manifest(slim)
    assert reached == Revocations([entry]).of_manifest(manifest)
    assert reached
    assert "image" not in slim.schema.names
