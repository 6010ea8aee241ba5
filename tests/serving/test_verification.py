"""What is said of files: ours, ours once, altered ones, strangers', and anything at all."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from curation.errors import UserError
from pipelines import credentials as credentials_verb
from pipelines import verify as verb
from serving import identity, verification
from serving.admission import ModelCard, Plan, SamplingDefaults
from serving.finishing import encode
from serving.identity import CredentialsConfig, WatermarkConfig
from serving.marking import Marker, build, pixels_sha256
from serving.verification import NoPictureError, Verifier
from tests.serving.test_watermark import drawing

CARD = ModelCard(
    name="drawings", version="3", alias="champion", manifest_id="m" * 64, image_size=64, noise_levels=10,
    samplers=("ddim",), defaults=SamplingDefaults(), loaded_at=0, backend="onnx-fp32",
)  # fmt: skip
NAME = "img_" + "0a" * 16


def plan_of(output_format: str = "png") -> Plan:
    return Plan(
        prompt="a red apple", negative_prompt=None, seeds=(7,), steps=5, guidance_scale=2.0, sampler="ddim",
        output_format=output_format, compression=90, size="64x64", ids=(NAME,),
    )  # type: ignore[arg-type]  # fmt: skip


def made(folder: Path, pixels: np.ndarray, output_format: str = "png") -> bytes:
    """A file as a server with that folder sends it. Its watermark's key follows from the folder's name."""
    config = CredentialsConfig(folder=str(folder))
    if identity.ensure(config):
        (folder / "watermark.key").write_text(f"the secret of {folder.name}")
    marks = build(config, WatermarkConfig())
    assert marks is not None
    marker, plan = Marker(marks, CARD), plan_of(output_format)
    marked = marker.pixels(plan, 0, pixels)
    data = encode(marked.pixels, plan.output_format, plan.compression)
    return marker.file(plan, 0, data, pixels_sha256(marked.pixels), marked.watermark)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ours") / "credentials"


@pytest.fixture(scope="module")
def signed(folder: Path) -> bytes:
    return made(folder, drawing(128))


@pytest.fixture(scope="module")
def verifier(folder: Path, signed: bytes) -> Verifier:
    return verification.build(CredentialsConfig(folder=str(folder)), WatermarkConfig())


def stripped(data: bytes, kind: str = "PNG", **options: int) -> bytes:
    """Opened and saved again, as programs do that know nothing of credentials."""
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(data)) as image:
        image.convert("RGB").save(buffer, kind, **options)
    return buffer.getvalue()


def test_a_picture_of_ours(verifier: Verifier, signed: bytes) -> None:
    found = verifier.verify(signed)
    assert (found.verdict, found.image_id, found.pixels_equal) == ("ours", NAME, True)
    assert (found.watermark.state, found.watermark.where) == ("found", "as it was")
    assert found.credentials.generation is not None
    assert found.watermark.payload == found.credentials.generation["watermark"]
    assert (found.format, found.width, found.height, found.frames) == ("PNG", 128, 128, 1)


def test_without_its_credentials_the_mark_is_still_found(verifier: Verifier, signed: bytes) -> None:
    whole = verifier.verify(signed)
    for data in (stripped(signed), stripped(signed, "JPEG", quality=80)):
        found = verifier.verify(data)
        assert (found.verdict, found.credentials.state, found.image_id) == ("marked", "absent", None)
        assert found.watermark.payload == whole.watermark.payload
        assert "are gone" in found.says


def test_a_changed_byte_is_told_and_whose_it_was(verifier: Verifier, folder: Path, signed: bytes) -> None:
    """The byte is one of a JPEG's pixels, so that the file can still be opened."""
    jpeg = bytearray(made(folder, drawing(128), "jpeg"))
    assert verifier.verify(bytes(jpeg)).verdict == "ours"
    jpeg[-40] ^= 0x04
    found = verifier.verify(bytes(jpeg))
    assert (found.verdict, found.credentials.state, found.image_id) == ("marked", "altered", None)
    assert not found.credentials.ours


def test_a_strangers_picture_and_one_of_nobody(verifier: Verifier, tmp_path: Path) -> None:
    theirs = made(tmp_path / "theirs", drawing(128, 5))
    found = verifier.verify(theirs)
    assert (found.verdict, found.credentials.state, found.watermark.state) == ("others", "untrusted", "not_found")
    assert found.image_id is None
    plain = verifier.verify(encode(drawing(64), "png", 100))
    assert (plain.verdict, plain.pixels_equal) == ("unknown", None)
    assert "no proof that it did not" in plain.says


def test_ours_in_a_strangers_envelope_is_marked(verifier: Verifier, folder: Path, tmp_path: Path) -> None:
    with Image.open(io.BytesIO(made(folder, drawing(256)))) as image:
        found = verifier.verify(made(tmp_path / "theirs", np.asarray(image.convert("RGB"))))
    assert (found.verdict, found.credentials.state) == ("marked", "untrusted")
    assert "somebody else's" in found.says


def test_a_picture_without_room_for_a_mark_is_ours_by_its_credentials(verifier: Verifier, folder: Path) -> None:
    found = verifier.verify(made(folder, drawing(24)))
    assert (found.verdict, found.watermark.state) == ("ours", "not_found")
    assert "sent without a mark" in found.watermark.says


@pytest.mark.parametrize("output_format", ["png", "webp"])
def test_a_film(verifier: Verifier, folder: Path, output_format: str) -> None:
    film = np.stack([drawing(64, seed) for seed in range(5)])
    found = verifier.verify(made(folder, film, output_format))
    assert (found.verdict, found.frames, found.watermark.state) == ("ours", 5, "found")
    assert found.pixels_equal is (output_format == "png")


def test_a_server_without_marks_reads_those_of_others(signed: bytes) -> None:
    found = Verifier(None, None).verify(signed)
    assert (found.verdict, found.watermark.state) == ("others", "not_looked_for")


@pytest.mark.parametrize(
    "data", [b"", b"GIF89a", b"<svg/>", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"RIFF\0\0\0\0WEBP"]
)
def test_what_is_no_picture_is_said_to_be_none(verifier: Verifier, data: bytes) -> None:
    with pytest.raises(NoPictureError):
        verifier.verify(data)


def test_bombs_are_refused_by_their_headers(verifier: Verifier) -> None:
    from pipelines.pictures import _png_header

    with pytest.raises(NoPictureError, match="too_many_pixels"):
        verifier.verify(_png_header(60_000, 60_000))
    film = encode(np.stack([drawing(64, seed) for seed in range(9)]), "png", 100)
    with pytest.raises(NoPictureError, match="too_many_pixels"):
        Verifier(None, None, max_pixels=8 * 64 * 64).verify(film)
    assert Verifier(None, None, max_pixels=9 * 64 * 64).verify(film).frames == 9


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300), st.booleans(), st.integers(0, 2**31), st.integers(0, 400))
def test_any_bytes_get_a_clear_answer(
    verifier: Verifier, signed: bytes, noise: bytes, whole: bool, place: int, lost: int
) -> None:
    """Noise, and files of ours that are overwritten and cut off."""
    data = bytearray(signed if whole else noise)
    if whole:
        at = place % len(data)
        data[at : at + len(noise)] = noise
        del data[len(data) - lost :]
    try:
        found = verifier.verify(bytes(data))
    except NoPictureError:
        return
    assert found.says
    assert found.verdict != "ours" or bytes(data) == signed


def test_a_large_picture_is_looked_at_in_a_smaller_size(verifier: Verifier, signed: bytes) -> None:
    with Image.open(io.BytesIO(signed)) as image:
        large = image.convert("RGB").resize((1100, 1100), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    large.save(buffer, "PNG", compress_level=1)
    assert verifier.verify(buffer.getvalue()).verdict == "marked"


def test_the_command_tells_by_its_folder_its_root_or_its_job(folder: Path, signed: bytes, tmp_path: Path) -> None:
    file = tmp_path / "apple.png"
    file.write_bytes(signed)
    found = verb.run(str(file), credentials=str(folder), job=None, anchors=None)
    said = "\n".join(verb.summary(found))
    assert found.verdict == "ours"
    assert "This server made it" in said
    assert NAME in said
    by_root = verb.run(str(file), credentials=None, job=None, anchors=str(folder / "ca.pem"))
    assert (by_root.verdict, by_root.watermark.state) == ("ours", "not_looked_for")
    job = tmp_path / "serve.yaml"
    job.write_text(f"kind: serve\nmodel: models:/a@champion\ncredentials: {{folder: {folder}}}\n")
    assert verb.run(str(file), credentials=None, job=str(job), anchors=None).verdict == "ours"


def test_what_strangers_say_is_not_printed_as_if_it_were_so(folder: Path, signed: bytes, tmp_path: Path) -> None:
    file = tmp_path / "theirs.png"
    file.write_bytes(made(tmp_path / "theirs", drawing(128, 5)))
    said = "\n".join(verb.summary(verb.run(str(file), credentials=str(folder), job=None, anchors=None)))
    assert NAME not in said
    assert "nothing vouches for it" in said


@pytest.mark.parametrize("file", ["nowhere.png", "text.txt"])
def test_the_commands_mistakes_are_the_users(folder: Path, signed: bytes, tmp_path: Path, file: str) -> None:
    (tmp_path / "text.txt").write_text("no picture")
    with pytest.raises(UserError) as caught:
        verb.run(str(tmp_path / file), credentials=str(folder), job=None, anchors=None)
    assert caught.value.field == "FILE"


def test_a_certificate_is_made_once_and_never_over_another(tmp_path: Path) -> None:
    done = credentials_verb.init(str(tmp_path / "new"), organisation="A Studio, a.s.b.l.")
    assert identity.load(CredentialsConfig(folder=done.folder))
    assert "proves nobody's identity" in "\n".join(credentials_verb.summary(done))
    file = tmp_path / "apple.png"
    file.write_bytes(made(tmp_path / "new", drawing(64)))
    found = verb.run(str(file), credentials=done.folder, job=None, anchors=None)
    assert found.credentials.signer == "cleanplate signer, A Studio, a.s.b.l."
    with pytest.raises(UserError, match="is there already"):
        credentials_verb.init(done.folder, organisation=None)
