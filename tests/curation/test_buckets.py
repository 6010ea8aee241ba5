"""Buckets: every picture is covered by the nearest shape, and what is cut off is bounded and known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from curation.buckets import BucketsConfig
from curation.images import Decoded, cover

configs = st.builds(
    BucketsConfig,
    area=st.integers(4096, 1_000_000),
    step=st.sampled_from([8, 16, 32, 64]),
    max_ratio=st.floats(1, 4),
)


@given(configs)
def test_shapes_keep_to_area_step_and_ratio_and_come_in_pairs(config: BucketsConfig) -> None:
    side = math.isqrt(config.area) // config.step * config.step
    assert (side, side) in config.shapes
    for width, height in config.shapes:
        assert width * height <= config.area < (width + config.step) * (height + config.step)
        assert width % config.step == height % config.step == 0
        assert max(width, height) <= config.max_ratio * min(width, height) or width == height
        assert (height, width) in config.shapes
    ratios = [width / height for width, height in config.shapes]
    assert ratios == sorted(ratios)


@given(configs, st.integers(1, 4000), st.integers(1, 4000))
def test_a_picture_goes_to_the_nearest_shape_and_loses_what_is_said(
    config: BucketsConfig, width: int, height: int
) -> None:
    placed = config.place(width, height)
    ratio = math.log(width / height)
    apart = [abs(math.log(w / h) - ratio) for w, h in config.shapes]
    assert abs(math.log(placed.width / placed.height) - ratio) == min(apart)
    scale = max(placed.width / width, placed.height / height)  # covers
    kept = placed.width * placed.height / (width * height * scale**2)
    assert placed.lost == pytest.approx(1 - kept, abs=1e-9)
    logs = [math.log(w / h) for w, h in config.shapes]
    if logs[0] <= ratio <= logs[-1]:  # among the shapes at most half a gap is lost
        widest = max(np.diff(logs), default=0)
        assert placed.lost <= 1 - math.exp(-widest / 2) + 1e-9


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 40), st.integers(1, 40))
def test_the_middle_is_cut_out_as_large_as_it_can_be(wide: int, tall: int, width: int, height: int) -> None:
    # What stands at a pixel says where it was.
    y, x = np.mgrid[:tall, :wide]
    pixels = np.stack([x, y, np.zeros_like(x)], axis=2).astype(np.uint8)
    cut = cover(pixels, width, height)
    assert cut.shape == (height, width, 3)
    scale = max(width / wide, height / tall)
    inner = min(wide, max(1, round(width / scale))), min(tall, max(1, round(height / scale)))
    whole = cover(pixels, *inner)
    left, top = (wide - inner[0]) // 2, (tall - inner[1]) // 2
    assert (whole == pixels[top : top + inner[1], left : left + inner[0]]).all()


def test_the_original_s_shape_counts_not_that_of_a_small_decode() -> None:
    config = BucketsConfig(sizes=((100, 100), (104, 100)))
    pixels = np.zeros((50, 50, 3), np.uint8)
    assert config.cut(Decoded(pixels, "JPEG", 1000, 1000)).shape == (100, 100, 3)
    assert config.cut(Decoded(pixels, "JPEG", 1030, 1000)).shape == (100, 104, 3)


def test_a_list_of_sizes_is_taken_as_it_is() -> None:
    config = BucketsConfig(sizes=((320, 192), (256, 256), (256, 256)))
    assert config.shapes == ((256, 256), (320, 192))
    assert config.side == 320
    assert config.place(1920, 1080)[:2] == (320, 192)
    assert config.place(500, 1000) == pytest.approx((256, 256, 0.5))


@pytest.mark.parametrize("fields", [{"sizes": []}, {"sizes": [[256, 4]]}, {"step": 300}, {"max_ratio": 0.5}])
def test_shapes_that_are_none_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        BucketsConfig.model_validate(fields)
