"""The mark in the pixels: its statistic's distribution, its false alarms, what it survives, and what it costs."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from serving import carriers
from serving.watermark import FALSE_POSITIVE_RATE, Watermark, payload_bits, threshold

PAYLOAD = bytes.fromhex("c0ffee42")
SIZES = (64, 128, 256)


def drawing(side: int, seed: int = 0, *, width: int | None = None) -> np.ndarray:
    """Coloured discs and bars with hard edges on white, as drawings have them."""
    random = np.random.default_rng(seed)
    wide = width or side
    pixels = np.full((side, wide, 3), 255, np.uint8)
    y, x = np.mgrid[:side, :wide] / side
    for _ in range(6):
        cx, cy, radius = random.uniform(0.2, 0.8, 3) * (1, 1, 0.35)
        pixels[(x - cx) ** 2 + (y - cy) ** 2 < radius**2] = random.integers(0, 256, 3)
    left, top = random.uniform(0.1, 0.6, 2)
    pixels[(abs(x - left) < 0.04) | (abs(y - top) < 0.03)] = random.integers(0, 256, 3)
    return pixels


def as_file(pixels: np.ndarray, kind: str, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, quality=quality)
    with Image.open(buffer) as image:
        return np.asarray(image.convert("RGB"))


def resized(pixels: np.ndarray, side: int) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.LANCZOS))


@pytest.mark.parametrize("side", SIZES)
def test_the_mark_and_the_payload_are_found_and_the_picture_hardly_changes(side: int) -> None:
    plain = drawing(side)
    mark = Watermark(b"a key")
    done = mark.embed(plain, PAYLOAD)
    found = mark.detect(done.pixels)
    assert found.present
    assert found.where == "as it was"
    assert done.readable
    assert found.statistic == pytest.approx(done.statistic, abs=1e-6)
    bits = payload_bits(side, side)
    assert found.payload == PAYLOAD.hex()[: bits // 4]
    error = np.mean((done.pixels.astype(float) - plain) ** 2)
    assert done.psnr == pytest.approx(10 * math.log10(255**2 / error))
    band = next(band for band in reversed(carriers.BANDS) if side >= band.min_side)
    assert band.psnr[0] - 0.5 < done.psnr < band.psnr[1] + 0.5


@pytest.mark.parametrize("side", SIZES)
def test_another_key_finds_nothing_and_neither_is_there_anything_in_a_plain_picture(side: int) -> None:
    plain = drawing(side)
    marked = Watermark(b"a key").embed(plain, PAYLOAD).pixels
    for pixels, key in ((marked, b"another key"), (plain, b"a key")):
        found = Watermark(key).detect(pixels)
        assert not found.present
        assert found.payload is None
        assert found.p_value > FALSE_POSITIVE_RATE


def test_without_a_mark_the_statistic_is_standard_normal_over_keys() -> None:
    """Exactly so by construction, for any picture: here for three that have little in common."""
    flat = np.full((64, 64, 3), 200, np.uint8)
    flat[20:40, 10:50] = 30
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    band = carriers.BANDS[1]
    for pixels in (flat, noise, drawing(64)):
        values = carriers.coefficients(carriers.luma_of(pixels), band.radius)
        drawn = [carriers.Carriers(b"%d" % k, band).presence(values) for k in range(2000)]
        assert stats.kstest(drawn, "norm").pvalue > 1e-3
        assert np.std(drawn) == pytest.approx(1.0, abs=0.06)


def test_under_one_key_many_pictures_are_below_the_threshold() -> None:
    mark = Watermark(b"a key")
    found = [mark.detect(drawing(64, seed)) for seed in range(60)]
    assert not any(one.present for one in found)
    # A union bound: at most a share p of unmarked pictures has a p-value of p or less.
    for share in (0.1, 0.3):
        below = sum(one.p_value <= share for one in found)
        assert below <= stats.binom.isf(1e-6, len(found), share)


def test_the_threshold_is_the_normal_distributions_tail() -> None:
    assert threshold(1, 1e-6) == pytest.approx(stats.norm.isf(1e-6))
    assert threshold(100, 1e-6) == pytest.approx(stats.norm.isf(1e-8))


@pytest.mark.parametrize("side", SIZES)
@pytest.mark.parametrize("damage", ["jpeg", "webp", "smaller", "larger", "noise", "mirrored", "turned", "cropped"])
def test_what_it_survives(side: int, damage: str) -> None:
    mark = Watermark(b"a key")
    pixels = mark.embed(drawing(side), PAYLOAD).pixels
    cut = side // 10
    damaged = {
        "jpeg": lambda: as_file(pixels, "JPEG", 75),
        "webp": lambda: as_file(pixels, "WEBP", 90),
        "smaller": lambda: resized(pixels, round(side * 0.7)),
        "larger": lambda: resized(pixels, side * 2),
        "noise": lambda: np.clip(pixels + np.random.default_rng(1).normal(0, 4, pixels.shape), 0, 255).astype(np.uint8),
        "mirrored": lambda: pixels[:, ::-1],
        "turned": lambda: np.rot90(pixels),
        "cropped": lambda: pixels[cut : side - cut, cut // 2 : side - cut],
    }[damage]()
    found = mark.detect(damaged)
    assert found.present, found
    if damage == "cropped":
        assert found.where == f"cut from {side}x{side} at {cut // 2},{cut}"


def test_turns_are_named() -> None:
    mark = Watermark(b"a key")
    pixels = mark.embed(drawing(128), PAYLOAD).pixels
    quarter = np.rot90  # to the left
    assert mark.detect(pixels[:, ::-1]).where == "mirrored"
    assert mark.detect(quarter(pixels)).where == "turned by 90° to the left"
    assert mark.detect(quarter(pixels, 3)).where == "turned by 90° to the right"
    assert mark.detect(quarter(pixels, 2)).where == "turned by 180°"
    assert mark.detect(pixels[::-1]).where == "upside down, mirrored"
    assert mark.detect(pixels.swapaxes(0, 1)).where == "transposed"


def test_the_same_picture_key_and_payload_give_the_same_pixels_and_another_payload_others() -> None:
    plain = drawing(64)
    first = Watermark(b"a key").embed(plain, PAYLOAD).pixels
    assert np.array_equal(first, Watermark(b"a key").embed(plain, PAYLOAD).pixels)
    assert not np.array_equal(first, Watermark(b"a key").embed(plain, b"\0\0\0\0").pixels)


def test_every_frame_of_a_film_is_marked() -> None:
    film = np.stack([drawing(64, seed) for seed in range(4)])
    mark = Watermark(b"a key")
    done = mark.embed(film, PAYLOAD)
    assert done.pixels.shape == film.shape
    assert mark.detect(done.pixels).present
    for frame, plain in zip(done.pixels, film, strict=True):
        assert mark.detect(frame).payload == PAYLOAD.hex()[:4]
        assert np.array_equal(frame, mark.embed(plain, PAYLOAD).pixels)


def test_a_picture_need_not_be_square() -> None:
    mark = Watermark(b"a key")
    pixels = mark.embed(drawing(64, width=101), PAYLOAD).pixels
    assert mark.detect(pixels).payload == PAYLOAD.hex()[:4]
    assert mark.detect(np.asarray(Image.fromarray(pixels).resize((90, 57)))).present


def test_the_smallest_pictures_carry_a_mark_without_a_payload_and_smaller_ones_nothing() -> None:
    mark = Watermark(b"a key")
    done = mark.embed(drawing(32), PAYLOAD)
    assert done.readable
    found = mark.detect(done.pixels)
    assert found.present
    assert found.payload is None
    assert payload_bits(32, 40) == 0
    assert payload_bits(31, 400) is None
    with pytest.raises(ValueError, match="too small"):
        mark.embed(drawing(31), PAYLOAD)


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (3, 7), (16, 16), (31, 2), (64, 64)])
@pytest.mark.parametrize("value", [0, 255])
def test_pictures_of_one_colour_and_of_any_size_can_be_looked_at(shape: tuple[int, int], value: int) -> None:
    assert not Watermark(b"a key").detect(np.full((*shape, 3), value, np.uint8)).present


@pytest.mark.parametrize("value", [0, 255])
def test_a_picture_of_one_colour_can_be_marked(value: int) -> None:
    mark = Watermark(b"a key")
    done = mark.embed(np.full((64, 64, 3), value, np.uint8), PAYLOAD)
    assert mark.detect(done.pixels).payload == PAYLOAD.hex()[:4]


def test_a_keys_carriers_never_change() -> None:
    """A picture marked years ago is to be found with its key: these numbers are part of what a mark is."""
    drawn = carriers.Carriers(b"a key", carriers.BANDS[1])
    assert drawn.normal[:4] == pytest.approx([0.409394428, -0.109951102, 0.065647671, 0.238260537])
    assert drawn.part[:12].tolist() == [0, 1, 0, 0, 2, 0, 0, 2, 0, 0, 1, 2]
    assert drawn.group[:12].tolist() == [0, 60, 0, 0, 65, 0, 0, 121, 0, 0, 0, 96]
