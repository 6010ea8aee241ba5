"""A model of films behind the generator: files that move, the worst frame's verdict, and what cannot be."""

from __future__ import annotations

import copy
import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from serving import backends
from serving.admission import Limits
from serving.api import GenerationRequest, RequestError
from serving.generator import Generator
from serving.job import EngineConfig
from training.bundle import DiffusionModel
from training.network import build
from training.sampling import SamplingParams, sample
from training.space import FilmSpace, PatchSpace
from training.tracking import ModelVersion
from training.video import VideoUnetConfig

FRAMES = 4


@pytest.fixture(scope="module")
def moving(model: DiffusionModel) -> DiffusionModel:
    """An untrained model of films of four frames."""
    torch.manual_seed(0)
    films = copy.copy(model)
    films.unet = build(VideoUnetConfig(preset="nano"), channels=3, side=16, width=model.text.width).eval()
    films.space = FilmSpace(PatchSpace(1), FRAMES)
    return films


@pytest.fixture(scope="module")
def generator(version: ModelVersion, moving: DiffusionModel) -> Generator:
    return Generator(version, moving, None, Limits())


@pytest.mark.parametrize("output_format", ["png", "webp"])
def test_the_answer_is_a_file_that_moves(generator: Generator, moving: DiffusionModel, output_format: str) -> None:
    asked = {"prompt": "a red apple", "seed": 3, "num_inference_steps": 2, "output_format": output_format}
    (picture,) = generator.generate(GenerationRequest.model_validate(asked)).pictures
    assert picture.data is not None
    with Image.open(io.BytesIO(picture.data)) as image:
        frames = np.stack([np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)])
    silent = generator.card.defaults
    params = SamplingParams(steps=2, guidance_scale=silent.guidance_scale, sampler=silent.sampler)
    assert np.array_equal(frames, sample(moving, ["a red apple"], [3], params)[0])


def test_a_still_format_is_refused(generator: Generator) -> None:
    with pytest.raises(RequestError, match="films") as caught:
        generator.plan(GenerationRequest.model_validate({"prompt": "a", "output_format": "jpeg"}))
    assert caught.value.param == "output_format"


def test_frames_count_towards_the_limit(version: ModelVersion, moving: DiffusionModel) -> None:
    narrow = Generator(version, moving, None, Limits(max_pixel_steps=16 * 16 * FRAMES * 2))
    narrow.plan(GenerationRequest.model_validate({"prompt": "a", "num_inference_steps": 2}))
    with pytest.raises(RequestError, match="over this server's limit"):
        narrow.plan(GenerationRequest.model_validate({"prompt": "a", "num_inference_steps": 3}))


def test_torch_is_chosen_for_films(moving: DiffusionModel) -> None:
    assert (
        backends._choose(EngineConfig().backend, moving.space.frames, moving.info.sizes, moving.device.type) == "torch"
    )
