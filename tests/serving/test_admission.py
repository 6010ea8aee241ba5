"""What requests are refused, in whose words, and what the good ones come out as."""

from __future__ import annotations

import dataclasses
import pickle
from typing import Any

import pytest
from pydantic import ValidationError

from serving.admission import Limits, ModelCard, Plan, SamplingDefaults, admit
from serving.api import MAX_SEED, GenerationRequest, RequestError

CARD = ModelCard(
    name="drawings",
    version="3",
    alias="champion",
    manifest_id="m",
    image_size=64,
    noise_levels=900,
    samplers=("ddim", "pndm", "dpmsolver++", "ddpm"),
    defaults=SamplingDefaults(steps=20, guidance_scale=2.5, sampler="ddim"),
    loaded_at=0,
)
LIMITS = Limits(max_images=4, max_steps=100, max_prompt_chars=40, max_pixel_steps=64 * 64 * 200)


def plan(**fields: Any) -> Plan:
    return admit(GenerationRequest(**{"prompt": "a red apple", **fields}), CARD, LIMITS)


def test_a_silent_request_gets_the_models_defaults_and_a_drawn_seed() -> None:
    first, second = plan(), plan()
    assert (first.steps, first.guidance_scale, first.sampler) == (20, 2.5, "ddim")
    assert (first.output_format, first.compression, first.negative_prompt) == ("png", 100, None)
    assert len(first.seeds) == 1
    assert first.seeds != second.seeds


def test_a_sampler_that_the_model_is_not_made_for_is_refused() -> None:
    with pytest.raises(RequestError, match="ddim, pndm") as caught:
        plan(sampler="euler")
    assert (caught.value.status, caught.value.param) == (400, "sampler")


def test_null_means_the_default() -> None:
    nothing = {name: None for name in GenerationRequest.model_fields if name not in ("prompt", "seed")}
    given, silent = plan(seed=1, **nothing), plan(seed=1)
    assert dataclasses.replace(given, ids=silent.ids) == silent


def test_image_k_has_seed_plus_k() -> None:
    assert plan(seed=7, n=3).seeds == (7, 8, 9)


def test_zero_is_a_value_and_not_the_default() -> None:
    chosen = plan(seed=0, guidance_scale=0, output_format="jpeg", output_compression=0)
    assert (chosen.seeds, chosen.guidance_scale, chosen.compression) == ((0,), 0.0, 0)


@pytest.mark.parametrize("name", ["drawings", "drawings@champion", "drawings/3", "models:/drawings@champion"])
def test_the_model_may_be_named_in_full_or_in_short(name: str) -> None:
    plan(model=name)


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"model": "dall-e-3"}, "model", "model_not_found"),
        ({"model": "drawings/2"}, "model", "model_not_found"),
        ({"prompt": "  \n"}, "prompt", "invalid_value"),
        ({"prompt": "x" * 41}, "prompt", "over_limit"),
        ({"negative_prompt": "x" * 41}, "negative_prompt", "over_limit"),
        ({"negative_prompt": "red", "guidance_scale": 1.0}, "negative_prompt", "unsupported_value"),
        ({"n": 5}, "n", "over_limit"),
        ({"num_inference_steps": 101}, "num_inference_steps", "over_limit"),
        ({"num_inference_steps": 60, "n": 4}, "num_inference_steps", "over_limit"),
        ({"guidance_scale": 30.5}, "guidance_scale", "over_limit"),
        ({"size": "1024x1024"}, "size", "unsupported_value"),
        ({"size": "128x128"}, "size", "unsupported_value"),
        ({"quality": "high"}, "quality", "unsupported_value"),
        ({"style": "vivid"}, "style", "unsupported_value"),
        ({"background": "transparent"}, "background", "unsupported_value"),
        ({"partial_images": 2}, "partial_images", "unsupported_value"),
        ({"output_compression": 50}, "output_compression", "unsupported_value"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(fields: dict[str, Any], param: str, code: str) -> None:
    with pytest.raises(RequestError) as caught:
        plan(**fields)
    error = caught.value.body().error
    assert (error.param, error.code) == (param, code)
    assert error.type == "invalid_request_error"
    assert caught.value.status == (404 if code == "model_not_found" else 400)


def test_a_wrong_size_is_answered_with_the_right_one() -> None:
    with pytest.raises(RequestError, match="64x64"):
        plan(size="512x512")


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": ""},
        {"n": 0},
        {"n": 11},
        {"n": "2"},
        {"n": True},
        {"seed": -1},
        {"seed": MAX_SEED + 1},
        {"seed": 1.5},
        {"num_inference_steps": 0},
        {"guidance_scale": float("nan")},
        {"guidance_scale": float("inf")},
        {"guidance_scale": -1},
        {"sampler": "unipc"},
        {"output_format": "gif"},
        {"output_compression": 101},
        {"steps": 4},
    ],
)
def test_malformed_values_and_unknown_fields_do_not_validate(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        GenerationRequest(**{"prompt": "a", **fields})


def test_a_refusal_survives_the_way_through_ray() -> None:
    error = RequestError("m", status=429, param="n", code="overloaded", retry_after_s=2.5)
    assert vars(pickle.loads(pickle.dumps(error))) == vars(error)
