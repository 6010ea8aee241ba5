"""Both marks on the pictures of a generator, in the order in which they do not undo each other."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from curation.clip import ClipConfig
from serving import identity, marking
from serving.admission import Limits
from serving.api import GenerationRequest
from serving.credentials import commitment, read
from serving.generator import Generation, Generator
from serving.identity import CredentialsConfig, WatermarkConfig
from serving.marking import Marker, pixels_sha256
from serving.watermark import Watermark
from tests.serving import tiny
from tests.serving.test_watermark import drawing
from training.bundle import DiffusionModel, load_bundle
from training.tracking import ModelVersion

ASKED = {"prompt": "a red apple", "seed": 7, "num_inference_steps": 2}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> CredentialsConfig:
    config = CredentialsConfig(folder=str(tmp_path_factory.mktemp("marks") / "credentials"))
    identity.ensure(config)
    (identity.folder_of(config) / "watermark.key").write_text("a secret of the tests")
    return config


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory, tiny_clip: ClipConfig) -> DiffusionModel:
    """A model of 64 x 64 pixels."""
    return load_bundle(tiny.write_bundle(tmp_path_factory.mktemp("large"), tiny_clip, image_size=64))


@pytest.fixture(scope="module")
def generator(version: ModelVersion, large: DiffusionModel, config: CredentialsConfig) -> Generator:
    return Generator(version, large, None, Limits(), marks=marking.build(config, WatermarkConfig()))


def drawn(generator: Generator, **fields: Any) -> Generation:
    """A request's picture, in the place of what the untrained model draws: noise, in which no mark can be found."""
    plan = generator.plan(GenerationRequest(**ASKED | fields))
    clean = generator.model.space.encode(torch.from_numpy(drawing(64).transpose(2, 0, 1)[None].copy()))
    return generator.complete(plan, generator.look(plan, [clean]), sample_s=0.0)


def decoded(data: bytes | None) -> np.ndarray:
    assert data is not None
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def test_a_pictures_file_is_signed_and_its_pixels_are_marked(generator: Generator, config: CredentialsConfig) -> None:
    (datum,) = drawn(generator).response().data
    assert datum.credentials
    assert datum.watermark
    data = base64.b64decode(datum.b64_json or "")
    found = read(data, identity.load(config).trust)
    assert found.ours
    said = found.generation
    assert said is not None
    assert datum.pixels_sha256 == said["pixels_sha256"] == pixels_sha256(decoded(data))
    assert (said["image_id"], said["model"], said["model_version"]) == (datum.id, "tiny", "3")
    assert (said["seed"], said["steps"], said["sampler"]) == (7, 2, generator.card.defaults.sampler)
    secret = identity.watermark_key(WatermarkConfig(), config)
    assert said["prompt_commitment"] == commitment(secret, datum.id, "a red apple")
    assert "apple" not in data.decode("latin-1")
    seen = Watermark(secret).detect(decoded(data))
    assert seen.present
    assert seen.payload == said["watermark"]


def test_the_same_request_gives_the_same_pixels_and_another_one_another_payload(generator: Generator) -> None:
    first, again = (drawn(generator).pictures[0] for _ in range(2))
    other = drawn(generator, seed=8).pictures[0]
    assert first.id != again.id
    assert first.pixels_sha256 == again.pixels_sha256
    assert first.watermark == again.watermark != other.watermark
    assert np.array_equal(decoded(first.data), decoded(again.data))


def test_another_shape_is_another_request(generator: Generator, config: CredentialsConfig) -> None:
    marks = marking.build(config, WatermarkConfig())
    assert marks is not None
    plan, marker = generator.plan(GenerationRequest(**ASKED)), Marker(marks, generator.card)
    marked = [marker.pixels(replace(plan, size=size), 0, drawing(64)).watermark for size in ("64x64", "80x48", "48x80")]
    assert None not in marked
    assert len(set(marked)) == 3
    assert marked[0] == drawn(generator).pictures[0].watermark


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_every_format_carries_both(generator: Generator, config: CredentialsConfig, kind: str) -> None:
    (picture,) = drawn(generator, output_format=kind).pictures
    assert read(picture.data or b"", identity.load(config).trust).ours
    assert Watermark(identity.watermark_key(WatermarkConfig(), config)).detect(decoded(picture.data)).present


def test_previews_are_marked_in_their_pixels(generator: Generator, config: CredentialsConfig) -> None:
    plan = generator.plan(GenerationRequest(**ASKED))
    clean = generator.model.space.encode(torch.from_numpy(drawing(64).transpose(2, 0, 1)[None].copy()))
    data = generator.preview(plan, clean)
    assert Watermark(identity.watermark_key(WatermarkConfig(), config)).detect(decoded(data)).present


def test_pictures_without_room_for_a_mark_say_so(
    version: ModelVersion, model: DiffusionModel, config: CredentialsConfig
) -> None:
    """One model's pictures are of 16 x 16 pixels, the other's are noise."""
    marks = marking.build(config, WatermarkConfig())
    (picture,) = Generator(version, model, None, Limits(), marks=marks).generate(GenerationRequest(**ASKED)).pictures
    assert picture.watermark is None
    assert not picture.datum().watermark
    assert picture.credentials


def test_either_mark_can_be_left_out(version: ModelVersion, large: DiffusionModel, config: CredentialsConfig) -> None:
    def marked(credentials: bool, watermark: bool) -> tuple[bool, bool]:
        off = config.model_copy(update={"enabled": credentials})
        marks = marking.build(off, WatermarkConfig(enabled=watermark))
        (datum,) = drawn(Generator(version, large, None, Limits(), marks=marks)).response().data
        assert (read(base64.b64decode(datum.b64_json or "")).state != "absent") == datum.credentials
        return datum.credentials, datum.watermark

    for wanted in ((True, False), (False, True), (False, False)):
        assert marked(*wanted) == wanted


def test_paths_are_made_absolute_for_replicas_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(identity.FOLDER_VARIABLE, "here")
    done = identity.rooted(CredentialsConfig(certificate="chain.pem"), WatermarkConfig(key_file="secret"))
    assert done["credentials"] == CredentialsConfig(
        certificate=str(tmp_path / "chain.pem"), folder=str(tmp_path / "here")
    )
    assert done["watermark"] == WatermarkConfig(key_file=str(tmp_path / "secret"))
