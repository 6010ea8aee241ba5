"""What a curate job's driver does beside its workers, on made-up rows of the web: `python -m tests.bench.driver`.

A table of n URLs is listed, its units are stored as if they had been measured (six observations about rights, a
caption, a tenth of the rows copies of others), and the driver's own steps are run on them, one after another, in a
process of their own: listing, which units are missing, ruling on every row (which workers do in a large job), settling
who is whose copy, and what is sent to those who write the parts. Of each step it tells CPU seconds, seconds by the
clock and how much the process' memory grew, at its highest and for good. No picture is made and no actor started.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curation import workers
from curation.decide import Facts, Settled, settle
from curation.job import CurateJob
from curation.listing import Listing, listing
from curation.manifest import CAPTIONS, RIGHTS
from curation.measure import schema
from curation.ruling import rule

SIZES = (100_000, 1_000_000)
UNIT_SIZE = 1024
HOSTS = 5_000
_SIGNALS = ("robots", "robots_ai_agents", "ai_txt", "tdmrep", "x_robots_tag", "c2pa")
_T = TypeVar("_T")


def job(folder: Path) -> CurateJob:
    """A job of the web without models: what those cost is measured elsewhere, and none of it falls to the driver."""
    return CurateJob.model_validate(
        {
            "source": {"kind": "table", "path": str(folder / "urls.parquet")},
            "output": str(folder / "out"),
            "fetch": {"contact": "https://example.org/crawler"},
            "licences": {"allow": ["CC0-1.0", "CC-BY-4.0"]},
            "captions": [{"kind": "metadata"}],
            "clip": None,
            "unit_size": UNIT_SIZE,
        }
    )


def prepare(folder: Path, rows: int) -> None:
    """Writes the table and stores its units."""
    chance = np.random.default_rng(0)
    hosts = chance.zipf(1.3, rows) % HOSTS
    urls = [f"https://images{host:04d}.example.org/2026/picture-{i:09d}.jpg" for i, host in enumerate(hosts.tolist())]
    columns = {
        "url": urls,
        "caption": [f"a picture of subject {i % 977} in surroundings {i % 31}" for i in range(rows)],
        "licence": [("CC0-1.0", "CC-BY-4.0", "all rights reserved")[i % 3] for i in range(rows)],
    }
    pq.write_table(pa.table(columns), folder / "urls.parquet")
    found = listing(job(folder))
    for unit in found.units:
        measured = measured_rows(unit.inputs, chance)
        found.stages["measure"].write(unit.key, measured)
        told = pa.table(_captions(unit.inputs)).replace_schema_metadata({workers.OF: workers.measurement(measured)})
        found.stages["captions"].write(unit.key, told)


def measured_rows(inputs: pa.Table, chance: np.random.Generator) -> pa.Table:
    """Rows as a worker stores them, without pictures; a tenth has the pixels of one of a thousand pictures."""
    n = inputs.num_rows
    seeds = np.where(chance.random(n) < 0.1, chance.integers(0, 1000, n), chance.integers(1000, 2**62, n))
    pixels = [np.random.default_rng(int(seed)).bytes(32 + 48 + 8) for seed in seeds]
    about = [{"signal": s, "value": "Allow: /", "where": "robots.txt:3", "verdict": "unknown"} for s in _SIGNALS]
    columns: dict[str, Any] = {
        "id": pa.array([chance.bytes(32).hex() for _ in range(n)]),
        "final_uri": inputs["uri"],
        "host": pa.array([uri.split("/")[2] for uri in inputs["uri"].to_pylist()]),
        "bytes": pa.repeat(65_000, n),
        "format": pa.repeat("JPEG", n),
        "width": pa.array(chance.integers(200, 4000, n).astype(np.int32)),
        "height": pa.array(chance.integers(200, 4000, n).astype(np.int32)),
        "pixel_hash": pa.array([p[:32].hex() for p in pixels]),
        "phash": pa.array(np.array([int.from_bytes(p[80:], "little") for p in pixels], np.uint64)),
        "colour_layout": pa.array([p[32:80] for p in pixels], pa.binary()),
        "sightings": pa.array([about] * n, RIGHTS),
    }
    fields = schema(None)
    filled = {name: columns[name] if name in columns else _input(inputs, fields.field(name)) for name in fields.names}
    return pa.Table.from_arrays([_cast(filled[field.name], field.type) for field in fields], schema=fields)


def _input(inputs: pa.Table, field: pa.Field) -> Any:
    return inputs[field.name] if field.name in inputs.column_names else pa.nulls(inputs.num_rows, field.type)


def _cast(values: Any, kind: pa.DataType) -> Any:
    return values if values.type == kind else values.cast(kind)


def _captions(inputs: pa.Table) -> dict[str, pa.Array]:
    told = [dict(cell)["caption"] for cell in inputs["metadata"].to_pylist()]
    rows = [[{"text": t, "source": "metadata", "language": "en", "words": 8, "score": None}] for t in told]
    nobody = pa.nulls(len(rows), pa.string())
    return {"captions": pa.array(rows, CAPTIONS), "failed": nobody, "refused": nobody}


class Steps:
    """Times steps of this process."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, float]] = {}

    def __call__(self, name: str, step: Callable[[], _T]) -> _T:
        Path("/proc/self/clear_refs").write_text("5")  # the kernel's highest mark starts from here
        before, cpu, clock = _memory("VmRSS"), time.process_time(), time.perf_counter()
        result = step()
        self.found[name] = {
            "cpu_s": time.process_time() - cpu,
            "clock_s": time.perf_counter() - clock,
            "peak_bytes": _memory("VmHWM") - before,
            "kept_bytes": _memory("VmRSS") - before,
        }
        return result


def _memory(what: str) -> int:
    found = re.search(rf"^{what}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None, "the kernel keeps it"
    return int(found[1]) * 1024


def drive(folder: Path) -> dict[str, dict[str, float]]:
    """Runs the driver's steps on what `prepare` left."""
    steps = Steps()
    found: Listing = steps("listing", lambda: listing(job(folder)))
    steps("todo", found.todo)
    facts = [steps("rule", lambda: _facts(found))]
    with tempfile.TemporaryDirectory() as work:
        settled = steps("settle", lambda: settle(found.policy, facts.pop(), None, work))
    sent = steps("ship", lambda: _shipped(found, settled))
    steps("inputs", found.inputs)
    steps.found["ship"]["sent_bytes"] = sum(map(len, sent))
    return steps.found


def _facts(found: Listing) -> Facts:
    facts = None
    for ruled in rule(found):
        facts = Facts.zeros(found.rows, ruled.facts) if facts is None else facts
        facts.put(ruled.start, ruled.facts)
    assert facts is not None, "there are rows"
    return facts


def _shipped(found: Listing, settled: Settled) -> list[bytes]:
    """What of each unit is sent to whoever writes it."""
    ends = np.cumsum([unit.inputs.num_rows for unit in found.units])
    return [workers.to_bytes(settled.rows(a, b)) for a, b in pairwise([0, *ends.tolist()])]


def run(folder: Path) -> dict[str, dict[str, float]]:
    """`drive` in a process of its own."""
    command = [sys.executable, "-m", "tests.bench.driver", "--folder", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-4_000:])
    found: dict[str, dict[str, float]] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, nargs="*", default=SIZES)
    parser.add_argument("--folder", type=Path, help="what an earlier run prepared; only the steps are run")
    parser.add_argument("--keep", type=Path, help="where to prepare, and to leave it")
    options = parser.parse_args()
    if options.folder:
        print(json.dumps(drive(options.folder)))
        return
    print(f"{'rows':>10} {'step':<10}{'CPU µs/row':>12}{'clock µs/row':>14}{'peak B/row':>12}{'kept B/row':>12}")
    for rows in options.rows:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) if options.keep is None else options.keep / str(rows)
            folder.mkdir(parents=True, exist_ok=True)
            if not (folder / "out").exists():
                prepare(folder, rows)
            for name, step in run(folder).items():
                figures = (step["cpu_s"] * 1e6, step["clock_s"] * 1e6, step["peak_bytes"], step["kept_bytes"])
                print(
                    f"{rows:>10,} {name:<10}"
                    + "".join(f"{f / rows:>{w}.1f}" for f, w in zip(figures, (12, 14, 12, 12), strict=True))
                )


if __name__ == "__main__":
    main()
