"""Requests that share the passes of a real network in ONNX Runtime: the bytes of each are those it gets by itself."""

from __future__ import annotations

import asyncio
import io
import threading
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from curation.clip import ClipConfig
from serving import backends, guard
from serving.admission import Limits
from serving.api import GenerationRequest, Moderation, RequestError
from serving.generator import Generation, Generator
from serving.job import EngineConfig
from serving.prompts.guard import PromptGuard, PromptsConfig
from serving.safety import OutputSafety
from serving.service import Preview, Service
from training.bundle import DiffusionModel
from training.sampling import SAMPLERS, SamplingParams, sample
from training.tracking import ModelVersion


@pytest.fixture(scope="module")
def generator(
    bundle: Path, version: ModelVersion, model: DiffusionModel, tmp_path_factory: pytest.TempPathFactory
) -> Generator:
    """On a graph that was made on the spot."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        backend = backends.build(EngineConfig(backend="onnx"), bundle, model)
    assert backend.shares
    return Generator(version, model, None, Limits(), backend=backend)


def request(**fields: Any) -> GenerationRequest:
    return GenerationRequest(**{"prompt": "a red apple", "num_inference_steps": 2, **fields})


def together(generator: Generator, *requests: GenerationRequest, gaps: int = 0) -> list[Any]:
    """All at once, or each after so many turns of the event loop."""

    async def ask(service: Service, number: int, told: GenerationRequest) -> Generation:
        for _ in range(number * gaps):
            await asyncio.sleep(0)
        return await service.generate(told)

    async def go() -> list[Any]:
        service = Service(generator)
        try:
            asked = (ask(service, number, told) for number, told in enumerate(requests))
            return await asyncio.gather(*asked, return_exceptions=True)
        finally:
            await service.engine.close()

    return asyncio.run(go())


def test_prompts_are_judged_off_the_loop(version: ModelVersion, model: DiffusionModel) -> None:
    judged_by: list[int] = []

    class Noting(PromptGuard):
        def check(self, prompt: str) -> tuple[Moderation, ...]:
            judged_by.append(threading.get_ident())
            return super().check(prompt)

    noting = Generator(version, model, None, Limits(), prompts=Noting(PromptsConfig().rules()))
    drawn, refused = together(noting, request(), request(prompt="a beheading"))
    assert len(drawn.pictures) == 1
    assert refused.code == "moderation_blocked"
    assert len(judged_by) == 2
    assert threading.get_ident() not in judged_by


def files(generation: Generation) -> list[bytes | None]:
    return [picture.data for picture in generation.pictures]


REQUESTS = st.builds(
    request,
    prompt=st.sampled_from(["a red apple", "a blue boat", "x"]),
    negative_prompt=st.sampled_from([None, "red"]),
    n=st.integers(1, 3),
    seed=st.integers(0, 2**53 - 20),
    num_inference_steps=st.integers(1, 5),
    guidance_scale=st.sampled_from([1.5, 4.0]),
    sampler=st.sampled_from(SAMPLERS),
)


@settings(deadline=None, max_examples=36)
@given(requests=st.lists(REQUESTS, min_size=2, max_size=6), gaps=st.integers(0, 30))
def test_any_mix_gets_the_bytes_of_the_serial_runs(
    generator: Generator, requests: list[GenerationRequest], gaps: int
) -> None:
    for told, shared in zip(requests, together(generator, *requests, gaps=gaps), strict=True):
        assert files(shared) == files(generator.generate(told))


def test_unguided_requests_share_with_guided_ones(generator: Generator) -> None:
    mixed = [request(seed=1, guidance_scale=1.0, num_inference_steps=4), request(seed=1, guidance_scale=3.0)]
    for told, shared in zip(mixed, together(generator, *mixed), strict=True):
        assert files(shared) == files(generator.generate(told))


def test_the_pixels_are_the_samplers(generator: Generator, model: DiffusionModel) -> None:
    """`training.sampling.sample` with the backend's network in it: one mathematics, two ways of asking."""
    params = SamplingParams(steps=3, guidance_scale=2.0, sampler="dpmsolver++")
    pixels = sample(backends.drawn_by(model, generator.backend), ["a red apple"], [5], params)
    told = request(seed=5, num_inference_steps=3, guidance_scale=2.0, sampler="dpmsolver++")
    with_others = together(generator, told, request(seed=9, num_inference_steps=7))[0]
    with Image.open(io.BytesIO(files(with_others)[0] or b"")) as picture:
        assert np.array_equal(np.asarray(picture), pixels[0])


def test_the_answer_says_what_drew_it_and_whether_its_bytes_are_its_own(generator: Generator) -> None:
    response = together(generator, request())[0].response()
    assert (response.backend, response.exact) == ("onnx-fp32", True)
    assert (generator.card.backend, generator.card.exact) == ("onnx-fp32", True)


def test_previews_come_before_the_picture_and_then_the_generation(generator: Generator) -> None:
    async def go() -> list[Preview | Generation]:
        service = Service(generator)
        return [event async for event in service.stream(request(seed=1, num_inference_steps=8, n=2), previews=3)]

    *previews, last = asyncio.run(go())
    assert isinstance(last, Generation)
    told = [(event.image, event.done, event.steps) for event in previews if isinstance(event, Preview)]
    assert sorted(told) == [(image, done, 8) for image in (0, 1) for done in (2, 4, 6)]
    data = [event.data for event in previews if isinstance(event, Preview)]
    assert all((picture or b"").startswith(b"\x89PNG") for picture in data)
    assert files(last) == files(generator.generate(request(seed=1, num_inference_steps=8, n=2)))


def test_nothing_of_a_withheld_picture_is_previewed(
    generator: Generator, version: ModelVersion, model: DiffusionModel, tiny_clip: ClipConfig
) -> None:
    watching = guard.build(OutputSafety(concepts={"weapon": -0.99}), tiny_clip)
    strict = Generator(version, model, watching, Limits(), backend=generator.backend)

    async def go() -> list[Preview | Generation]:
        return [event async for event in Service(strict).stream(request(num_inference_steps=4), previews=2)]

    *previews, last = asyncio.run(go())
    assert [event.data for event in previews if isinstance(event, Preview)] == [None, None]
    assert isinstance(last, Generation)
    assert files(last) == [None]


def test_a_bad_request_is_refused_before_it_costs_anything(generator: Generator) -> None:
    good, bad = together(generator, request(), request(size="64x64"))
    assert isinstance(good, Generation)
    assert isinstance(bad, RequestError)
    assert bad.param == "size"


def test_too_much_is_a_429_and_shutting_down_a_503(generator: Generator) -> None:
    async def go() -> list[RequestError]:
        service = Service(generator, max_row_steps=150)
        async with aclosing(service.stream(request(num_inference_steps=50), previews=1)) as events:
            await anext(events)  # its steps are under way
            with pytest.raises(RequestError) as full:
                await service.generate(request(num_inference_steps=100))
        await service.drain()
        with pytest.raises(RequestError) as draining:
            await service.generate(request())
        return [full.value, draining.value]

    full, draining = asyncio.run(go())
    assert (full.status, full.code) == (429, "overloaded")
    assert (draining.status, draining.code) == (503, "draining")
    assert full.retry_after_s
    assert draining.retry_after_s


def test_a_client_that_leaves_takes_its_rows_with_it(generator: Generator) -> None:
    async def go() -> None:
        service = Service(generator)
        async with aclosing(service.stream(request(num_inference_steps=100, n=4), previews=9)) as events:
            await anext(events)
            assert service.engine.status().pictures == 4
        assert service.engine.status().pictures == 0
        passes = service.engine.status().passes
        await service.drain()
        assert service.engine.status().row_steps == 0
        assert service.engine.status().passes <= passes + 1

    asyncio.run(go())


def test_the_event_loop_answers_while_a_pass_runs(generator: Generator) -> None:
    """The passes run elsewhere: in the loop's own thread nothing of the network is ever called."""
    threads: set[str] = set()

    class Watched:
        def predict(self, rows: Any) -> Any:
            threads.add(threading.current_thread().name)
            return generator.backend.denoiser.predict(rows)

    async def go() -> None:
        service = Service(generator)
        service.engine._denoiser = Watched()
        await service.generate(request())

    asyncio.run(go())
    assert threads
    assert threading.current_thread().name not in threads


def test_what_nobody_would_wait_for_is_not_begun(generator: Generator) -> None:
    async def go() -> RequestError:
        service = Service(generator)
        async with aclosing(service.stream(request(num_inference_steps=100, n=4), previews=9)) as events:
            await anext(events)  # its steps are under way
            with pytest.raises(RequestError) as refused:
                await anext(service.stream(request(num_inference_steps=100), seconds=1e-6))
            assert service.engine.status().pictures == 4
        return refused.value

    late = asyncio.run(go())
    assert (late.status, late.code) == (503, "deadline_unreachable")
    assert late.retry_after_s
