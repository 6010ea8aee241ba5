"""The CPU front end of curation: `python -m tests.bench.curation`.

Three sides in alternating rounds, on the same 512-pixel JPEGs of photographs, each with one core: libjpeg-turbo's own
scaled decode of bytes in memory (the floor); a bare loop of a worker's functions (fetch from disk, sha256, scan of the
metadata that rights are read from, scaled decode once, pixel and perceptual hash, the tensor that CLIP would take,
Parquet out); and the same worker through Ray Data. A fourth line is the bare loop that also encodes the training-size
picture. Rates of loops are counted from the first stored unit to the last: what Ray takes to start an actor is a cost
of a job, not of an image, and is printed by itself.
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

from curation import workers
from curation.job import CurateJob
from curation.listing import Listing, listing
from curation.measure import Look
from pipelines.cluster import connect

UNITS, UNIT_SIZE, SIDE, ROUNDS = 24, 128, 512, 5
TENSOR = 224

os.environ["OMP_NUM_THREADS"] = "1"  # as Ray sets it for an actor of one CPU; read when torch is imported


class FrontEnd(workers.Worker):
    """A worker that makes CLIP's input and runs no model on it."""

    def __init__(self, config: workers.WorkerConfig) -> None:
        super().__init__(config)
        self.__dict__["_look"] = Look(config.measure, TENSOR)


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        files = pictures(folder / "pictures")
        rates: dict[str, list[float]] = {"decode floor": [], "bare loop": [], "engine": [], "bare, pictures too": []}
        starts = []
        with connect(cpus=1):
            for number in range(ROUNDS):
                rates["decode floor"].append(_floor(files))
                rates["bare loop"].append(_bare_loop(_listing(folder, f"bare-{number}")))
                rate, start = _engine(_listing(folder, f"engine-{number}"))
                rates["engine"].append(rate)
                rates["bare, pictures too"].append(_bare_loop(_listing(folder, f"pictures-{number}", pictures=True)))
                starts.append(start)
    table = Table(title=f"curation's CPU front end, {len(files)} JPEGs of {SIDE} pixels, one worker, one thread")
    for column in ("", "images/s (median)", "min", "max"):
        table.add_column(column)
    for name, found in rates.items():
        table.add_row(name, *(f"{f(found):.0f}" for f in (statistics.median, min, max)))
    Console().print(table)
    size = statistics.mean(len(data) for data in files) / 1e3
    print(
        f"mean size of a file: {size:.0f} KB; engine, until its first unit is stored: {statistics.median(starts):.1f} s"
    )
    ratios = {
        "engine_over_bare_loop": _ratio(rates["engine"], rates["bare loop"]),
        "bare_loop_over_decode_floor": _ratio(rates["bare loop"], rates["decode floor"]),
    }
    print(json.dumps({"ratios": ratios}))


def _ratio(over: list[float], under: list[float]) -> float:
    return round(statistics.median(a / b for a, b in zip(over, under, strict=True)), 3)


def pictures(folder: Path, count: int = UNITS * UNIT_SIZE) -> list[bytes]:
    """Crops of two photographs, every one another place and another brightness; quality 90, some 65 KB each."""
    from sklearn.datasets import load_sample_image

    folder.mkdir(parents=True)
    photos = [
        Image.fromarray(load_sample_image(name)).resize((960, 640), Image.Resampling.LANCZOS)
        for name in ("china.jpg", "flower.jpg")
    ]
    files = []
    for index in range(count):
        chance = np.random.default_rng(index)
        photo = photos[index % 2]
        left, top = int(chance.integers(photo.width - SIDE)), int(chance.integers(photo.height - SIDE))
        bright = chance.uniform(0.8, 1.1)
        crop = photo.crop((left, top, left + SIDE, top + SIDE)).point(
            lambda value, by=bright: min(255, int(value * by))
        )
        buffer = io.BytesIO()
        crop.save(buffer, "JPEG", quality=90)
        files.append(buffer.getvalue())
        (folder / f"{index:05d}.jpg").write_bytes(files[-1])
    return files


def _listing(folder: Path, output: str, *, pictures: bool = False) -> Listing:
    fields = {"source": {"kind": "folder", "path": str(folder / "pictures")}, "output": str(folder / output)}
    settings = {"unit_size": UNIT_SIZE, "image_size": TENSOR, "clip": None, "captions": [], "pictures": pictures}
    return listing(CurateJob.model_validate(fields | settings))


def _floor(files: list[bytes]) -> float:
    """Images/s of libjpeg-turbo alone, at the scale that the front end asks for."""
    import simplejpeg

    begun = time.perf_counter()
    for data in files:
        simplejpeg.decode_jpeg(data, "RGB", min_height=TENSOR, min_width=TENSOR)
    return len(files) / (time.perf_counter() - begun)


def _engine(found: Listing) -> tuple[float, float]:
    """Images/s from the first stored unit to the last, and the seconds until the first."""
    begun = time.time()
    for _ in workers.run(found, found.todo(), FrontEnd):
        pass
    stored = _stored(found)
    return _rate(stored), stored[0][0] - begun


def _bare_loop(found: Listing) -> float:
    """Images/s of the same units, one after another in this process."""
    worker = FrontEnd(workers.config_of(found))
    for todo in found.todo():
        worker.run(workers.item_of(todo))
    return _rate(_stored(found))


def _stored(found: Listing) -> list[tuple[float, int]]:
    """When each unit was stored, and how many images it has."""
    stage = found.stages["measure"]
    return sorted((Path(stage.file(unit.key)).stat().st_mtime, unit.inputs.num_rows) for unit in found.units)


def _rate(stored: list[tuple[float, int]]) -> float:
    return sum(rows for _, rows in stored[1:]) / (stored[-1][0] - stored[0][0])


if __name__ == "__main__":
    main()
