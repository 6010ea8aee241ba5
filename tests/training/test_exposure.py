"""How often a training showed which pictures: against a look at every sample, also where slots are empty."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pipelines.world import seen_by_force
from tests.training.conftest import derive, many, row_id
from training.exposure import exposures
from training.job import TrainJob
from training.roster import Roster


@pytest.mark.parametrize(("seed", "images", "gone"), [(0, 50, 0), (3, 7, 0), (5, 50, 4), (2**40, 100, 9), (1, 3, 4)])
def test_counts_and_firsts_are_those_of_the_samples(tmp_path: Path, seed: int, images: int, gone: int) -> None:
    pictures = many(12)
    roster = Roster.of_manifest(derive(tmp_path, pictures, {caption for caption, _ in pictures[:gone]}))
    assert len(roster) == 12 - gone
    asked = [row_id(picture) for _, picture in pictures]  # those that are gone are asked about too
    job = TrainJob(manifest="m", output="o", seed=seed)
    shown = seen_by_force(job, roster.slots, 12, images)
    found = exposures(roster, seed, images, asked)
    assert {e.id for e in found} == set(roster.ids)
    slots = dict(zip(roster.ids, roster.slots.tolist(), strict=True))
    for exposure in found:
        when = shown[slots[exposure.id]]
        assert (exposure.times, exposure.first) == (len(when), min(when, default=None))
    assert sum(e.times for e in found) == images
    firsts = [images if e.first is None else e.first for e in found]
    assert firsts == sorted(firsts)
    assert exposures(roster, seed, images, []) == exposures(roster, seed, images, ["0" * 64]) == []
