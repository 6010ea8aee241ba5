"""The loops to try moving pictures with: the same bytes each time, and every one of them is kept."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines import demo, demo_moving
from pipelines.moving import FRAMES, METADATA, MOTIONS, MOVING, plan, write


def test_loops_are_the_same_each_time_and_say_what_they_show(tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert write(tmp_path / name, 10, seed=3) == 10
    files = sorted(p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*.*"))
    assert len(files) == 9 + FRAMES + 1
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    for gif in (tmp_path / "one" / MOVING).glob("*.gif"):
        with Image.open(gif) as image:
            assert getattr(image, "n_frames", 1) == FRAMES
    with (tmp_path / "one" / METADATA).open() as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [f"{i:04d}" + ("" if i == 7 else ".gif") for i in range(10)]
    assert all(any(row["title"].endswith(f" {motion}") for motion in MOTIONS) for row in rows)


def test_every_drawing_moves_in_every_way_before_any_comes_again() -> None:
    drawn = plan(128, seed=0)
    assert {pair[:2] for pair in drawn[:64]} == {pair[:2] for pair in drawn[64:]}
    assert len({pair[:2] for pair in drawn[:64]}) == 64 == len({place for _, _, place in drawn}) // 2
    assert plan(10, seed=1) != drawn[:10] == plan(10, seed=0)


def test_the_nearest_training_film_is_found_by_all_of_its_frames() -> None:
    known = np.random.default_rng(0).integers(0, 256, (5, 4, 8, 8, 3), np.uint8)
    reversed_, near = known[2, ::-1], np.clip(known[3].astype(int) + 3, 0, 255).astype(np.uint8)
    assert demo.nearest(np.stack([known[4], near]), known) == [4, 3]
    assert demo.nearest(reversed_[None], np.stack([known[2], reversed_])) == [1]


def test_films_are_shown_moving_and_side_by_side(tmp_path: Path) -> None:
    films = np.zeros((7, 4, 8, 8, 3), np.uint8)
    films += np.arange(0, 200, 50, dtype=np.uint8)[None, :, None, None, None]
    demo_moving._show([f"film {i}" for i in range(7)], films, tmp_path / "film.webp", tmp_path / "strip.png")
    with Image.open(tmp_path / "film.webp") as film:
        assert getattr(film, "n_frames", 1) == 4
        for frame in range(4):
            film.seek(frame)
            assert film.convert("RGB").getpixel((50, 70)) == (50 * frame,) * 3
    with Image.open(tmp_path / "strip.png") as strip:
        assert [strip.getpixel((8 + 104 * frame + 40, 70)) for frame in range(4)] == [(50 * f,) * 3 for f in range(4)]


@pytest.mark.ray
@pytest.mark.slow
def test_the_demo_ends_with_films_that_move(ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    budget = ("images=32", "workers=0", "sample={steps: 2}")
    result = demo_moving.run(str(tmp_path / "moving"), ["curate.workers=1", *(f"train.{field}" for field in budget)])
    assert (result.inputs, result.counts["kept"], result.frames, result.images_seen) == (64, 64, 8, 32)
    assert len(set(result.prompts)) == 16
    assert result.model_version == "1"
    with Image.open(result.film) as film:
        assert getattr(film, "n_frames", 1) == 8
    assert demo_moving.MovingResult.model_validate_json(Path(result.summary).read_text()) == result
