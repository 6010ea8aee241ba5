"""Moving pictures: which frames are taken, what they look like, and what is no film."""

from __future__ import annotations

import io
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from curation.containers import pack, unpack
from curation.images import ImageConfig, ImageError, decode, encode
from curation.manifest import Reason
from curation.metadata import scan
from curation.moving import in_rows, look, middle_of, places, scan_frames, size_of, strip
from tests.curation.films import dot, film, moving
from tests.curation.pictures import encoded, noise


def looked(data: bytes, count: int = 4) -> tuple[int, list[np.ndarray]]:
    return look(data, ImageConfig(), count, 16, scan(data), lambda found: found.pixels)


@given(frames=st.integers(1, 5000), count=st.integers(2, 64))
def test_frames_are_taken_evenly_also_from_the_last_round_to_the_first(frames: int, count: int) -> None:
    taken = places(frames, count)
    assert len(taken) == min(frames, count) == len(set(taken))
    assert taken == sorted(taken)
    assert taken[0] == 0
    assert taken[-1] < frames
    steps = np.diff([*taken, frames])
    assert steps.max() - steps.min() <= 1


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=6))
def test_what_is_packed_is_unpacked(frames: list[bytes]) -> None:
    packed = pack(frames)
    assert unpack(packed) == frames
    assert size_of(packed) == sum(map(len, frames))
    for end in range(len(packed)):
        assert unpack(packed[:end]) != frames


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_every_kind_of_film_gives_its_frames(kind: str) -> None:
    frames = moving(8)
    total, taken = looked(film(frames, kind))
    assert (total, len(taken)) == (8, 4)
    for pixels, i in zip(taken, places(8, 4), strict=True):
        assert np.abs(pixels.astype(int) - np.asarray(frames[i]).astype(int)).mean() < 2, "a GIF has its palette"


def test_the_first_frame_is_what_a_still_is_taken_from() -> None:
    data = film(moving(5))
    assert (looked(data)[1][0] == decode(data, ImageConfig(), 16).pixels).all()


@pytest.mark.parametrize("kind", ["GIF", "JPEG", "WEBP", "TIFF"])
def test_a_still_has_one_frame(kind: str) -> None:
    assert looked(encoded(noise(1), kind))[0] == 1


def test_pages_are_no_frames() -> None:
    buffer = io.BytesIO()
    noise(1).save(buffer, "TIFF", save_all=True, append_images=[noise(2), noise(3)])
    assert looked(buffer.getvalue())[0] == 1


def test_a_picture_for_those_that_cannot_play_it_is_no_frame() -> None:
    data = film([noise(1, (64, 64)), *moving(4)], "PNG", default_image=True)
    total, taken = looked(data)
    assert total == 4
    assert (taken[0] == np.asarray(moving(4)[0])).all()


def test_transparent_frames_stand_on_the_background() -> None:
    clear = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    solid = Image.new("RGBA", (16, 16), (200, 0, 0, 255))
    _, taken = looked(film([clear, solid, clear], "PNG", disposal=1))
    assert taken[0].min() == 255
    assert taken[1][0, 0].tolist() == [200, 0, 0]


@pytest.mark.parametrize(("kind", "reason"), [("GIF", "truncated"), ("PNG", "truncated"), ("WEBP", "corrupt")])
def test_a_film_that_is_cut_says_so(kind: str, reason: str) -> None:
    data = film([noise(i) for i in range(6)], kind)
    with pytest.raises(ImageError) as caught:
        looked(data[: int(len(data) * 0.8)], 6)
    assert caught.value.reason == reason


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["GIF", "PNG", "WEBP"]), st.data())
def test_damaged_films_are_decoded_or_say_why(kind: str, drawn: st.DataObject) -> None:
    data = bytearray(_SOUND[kind])
    for _ in range(drawn.draw(st.integers(1, 4))):
        data[drawn.draw(st.integers(0, len(data) - 1))] = drawn.draw(st.integers(0, 255))
    with suppress(ImageError):
        total, taken = looked(bytes(data))
        assert 1 <= len(taken) <= total


_SOUND = {kind: film([noise(i, (24, 16)) for i in range(4)], kind) for kind in ("GIF", "PNG", "WEBP")}


def test_a_film_is_turned_upright_as_its_exif_says() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = [noise(i, (24, 16)) for i in range(4)]
    for kind in ("PNG", "WEBP"):
        _, taken = looked(film(frames, kind, exif=exif))
        assert (taken[1] == np.asarray(frames[1].transpose(Image.Transpose.ROTATE_270))).all()


def test_a_film_of_too_many_pixels_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    data = film(moving(8))
    with pytest.raises(ImageError) as caught:
        look(data, ImageConfig(max_pixels=64 * 64 - 1), 4, 16, scan(data), lambda found: found)
    assert caught.value.reason == Reason.TOO_MANY_PIXELS
    monkeypatch.setattr("curation.moving._MOST_DECODED", 64 * 64 * 8 - 1)
    with pytest.raises(ImageError, match="8 frames of 64x64"):
        looked(data)


@pytest.mark.parametrize("disposal", [None, 1, 2, 3])
@pytest.mark.parametrize("count", [2, 4])
def test_a_frame_that_makes_the_picture_larger_is_held_to_the_same_limit(count: int, disposal: int | None) -> None:
    data = bytearray(film([noise(i, (24, 16)) for i in range(4)], "GIF"))
    places = [
        at for at in range(len(data)) if data[at] == 0x2C and data[at + 1 : at + 9] == bytes([0] * 4 + [24, 0, 16, 0])
    ]
    assert len(places) == 4
    # the width and height of the second frame, which is only passed over where two are taken; and what becomes of it
    data[places[1] + 5 : places[1] + 9] = b"\xff\xff\xff\xff"
    if disposal is not None:
        control = data.rindex(b"\x21\xf9\x04", 0, places[1])
        data[control + 3] = data[control + 3] & ~0b11100 | disposal << 2
    with pytest.raises(ImageError) as caught:
        look(bytes(data), ImageConfig(), count, 1, scan(bytes(data)), lambda found: found)
    assert caught.value.reason == Reason.TOO_MANY_PIXELS


def test_frames_of_a_folder_must_be_of_one_size() -> None:
    frames = [encoded(frame) for frame in moving(4)]
    assert looked(pack(frames))[0] == 4
    with pytest.raises(ImageError, match="64x64 and 96x64") as caught:
        looked(pack([*frames[:3], encoded(noise(1))]))
    assert caught.value.reason == Reason.FRAMES_DIFFER
    with pytest.raises(ImageError) as caught:
        looked(pack([*frames[:3], b"<html>"]))
    assert caught.value.reason == Reason.NOT_AN_IMAGE


def test_a_folder_says_what_any_of_its_frames_says() -> None:
    def signed(**texts: str) -> bytes:
        info = PngImagePlugin.PngInfo()
        for name, text in texts.items():
            info.add_text(name, text)
        return encoded(dot(0), pnginfo=info)

    frames = [signed(Author="Jane"), signed(), signed(Author="Mallory", Copyright="mine"), signed()[:60]]
    found = scan_frames(pack(frames)).fields
    assert found["creator"] == "Jane\nMallory"
    assert found["rights"] == "mine"
    assert "container" in found["damaged"]
    assert scan_frames(frames[0]) == scan(frames[0])


def test_a_strip_gives_its_middle_frame_and_its_rows() -> None:
    frames = [np.full((4, 6, 3), i, np.uint8) for i in range(5)]
    data = encode(strip(frames))
    with Image.open(io.BytesIO(middle_of(data, 5))) as image:
        assert (np.asarray(image) == frames[2]).all()
    with Image.open(io.BytesIO(data)) as image:
        rows = np.asarray(in_rows(image, 5))
    assert rows.shape == (8, 18, 3)
    assert rows[::4, ::6, 0].tolist() == [[0, 1, 2], [3, 4, 255]]
