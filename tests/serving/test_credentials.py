"""Content credentials: what c2pa's own reader says of them, what tampering does, and what a stranger's are worth."""

from __future__ import annotations

import io
import json
import logging
import stat
from pathlib import Path

import numpy as np
import pytest
from cryptography.x509 import load_pem_x509_certificate
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from curation.errors import UserError
from serving import credentials, identity, marking
from serving.credentials import ASSERTION, DIGITAL_SOURCE_TYPE, Origin, Signer, commitment, read
from serving.finishing import encode
from serving.identity import CredentialsConfig, Identity, Trust, WatermarkConfig
from tests.serving.test_watermark import drawing

ORIGIN = Origin(
    image_id="img_" + "0a" * 16, model="drawings", model_version="3", manifest_id="m" * 64, seed=2**53 - 1,
    sampler="ddim", steps=20, guidance_scale=2.5, backend="onnx-fp32", prompt_commitment="c" * 64, watermark="c0ff",
    pixels_sha256="d" * 64,
)  # fmt: skip
FILM = np.stack([drawing(64, seed) for seed in range(3)])
FILES = {
    "png": encode(drawing(64), "png", 100),
    "jpeg": encode(drawing(64), "jpeg", 90),
    "webp": encode(drawing(64), "webp", 90),
    "moving png": encode(FILM, "png", 100),
    "moving webp": encode(FILM, "webp", 90),
}


def made(folder: Path) -> Identity:
    config = CredentialsConfig(folder=str(folder))
    identity.ensure(config)
    return identity.load(config)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return made(tmp_path_factory.mktemp("own") / "credentials")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return made(tmp_path_factory.mktemp("stranger") / "credentials")


def signed_by(who: Identity, kind: str) -> bytes:
    return Signer(who).sign(FILES[kind], f"image/{kind.split()[-1]}", ORIGIN)


@pytest.mark.parametrize("kind", list(FILES))
def test_the_librarys_own_reader_finds_them_valid_and_trusted(own: Identity, kind: str) -> None:
    import c2pa

    signed = signed_by(own, kind)
    context = c2pa.Context.from_dict({"trust": {"trust_anchors": own.trust.anchors}})
    with c2pa.Reader(f"image/{kind.split()[-1]}", io.BytesIO(signed), context=context) as reader:
        store = json.loads(reader.json())
    assert store["validation_state"] == "Trusted"
    assert not store["validation_results"]["activeManifest"]["failure"]
    assertions = {a["label"]: a["data"] for a in store["manifests"][store["active_manifest"]]["assertions"]}
    (action,) = assertions["c2pa.actions.v2"]["actions"]
    assert action == {"action": "c2pa.created", "digitalSourceType": DIGITAL_SOURCE_TYPE}
    assert assertions[ASSERTION]["seed"] == 2**53 - 1
    assert assertions[ASSERTION]["model_version"] == "3"


@pytest.mark.parametrize("kind", list(FILES))
def test_what_is_signed_is_ours_and_shows_the_same_pixels(own: Identity, kind: str) -> None:
    signed = signed_by(own, kind)
    found = read(signed, own.trust)
    assert (found.state, found.ours, found.faults) == ("trusted", True, ())
    assert found.generation is not None
    assert found.generation["image_id"] == ORIGIN.image_id
    assert found.digital_source_type == DIGITAL_SOURCE_TYPE
    with Image.open(io.BytesIO(FILES[kind])) as plain, Image.open(io.BytesIO(signed)) as image:
        frames = getattr(image, "n_frames", 1)
        assert frames == getattr(plain, "n_frames", 1)
        for frame in range(frames):
            plain.seek(frame)
            image.seek(frame)
            assert plain.convert("RGB").tobytes() == image.convert("RGB").tobytes()
    assert len(signed) - len(FILES[kind]) < 6_000


@pytest.mark.parametrize("kind", list(FILES))
def test_one_changed_bit_of_the_pixels_is_found(own: Identity, kind: str) -> None:
    signed = bytearray(signed_by(own, kind))
    of_picture = signed.find(FILES[kind][-60:-40])
    assert of_picture > 0
    signed[of_picture] ^= 1
    found = read(bytes(signed), own.trust)
    assert found.state == "altered"
    assert not found.ours
    assert found.faults


def test_a_changed_statement_is_found(own: Identity) -> None:
    signed = signed_by(own, "png")
    assert signed.count(b"ddim") == 1
    found = read(signed.replace(b"ddim", b"pndm"), own.trust)
    assert (found.state, found.ours) == ("altered", False)


def test_a_strangers_signature_is_whole_but_not_ours(own: Identity, stranger: Identity) -> None:
    found = read(signed_by(stranger, "png"), own.trust)
    assert (found.state, found.ours) == ("untrusted", False)
    assert "nobody here vouches for the signer" in found.faults
    assert read(signed_by(own, "png")).state == "untrusted"


def test_whom_a_purchased_roots_authority_vouches_for_is_not_ours_by_that(own: Identity) -> None:
    """With a certificate of somebody else's root, only the very certificate is this server's."""
    found = read(signed_by(own, "png"), Trust(own.trust.anchors, serial="1"))
    assert (found.state, found.ours) == ("trusted", False)
    serial = str(load_pem_x509_certificate(own.chain).serial_number)
    assert read(signed_by(own, "png"), Trust(own.trust.anchors, serial)).ours


def test_files_without_credentials_have_none(own: Identity) -> None:
    for data in FILES.values():
        assert read(data, own.trust).state == "absent"


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=400), st.sampled_from(["", "png", "jpeg", "webp"]), st.integers(0, 2**31))
def test_any_bytes_are_answered(own: Identity, noise: bytes, kind: str, place: int) -> None:
    """Also those of a signed file in which some are overwritten."""
    data = noise
    if kind:
        signed = bytearray(signed_by(own, kind))
        at = place % len(signed)
        signed[at : at + len(noise)] = noise
        data = bytes(signed)
    found = read(data, own.trust)
    assert found.says
    assert found.ours == (found.state == "trusted")


def test_every_signature_is_another_one(own: Identity) -> None:
    """Why exactness is claimed of `pixels_sha256` and not of the file."""
    assert signed_by(own, "png") != signed_by(own, "png")


def test_a_prompts_commitment_can_be_opened_by_the_secret_alone() -> None:
    kept = commitment(b"secret", "img_1", "a red apple")
    assert kept == commitment(b"secret", "img_1", "a red apple")
    others = {commitment(*of) for of in ((b"other", "img_1", "a red apple"), (b"secret", "img_2", "a red apple"))}
    assert kept not in others
    assert len(others) == 2


def test_secrets_are_for_their_owner_alone_and_are_in_no_text(own: Identity, tmp_path: Path) -> None:
    folder = tmp_path / "credentials"
    made(folder)
    for path in folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == (0o600 if path.suffix == ".key" else 0o644)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert "PRIVATE" not in repr(own)
    assert "proves nobody's identity" in (folder / "README.txt").read_text().replace("\n", " ")


def test_what_is_there_is_not_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = CredentialsConfig(folder=str(tmp_path / "credentials"))
    with caplog.at_level(logging.WARNING):
        marking.build(config, WatermarkConfig())
    assert "nobody vouches for it" in caplog.text
    assert "PRIVATE" not in caplog.text
    before = {path.name: path.read_bytes() for path in (tmp_path / "credentials").iterdir()}
    caplog.clear()
    marking.build(config, WatermarkConfig())
    assert not caplog.text
    assert not identity.create(tmp_path / "credentials")
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "credentials").iterdir()}
    assert marking.build(CredentialsConfig(enabled=False), WatermarkConfig(enabled=False)) is None


def test_ones_own_certificate_by_path_and_its_key_by_the_environment(
    tmp_path: Path, own: Identity, stranger: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    certificate.write_bytes(own.chain)
    key.write_bytes(own.key)
    by_path = identity.load(CredentialsConfig(certificate=str(certificate), private_key=str(key)))
    assert read(signed_by(by_path, "png"), by_path.trust).ours
    config = CredentialsConfig(certificate=str(certificate))
    monkeypatch.setenv(identity.KEY_VARIABLE, own.key.decode())
    assert identity.load(config).key == own.key
    monkeypatch.setenv(identity.KEY_VARIABLE, stranger.key.decode())
    with pytest.raises(UserError, match="not the certificate's"):
        identity.load(config)
    monkeypatch.delenv(identity.KEY_VARIABLE)
    with pytest.raises(UserError, match="no private key"):
        identity.load(config)


@pytest.mark.parametrize(
    ("config", "field"),
    [
        (CredentialsConfig(folder="/nowhere/at/all"), "credentials.certificate"),
        (CredentialsConfig(certificate="/nowhere.pem"), "credentials.certificate"),
        (CredentialsConfig(certificate=__file__), "credentials.certificate"),
    ],
)
def test_mistakes_name_the_field(config: CredentialsConfig, field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(identity.KEY_VARIABLE, "")
    with pytest.raises(UserError) as caught:
        identity.load(config)
    assert caught.value.field == field


def test_a_watermark_secret_that_can_be_guessed_is_refused(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("short\n")
    with pytest.raises(UserError, match="too short"):
        identity.watermark_key(WatermarkConfig(key_file=str(tmp_path / "key")), CredentialsConfig())


def test_where_certificate_and_key_are_ones_own_no_folder_is_made(tmp_path: Path, own: Identity) -> None:
    for name, content in (("chain.pem", own.chain), ("key.pem", own.key), ("secret", b"sixteen bytes and more")):
        (tmp_path / name).write_bytes(content)
    config = CredentialsConfig(
        folder=str(tmp_path / "folder"),
        certificate=str(tmp_path / "chain.pem"),
        private_key=str(tmp_path / "key.pem"),
    )
    marks = marking.build(config, WatermarkConfig(key_file=str(tmp_path / "secret")))
    assert marks is not None
    assert marks.secret == b"sixteen bytes and more"
    assert not (tmp_path / "folder").exists()
    assert "sixteen" not in repr(marks)


def test_a_folder_that_cannot_be_made_is_a_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError) as caught:
        identity.ensure(CredentialsConfig(folder=str(tmp_path / "file" / "credentials")))
    assert caught.value.field == "credentials.folder"


def test_a_certificate_that_is_worth_nothing_does_not_make_the_file_an_altered_one() -> None:
    assert credentials._state("Invalid", ["claimSignature.outsideValidity"]) == "untrusted"
    assert credentials._state("Invalid", ["signingCredential.invalid", "assertion.dataHash.mismatch"]) == "altered"
    assert credentials._state("Invalid", []) == "altered"
