"""Decoding: every accepted kind, every way to be refused, and the hashes."""

from __future__ import annotations

import contextlib
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps

from curation.clip import Clip
from curation.hashes import perceptual, pixel_hash
from curation.images import FORMATS, ImageConfig, ImageError, decode, encode, square
from curation.manifest import Reason
from pipelines.pictures import _png_header as png_header
from tests.curation.pictures import drawing, encoded, noise

CONFIG = ImageConfig()


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_decodes_to_rgb(kind: str) -> None:
    found = decode(encoded(noise(0), kind), CONFIG)
    assert (found.format, found.pixels.shape, found.width, found.height) == (kind, (64, 96, 3), 96, 64)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int, kind: str) -> None:
    upright = noise(1)
    found = decode(encoded_turned(upright, orientation, kind), CONFIG)
    assert (found.width, found.height) == upright.size
    assert np.abs(found.pixels.astype(int) - pixels(upright)).mean() < (1e-9 if kind == "PNG" else 4)


@pytest.mark.parametrize(
    "image",
    [
        pytest.param(noise(2).convert("CMYK"), id="cmyk"),
        pytest.param(noise(2).convert("L"), id="grey"),
        pytest.param(noise(2).convert("1"), id="bilevel"),
        pytest.param(noise(2).convert("LA"), id="grey-alpha"),
    ],
)
def test_other_modes_become_rgb(image: Image.Image) -> None:
    kind = "JPEG" if image.mode == "CMYK" else "PNG"
    found = decode(encoded(image, kind), CONFIG).pixels
    assert np.abs(found.astype(int) - pixels(image)).mean() < 4


def test_transparency_shows_the_background() -> None:
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    assert tuple(decode(encoded(clear), CONFIG).pixels[3, 3]) == (255, 255, 255)
    assert tuple(decode(encoded(clear), ImageConfig(background="#102030")).pixels[3, 3]) == (16, 32, 48)
    palette = Image.new("P", (8, 8), 0)
    assert tuple(decode(encoded(palette, "PNG", transparency=0), CONFIG).pixels[3, 3]) == (255, 255, 255)


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    values = decode(encoded(Image.fromarray(ramp)), CONFIG).pixels[..., 0]
    assert values.min() == 0
    assert values.max() == 255
    assert len(np.unique(values)) == 64


def test_the_first_frame_of_an_animation_counts() -> None:
    first, second = noise(3), noise(4)
    data = encoded(first.convert("P"), "GIF", save_all=True, append_images=[second.convert("P")])
    assert np.array_equal(decode(data, CONFIG).pixels, pixels(first.convert("P")))


def test_a_large_jpeg_is_decoded_small_and_reported_whole() -> None:
    found = decode(encoded(noise(5, (2048, 1024)), "JPEG"), CONFIG, min_side=256)
    assert (found.width, found.height) == (2048, 1024)
    assert 256 <= min(found.pixels.shape[:2]) < 1024


def test_an_odd_jpeg_is_judged_by_pillow() -> None:
    """libjpeg-turbo is asked to be strict; what it complains of and Pillow reads is kept all the same."""
    data = bytearray(encoded(noise(5, (256, 256)), "JPEG"))
    data[2:2] = b"\xff\xed\x00\x04ab\x00\x00"  # two stray bytes between segments
    assert decode(bytes(data), CONFIG).pixels.shape == (256, 256, 3)


REFUSED = {
    Reason.EMPTY: b"",
    Reason.NOT_AN_IMAGE: b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    Reason.TRUNCATED: encoded(noise(6, (256, 256)), "JPEG")[:2000],
    Reason.TOO_MANY_PIXELS: png_header(60_000, 60_000),
    Reason.UNSUPPORTED_FORMAT: encoded(noise(6), "BMP"),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_is_no_image_says_why(reason: Reason) -> None:
    with pytest.raises(ImageError) as caught:
        decode(REFUSED[reason], CONFIG)
    assert caught.value.reason == reason


@settings(max_examples=300, deadline=None)
@given(kind=st.sampled_from(FORMATS), seed=st.integers(0, 2**32), flips=st.integers(1, 40), cut=st.floats(0, 1))
def test_damaged_files_decode_or_say_why(kind: str, seed: int, flips: int, cut: float) -> None:
    data = bytearray(encoded(noise(7, (48, 40)), kind))
    chance = random.Random(seed)
    for _ in range(flips):
        data[chance.randrange(len(data))] = chance.randrange(256)
    with contextlib.suppress(ImageError):  # any other exception fails the test
        assert decode(bytes(data[: int(len(data) * cut)]), CONFIG).pixels.dtype == np.uint8


def test_an_extreme_shape_costs_no_more_than_another() -> None:
    clip = object.__new__(Clip)
    clip.image_size = 192
    for size in ((1, 60_000), (60_000, 1)):
        assert clip.prepare(Image.new("RGB", size, "red")).shape == (192, 192, 3)
        for fit in ("crop", "pad"):
            assert square(pixels(Image.new("RGB", size, "red")), 64, ImageConfig(fit=fit)).shape == (64, 64, 3)


def test_pixel_hash_sees_pixels_not_files() -> None:
    image = noise(8)
    same = [decode(encoded(image, "PNG", compress_level=n), CONFIG).pixels for n in (0, 9)]
    lossless = decode(encoded(image, "WEBP", lossless=True), CONFIG).pixels
    assert len({pixel_hash(i) for i in [*same, lossless]}) == 1
    assert pixel_hash(pixels(noise(9))) != pixel_hash(pixels(image))


@pytest.mark.parametrize("change", ["jpeg", "half", "darker"])
def test_phash_survives_what_leaves_the_picture_alike(change: str) -> None:
    image = noise(10, (256, 256))
    changed = {
        "jpeg": decode(encoded(image, "JPEG", quality=50), CONFIG).pixels,
        "half": pixels(image.resize((128, 128))),
        "darker": pixels(ImageEnhance.Brightness(image).enhance(0.85)),
    }[change]
    assert (phash(pixels(image)) ^ phash(changed)).bit_count() <= 3
    assert (phash(pixels(image)) ^ phash(pixels(noise(11, (256, 256))))).bit_count() > 10


def test_the_hashes_of_all_orientations_come_from_one_transform() -> None:
    image = noise(13, (256, 256))
    turns = [image, ImageOps.mirror(image)]
    turns = [t.rotate(angle, expand=True) for t in turns for angle in (0, 90, 180, 270)]
    found = perceptual(pixels(image), turned=True)
    hashes = [found.phash, *found.turned]
    assert len(set(hashes)) == 8
    for turn in turns:
        assert min((phash(pixels(turn)) ^ h).bit_count() for h in hashes) <= 1
    assert perceptual(pixels(image)).turned == ()


@pytest.mark.parametrize("side", [64, 128, 256])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_phash_does_not_shift_with_the_scale_of_decoding(orientation: int, side: int) -> None:
    """At an eighth, 333 pixels are 42, of which the last is mostly made up; orientation puts it first."""
    worst = 0
    for seed in range(20):
        image = noise(seed, (413, 333))
        found = decode(encoded_turned(image, orientation, "JPEG", quality=90), CONFIG, side)
        assert (found.width, found.height) == image.size
        worst = max(worst, (perceptual(found).phash ^ phash(pixels(image))).bit_count())
    assert worst <= 2


@pytest.mark.parametrize("size", [(1, 1), (2, 3000), (63, 64), (64, 64), (65, 127), (129, 191), (257, 1025), (700, 33)])
def test_phash_takes_any_shape(size: tuple[int, int]) -> None:
    image = noise(14, size).convert("L")
    found = [decode(encoded(image, kind), CONFIG, 64) for kind in ("PNG", "JPEG")]
    first, second = (perceptual(one) for one in found)
    assert len(first.colour_layout) == len(second.colour_layout) == 48
    colours = np.frombuffer(first.colour_layout + second.colour_layout, np.uint8).reshape(2, 48).astype(int)
    assert np.abs(colours[0] - colours[1]).max() <= 12


def test_the_training_picture_is_square_and_lossless_as_png() -> None:
    for fit in ("crop", "pad"):
        picture = square(pixels(noise(12)), 64, ImageConfig(fit=fit))
        assert picture.shape == (64, 64, 3)
        assert np.array_equal(decode(encode(picture), CONFIG).pixels, picture)
        lossy = decode(encode(picture, "jpeg"), CONFIG).pixels
        assert 0 < np.abs(lossy.astype(int) - picture).mean() < 3
    stripes = pixels(drawing("stripes", "red").crop((0, 0, 64, 128)))
    padded = square(stripes, 64, ImageConfig(fit="pad", background="#00ff00"))
    assert tuple(padded[32, 1]) == (0, 255, 0)


def phash(of: np.ndarray) -> int:
    return perceptual(of).phash


_STORED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def encoded_turned(upright: Image.Image, orientation: int, kind: str, **settings: object) -> bytes:
    """A file that stores a picture in one of the ways that EXIF can say."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = upright.transpose(_STORED[orientation]) if orientation > 1 else upright
    return encoded(stored, kind, exif=exif, **settings)
