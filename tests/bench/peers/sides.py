"""The sides of the comparison: how each tool is told to do the work, and what it says it did.

Every tool is run by its command line as its documentation says, two processes, on the same two cores, from an empty
output folder and without a cache of an earlier run. What was tried to make a peer faster stands beside its settings.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote_from_bytes

import pyarrow.parquet as pq
import yaml

from tests.bench.peers.cpu import MARK, CpuWatch
from tests.bench.peers.environments import environment

_HERE = Path(__file__).parent
_CORES = ",".join(str(core) for core in sorted(os.sched_getaffinity(0))[:2])


class ToolError(Exception):
    """A tool that did not end well, and the end of what it said."""


@dataclass(frozen=True)
class Found:
    """What a run came to: pictures that came out good, and pictures that were found to be copies of one kept."""

    pictures: int
    copies: int | None
    note: str = ""


@dataclass(frozen=True)
class Run:
    """One run of a tool."""

    seconds: float
    cpu: float  # seconds, of all its processes
    found: Found


@dataclass(frozen=True)
class Side:
    """A tool at a piece of work."""

    name: str
    prepare: Callable[[Path, Path], list[str]]  # pictures, empty folder -> command
    read: Callable[[Path], Found]

    def run(self, pictures: Path, scratch: Path) -> Run:
        """Does the work once.

        Raises:
            ToolError: when the tool ends in an error.
        """
        begun, process, watch = self._start(pictures, scratch)
        code = process.wait()
        seconds, cpu = time.perf_counter() - begun, watch.stop()
        if code:
            log = (scratch / "log.txt").read_text(errors="replace")
            raise ToolError(f"{self.name} ended with {code}:\n{log[-4000:]}")
        return Run(seconds, cpu, self.read(scratch))

    def kill(self, pictures: Path, scratch: Path, cpu: float) -> None:
        """Starts the work and kills it, with all it started, when it has used some CPU seconds."""
        _, process, watch = self._start(pictures, scratch)
        while process.poll() is None and watch.seconds() < cpu:
            time.sleep(0.05)
        while there := [pid for pid in watch.processes() if pid != process.pid or process.poll() is None]:
            for pid in there:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        watch.stop()

    def _start(self, pictures: Path, scratch: Path) -> tuple[float, subprocess.Popen[bytes], CpuWatch]:
        command = ["taskset", "-c", _CORES, *self.prepare(pictures, scratch)]
        watch = CpuWatch()
        own = {"HF_DATASETS_CACHE": str(scratch / "cache"), "RAY_ADDRESS": "local", MARK: watch.mark}
        watch.start()
        with (scratch / "log.txt").open("wb") as log:
            begun = time.perf_counter()
            process = subprocess.Popen(command, env={**os.environ, **own}, stdout=log, stderr=subprocess.STDOUT)
        return begun, process, watch


def img2dataset(cache: Path) -> Side:
    """Resize to 256, JPEG of quality 95, Parquet with the pictures; sha256 and EXIF are on by default.

    Two to 256 threads and shards of 500 to 2,500 differ by no more than 4 % here. 1,000 pictures to a shard are few
    enough to resume by, and so many that no process takes more than the five after which it is replaced.
    """

    def prepare(pictures: Path, scratch: Path) -> list[str]:
        _write_urls(pictures, scratch / "urls.csv")
        options = {
            "url_list": scratch / "urls.csv",
            "input_format": "csv",
            "output_folder": scratch / "out",
            "output_format": "parquet",
            "image_size": 256,
            "resize_mode": "center_crop",
            "encode_quality": 95,
            "processes_count": 2,
            "thread_count": 8,
            "number_sample_per_shard": 1000,
        }
        command = environment(cache, "img2dataset") / "img2dataset"
        return [str(command), *(f"--{name}={value}" for name, value in options.items())]

    def read(scratch: Path) -> Found:
        shards = [
            pq.read_table(path, columns=["status", "jpg"]) for path in sorted((scratch / "out").glob("*.parquet"))
        ]
        rows = [row for shard in shards for row in shard.to_pylist()]
        return Found(sum(row["status"] == "success" and bool(row["jpg"]) for row in rows), None)

    return Side("img2dataset", prepare, read)


def data_juicer(cache: Path, turbo: bool = True) -> Side:
    """Size filter, then image_deduplicator with pHash.

    `image_size_filter` asks the file system for the size in bytes; `image_shape_filter`, which reads width and height,
    opens every picture. `turbo` is a tenth faster, and lets one bad file end the run.
    """

    def prepare(pictures: Path, scratch: Path) -> list[str]:
        images = [os.path.join(pictures, name) for name in sorted(os.listdir(pictures))]
        lines = [json.dumps({"images": [image], "text": "<__dj__image>"}) for image in images]
        _write_once(scratch / "in.jsonl", "\n".join(lines) + "\n")
        recipe = {
            "project_name": "peers",
            "dataset_path": str(scratch / "in.jsonl"),
            "export_path": str(scratch / "out" / "kept.jsonl"),
            "np": 2,
            "turbo": turbo,
            "process": [{"image_size_filter": {"min_size": "1KB"}}, {"image_deduplicator": {"method": "phash"}}],
        }
        (scratch / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        command = environment(cache, "data_juicer") / "dj-process"
        return [str(command), "--config", str(scratch / "recipe.yaml")]

    def read(scratch: Path) -> Found:
        kept = sum(1 for _ in (scratch / "out" / "kept.jsonl").open())
        there = sum(1 for _ in (scratch / "in.jsonl").open())
        return Found(there, there - kept)

    return Side("Data-Juicer", prepare, read)


def imagededup(cache: Path, search: str = "brute_force_cython") -> Side:
    """PHash of a folder and all pairs within 3 bits; the default search is some four times faster than `bktree`."""

    def prepare(pictures: Path, scratch: Path) -> list[str]:
        python = environment(cache, "imagededup") / "python"
        return [str(python), str(_HERE / "ask_imagededup.py"), str(pictures), search, str(scratch / "found.json")]

    def read(scratch: Path) -> Found:
        found = json.loads((scratch / "found.json").read_text())
        removed: set[str] = set()  # as imagededup's own find_duplicates_to_remove does it
        for name, others in found["duplicates"].items():
            if name not in removed:
                removed.update(other[0] if isinstance(other, list) else other for other in others)
        seconds = found["seconds"]
        return Found(
            len(found["hashed"]), len(removed), f"hash {seconds['hash']:.1f} s, search {seconds['search']:.1f} s"
        )

    return Side("imagededup", prepare, read)


def cleanplate_resize(pictures: Path, scratch: Path) -> list[str]:
    """img2dataset's work: the same list of `file://` URLs, 256-pixel JPEGs of quality 95 inside Parquet."""
    _write_urls(pictures, scratch / "urls.csv")
    source = {"kind": "table", "path": str(scratch / "urls.csv")}
    return _curate(scratch, {"source": source, "image_size": 256, "images": {"encoding": "jpeg"}})


def cleanplate_copies(pictures: Path, scratch: Path) -> list[str]:
    """Data-Juicer's and imagededup's work: a size filter and copies within 3 bits; no pictures come out either."""
    source = {"kind": "folder", "path": str(pictures)}
    return _curate(scratch, {"source": source, "pictures": False, "images": {"min_side": 64}})


def cleanplate(work: Callable[[Path, Path], list[str]]) -> Side:
    return Side("cleanplate", work, lambda scratch: _curated(scratch / "log.txt"))


def _curate(scratch: Path, fields: dict[str, object]) -> list[str]:
    no_one_asks: dict[str, object] = {"clip": None, "captions": [], "licences": {"unstated": "keep"}}
    job = {"kind": "curate", "output": str(scratch / "out"), "workers": 2, **no_one_asks, **fields}
    (scratch / "job.yaml").write_text(yaml.safe_dump(job))
    return [str(Path(sys.executable).parent / "cleanplate"), "curate", str(scratch / "job.yaml"), "--json"]


def _curated(log: Path) -> Found:
    result = json.loads(log.read_text(errors="replace").strip().splitlines()[-1])
    counts, reasons = result["counts"], result["reasons"]
    copies = sum(count for reason, count in reasons.items() if reason.startswith("duplicate"))
    seconds = ", ".join(f"{stage} {value:.1f} s" for stage, value in result.get("seconds", {}).items() if value >= 0.05)
    return Found(counts.get("kept", 0) + copies, copies, seconds)


def _write_urls(pictures: Path, table: Path) -> None:
    """A list of the pictures by `file://` URL, which both sides read; names of any bytes are percent-encoded."""
    names = sorted(os.listdir(os.fsencode(pictures)))
    lines = ["url", *(f"file://{pictures}/{quote_from_bytes(name)}" for name in names)]
    _write_once(table, "\n".join(lines) + "\n")


def _write_once(path: Path, text: str) -> None:
    """A second run finds its input untouched: tools that resume look at the time of it."""
    if not path.exists():
        path.write_text(text)
