"""Pictures a second through the endpoint, against the bare sampler and the Ray documentation's way.

All sides draw the same requests with the same bundle (untrained: the arithmetic is that of a trained one), the same
steps and one CPU: whatever holds the network is pinned to the first one, proxies and clients have the others. (The
documentation's deployment would otherwise draw in as many threads as calls are open.) The endpoint is real: Ray Serve
over HTTP with kept-alive connections, one replica. The bare sampler is a loop in this process on the same backend. The
documentation's way is a diffusers pipeline in a deployment behind a FastAPI one, torch eager
(`tests.bench.serve_tutorial`). A round runs every side once, in a changing order, so that a slow minute of the machine
meets them all; the ratios are medians over rounds. Run by `tests.bench.engine`.
"""

from __future__ import annotations

import math
import os
import re
import socket
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx

from pipelines.cluster import connect
from serving import backends
from serving.job import EngineConfig, ServeJob
from training.bundle import DiffusionModel, load_bundle
from training.sampling import SamplingParams, sample

JOB_MS = 300.0
CONCURRENCY = (1, 4)
TUTORIAL = "tutorial c=4"
PROMPT = "a red apple"


def bare(model: DiffusionModel, params: SamplingParams, requests: int) -> list[float]:
    """Seconds of each of a number of pictures, drawn one after the other."""
    seconds = []
    for seed in range(requests):
        begun = time.perf_counter()
        sample(model, [PROMPT], [seed], params)
        seconds.append(time.perf_counter() - begun)
    return seconds


def endpoint(
    client: httpx.Client, steps: int, requests: int, concurrency: int, sampling: list[float]
) -> tuple[float, list[float]]:
    """Wall seconds of all pictures, and of each from its request to its answer; adds what sampling took of it."""

    def ask(seed: int) -> float:
        begun = time.perf_counter()
        body = {"prompt": PROMPT, "seed": seed, "num_inference_steps": steps}
        answer = client.post("/v1/images/generations", json=body).raise_for_status()
        sampling.append(answer.json()["timings"]["sample_ms"] / 1e3)
        return time.perf_counter() - begun

    begun = time.perf_counter()
    with ThreadPoolExecutor(concurrency) as pool:
        seconds = list(pool.map(ask, range(requests)))
    return time.perf_counter() - begun, seconds


def calibrate(model: DiffusionModel) -> SamplingParams:
    """As many steps as make one picture take about `JOB_MS`."""
    bare(model, SamplingParams(steps=4), 2)
    seconds = min(bare(model, SamplingParams(steps=4), 5))
    return SamplingParams(steps=max(4, min(100, math.ceil(JOB_MS / 1e3 / (seconds / 4)))), guidance_scale=2.0)


def tutorial(
    client: httpx.Client, params: SamplingParams, requests: int, concurrency: int
) -> tuple[float, list[float]]:
    """As `endpoint`, of the documentation's way."""

    def ask(seed: int) -> float:
        begun = time.perf_counter()
        told = {"prompt": PROMPT, "steps": params.steps, "guidance_scale": params.guidance_scale, "seed": seed}
        client.get("/tutorial/imagine", params=told).raise_for_status()
        return time.perf_counter() - begun

    begun = time.perf_counter()
    with ThreadPoolExecutor(concurrency) as pool:
        seconds = list(pool.map(ask, range(requests)))
    return time.perf_counter() - begun, seconds


@contextmanager
def pinned(pid: int) -> Iterator[None]:
    """All threads of a process on the first CPU."""
    before = os.sched_getaffinity(pid)
    _confine(pid, {min(before)})
    try:
        yield
    finally:
        _confine(pid, before)


def _confine(pid: int, cpus: set[int]) -> None:
    for thread in os.listdir(f"/proc/{pid}/task"):
        with suppress(ProcessLookupError):  # it has ended
            os.sched_setaffinity(int(thread), cpus)


def replicas() -> list[int]:
    """Processes of this bench's cluster that hold a network."""
    return [pid for pid in _descendants(os.getpid()) if re.search(rb"ServeReplica:\w+:(sampler|Pipeline)", _name(pid))]


def _descendants(pid: int) -> Iterator[int]:
    for place in Path(f"/proc/{pid}/task").glob("*/children"):
        children: list[int] = []
        with suppress(OSError):  # the thread has ended meanwhile
            children = [int(child) for child in place.read_text().split()]
        for child in children:
            yield child
            yield from _descendants(child)


def _name(pid: int) -> bytes:
    """Empty where the process has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def measure(bundle: Path, *, rounds: int, requests: int) -> dict[str, float]:
    """The ratios by their names."""
    loaded = load_bundle(bundle)
    model = backends.drawn_by(loaded, backends.build(EngineConfig(backend="onnx"), bundle, loaded))
    params = calibrate(model)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    job = ServeJob(model=str(bundle), port=port, threads=1)
    pace: dict[str, list[float]] = {name: [] for name in ("bare", *(f"endpoint c={c}" for c in CONCURRENCY), TUTORIAL)}
    latency: dict[str, list[float]] = {name: [] for name in pace}
    with connect(cpus=2):
        from serving import app  # Ray reads its settings when it is imported: after `connect` has made them
        from tests.bench import serve_tutorial

        with ExitStack() as pins, httpx.Client(base_url=app.run(job), timeout=120) as client:
            serve_tutorial.run(bundle, "/tutorial")
            found = replicas()
            assert len(found) == 2, found
            for pid in found:
                pins.enter_context(pinned(pid))
            endpoint(client, params.steps, 4, 2, [])
            tutorial(client, params, 4, 2)
            for number in range(rounds):
                names = list(pace)
                for name in names[number % len(names) :] + names[: number % len(names)]:
                    if name == "bare":
                        with pinned(os.getpid()):
                            seconds = bare(model, params, requests)
                        wall = sum(seconds)
                    elif name == TUTORIAL:
                        wall, seconds = tutorial(client, params, requests, CONCURRENCY[-1])
                    else:
                        wall, seconds = endpoint(
                            client, params.steps, requests, int(name.removeprefix("endpoint c=")), []
                        )
                    pace[name].append(requests / wall)
                    latency[name] += seconds
        app.stop(job)
    return report(params, pace, latency, rounds=rounds, requests=requests)


def report(
    params: SamplingParams,
    pace: dict[str, list[float]],
    latency: dict[str, list[float]],
    *,
    rounds: int,
    requests: int,
) -> dict[str, float]:
    over_bare = {
        name: statistics.median(p / b for p, b in zip(paces, pace["bare"], strict=True)) for name, paces in pace.items()
    }
    most = f"endpoint c={CONCURRENCY[-1]}"
    print(f"32x32 pixels, {params.steps} {params.sampler} steps, {rounds} rounds of {requests} pictures, one CPU")
    print(f"{'':<16}{'images/s':>10}{'p50 ms':>10}{'over bare':>11}")
    for name, paces in pace.items():
        p50 = statistics.median(latency[name]) * 1e3
        print(f"{name:<16}{statistics.median(paces):>10.2f}{p50:>10.0f}{over_bare[name]:>11.3f}")
    return {
        "endpoint_over_bare_sampler": over_bare[most],
        "over_serve_tutorial": statistics.median(p / t for p, t in zip(pace[most], pace[TUTORIAL], strict=True)),
    }
