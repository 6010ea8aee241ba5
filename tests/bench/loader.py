"""Batches per second that the loader makes over those that the model takes: `python -m tests.bench.loader`.

A round is one epoch of batches at full speed, and then a few steps on such batches, so that a busy machine slows both
alike. From memory, batches are drawn, mirrored and cut into patches. From shards, a round begins with an empty cache,
and a batch waits for its blocks to be read, checked, decompressed and mapped, by threads that it runs after. (While
training, those work ahead during the steps, and nobody waits.)

With texts, every picture has a caption of its own, whose states come from shards, too.

Last line: {"ratios": {"loader_over_demand", "loader_over_demand_shards", "loader_over_demand_texts"}}, of the medians.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.training.conftest import shapes, write_manifest, write_tower
from training import prepare, shard_job, text_shards
from training.data import TrainingSet, load
from training.job import TrainJob
from training.learner import Learner, Place
from training.shard_reader import Shards
from training.text import TextEncoder
from training.text_states import StoredStates

ROWS = 4096
ROUNDS = 5
STEPS = 8  # of a round
NAMES = {
    "memory": "loader_over_demand",
    "shards": "loader_over_demand_shards",
    "texts": "loader_over_demand_texts",
}
Opened = Callable[[int], AbstractContextManager[TrainingSet]]
"""The set as a round reads it, by the round's number."""


def over_demand(tower: Path, folder: Path) -> dict[str, float]:
    """The ratio of each way to read a set, by the names that the bench gives them.

    Args:
        folder: for the set, for shards and for their caches.
    """
    pictures, text = noisy_shapes(ROWS, 32), TextEncoder(tower)
    manifest = write_manifest(folder / "manifests", pictures)
    job = TrainJob(manifest=manifest.uri, output=str(folder), batch_size=32, flip=True)
    data = load(manifest)
    print(f"{'from':10} {'loader, images/s':>18} {'steps, images/s':>16}")
    ratios = {NAMES["memory"]: _ratio("memory", job, text, lambda number: _as_it_is(data))}
    told = {"kind": "shards", "window": 1024, "block": 128}
    sharded = TrainJob.model_validate(job.model_dump() | {"data": told})
    ratios[NAMES["shards"]] = _ratio("shards", sharded, text, _from_shards(sharded, folder / "shards", None))
    each = write_manifest(folder / "each", [(f"{caption}, number {i}", of) for i, (caption, of) in enumerate(pictures)])
    several = sharded.model_copy(update={"manifest": each.uri})
    return ratios | {NAMES["texts"]: _ratio("texts", several, text, _from_shards(several, folder / "texts", tower))}


def _from_shards(job: TrainJob, folder: Path, tower: Path | None) -> Opened:
    """A set in shards, read with an empty cache in each round.

    Args:
        tower: by which the captions' states are put into shards, too; None: they are kept in memory.
    """
    prepared = prepare.prepare(job)
    manifest, roster = prepared.manifest, prepared.roster
    planned = prepare.shards(prepared)
    assert planned is not None
    info = shard_job.make(planned, manifest, roster)
    texts = None if tower is None else text_shards.plan_of(job, manifest, roster, tower, cap=0)
    of_texts = None if texts is None else text_shards.make(texts, manifest, roster, str(tower))

    @contextmanager
    def opened(number: int) -> Iterator[TrainingSet]:
        caching: dict[str, Any] = {"cache": folder / f"cache-{number}", "cache_bytes": 2**30}
        with ExitStack() as stack:
            source = stack.enter_context(closing(Shards(planned.uri, info, roster, **caching)))
            states = None
            if texts is not None and of_texts is not None:
                states = stack.enter_context(closing(StoredStates(texts.uri, of_texts, roster, **caching)))
            yield load(manifest, roster=roster, source=source, states=states)

    return opened


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
        ratios = over_demand(write_tower(root / "text_encoder"), root)
    print(json.dumps({"ratios": {name: round(value, 2) for name, value in ratios.items()}}))


if __name__ == "__main__":
    main()
