"""The step engine: bytes, latency and throughput: `python -m tests.bench.engine`.

    byte_identical_share            of the pictures of random mixes of requests, those whose files are the serial run's
    p95_short_over_static_batching  latency of 4-step requests among 10- and 50-step ones, over that of `@serve.batch`
    makespan_over_static_batching   of the same trace
    onnx_over_eager                 pictures a second of the bare sampler, ONNX Runtime over torch
    endpoint_over_bare_sampler      see `tests.bench.endpoint`
    over_serve_tutorial             see there

The static batcher collects requests, draws them by the very passes of the engine (whoever is done leaves the pass) and
answers all when the last one is done. Both see the same seeded arrivals at
three quarters of what the backend can do, and the rounds alternate. One CPU thread.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from serving import backends
from serving.admission import Limits
from serving.api import GenerationRequest
from serving.generator import Generator
from serving.job import EngineConfig
from serving.service import Service
from serving.trajectory import finish
from tests.bench import endpoint
from tests.serving import tiny
from tests.serving.test_service import REQUESTS, files
from training.bundle import load_bundle
from training.tracking import resolve

STEPS, SHARES = (4, 10, 50), (0.6, 0.25, 0.15)
LOAD = 0.75
BATCH = 8  # requests of a static batch: as many pictures with guidance as a pass of the engine holds

Ask = Callable[[GenerationRequest], Awaitable[object]]


def generator_of(bundle: Path) -> Generator:
    model = load_bundle(bundle)
    backend = backends.build(EngineConfig(backend="onnx"), bundle, model)
    return Generator(resolve(str(bundle)), model, None, Limits(), backend=backend)


def byte_identical_share(generator: Generator, mixes: int) -> float:
    """Random mixes of two to six requests, at random distances, through one service; and each of them by itself."""
    equal: list[bool] = []

    @settings(max_examples=mixes, deadline=None, database=None, derandomize=True)
    @given(requests=st.lists(REQUESTS, min_size=2, max_size=6), gaps=st.integers(0, 40))
    def mix(requests: list[GenerationRequest], gaps: int) -> None:
        async def ask(service: Service, number: int, told: GenerationRequest) -> list[bytes | None]:
            for _ in range(number * gaps):
                await asyncio.sleep(0)
            return files(await service.generate(told))

        async def go() -> list[list[bytes | None]]:
            service = Service(generator)
            got = await asyncio.gather(*(ask(service, *told) for told in enumerate(requests)))
            await service.engine.close()
            return got

        for told, shared in zip(requests, asyncio.run(go()), strict=True):
            equal.extend(a == b for a, b in zip(shared, files(generator.generate(told)), strict=True))

    mix()
    print(f"{mixes} mixes, {len(equal)} pictures, {sum(equal)} with the bytes of the serial run")
    return sum(equal) / len(equal)


class StaticBatcher:
    """What `@serve.batch(max_batch_size=8, batch_wait_timeout_s=0.01)` does in a replica (it runs in no other place):
    whoever has come is taken, the batch waits a little for more, is drawn, and all of it is answered at once."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self._waiting: asyncio.Queue[tuple[GenerationRequest, asyncio.Future[None]]] = asyncio.Queue()
        self._task = asyncio.create_task(self._batches())

    async def ask(self, told: GenerationRequest) -> None:
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.put_nowait((told, answer))
        await answer

    async def _batches(self) -> None:
        while True:
            batch = [await self._waiting.get()]
            until = time.perf_counter() + 0.01
            while len(batch) < BATCH and (left := until - time.perf_counter()) > 0:
                with contextlib.suppress(TimeoutError):
                    batch.append(await asyncio.wait_for(self._waiting.get(), left))
            await asyncio.to_thread(self._draw, [told for told, _ in batch])
            for _, answer in batch:
                answer.set_result(None)

    def _draw(self, requests: list[GenerationRequest]) -> None:
        generator = self._generator
        plans = [generator.plan(told) for told in requests]
        pictures = [generator.begin(plan) for plan in plans]
        flat = [picture for request in pictures for picture in request]
        finish(generator.backend.denoiser, flat, together=generator.backend.together, after_pass=lambda: None)
        for plan, request in zip(plans, pictures, strict=True):
            generator.complete(plan, generator.look(plan, [picture.clean for picture in request]), sample_s=0.0)


def trace(generator: Generator, count: int, seed: int) -> list[tuple[float, GenerationRequest]]:
    """Poisson arrivals at `LOAD` of what the backend does when full."""
    random = np.random.default_rng(seed)
    steps = random.choice(STEPS, size=count, p=SHARES)
    full = [generator.begin(generator.plan(_request(10, k)))[0] for k in range(BATCH)]
    begun = time.perf_counter()
    finish(generator.backend.denoiser, full, together=generator.backend.together, after_pass=lambda: None)
    seconds_a_step = (time.perf_counter() - begun) / (10 * BATCH)
    mean_gap = float(np.dot(STEPS, SHARES)) * seconds_a_step / LOAD
    arrivals = np.cumsum(random.exponential(mean_gap, count))
    return [(float(at), _request(int(s), k)) for k, (at, s) in enumerate(zip(arrivals, steps, strict=True))]


def _request(steps: int, seed: int) -> GenerationRequest:
    return GenerationRequest(prompt="a red apple", num_inference_steps=steps, guidance_scale=2.0, seed=seed)


async def replay(ask: Ask, arrivals: list[tuple[float, GenerationRequest]]) -> tuple[float, float]:
    """p95 of the shortest requests' latency, and the time until all are answered, in seconds."""
    begun = time.perf_counter()
    short: list[float] = []

    async def one(at: float, told: GenerationRequest) -> None:
        await asyncio.sleep(max(0.0, begun + at - time.perf_counter()))
        await ask(told)
        if told.num_inference_steps == STEPS[0]:
            short.append(time.perf_counter() - begun - at)

    await asyncio.gather(*(one(*arrival) for arrival in arrivals))
    return float(np.quantile(short, 0.95)), time.perf_counter() - begun


def over_static_batching(generator: Generator, *, rounds: int, requests: int) -> dict[str, float]:
    p95, makespan = [], []
    for number in range(rounds):
        arrivals = trace(generator, requests, seed=number)
        ours: tuple[float, float] = (0, 0)
        static: tuple[float, float] = (0, 0)

        async def engine(arrivals: list[tuple[float, GenerationRequest]]) -> tuple[float, float]:
            service = Service(generator)
            measured = await replay(service.generate, arrivals)
            await service.engine.close()
            return measured

        async def batches(arrivals: list[tuple[float, GenerationRequest]]) -> tuple[float, float]:
            return await replay(StaticBatcher(generator).ask, arrivals)

        for side in ("engine", "static") if number % 2 else ("static", "engine"):
            if side == "engine":
                ours = asyncio.run(engine(arrivals))
            else:
                static = asyncio.run(batches(arrivals))
        print(
            f"{requests} requests: p95 of {STEPS[0]} steps {ours[0] * 1e3:.0f} ms, static {static[0] * 1e3:.0f} ms; "
            f"all after {ours[1]:.2f} s, static {static[1]:.2f} s"
        )
        p95.append(ours[0] / static[0])
        makespan.append(ours[1] / static[1])
    return {
        "p95_short_over_static_batching": statistics.median(p95),
        "makespan_over_static_batching": statistics.median(makespan),
    }


def onnx_over_eager(bundle: Path, rounds: int) -> float:
    eager = load_bundle(bundle)
    onnx = backends.drawn_by(eager, backends.build(EngineConfig(backend="onnx"), bundle, eager))
    params = endpoint.calibrate(onnx)
    paces = []
    for number in range(rounds):
        seconds = {}
        for side in ("onnx", "eager") if number % 2 else ("eager", "onnx"):
            seconds[side] = sum(endpoint.bare(onnx if side == "onnx" else eager, params, 4))
        paces.append(seconds["eager"] / seconds["onnx"])
    return statistics.median(paces)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--mixes", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=12, help="pictures of a side in a round, through the endpoint")
    parser.add_argument("--trace", type=int, default=150, help="requests of a trace")
    options = parser.parse_args()
    torch.set_num_threads(1)
    ratios: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")  # the replicas find the graph there, too
        clip = tiny.write_clip(folder)
        (folder / "small").mkdir()
        small = generator_of(tiny.write_bundle(folder / "small", clip))
        ratios["byte_identical_share"] = byte_identical_share(small, options.mixes)
        ratios |= over_static_batching(small, rounds=options.rounds, requests=options.trace)
        bundle = tiny.write_bundle(folder, clip, image_size=32, channels=(64, 96))
        ratios["onnx_over_eager"] = onnx_over_eager(bundle, options.rounds)
        ratios |= endpoint.measure(bundle, rounds=options.rounds, requests=options.requests)
    print(json.dumps({"ratios": {name: round(ratio, 3) for name, ratio in ratios.items()}}))


if __name__ == "__main__":
    main()
