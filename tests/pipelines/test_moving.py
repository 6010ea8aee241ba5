"""The loops to try moving pictures with: the same bytes each time, and every one of them is kept."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from PIL import Image

from curation.job import CurateJob
from pipelines import config
from pipelines.moving import FRAMES, METADATA, MOTIONS, MOVING, plan, write

JOB = Path(config.__file__).parent / "jobs" / "moving-curate.yaml"


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
    drawn = plan(256, seed=0)
    assert {pair[:2] for pair in drawn[:128]} == {pair[:2] for pair in drawn[128:]}
    assert len({pair[:2] for pair in drawn[:128]}) == 128 == len({place for _, _, place in drawn}) // 2
    assert plan(10, seed=1) != drawn[:10] == plan(10, seed=0)


@pytest.mark.ray
@pytest.mark.slow
def test_the_shipped_job_keeps_all_of_them(ray_cluster: None, tmp_path: Path) -> None:
    from pipelines import curate

    write(tmp_path, 16)
    places = {
        "source.path": str(tmp_path / MOVING),
        "source.metadata": str(tmp_path / METADATA),
        "output": str(tmp_path / "manifests"),
        "clip": "null",
        "safety": "{}",
        "workers": "1",
    }
    job = config.load_job(str(JOB), [f"{name}={value}" for name, value in places.items()], kind="curate")
    assert isinstance(job, CurateJob)
    assert job.frames == 8
    assert curate.run(job).counts["kept"] == 16
