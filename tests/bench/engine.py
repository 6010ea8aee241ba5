"""Pictures a second through the endpoint, against the bare sampler in one process: `python -m tests.bench.engine`.

Both sides draw the same requests with the same bundle (untrained: the arithmetic is that of a trained one), the same
steps and one CPU thread. The endpoint is real: Ray Serve over HTTP with kept-alive connections, at 1, 2 and 4 requests
at once, one replica. A round runs every side once, in a changing order, so that a slow minute of the machine meets them
all; the ratios are medians over rounds.
"""

from __future__ import annotations

import argparse
import json
import math
import socket
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import torch

from pipelines.cluster import connect
from serving.job import ServeJob
from tests.serving import tiny
from training.bundle import DiffusionModel, load_bundle
from training.sampling import SamplingParams, sample

JOB_MS = 300.0
CONCURRENCY = (1, 2, 4)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--requests", type=int, default=12, help="pictures of a side in a round")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        bundle = tiny.write_bundle(folder, tiny.write_clip(folder), image_size=32, channels=(64, 96))
        measure(bundle, rounds=options.rounds, requests=options.requests)


def measure(bundle: Path, *, rounds: int, requests: int) -> None:
    model = load_bundle(bundle)
    params = calibrate(model)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    job = ServeJob(model=str(bundle), port=port, threads=1)
    pace: dict[str, list[float]] = {name: [] for name in ("bare", *(f"endpoint c={c}" for c in CONCURRENCY))}
    latency: dict[str, list[float]] = {name: [] for name in pace}
    sampling: dict[str, list[float]] = {name: [] for name in pace}
    with connect(cpus=2):
        from serving import app  # Ray reads its settings when it is imported: after `connect` has made them

        with httpx.Client(base_url=app.run(job), timeout=120) as client:
            endpoint(client, params.steps, 4, 2, [])
            for number in range(rounds):
                names = list(pace)
                for name in names[number % len(names) :] + names[: number % len(names)]:
                    if name == "bare":
                        seconds = bare(model, params, requests)
                        wall = sum(seconds)
                        sampling[name] += seconds
                    else:
                        concurrency = int(name.removeprefix("endpoint c="))
                        wall, seconds = endpoint(client, params.steps, requests, concurrency, sampling[name])
                    pace[name].append(requests / wall)
                    latency[name] += seconds
        app.stop(job)
    report(params, pace, latency, sampling, rounds=rounds, requests=requests)


def report(
    params: SamplingParams,
    pace: dict[str, list[float]],
    latency: dict[str, list[float]],
    sampling: dict[str, list[float]],
    *,
    rounds: int,
    requests: int,
) -> None:
    over_bare = {
        name: statistics.median(p / b for p, b in zip(paces, pace["bare"], strict=True)) for name, paces in pace.items()
    }
    print(f"32x32 pixels, {params.steps} {params.sampler} steps, {rounds} rounds of {requests} pictures, 1 thread")
    print(f"{'':<16}{'images/s':>10}{'p50 ms':>10}{'sampling ms':>13}{'over bare':>11}")
    for name, paces in pace.items():
        p50, drawing = (statistics.median(values[name]) * 1e3 for values in (latency, sampling))
        print(f"{name:<16}{statistics.median(paces):>10.2f}{p50:>10.0f}{drawing:>13.0f}{over_bare[name]:>11.3f}")
    added = statistics.median(latency["endpoint c=1"]) - statistics.median(latency["bare"])
    print(f"added by the endpoint at c=1: {added * 1e3:.0f} ms at the median")
    print(json.dumps({"ratios": {"endpoint_over_bare_sampler": round(over_bare[f"endpoint c={CONCURRENCY[-1]}"], 3)}}))


if __name__ == "__main__":
    main()
