"""Recall, precision, growth and memory of the search for near hashes: `python -m tests.bench.duplicates`.

Uniform 64-bit hashes of which a tenth have a planted neighbour at distance 0 to 3, and a tenth a decoy at 4 to 6, at
10^5, 10^6 and 10^7 rows. Timed is what a job waits for, from the rows' hashes to who stays: the classes of equal bytes
and pixels, the pairs within radius 3, and the election; the search for pairs is also shown by itself. Every size runs
in a process of its own, so that its peak memory is its own, several rounds in turn; times are medians of CPU seconds of
its one thread, which on a machine that others use too repeat better than the clock on the wall; that is shown as well.

Recall is the share of planted pairs that are found, and at 10^5 of all pairs that comparing all with all finds.
Precision is the share of found pairs that lie within the radius, each checked bit by bit. Then the same rows are
searched on Ray in bucketed files, whose edges and clusters must be those of one node. The last line is one JSON object
with the ratios.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from curation.duplicates import Copies, CopyInputs, DuplicatesConfig, Edges, find
from curation.duplicates.edges import PERCEPTUAL
from curation.duplicates.groups import Groups
from curation.duplicates.hamming import near_values, plan

SIZES, ON_RAY, RADIUS = (10**5, 10**6, 10**7), (10**5, 10**6), 3


def planted(n: int) -> tuple[CopyInputs, np.ndarray, np.ndarray]:
    """Rows, and the pairs (a, b) among them that were planted within the radius."""
    chance = np.random.default_rng(n)
    hashes = chance.integers(0, 2**64, n, dtype=np.uint64)
    rows = chance.permutation(n)
    tenth = n // 10
    near, decoy = (rows[:tenth], rows[tenth : 2 * tenth]), (rows[2 * tenth : 3 * tenth], rows[3 * tenth : 4 * tenth])
    for (originals, copies), least, most in ((near, 0, RADIUS), (decoy, RADIUS + 1, RADIUS + 3)):
        distance = chance.integers(least, most + 1, tenth)
        flips = np.zeros(tenth, np.uint64)
        while (short := np.bitwise_count(flips) < distance).any():
            flips[short] |= np.uint64(1) << chance.integers(0, 64, np.count_nonzero(short), dtype=np.uint64)
        hashes[copies] = hashes[originals] ^ flips
    shifts = 4 * np.arange(7, -1, -1)
    names = np.full((n, 64), ord("0"), np.uint8)
    names[:, -8:] = np.frombuffer(b"0123456789abcdef", np.uint8)[(np.arange(n, dtype=np.int32)[:, None] >> shifts) & 15]
    names = names.view("S64")[:, 0]
    return CopyInputs(names, names, hashes, np.zeros((n, 48), np.uint8)), *near


def child(n: int) -> None:
    """Measures one size; prints one line of JSON."""
    rows, a, b = planted(n)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    config = DuplicatesConfig(backend="one_node")
    order, everyone = np.arange(n), np.ones(n, bool)
    near_values(rows.phashes[: min(n, 10**5)], RADIUS)  # what is imported and allocated once is not measured
    begun, wall = time.process_time(), time.perf_counter()
    edges = find(rows, config)
    found = time.process_time()
    bound = Copies(rows.ids, rows.pixel_hashes, rows.phashes, rows.colours, config, edges=edges).elect(everyone, order)
    done, wall = time.process_time(), time.perf_counter() - wall
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    values = Groups.of(rows.phashes).values
    searching = time.process_time()
    near_values(values, RADIUS)
    searched = time.process_time()
    right, share = judged(rows.phashes, edges, a, b)
    result = {
        "seconds": done - begun,
        "wall": wall,
        "find": found - begun,
        "search": searched - searching,
        "peak_mb": peak / 1024,
        "inputs_mb": before / 1024,
        "tables": len(plan(values, RADIUS)),
        "recall": share,
        "precision": right,
        "pairs": len(edges.a),
        "duplicates": int((bound.of >= 0).sum()),
    }
    print(json.dumps(result))


def judged(phashes: np.ndarray, edges: Edges, a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Precision and recall: edges join the first rows of two hashes; pairs of equal hashes are told by `same_hash`."""
    left, right, _ = edges.of(PERCEPTUAL)
    within = np.bitwise_count(phashes[left] ^ phashes[right]) <= RADIUS
    together = phashes[edges.same_hash] == phashes
    precision = (within.sum() + together.sum()) / (len(within) + len(together))
    found = np.unique(np.minimum(left, right) * len(phashes) + np.maximum(left, right))
    x, y = edges.same_hash[a], edges.same_hash[b]
    recall = float(((x == y) | np.isin(np.minimum(x, y) * len(phashes) + np.maximum(x, y), found)).mean())
    if len(phashes) <= 10**5:
        everything = brute(phashes, edges.same_hash)
        recall = min(recall, float(np.isin(everything, found).mean()))
        precision = min(precision, float(np.isin(found, everything).mean()))
    return float(precision), recall


def brute(phashes: np.ndarray, same_hash: np.ndarray) -> np.ndarray:
    """All pairs of distinct hashes within the radius as one number each, by comparing all with all."""
    rows = np.flatnonzero(same_hash == np.arange(len(phashes)))
    values, pairs = phashes[rows], []
    for start in range(0, len(rows), 64):
        i, j = np.nonzero(np.bitwise_count(values[start : start + 64, None] ^ values[None, start:]) <= RADIUS)
        pairs.append(rows[start + i[i < j]] * len(phashes) + rows[start + j[i < j]])
    return np.concatenate(pairs)


def identical_on_ray(n: int) -> dict[str, Any]:
    """Whether Ray's edges and clusters are those of one node, and the seconds of both."""
    rows, _, _ = planted(n)
    order, everyone = np.arange(n), np.ones(n, bool)
    seconds, edges = [], []
    with tempfile.TemporaryDirectory() as work:
        for backend in ("one_node", "ray"):
            begun = time.perf_counter()
            edges.append(find(rows, DuplicatesConfig.model_validate({"backend": backend}), work=work))
            seconds.append(time.perf_counter() - begun)
    columns = ("same_bytes", "same_pixels", "same_hash", "a", "b", "kind", "similarity")
    same = all(np.array_equal(getattr(edges[0], name), getattr(edges[1], name)) for name in columns)
    stays = [
        Copies(rows.ids, rows.pixel_hashes, rows.phashes, rows.colours, DuplicatesConfig(), edges=e).elect(
            everyone, order
        )
        for e in edges
    ]
    same &= np.array_equal(stays[0].clusters(), stays[1].clusters())
    return {"rows": n, "identical": same, "one_node_s": seconds[0], "ray_s": seconds[1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3, help="rounds over all sizes; the small ones run more often")
    parser.add_argument("--most", type=float, default=SIZES[-1], help="leave out larger sizes")
    parser.add_argument("--no-ray", action="store_true", help="leave out the comparison with Ray")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        child(options.child)
        return
    sizes = [n for n in SIZES if n <= options.most]
    runs: dict[int, list[dict[str, float]]] = {n: [] for n in sizes}
    for _ in range(options.rounds):
        for n in sizes:
            for _ in range(3 if n <= 10**6 else 1):
                runs[n].append(run(n))
    middle = {n: {k: statistics.median(run[k] for run in runs[n]) for k in runs[n][0]} for n in sizes}
    growth = report(middle)
    ratios = {
        "recall": min(run["recall"] for n in sizes for run in runs[n]),
        "precision": min(run["precision"] for n in sizes for run in runs[n]),
        "growth_per_10x": round(max(growth["seconds"]), 2),
    }
    compared = [] if options.no_ray else on_ray([n for n in ON_RAY if n in sizes])
    if compared:
        ratios["ray_identical"] = float(all(found["identical"] for found in compared))
    measured = {str(n): {k: round(v, 4) for k, v in middle[n].items()} for n in sizes}
    search = round(max(growth["search"]), 2)
    print(json.dumps({"ratios": ratios, "search_growth_per_10x": search, "measured": measured, "ray": compared}))


def run(n: int) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.bench.duplicates", "--child", str(n)]
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(finished.stdout.splitlines()[-1])
    return found


def report(middle: dict[int, dict[str, float]]) -> dict[str, list[float]]:
    """Prints the table; returns the growth from each size to the next of each time."""
    growth = {
        name: [b[name] / a[name] for a, b in pairwise(middle.values())] or [0.0] for name in ("seconds", "search")
    }
    table = Table(title=f"near hashes within radius {RADIUS}, one process, medians")
    names = "rows|wall|hashes to clusters|growth|search alone|growth|tables|pairs|peak MB|inputs MB|recall|precision"
    for column in names.split("|"):
        table.add_column(column, justify="right")
    for place, (n, row) in enumerate(middle.items()):
        total, search = ("" if place == 0 else f"{growth[name][place - 1]:.1f}x" for name in growth)
        table.add_row(
            f"{n:,}",
            f"{row['wall']:.2f} s",
            f"{row['seconds']:.3f} s",
            total,
            f"{row['search']:.3f} s",
            search,
            *(f"{row[name]:,.0f}" for name in ("tables", "pairs", "peak_mb", "inputs_mb")),
            *(f"{row[name]:.6f}" for name in ("recall", "precision")),
        )
    Console(width=150).print(table)
    return growth


def on_ray(sizes: list[int]) -> list[dict[str, Any]]:
    from pipelines.cluster import connect

    with connect(cpus=2):
        compared = [identical_on_ray(n) for n in sizes]
    for found in compared:
        same = "identical" if found["identical"] else "DIFFERENT"
        print(f"{found['rows']:>9,} rows on Ray: {same}; {found['ray_s']:.1f} s, one node {found['one_node_s']:.1f} s")
    return compared


if __name__ == "__main__":
    main()
