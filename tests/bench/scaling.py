"""Curation on one and on two workers, and whether the simulator foresees it: `python -m tests.bench.scaling`.

The same photographs are curated with the embedded CLIP, as `cleanplate curate` does, on one Ray cluster of two cores,
in turns with one worker and with two, of one core and one thread each. Counted is from the moment that the first unit
is begun to the published manifest: what an actor takes to import and to load CLIP is a cost of a job and is printed by
itself, and Ray's own start is no part of it. The simulator is given what was measured on one worker and asked for two.

Then units of one small picture without models, through Ray and in a bare loop: the difference is what a unit costs
beside its work.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from curation import engine, workers
from curation.job import CurateJob
from curation.listing import listing
from pipelines.cluster import connect
from tests.bench.curation import FrontEnd, pictures
from tests.bench.simulator import Rates, simulate

PICTURES, UNIT_SIZE, ROUNDS, CORES = 1_200, 32, 3, 2
SMALL_UNITS = 200

os.environ["OMP_NUM_THREADS"] = "1"  # as Ray sets it for an actor of one CPU; read when torch is imported


@dataclass
class Course:
    """One run: when what was done, and who had spent how much CPU by then."""

    begun: float
    marks: dict[str, list[tuple[float, int]]] = field(default_factory=lambda: defaultdict(list))  # stage: (s, rows)
    cpu: list[dict[str, float]] = field(default_factory=list)  # by role: when the first unit was stored, and the last
    driver: dict[str, float] = field(default_factory=dict)  # this process' CPU seconds when a stage was last heard of
    ended: float = 0.0
    result: engine.CurateResult | None = None

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        self.marks[stage].append((time.perf_counter() - self.begun, done))
        self.driver[stage] = time.process_time()
        if stage == "measure" and (len(self.marks[stage]) == 2 or done == total):
            self.cpu.append(_cpu())

    def span(self, stage: str) -> tuple[float, int]:
        """Seconds and rows from a stage's first unit to its last; the mark before the first is of its announcement."""
        (first, before), (last, after) = self.marks[stage][1], self.marks[stage][-1]
        return last - first, after - before

    def spent(self, role: str) -> float:
        """CPU seconds of a role from the first unit that was measured to the last."""
        return self.cpu[-1][role] - self.cpu[0][role]

    def start(self, workers: int) -> float:
        """Seconds until the first unit was begun, by the time that one took at the rate of all that came after."""
        seconds, rows = self.span("measure")
        (at, done) = self.marks["measure"][1]
        return at - done * seconds * workers / rows

    def by_cpu(self, workers: int) -> float:
        """Seconds that measuring would take if workers shared their CPU seconds evenly, and the driver's own after it.

        Those who write parts are left out: what they take is little beside what they need to start.
        """
        rows = self.marks["measure"][-1][1]
        shared = self.spent("workers") * rows / self.span("measure")[1]
        return shared / workers + self.driver["publish"] - self.driver["measure"]

    def units(self) -> list[int]:
        """Rows of each unit, as they were stored."""
        done = [rows for _, rows in self.marks["measure"]]
        return [b - a for a, b in pairwise(done)]


def course(fields: dict[str, Any], count: int) -> Course:
    """Curates on so many workers, as `cleanplate curate` does, on the cluster that is there."""
    job = CurateJob.model_validate(fields | {"workers": count})
    found = Course(time.perf_counter())
    found.result = engine.curate(listing(job), found)
    found.ended = time.perf_counter() - found.begun
    return found


def _cpu() -> dict[str, float]:
    """CPU seconds so far of the living actors that measure, and of this process with all of Ray's below it."""
    parents, names, seconds = {}, {}, {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            state = (entry / "stat").read_text().rpartition(")")[2].split()
            names[int(entry.name)] = (entry / "cmdline").read_text()
        except OSError:
            continue
        parents[int(entry.name)] = int(state[1])
        seconds[int(entry.name)] = (int(state[11]) + int(state[12])) / os.sysconf("SC_CLK_TCK")
    found = {"workers": 0.0, "others": 0.0}
    for pid, spent in seconds.items():
        above = pid
        while above not in (0, 1, os.getpid()):
            above = parents.get(above, 0)
        if above == os.getpid():
            found["workers" if re.match(r"ray::MapWorker", names.get(pid, "")) else "others"] += spent
    return found


def rates(found: Course, unit_s: float) -> Rates:
    """What the simulator is told of a run on one worker."""
    assert found.result is not None
    seconds, rows = found.span("measure")
    units = len(found.marks["measure"]) - 2  # without the first: it began before our clock did
    wrote, written = found.span("publish")
    publish_s = wrote / written
    return Rates(
        row_s=(seconds - units * unit_s) / rows,
        unit_s=unit_s,
        others_s=found.spent("others") / units,
        decide_s=found.result.seconds["decide"] / found.result.rows,
        publish_start_s=found.result.seconds["publish"] - publish_s * found.result.rows,
        publish_s=publish_s,
    )


def rates_by_cpu(found: Course, unit_s: float) -> Rates:
    """The same of CPU seconds: what the simulator is told to foresee `Course.by_cpu`, where nobody waits."""
    units, rows = len(found.marks["measure"]) - 2, found.span("measure")[1]
    return Rates(
        row_s=(found.spent("workers") - units * unit_s) / rows,
        unit_s=unit_s,
        others_s=0.0,
        decide_s=0.0,
        publish_start_s=found.driver["publish"] - found.driver["measure"],
        publish_s=0.0,
    )


def overhead(folder: Path) -> dict[str, float]:
    """What a unit costs through Ray beside its work: units of one picture without models, and a bare loop over them.

    Returns:
        CPU seconds of a unit: `ray_unit_s` of the worker, above the bare loop's, and `ray_head_s` of the driver and of
        Ray's own processes; and `ray_clock_s`, by the clock above the bare loop's: noise where others are busy.
    """
    pictures(folder / "few", SMALL_UNITS)
    fields: dict[str, Any] = {"source": {"kind": "folder", "path": str(folder / "few")}, "unit_size": 1}
    fields |= {"image_size": 64, "clip": None, "captions": []}
    jobs = {name: CurateJob.model_validate(fields | {"output": str(folder / name)}) for name in ("ray", "bare")}
    found = listing(jobs["bare"])
    worker, todo = FrontEnd(workers.config_of(found)), found.todo()
    worker.run(workers.item_of(todo[0]))
    begun, spent = time.perf_counter(), time.process_time()
    for one in todo[1:]:
        worker.run(workers.item_of(one))
    clock, cpu = time.perf_counter() - begun, time.process_time() - spent
    found = listing(jobs["ray"])
    times, seen = [], []
    for _ in workers.run(found, found.todo(), FrontEnd):
        times.append(time.perf_counter())
        if len(times) in (1, len(todo)):
            seen.append(_cpu())
    units = len(todo) - 1
    return {
        "ray_unit_s": max(0.0, seen[-1]["workers"] - seen[0]["workers"] - cpu) / units,
        "ray_head_s": (seen[-1]["others"] - seen[0]["others"]) / units,
        "ray_clock_s": (times[-1] - times[0] - clock) / units,
    }


def measure(count: int = PICTURES, rounds: int = ROUNDS) -> dict[str, float]:
    """Both sides in turns; prints what was found.

    Returns:
        `curation_scaling_2_workers` and `simulator_relative_error`, medians of the rounds; scaling by CPU seconds,
        which a machine shared with others changes less, and what Ray adds to a unit.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        pictures(folder / "pictures", count)
        fields = {"source": {"kind": "folder", "path": str(folder / "pictures")}, "unit_size": UNIT_SIZE}
        courses: dict[int, list[Course]] = {1: [], 2: []}
        with connect(cpus=CORES):
            added = overhead(folder)
            for number in range(rounds):
                for side in (1, 2) if number % 2 == 0 else (2, 1):
                    output = str(folder / f"{number}-{side}")
                    courses[side].append(course(fields | {"output": output}, side))
    return _judged(courses, added)


def _judged(courses: dict[int, list[Course]], added: Mapping[str, float]) -> dict[str, float]:
    told = {side: [c.ended - c.start(side) for c in found] for side, found in courses.items()}
    foreseen = [simulate(c.units(), 2, CORES, rates(c, added["ray_unit_s"])) for c in courses[1]]
    by_cpu = [simulate(c.units(), 2, CORES, rates_by_cpu(c, added["ray_unit_s"])) for c in courses[1]]
    pairs = list(zip(courses[1], courses[2], strict=True))
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; {len(courses[1][0].units())} units")
    print(f"{'workers':<9}{'seconds':>9}{'start':>7}{'decide':>8}{'publish':>9}{'CPU s: workers':>16}{'others':>8}")
    for side, found in courses.items():
        for c, seconds in zip(found, told[side], strict=True):
            assert c.result is not None
            parts = (c.result.seconds["decide"], c.result.seconds["publish"], c.spent("workers"), c.spent("others"))
            line = "".join(f"{part:>{width}.1f}" for part, width in zip(parts, (8, 9, 16, 8), strict=True))
            print(f"{side:<9}{seconds:>9.1f}{c.start(side):>7.1f}{line}")
    scaling = {
        "by the clock": statistics.median(a / b for a, b in zip(told[1], told[2], strict=True)),
        "with the start of actors": statistics.median(a.ended / b.ended for a, b in pairs),
        "by CPU seconds": statistics.median(a.by_cpu(1) / b.by_cpu(2) for a, b in pairs),
    }
    print("scaling " + ", ".join(f"{value:.2f} {name}" for name, value in scaling.items()))
    print(f"foreseen for two workers: {', '.join(f'{s:.1f}' for s in foreseen)} s")
    print("Ray adds to a unit, ms: " + ", ".join(f"{1e3 * s:.1f} {name}" for name, s in added.items()))
    return {
        "curation_scaling_2_workers": round(scaling["by the clock"], 3),
        "curation_scaling_by_cpu": round(scaling["by CPU seconds"], 3),
        "simulator_relative_error": _error(foreseen, told[2]),
        "simulator_relative_error_by_cpu": _error(by_cpu, [c.by_cpu(2) for c in courses[2]]),
        "orchestration_cpu_ms_per_unit": round(1e3 * (added["ray_unit_s"] + added["ray_head_s"]), 1),
    }


def _error(foreseen: list[float], measured: list[float]) -> float:
    return round(abs(statistics.median(foreseen) / statistics.median(measured) - 1), 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pictures", type=int, default=PICTURES)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    print(json.dumps({"ratios": measure(options.pictures, options.rounds)}))


if __name__ == "__main__":
    main()
