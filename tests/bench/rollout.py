"""New versions and sudden deaths, under load: `python -m tests.bench.rollout`.

    failed                   requests that failed while the alias moved ten times: onto versions that have to be loaded
                             (their graphs are made anew), onto one that fails its self-test, and back
    longest_gap_over_p99     longest time between two answers meanwhile, over p99 of a request's latency before
    mixed                    answers whose pictures are not all those that the version they name draws by itself
    failed_under_kills       requests that failed, retries included, while a replica, the gateway and a node were killed
                             (`tests.bench.kills`)
    lost_under_replica_kill  requests that the client had to send again although only a replica was killed

Four clients ask for two pictures each, of 4, 8 and 12 steps in turn, without a pause. A move has ended when the
server says which version answers, or why the alias' own does not.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch

from pipelines.cluster import connect
from serving import selftest
from serving.api import GenerationRequest
from serving.job import ServeJob
from serving.rollout import RolloutConfig
from serving.selftest import TAG, Drawn
from tests.bench import kills
from tests.bench.callers import Answer, Callers
from tests.ports import free_port
from tests.serving import tiny
from training.tracking import register, set_alias

MOVES = ("2", "1", "3", "bad", "4", "3", "2", "5", "bad", "1")
BODIES = [
    {"prompt": prompt, "seed": 10 * steps, "n": 2, "num_inference_steps": steps, "guidance_scale": 2.0}
    for prompt, steps in (("a red apple", 4), ("a blue boat", 8), ("x", 12))
]


def registered(folder: Path, uri: str) -> dict[str, str]:
    """Five versions with other weights each, and one whose tag says that it drew something else; by our names."""
    clip = tiny.write_clip(folder)
    found = {}
    for seed, name in enumerate(("1", "2", "3", "4", "5", "bad")):
        (folder / name).mkdir()
        bundle = tiny.write_bundle(folder / name, clip, image_size=32, channels=(64, 96), seed=seed)
        tags = selftest.tags_of(str(bundle))
        if name == "bad":
            key = TAG + "onnx-fp32"
            tags[key] = Drawn.model_validate_json(tags[key]).model_copy(update={"sha256": "0" * 64}).model_dump_json()
        found[name] = register(str(bundle), "tiny", alias=None, tracking_uri=uri, extra_tags=tags).version
    return found


def alone(job: ServeJob, version: str) -> list[tuple[str, ...]]:
    """What a version draws for each of the requests in a process of its own."""
    from serving.generator import load

    generator = load(job.model_copy(update={"model": f"models:/tiny/{version}"}))
    answers = [generator.generate(GenerationRequest.model_validate(body)).response() for body in BODIES]
    return [tuple(str(datum.pixels_sha256) for datum in answer.data) for answer in answers]


def until(url: str, found: Callable[[dict[str, Any]], bool], limit_s: float = 180) -> float:
    """Asks for the server's standing until it is this; seconds that it took."""
    begun = time.monotonic()
    with httpx.Client(trust_env=False, timeout=30) as client:
        while True:
            if found(client.get(f"{url}/v1/health/ready").raise_for_status().json()):
                return time.monotonic() - begun
            if time.monotonic() > begun + limit_s:
                raise TimeoutError(f"the server did not come to it within {limit_s:g} s")
            time.sleep(0.05)


def move(url: str, job: ServeJob, name: str, version: str) -> None:
    before = time.monotonic()
    set_alias("tiny", "champion", version, tracking_uri=job.tracking_uri)
    if name == "bad":
        until(url, lambda ready: "self-test" in str(ready["rollout"]["problem"]))
    else:
        until(url, lambda ready: ready["version"] == version and ready["rollout"]["problem"] is None)
    what = "was refused" if name == "bad" else "answered"
    print(f"version {version:>2} {what} {time.monotonic() - before:5.2f} s after the alias moved", flush=True)


def under_moves(url: str, job: ServeJob, versions: dict[str, str], steady: int) -> tuple[list[Answer], list[Answer]]:
    """The answers before the alias moved, and from then on."""
    with Callers(url, BODIES) as callers:
        callers.wait(8)
        before = callers.wait(steady)
        begun = len(callers.answers)
        for name in MOVES:
            move(url, job, name, versions[name])
            callers.wait(6)
        until(url, lambda ready: ready["version"] == versions["1"])
    return before, callers.answers[begun:]


def longest_gap(answers: list[Answer]) -> float:
    ended = sorted(answer.ended for answer in answers if answer.status == 200)
    return float(np.max(np.diff(ended)))


def moves(steady: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        uri = f"sqlite:///{folder}/mlflow.db"
        versions = registered(folder, uri)
        set_alias("tiny", "champion", versions["1"], tracking_uri=uri)
        job = ServeJob(
            model="models:/tiny@champion",
            tracking_uri=uri,
            cache=str(folder / "models"),
            port=free_port(),
            threads=1,
            rollout=RolloutConfig(poll_s=0.5, keep=1),
        )
        expected = {version: alone(job, version) for name, version in versions.items() if name != "bad"}
        shutil.rmtree(folder / "cache")  # no graph is there: as on a machine that never saw these versions
        with connect(cpus=2):
            from serving import app

            url = app.run(job)
            before, after = under_moves(url, job, versions, steady)
            app.stop(job)
    mixed = sum(a.pictures != expected.get(a.version, [()] * len(BODIES))[a.body] for a in after if a.status == 200)
    p99 = float(np.quantile([answer.seconds for answer in before], 0.99))
    gap = longest_gap([before[-1], *after])
    seen = {version: sum(a.version == version for a in after) for version in versions.values()}
    print(
        f"{len(before)} requests before: median {statistics.median(a.seconds for a in before):.2f} s, p99 {p99:.2f} s"
    )
    print(f"{len(after)} under ten moves, by version {seen}: longest gap between answers {gap:.2f} s, {mixed} mixed")
    return {
        "failed": sum(answer.status != 200 for answer in before + after),
        "longest_gap_over_p99": gap / p99,
        "mixed": mixed,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steady", type=int, default=100, help="requests before the alias moves")
    parser.add_argument("--kills", type=int, default=2, help="rounds of a replica, the gateway and a node")
    options = parser.parse_args()
    torch.set_num_threads(1)
    ratios = moves(options.steady)
    if options.kills:
        ratios |= kills.drive(options.kills)
    print(json.dumps({"ratios": {name: round(ratio, 3) for name, ratio in ratios.items()}}))


if __name__ == "__main__":
    main()
