"""Peak memory while the input grows tenfold: `python -m tests.bench.memory`.

The command line curates a folder of n pictures and one of 10 n, in units of the same size. The resident memory of the
driver and of every worker is read from the kernel's books all the while; peaks are the kernel's own (VmHWM), so that
nothing is missed between two looks. The ratios are the peak at 10 n over the peak at n; the figure shows the course.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from tests.bench.fire import RAY_AGENTS, Driver, job
from tests.curation.pictures import encoded

SIDE = 256
_EVERY_S = 0.1
_LIMIT_S = 3_600.0


@dataclass
class Course:
    """What one run took."""

    inputs: int
    seconds: float = 0
    samples: dict[str, list[tuple[float, int]]] = field(default_factory=lambda: defaultdict(list))  # s, bytes
    peaks: dict[str, int] = field(default_factory=dict)  # by process, bytes

    def peak(self, role: str) -> int:
        """The largest peak among the processes of a role."""
        return max(peak for name, peak in self.peaks.items() if name.startswith(role))


def write_pictures(folder: Path, count: int) -> None:
    """Some 12 KB each, no two alike."""
    for index in range(count):
        chance = np.random.default_rng(index)
        coarse = Image.fromarray(chance.integers(0, 256, (12, 12, 3), dtype=np.uint8))
        path = folder / "pictures" / f"{index % 20:02d}" / f"{index:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC), "JPEG", quality=85))
    rows = (f"{index % 20:02d}/{index:06d}.jpg,picture {index},CC0-1.0" for index in range(count))
    (folder / "pictures.csv").write_text("\n".join(["path,title,licence", *rows]) + "\n")


def course(scratch: Path, inputs: int, workers: int) -> Course:
    """Runs the command on so many pictures and watches it.

    Raises:
        RuntimeError: when it fails, loses a picture, or takes more than an hour.
    """
    heap = scratch / f"heap-{inputs}"
    heap.mkdir()
    write_pictures(heap, inputs)
    output = scratch / f"out-{inputs}"
    path = job(heap, output, workers=workers, unit_size=64, image_size=128)
    begun, found = time.monotonic(), Course(inputs)
    driver = Driver(path, scratch / f"{inputs}.log")
    try:
        while driver.running:
            now = time.monotonic() - begun
            for process in driver.members():
                role = _role(process.pid, process.name, driver.process.pid)
                memory = _memory(process.pid)
                if role is None or memory is None:
                    continue
                name = f"{role} {process.pid}"
                found.samples[name].append((now, memory[0]))
                found.peaks[name] = max(memory[1], found.peaks.get(name, 0))
            if now > _LIMIT_S:
                raise RuntimeError(f"not done after an hour:\n{driver.dump()}")
            time.sleep(_EVERY_S)
        if driver.process.returncode != 0:
            raise RuntimeError(driver.log())
    finally:
        driver.end()
    found.seconds = time.monotonic() - begun
    if driver.result()["rows"] != inputs:
        raise RuntimeError(f"{driver.result()['rows']} rows of {inputs} inputs")
    return found


def _role(pid: int, name: str, driver: int) -> str | None:
    if pid == driver:
        return "driver"
    if name.startswith("ray::") and not name.startswith(RAY_AGENTS):
        return "worker"
    return None


def _memory(pid: int) -> tuple[int, int] | None:
    """Resident memory now and at its highest, in bytes; None of a process that has gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    found = dict(re.findall(r"^(VmRSS|VmHWM):\s+(\d+) kB", status, re.MULTILINE))
    return (int(found["VmRSS"]) * 1024, int(found["VmHWM"]) * 1024) if len(found) == 2 else None


def draw(courses: list[Course], path: Path) -> None:
    """A panel for the driver and one for its workers: memory over the share of the run that is done."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for panel, role in zip(panels, ("driver", "worker"), strict=True):
        for course, colour in zip(courses, ("tab:blue", "tab:orange"), strict=True):
            label: str | None = f"{course.inputs:,} inputs, {course.seconds:.0f} s"
            for name, samples in course.samples.items():
                if name.startswith(role):
                    times, values = zip(*samples, strict=True)
                    share = [t / course.seconds for t in times]
                    panel.plot(share, [v / 2**20 for v in values], color=colour, label=label, linewidth=1.2)
                    label = None
        panel.set(title=role if role == "driver" else "workers", xlabel="share of the run", xlim=(0, 1))
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
        panel.legend()
    panels[0].set_ylabel("resident memory, MiB")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--inputs", type=int, default=2_000, help="n; the other run has ten times as many")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--figure", type=Path, default=Path(tempfile.gettempdir()) / "cleanplate-memory.png")
    options = parser.parse_args()
    sizes = [options.inputs, 10 * options.inputs]
    with tempfile.TemporaryDirectory() as scratch:
        found = {n: course(Path(scratch), n, options.workers) for n in random.sample(sizes, 2)}
    courses = [found[n] for n in sizes]
    print(f"{SIDE}-pixel JPEGs, {options.workers} workers, no models; peaks in MiB")
    print(f"{'inputs':>8}{'seconds':>9}{'driver':>9}{'worker':>9}")
    for one in courses:
        driver, worker = (one.peak(role) / 2**20 for role in ("driver", "worker"))
        print(f"{one.inputs:>8,}{one.seconds:>9.1f}{driver:>9.0f}{worker:>9.0f}")
    draw(courses, options.figure)
    print(f"figure: {options.figure}")
    small, large = courses
    ratios = {f"{role}_peak_10x": round(large.peak(role) / small.peak(role), 3) for role in ("worker", "driver")}
    print(json.dumps({"ratios": ratios}))


if __name__ == "__main__":
    main()
