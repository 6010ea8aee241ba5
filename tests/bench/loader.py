"""Batches per second that the loader makes over those that the model takes: `python -m tests.bench.loader`.

A round is one epoch of batches at full speed, and then a few steps on such batches, so that a busy machine slows both
alike. From memory, batches are drawn, mirrored and cut into patches. From shards, a round begins with an empty cache,
and a batch waits for its blocks to be read, checked, decompressed and mapped, by threads that it runs after. (While
training, those work ahead during the steps, and nobody waits.)

Last line: {"ratios": {"loader_over_demand", "loader_over_demand_shards"}}, of the medians.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path

import numpy as np
import torch

from curation.manifest import Manifest
from tests.training.conftest import shapes, write_manifest, write_tower
from training import prepare, shard_job
from training.data import TrainingSet, load
from training.job import TrainJob
from training.learner import Learner, Place
from training.shard_reader import Shards
from training.text import TextEncoder

ROWS = 4096
ROUNDS = 5
STEPS = 8  # of a round
NAMES = {"memory": "loader_over_demand", "shards": "loader_over_demand_shards"}
Opened = Callable[[int], AbstractContextManager[TrainingSet]]
"""The set as a round reads it, by the round's number."""


def over_demand(manifest: Manifest, text: TextEncoder, folder: Path) -> dict[str, float]:
    """The ratio of each way to read a manifest's pictures, by the names that the bench gives them.

    Args:
        folder: for shards and their caches.
    """
    job = TrainJob(manifest=manifest.uri, output=str(folder), batch_size=32, flip=True)
    data = load(manifest)
    print(f"{'from':10} {'loader, images/s':>18} {'steps, images/s':>16}")
    ratios = {NAMES["memory"]: _ratio("memory", job, text, lambda number: _as_it_is(data))}
    told = {"kind": "shards", "window": 1024, "block": 128}
    sharded = TrainJob.model_validate(job.model_dump() | {"data": told})
    prepared = prepare.prepare(sharded)
    planned = prepare.shards(prepared)
    assert planned is not None
    info = shard_job.make(planned, prepared.manifest, prepared.roster)

    @contextmanager
    def with_empty_cache(number: int) -> Iterator[TrainingSet]:
        cache = folder / f"cache-{number}"
        with closing(Shards(planned.uri, info, prepared.roster, cache=cache, cache_bytes=2**30)) as source:
            yield dataclasses.replace(data, roster=prepared.roster, source=source)

    return ratios | {NAMES["shards"]: _ratio("shards", sharded, text, with_empty_cache)}


@contextmanager
def _as_it_is(data: TrainingSet) -> Iterator[TrainingSet]:
    yield data


def _ratio(name: str, job: TrainJob, text: TextEncoder, opened: Opened) -> float:
    made, taken = [], []
    for number in range(ROUNDS):
        with opened(number) as data:
            learner = Learner(job, data, text, Place())
            began = time.perf_counter()
            for seen in range(0, len(data), job.batch_size):
                learner.batch(torch.arange(seen, seen + job.batch_size))
            made.append((time.perf_counter() - began) / (len(data) // job.batch_size))
            learner.step(0)
            for seen in range(STEPS):
                began = time.perf_counter()
                learner.step(seen * job.batch_size)
                taken.append(time.perf_counter() - began)
    rates = [job.batch_size / statistics.median(seconds) for seconds in (made, taken)]
    print(f"{name:10} {rates[0]:18.1f} {rates[1]:16.1f}")
    return rates[0] / rates[1]


def noisy_shapes(count: int, side: int) -> list[tuple[str, np.ndarray]]:
    """So many different pictures, some grain on shapes, with the shapes' captions."""
    draw = np.random.default_rng(0)
    plain = shapes(side)
    chosen = (plain[i % len(plain)] for i in range(count))
    return [(told, np.clip(of + draw.normal(0, 6, of.shape), 0, 255).astype(np.uint8)) for told, of in chosen]


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        manifest = write_manifest(root / "manifests", noisy_shapes(ROWS, 32))
        text = TextEncoder(write_tower(root / "text_encoder"))
        ratios = over_demand(manifest, text, root)
    print(json.dumps({"ratios": {name: round(value, 2) for name, value in ratios.items()}}))


if __name__ == "__main__":
    main()
