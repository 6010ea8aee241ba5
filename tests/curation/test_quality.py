"""Quality measures against closed forms, and their order where there is no closed form."""

from __future__ import annotations

import math
import time
from itertools import pairwise

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra import numpy as hnp
from PIL import Image

from curation.quality import MEASURES, blur, border, colourfulness, contrast, entropy, luminance, measure, saturation
from tests.curation.pictures import noise

PHOTO = np.asarray(noise(3, (256, 256)))


def flat(*colour: int, height: int = 64, width: int = 64) -> np.ndarray:
    return np.full((height, width, 3), colour or (90, 90, 90), np.uint8)


def textured(size: int = 256) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (size, size, 3)).astype(np.uint8)


def test_a_flat_picture_has_nothing() -> None:
    found = measure(flat(200, 200, 200), MEASURES)
    assert found == dict.fromkeys(MEASURES, 0.0) | {"border": 1.0, "luminance": pytest.approx(200 / 255)}


def test_blur_falls_with_every_width_of_blur_and_not_with_contrast() -> None:
    sharp = cv2.resize(textured(16), (256, 256), interpolation=cv2.INTER_NEAREST)
    found = [blur(sharp), *(blur(cv2.GaussianBlur(sharp, (0, 0), sigma)) for sigma in (1, 2, 4, 8))]
    assert all(b < a / 1.5 for a, b in pairwise(found))
    assert blur((sharp // 2 + 40).astype(np.uint8)) == pytest.approx(found[0], rel=0.03)


def test_blur_is_one_for_white_noise() -> None:
    assert blur(np.repeat(textured(512)[:, :, :1], 3, axis=2)) == pytest.approx(1, rel=0.02)


@pytest.mark.parametrize("levels", [1, 2, 4, 16, 256])
def test_entropy_of_equal_shares_is_their_logarithm(levels: int) -> None:
    grey = np.resize(np.arange(levels) * (256 // levels), 64 * 64).reshape(64, 64, 1).astype(np.uint8)
    assert entropy(np.repeat(grey, 3, axis=2)) == pytest.approx(math.log2(levels))


def test_contrast_of_half_black_half_white() -> None:
    halves = flat(0, 0, 0)
    halves[:, :32] = 255
    assert contrast(halves) == pytest.approx(0.5)
    assert luminance(halves) == pytest.approx(0.5)


def test_colourfulness_is_hasler_and_suesstrunks() -> None:
    for pixels in (PHOTO, textured(64), flat(255, 0, 0)):
        red, green, blue = np.moveaxis(pixels.astype(np.float64), -1, 0)
        rg, yb = red - green, (red + green) / 2 - blue
        spread, mean = np.hypot(rg.std(), yb.std()), np.hypot(rg.mean(), yb.mean())
        assert colourfulness(pixels) == pytest.approx(spread + 0.3 * mean, rel=1e-9)


def test_saturation_of_pure_and_grey() -> None:
    assert (saturation(flat(255, 0, 0)), saturation(flat(9, 9, 9))) == (1.0, 0.0)
    assert saturation(flat(200, 100, 100)) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    ("top", "bottom", "left", "right"), [(0, 0, 0, 0), (40, 40, 0, 0), (0, 0, 10, 0), (5, 0, 0, 7), (20, 21, 22, 23)]
)
@pytest.mark.parametrize("colours", [((0, 0, 0), (0, 0, 0)), ((255, 255, 255), (250, 3, 3))])
def test_border_is_the_framed_share(top: int, bottom: int, left: int, right: int, colours: tuple) -> None:
    pixels = textured()
    pixels[:top], pixels[256 - bottom :] = colours if top and bottom and not left else (colours[0], colours[0])
    pixels[:, :left], pixels[:, 256 - right :] = colours[0], colours[0]
    inner = (256 - top - bottom) * (256 - left - right)
    assert border(pixels) == pytest.approx(1 - inner / 256**2)


def test_a_jpegs_ringing_does_not_hide_a_border_but_texture_does() -> None:
    framed = textured()
    framed[:64] = 16
    framed[:64] += np.random.default_rng(1).integers(0, 12, (64, 256, 3), dtype=np.uint8)
    framed[0, 0] = 21
    assert border(framed) == pytest.approx(0.25)
    framed[10, 100] = 80
    assert border(framed) == pytest.approx(10 / 256)


@pytest.mark.parametrize("name", sorted(MEASURES))
def test_measures_hardly_change_with_the_size_of_the_file(name: str) -> None:
    scene = textured(96)
    scene[:24] = 0
    image = Image.fromarray(scene).resize((1536, 1536), Image.Resampling.BICUBIC)
    small, *larger = (np.asarray(image.resize((s, s), Image.Resampling.LANCZOS)) for s in (256, 300, 512, 700, 1024))
    for large in larger:
        wide = 0.1 if name == "blur" else 0.05
        assert measure(large, [name])[name] == pytest.approx(measure(small, [name])[name], rel=wide), large.shape


@given(
    hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40).map(lambda s: (*s, 3))),
)
@settings(max_examples=60, deadline=None)
def test_any_picture_is_measured_within_range(pixels: np.ndarray) -> None:
    found = measure(pixels, MEASURES)
    assert all(math.isfinite(value) and value >= 0 for value in found.values())
    assert max(found["border"], found["luminance"], found["saturation"]) <= 1
    assert found["contrast"] <= 0.51
    assert found["entropy"] <= 8
    assert found["blur"] <= 64


@pytest.mark.parametrize("shape", [(1, 1), (1, 100_000), (100_000, 1), (3, 90_000), (2000, 3000)])
def test_odd_shapes_are_measured(shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    before = time.process_time()
    assert all(math.isfinite(value) for value in measure(pixels, MEASURES).values())
    assert time.process_time() - before < 1


def test_a_view_of_pixels_is_as_good_as_a_copy() -> None:
    mirrored = PHOTO[:, ::-1]
    assert measure(mirrored, MEASURES) == measure(mirrored.copy(), MEASURES)
