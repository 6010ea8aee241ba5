"""Curation's images/s through Ray Data against the same stages in a bare loop: `python -m tests.bench.curation`.

Both sides fetch, decode, hash, embed and store the same units with one worker and one thread, in alternating rounds.
The engine's rate is counted from its first stored unit to its last: what Ray takes to start an actor is a cost of a
job, not of an image, and is printed by itself.
"""

from __future__ import annotations

import io
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from curation.engine import Listing, curate, listing, measure_config
from curation.job import CurateJob
from curation.measure import write_unit
from pipelines.cluster import connect

UNITS, UNIT_SIZE, SIDE, ROUNDS = 12, 32, 512, 3

os.environ["OMP_NUM_THREADS"] = "1"  # as Ray sets it for an actor of one CPU; read when torch is imported


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        _pictures(folder / "pictures")
        rates: dict[str, list[float]] = {"engine": [], "bare loop": []}
        starts = []
        with connect(cpus=1):
            for number in range(ROUNDS):
                rate, start = _engine(_job(folder, f"engine-{number}"))
                rates["engine"].append(rate)
                starts.append(start)
                rates["bare loop"].append(_bare_loop(_job(folder, f"bare-{number}")))
    table = Table(title=f"curation, {UNITS * UNIT_SIZE} JPEGs of {SIDE} pixels, one worker, one thread")
    for column in ("", "images/s (median)", "min", "max"):
        table.add_column(column)
    for name, found in rates.items():
        table.add_row(name, *(f"{f(found):.1f}" for f in (statistics.median, min, max)))
    Console().print(table)
    print(f"engine, until its first unit is stored: {statistics.median(starts):.1f} s")
    ratio = statistics.median(a / b for a, b in zip(rates["engine"], rates["bare loop"], strict=True))
    print(json.dumps({"ratios": {"engine_over_bare_loop": round(ratio, 3)}}))


def _pictures(folder: Path) -> None:
    """Photograph-like JPEGs: smooth colour fields under fine noise, some 60 KB each."""
    folder.mkdir(parents=True)
    for index in range(UNITS * UNIT_SIZE):
        chance = np.random.default_rng(index)
        coarse = Image.fromarray(chance.integers(0, 256, (12, 12, 3), dtype=np.uint8))
        pixels = np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC), np.int16)
        noisy = (pixels + chance.integers(-12, 13, pixels.shape)).clip(0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(noisy).save(buffer, "JPEG", quality=85)
        (folder / f"{index:05d}.jpg").write_bytes(buffer.getvalue())


def _job(folder: Path, output: str) -> CurateJob:
    fields = {"source": {"kind": "folder", "path": str(folder / "pictures")}, "output": str(folder / output)}
    return CurateJob.model_validate(fields | {"unit_size": UNIT_SIZE, "image_size": 64})


def _engine(job: CurateJob) -> tuple[float, float]:
    """Images/s from the first stored unit to the last, and the seconds until the first."""
    found, begun = listing(job), time.time()
    curate(job, found)
    stored = _times_stored(found)
    return _rate(stored), stored[0] - begun


def _bare_loop(job: CurateJob) -> float:
    """Images/s of the same units, one after another in this process."""
    found = listing(job)
    measure = measure_config(job, dict(found.policy.thresholds)).build()
    for unit in found.units:
        write_unit(found.file(unit.key), measure(unit.inputs))
    return _rate(_times_stored(found))


def _times_stored(found: Listing) -> list[float]:
    return sorted(Path(found.file(unit.key)).stat().st_mtime for unit in found.units)


def _rate(stored: list[float]) -> float:
    return (len(stored) - 1) * UNIT_SIZE / (stored[-1] - stored[0])


if __name__ == "__main__":
    main()
