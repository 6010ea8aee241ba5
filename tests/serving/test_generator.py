"""Same seed, same bytes; every format decodes; the guard takes only what it must."""

from __future__ import annotations

import hashlib
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from curation.clip import ClipConfig
from serving import guard
from serving.admission import Limits
from serving.api import GenerationRequest, RequestError
from serving.finishing import encode
from serving.generator import Generation, Generator, Stopped
from serving.prompts import guard as prompts
from serving.prompts.guard import PromptsConfig
from serving.safety import OutputSafety
from training.bundle import DiffusionModel
from training.sampling import SAMPLERS
from training.tracking import ModelVersion


@pytest.fixture(scope="module")
def generator(version: ModelVersion, model: DiffusionModel) -> Generator:
    return Generator(version, model, None, Limits())


def ask(generator: Generator, **fields: Any) -> Generation:
    return generator.generate(GenerationRequest(**{"prompt": "a red apple", "num_inference_steps": 2, **fields}))


def files(generation: Generation) -> list[bytes | None]:
    return [picture.data for picture in generation.pictures]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_same_seed_same_bytes_alone_or_in_company(generator: Generator, sampler: str) -> None:
    together = files(ask(generator, seed=5, n=3, sampler=sampler))
    alone = [files(ask(generator, seed=seed, sampler=sampler))[0] for seed in (5, 6, 7)]
    assert together == alone
    assert len(set(together)) == 3


@pytest.mark.parametrize("change", [{"seed": 2}, {"prompt": "a blue boat"}, {"negative_prompt": "red"}])
def test_another_request_gives_another_picture(generator: Generator, change: dict[str, Any]) -> None:
    assert files(ask(generator, **{"seed": 1, **change})) != files(ask(generator, seed=1))


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_every_format_decodes_at_the_models_size(generator: Generator, output_format: str) -> None:
    generation = ask(generator, seed=1, output_format=output_format)
    (data,) = files(generation)
    assert data is not None
    with Image.open(io.BytesIO(data)) as picture:
        assert (picture.format, picture.size, picture.mode) == (output_format.upper(), (16, 16), "RGB")
    assert generation.response().data[0].picture() == data


def test_the_pixels_hash_is_that_of_what_a_lossless_file_shows(generator: Generator) -> None:
    (picture,) = ask(generator, seed=1).pictures
    with Image.open(io.BytesIO(picture.data or b"")) as shown:
        assert picture.pixels_sha256 == hashlib.sha256(np.asarray(shown).tobytes()).hexdigest()
    (lossy,) = ask(generator, seed=1, output_format="jpeg").pictures
    assert lossy.pixels_sha256 == picture.pixels_sha256


def test_lossless_files_hold_the_very_pixels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    for output_format in ("png", "webp"):
        with Image.open(io.BytesIO(encode(pixels, output_format, 100))) as picture:
            assert np.array_equal(np.asarray(picture.convert("RGB")), pixels)


def test_the_answer_says_how_to_make_the_picture_again(generator: Generator) -> None:
    response = ask(generator, n=2).response()
    assert (response.model, response.model_version, response.manifest_id) == ("tiny", "3", "m" * 64)
    assert (response.steps, response.sampler, response.guidance_scale, response.size) == (2, "ddim", 2.0, "16x16")
    again = ask(generator, seed=response.data[1].seed)
    assert again.pictures[0].data == response.data[1].picture()


def test_a_silent_request_takes_the_bundles_own_steps_within_the_limit(
    version: ModelVersion, model: DiffusionModel
) -> None:
    assert Generator(version, model, None, Limits()).card.defaults.steps == 3
    assert Generator(version, model, None, Limits(max_steps=2)).card.defaults.steps == 2


def test_stopping_costs_at_most_the_step_under_way(generator: Generator) -> None:
    asked: list[bool] = []

    def stop() -> bool:
        asked.append(True)
        return len(asked) == 3

    with pytest.raises(Stopped):
        generator.generate(GenerationRequest(prompt="a", num_inference_steps=10), stop=stop)
    assert len(asked) == 3


def test_the_generator_checks_what_nobody_checked_before(generator: Generator) -> None:
    with pytest.raises(RequestError, match="16x16"):
        ask(generator, size="64x64")


class TestGuard:
    """With a real CLIP of random weights: its scores mean nothing, but they differ from picture to picture."""

    @pytest.fixture(scope="class")
    def pictures(self, generator: Generator) -> list[np.ndarray]:
        made = files(ask(generator, seed=1, n=4))
        return [np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in made if data is not None]

    @pytest.fixture(scope="class")
    def scores(self, tiny_clip: ClipConfig, pictures: list[np.ndarray]) -> list[float]:
        watching = guard.build(OutputSafety(concepts={"weapon": 0.99}), tiny_clip)
        assert watching is not None
        return [watching.verdict(picture).scores[0].score for picture in pictures]

    def test_without_concepts_there_is_no_guard(self) -> None:
        assert guard.build(OutputSafety(), ClipConfig(model="./not/there")) is None

    def test_only_the_offending_picture_is_withheld(
        self, version: ModelVersion, model: DiffusionModel, tiny_clip: ClipConfig, scores: list[float]
    ) -> None:
        worst = int(np.argmax(scores))
        threshold = (sorted(scores)[-1] + sorted(scores)[-2]) / 2
        watching = guard.build(OutputSafety(concepts={"weapon": threshold}), tiny_clip)
        response = ask(Generator(version, model, watching, Limits()), seed=1, n=4).response()
        for k, datum in enumerate(response.data):
            assert datum.safety[0].concept == "weapon"
            assert datum.safety[0].score == pytest.approx(scores[k], abs=1e-3)
            assert (datum.b64_json is None) == (k == worst)
            assert datum.finish_reason == ("content_filtered" if k == worst else "stop")
            assert [entry.action for entry in datum.moderation] == (["block"] if k == worst else [])

    def test_flag_withholds_nothing_and_says_what_it_saw(
        self, version: ModelVersion, model: DiffusionModel, tiny_clip: ClipConfig
    ) -> None:
        watching = guard.build(OutputSafety(concepts={"weapon": -0.99}, action="flag"), tiny_clip)
        (datum,) = ask(Generator(version, model, watching, Limits()), seed=1).response().data
        assert datum.b64_json is not None
        assert datum.safety[0].score > datum.safety[0].threshold
        (said,) = datum.moderation
        assert (said.stage, said.category, said.rule, said.action) == ("picture", "weapon", "clip:weapon", "flag")
        assert datum.finish_reason == "stop"


class TestPrompts:
    """The list that ships, in front of the sampling."""

    @pytest.fixture(scope="class")
    def careful(self, version: ModelVersion, model: DiffusionModel) -> Generator:
        watching = prompts.build(PromptsConfig(), ClipConfig(model="./not/there"))
        return Generator(version, model, None, Limits(), prompts=watching)

    def test_a_blocked_prompt_is_refused_as_openai_does(self, careful: Generator) -> None:
        with pytest.raises(RequestError) as caught:
            careful.plan(GenerationRequest(prompt="a b3heading at dawn"))
        error = caught.value.body().error
        assert (caught.value.status, error.code, error.type) == (
            400,
            "moderation_blocked",
            "image_generation_user_error",
        )
        assert error.model_dump()["moderation_details"] == {
            "moderation_stage": "input",
            "categories": ["violence/graphic"],
        }
        assert "safety_violations=[violence/graphic]" in error.message
        assert "behead" not in error.message

    def test_a_flagged_prompt_is_drawn_and_the_answer_says_so(self, careful: Generator) -> None:
        (datum,) = ask(careful, prompt="a nude, in charcoal", seed=1).response().data
        assert datum.b64_json is not None
        (said,) = datum.moderation
        assert (said.stage, said.category, said.action, said.score) == ("prompt", "nudity", "flag", None)

    def test_a_negative_prompt_may_name_what_it_steers_away_from(self, careful: Generator) -> None:
        plan = careful.plan(GenerationRequest(prompt="a red apple", negative_prompt="gore, porn", guidance_scale=2))
        assert plan.moderation == ()

    def test_other_errors_have_no_moderation_details(self, careful: Generator) -> None:
        with pytest.raises(RequestError) as caught:
            careful.plan(GenerationRequest(prompt=" "))
        assert "moderation_details" not in caught.value.body().model_dump()["error"]
