"""Models that were trained in several shapes draw in each of them, and in no other."""

from __future__ import annotations

import copy
import io

import numpy as np
import pytest
from PIL import Image

from serving import backends
from serving.admission import Limits
from serving.api import GenerationRequest, RequestError
from serving.backends import Backend
from serving.generator import Generator
from serving.job import EngineConfig
from training.bundle import DiffusionModel
from training.onnx_denoiser import TorchDenoiser
from training.sampling import SamplingParams, sample
from training.tracking import ModelVersion


@pytest.fixture(scope="module")
def shaped(model: DiffusionModel) -> DiffusionModel:
    """The tiny model, as if trained in two shapes."""
    changed = copy.copy(model)
    changed.info = model.info.model_copy(update={"sizes": ((16, 16), (24, 8))})
    return changed


@pytest.fixture(scope="module")
def generator(version: ModelVersion, shaped: DiffusionModel) -> Generator:
    return Generator(version, shaped, None, Limits(max_pixel_steps=24 * 8 * 3))


def asked(size: str | None, **more: object) -> GenerationRequest:
    given = {"prompt": "a red apple", "seed": 3, "num_inference_steps": 2, "size": size, **more}
    return GenerationRequest.model_validate(given)


def test_a_picture_has_the_shape_that_was_asked_for(generator: Generator, shaped: DiffusionModel) -> None:
    generation = generator.generate(asked("24x8"))
    (picture,) = generation.pictures
    assert picture.data is not None
    with Image.open(io.BytesIO(picture.data)) as image:
        assert image.size == (24, 8)
        pixels = np.asarray(image)
    assert generation.response().size == "24x8"
    silent = generator.card.defaults
    params = SamplingParams(steps=2, guidance_scale=silent.guidance_scale, sampler=silent.sampler)
    assert np.array_equal(pixels, sample(shaped, ["a red apple"], [3], params, size=(24, 8))[0])


def test_shapes_are_listed_and_others_refused(generator: Generator) -> None:
    assert (generator.card.entry().size, generator.card.entry().sizes) == ("16x16", ("16x16", "24x8"))
    assert generator.plan(asked("auto")).size == generator.plan(asked(None)).size == "16x16"
    with pytest.raises(RequestError, match="16x16, 24x8") as caught:
        generator.plan(asked("8x24"))
    assert caught.value.param == "size"


def test_a_shapes_own_pixels_count_towards_the_limit(generator: Generator) -> None:
    generator.plan(asked("24x8", num_inference_steps=3))
    with pytest.raises(RequestError, match="16x16"):
        generator.plan(asked("16x16", num_inference_steps=3))


def test_two_shapes_share_no_pass(generator: Generator) -> None:
    wide, square = (generator.begin(generator.plan(asked(size)))[0] for size in ("24x8", "16x16"))
    assert wide.bucket != square.bucket
    assert wide.ask().x.shape[2:] == (8, 24)


def test_what_runs_a_graph_of_one_shape_draws_that_one(version: ModelVersion, shaped: DiffusionModel) -> None:
    assert (
        backends._choose(EngineConfig().backend, shaped.space.frames, shaped.info.sizes, shaped.device.type) == "torch"
    )
    graph = Backend(TorchDenoiser(shaped), "onnx-fp32", False, True, 1)
    one = Generator(version, shaped, None, Limits(), backend=graph)
    assert one.card.entry().sizes == ("16x16",)
    with pytest.raises(RequestError, match="16x16"):
        one.plan(asked("24x8"))
