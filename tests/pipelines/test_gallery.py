"""The README's gallery: its drawings, what it is asked for, and what it says it cost."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from PIL import Image
from typer.testing import CliRunner

from curation.errors import UserError
from pipelines import demo, demo_gallery
from pipelines.cli import app
from pipelines.pictures import METADATA, PICTURES, title
from training.prepare import TrainResult


def test_what_it_is_asked_for_is_known_or_new_in_known_words() -> None:
    captions = {title(symbol) for symbol in demo_gallery.DRAWINGS}
    words = {word for caption in captions for word in caption.split()}
    assert len(captions) == len(demo_gallery.DRAWINGS)
    assert set(demo_gallery.KNOWN) <= captions
    assert not set(demo_gallery.NEW) & captions
    assert all(set(new.split()) <= words for new in demo_gallery.NEW)


def test_drawings_are_the_same_each_time_and_have_their_rows(tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert demo_gallery.prepare(tmp_path / name, drawings="🍎🌵", size=32) == 2
    with (tmp_path / "one" / METADATA).open() as file:
        assert [row["title"] for row in csv.DictReader(file)] == ["red apple", "cactus"]
    for file_of_one in (tmp_path / "one" / PICTURES).iterdir():
        assert file_of_one.read_bytes() == (tmp_path / "two" / PICTURES / file_of_one.name).read_bytes()


def test_the_cost_is_that_of_the_whole_run_and_said_once(tmp_path: Path) -> None:
    def trained(run_id: str, resumed_from: int) -> TrainResult:
        return TrainResult(
            run_id=run_id, bundle="", images_seen=400, state_sha256="", metrics={}, resumed_from=resumed_from
        )

    path = tmp_path / "cost.json"
    assert demo_gallery._cost(path, trained("a", 0), 3600) == 1
    assert demo_gallery._cost(path, trained("a", 0), 1) == 1  # a finished run, found again
    assert demo_gallery._cost(path, trained("b", 300), 3600) == 4


def test_known_and_new_stand_apart_with_the_nearest_drawing_below(tmp_path: Path) -> None:
    def plain(value: int) -> np.ndarray:
        return np.full((8, 8, 3), value, np.uint8)

    drawn = {prompt: plain(10) for prompt in demo_gallery.KNOWN} | {new: plain(90) for new in demo_gallery.NEW}
    beside = {new: plain(200) for new in demo_gallery.NEW}
    demo_gallery._show(tmp_path / "gallery.png", drawn, beside, "a caption")
    with Image.open(tmp_path / "gallery.png") as gallery:
        column = np.asarray(gallery.convert("RGB"))[:, 60, 0].tolist()
    runs = [value for value in column if value in (10, 90, 200)]
    assert [runs.count(value) for value in (10, 90, 200)] == [4 * 96, 96, 96]
    assert runs == sorted(runs)


def test_its_nearest_drawing_is_found_by_pixels() -> None:
    known = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)
    near = np.clip(known[3].astype(int) + 3, 0, 255).astype(np.uint8)
    assert demo.nearest(np.stack([known[4], near]), known) == [4, 3]


def test_its_jobs_are_resolved_and_two_demos_refused() -> None:
    shown = CliRunner().invoke(app, ["demo", "--gallery", "--dry-run", "--set", "train.images=64"])
    assert shown.exit_code == 0
    assert "images: 64\n" in shown.output
    assert "image_size: 64\n" in shown.output
    refused = CliRunner().invoke(app, ["demo", "--gallery", "--moving"])
    assert isinstance(refused.exception, UserError)
