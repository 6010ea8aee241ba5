"""Bookkeeping under fire: `python -m tests.bench.fire`.

A heap of which a tenth is hostile is curated twice by the command line. One run is left in peace. In the other,
workers, drivers and Ray's own node manager are killed with SIGKILL at random moments, and the command is run again
until it ends. Then both manifests must be the same byte for byte, and each must have one row for every file that
`os.scandir` finds.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tests.curation.hostile import Hostile, hostiles, listed_as
from tests.curation.pictures import encoded, noise

TITLES = ("a heap of colours", "blobs", "fog, at dawn", 'a "quoted" title', "Äpfel & Öl")
RAY_AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
_STALLED_S = 240.0  # without a sign of life: a hang


class HangError(Exception):
    """A run that made no progress; the message has what its threads were doing."""


# The heap


def write_heap(folder: Path, inputs: int, seed: int = 0, big: int = 2**24) -> dict[str, Hostile]:
    """Writes `inputs` files below `folder/pictures`, a tenth of them hostile, and `folder/pictures.csv` beside it.

    Among the good ones are exact, pixel and perceptual copies, some without a title and some without a licence.

    Returns:
        The hostile files by the name that a manifest must give them.
    """
    chance = random.Random(seed)
    hostile = _hostile(inputs // 10, chance, big)
    found = {f"special/{name}": item for name, item in special(folder / "pictures" / "special").items()}
    for index, item in enumerate(hostile[: inputs // 10 - len(found)]):
        shard = f"{index % 7:02d}"
        (folder / "pictures" / shard).mkdir(parents=True, exist_ok=True)
        with open(os.fsencode(folder / "pictures" / shard) + b"/" + item.name, "wb") as file:
            file.write(item.data)
        found[f"{shard}/{listed_as(item.name)}"] = item
    rows = ["path,title,licence"]
    for index in range(inputs - len(found)):
        name, data = _good(index, chance)
        path = folder / "pictures" / f"{index % 16:02d}" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        title = "" if chance.random() < 0.03 else chance.choice(TITLES).replace('"', '""')
        licence = chance.choices(("CC0-1.0", "all rights reserved", ""), (90, 5, 5))[0]
        rows.append(f'{index % 16:02d}/{name},"{title}",{licence}')
    (folder / "pictures.csv").write_text("\n".join(rows) + "\n")
    return found


def _hostile(count: int, chance: random.Random, big: int) -> list[Hostile]:
    """The first so many hostile files in a random order of kinds; only the first of a kind is huge."""
    found: list[Hostile] = []
    seed = 0
    while len(found) < count:
        items = hostiles(seed, big if seed == 0 else 2**16)
        chance.shuffle(items)
        found += items
        seed += 1
    return found[:count]


def special(folder: Path) -> dict[str, Hostile]:
    """What a folder holds that is no file of bytes, by name below the folder."""
    folder.mkdir(parents=True)
    os.mkfifo(folder / "pipe.jpg")
    (folder / "dangling.jpg").symlink_to("nowhere.jpg")
    (folder / "loop.jpg").symlink_to("loop.jpg")
    (folder / "folder.jpg").mkdir()
    (folder / "folder.jpg" / "inside.jpg").write_bytes(encoded(noise(3_000_000), "JPEG"))
    (folder / "link.jpg").symlink_to("folder.jpg/inside.jpg")
    (folder / "empty.jpg").mkdir()
    reasons = {
        "pipe.jpg": {"not_a_file"},
        "dangling.jpg": {"not_found"},
        "loop.jpg": {"not_a_file"},
        "folder.jpg/inside.jpg": {"passed"},
        "link.jpg": {"passed"},
    }
    return {name: Hostile(name, name.encode(), b"", frozenset(expected)) for name, expected in reasons.items()}


def _good(index: int, chance: random.Random) -> tuple[str, bytes]:
    """A picture of some 100 pixels; one in eight is a copy of an earlier one in one of three ways."""
    kind = chance.choices(("jpeg", "png", "exact", "pixel", "perceptual"), (60, 28, 4, 4, 4))[0]
    of = index if kind in ("jpeg", "png") else chance.randrange(index // 2 + 1)
    picture = noise(of, (96 + of % 32, 96 + of // 32 % 32))
    if kind in ("png", "pixel"):
        return f"{index:06d}.png", encoded(picture, "PNG", compress_level=1 if kind == "png" else 6)
    return f"{index:06d}.jpg", encoded(picture, "JPEG", quality=60 if kind == "perceptual" else 90)


def job(folder: Path, output: Path, **changes: Any) -> Path:
    """Writes the job file of a heap's curation and returns its path."""
    fields = {
        "kind": "curate",
        "name": "fire",
        "source": {"kind": "folder", "path": str(folder / "pictures"), "metadata": str(folder / "pictures.csv")},
        "output": str(output),
        "licences": {"allow": ["CC0-1.0"]},
        "captions": [{"kind": "template", "text": "{title}"}],
        "clip": None,
        "image_size": 32,
        "unit_size": 128,
        "workers": 2,
    }
    path = output.with_suffix(".json")
    path.write_text(json.dumps(fields | changes))
    return path


# Running and killing


@dataclass(frozen=True)
class Process:
    """A process of a driver's session, by the kernel's books."""

    pid: int
    name: str


class Driver:
    """A `cleanplate curate` in a session of its own, which its cluster shares: nothing else is ever killed."""

    def __init__(self, path: Path, log: Path) -> None:
        self._out = log.with_suffix(".out")
        self._log = log
        command = [sys.executable, "-m", "pipelines", "curate", str(path), "--json"]
        with open(self._out, "wb") as out, open(log, "wb") as err:
            environment = os.environ | {"PYTHONFAULTHANDLER": "1"}
            self.process = subprocess.Popen(command, stdout=out, stderr=err, env=environment, start_new_session=True)

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def members(self) -> list[Process]:
        """The living processes of the session."""
        if self.process.returncode is not None and os.path.exists(f"/proc/{self.process.pid}"):
            return []  # the number is somebody else's by now, and so would be the session
        found = []
        for entry in os.listdir("/proc"):
            if entry.isdigit() and _session(int(entry)) == self.process.pid:
                name = _read(f"/proc/{entry}/cmdline").replace(b"\0", b" ").decode(errors="replace").strip()
                found.append(Process(int(entry), name))
        return found

    def workers(self) -> list[Process]:
        """The living processes that Ray runs something in: actors, tasks, and some that wait for work."""
        found = (p for p in self.members() if p.name.startswith("ray::"))
        return [p for p in found if not p.name.startswith(RAY_AGENTS)]

    def kill(self, kind: str, chance: random.Random) -> str | None:
        """Kills by SIGKILL; returns the name of what was hit, None when there was nothing to hit."""
        if kind == "driver":
            self.process.kill()
            self.process.wait()
            return "driver"
        if kind == "everything":
            self.end()
            return "everything"
        if kind == "raylet":
            targets = [p for p in self.members() if "/raylet/raylet" in p.name]
        else:
            targets = [p for p in self.workers() if ("MapWorker" in p.name) == (kind == "worker")]
        if not targets:
            return None
        target = chance.choice(targets)
        with contextlib.suppress(ProcessLookupError):
            os.kill(target.pid, signal.SIGKILL)
        return kind if kind == "raylet" else target.name.split(" ")[0]

    def end(self, limit_s: float = 60) -> None:
        """Kills what is left of the session and waits until it is gone."""
        deadline = time.monotonic() + limit_s
        while members := self.members():
            for member in members:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(member.pid, signal.SIGKILL)
            self.process.poll()
            if time.monotonic() > deadline:
                raise HangError(f"not even SIGKILL ends {members}")
            time.sleep(0.05)
        self.process.wait()

    def dump(self) -> str:
        """Where the driver's threads are; ends it."""
        self.process.send_signal(signal.SIGABRT)
        self.process.wait()
        return self.log()

    def log(self) -> str:
        return self._log.read_text(errors="replace")[-6_000:]

    def result(self) -> dict[str, Any]:
        """What the command said at its end."""
        found: dict[str, Any] = json.loads(self._out.read_text().splitlines()[-1])
        return found


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def _session(pid: int) -> int | None:
    """The session of a living process."""
    state = _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    return int(state[3]) if state and state[0] != b"Z" else None


def stored(output: Path) -> dict[str, int]:
    """The results of units that lie in an output's working folder, with the number of each file on disk."""
    found = {}
    for folder, folders, names in os.walk(output / ".work"):  # what vanishes under its eyes, it passes over
        folders[:] = [name for name in folders if not name.startswith("staging-")]
        for name in names:
            if name.startswith("unit-"):
                with contextlib.suppress(FileNotFoundError):
                    found[f"{folder}/{name}"] = os.stat(f"{folder}/{name}").st_ino
    return found


def publishing(output: Path) -> bool:
    """Whether a manifest is being written."""
    return any(files for folder, _, files in os.walk(output / ".work") if "/staging-" in folder)


@dataclass
class Kill:
    """One planned kill: of what, and when."""

    kind: str  # worker, helper (another process of Ray's), raylet, driver, everything
    at: int | None  # so many stored results; None: as soon as the manifest is being written
    hit: str = ""
    seconds: float = 0  # until the next result was stored, reruns included

    def due(self, results: int, publishes: bool) -> bool:
        return publishes if self.at is None else results >= self.at


def plan(kills: int, results: int, chance: random.Random) -> list[Kill]:
    """Kills in the order of their moments: most of them of workers, the last ones while deciding and publishing.

    Args:
        kills: how many.
        results: files that a whole run stores for its units.
        chance: decides kinds and moments.
    """
    late = [Kill("driver", results), Kill("driver", None)][2 - min(2, kills // 3) :]
    kinds = ["driver", "worker", "everything", "worker", "raylet", "worker", "helper"]
    early = [kinds[i % len(kinds)] for i in range(kills - len(late))]
    chance.shuffle(early)
    return [*map(Kill, early, sorted(chance.randrange(results) for _ in early)), *late]


@dataclass
class Outcome:
    """What became of a run, with all its reruns."""

    result: dict[str, Any]
    seconds: float
    reruns: int
    failures: int  # ends with an error of its own, not by our hand
    redone: int  # stored results that were written again


class _Watch:
    """An output under fire: what is stored in it, and the kills that are still to come."""

    def __init__(self, output: Path, kills: Sequence[Kill], chance: random.Random) -> None:
        self._output, self._waiting, self._chance = output, list(kills), chance
        self._seen: dict[str, int] = {}
        self._struck: list[tuple[Kill, float, int]] = []  # nothing was stored since: the kill, when, and what there was
        self._news = time.monotonic()
        self.redone = 0

    def look(self, driver: Driver) -> None:
        """Takes note of what is new.

        Raises:
            HangError: when there was nothing for long.
        """
        now = stored(self._output)
        news = now != {name: self._seen.get(name) for name in now} or publishing(self._output)
        self.redone += sum(1 for name, number in now.items() if self._seen.get(name, number) != number)
        self._seen |= now
        if news:
            self._news = time.monotonic()
            self._settle([struck for struck in self._struck if len(now) > struck[2]])
        elif time.monotonic() - self._news > _STALLED_S:
            raise HangError(f"nothing new for {_STALLED_S:.0f} s:\n{driver.dump()}")

    def strike(self, driver: Driver) -> bool:
        """Kills what is due; whether there was such a thing."""
        if not (self._waiting and driver.workers()):
            return False
        if not self._waiting[0].due(len(self._seen), publishing(self._output)):
            return False
        time.sleep(self._chance.random() * 0.3)
        hit = driver.kill(self._waiting[0].kind, self._chance)
        if hit is None:
            return False
        kill = self._waiting.pop(0)
        kill.hit = hit
        self._struck.append((kill, time.monotonic(), len(stored(self._output))))
        return True

    def end(self) -> None:
        self._settle(list(self._struck))

    def _settle(self, struck: Sequence[tuple[Kill, float, int]]) -> None:
        for entry in struck:
            entry[0].seconds = time.monotonic() - entry[1]
            self._struck.remove(entry)


def run(path: Path, output: Path, logs: Path, kills: Sequence[Kill] = (), seed: int = 0) -> Outcome:
    """Runs the command, with kills, as often as it takes.

    Raises:
        HangError: when nothing happens for long.
        RuntimeError: when a run fails that nobody disturbed, or reruns do not come to an end.
    """
    watch, orphaned = _Watch(output, kills, random.Random(seed)), contextlib.ExitStack()
    begun, attempts, failures, code = time.monotonic(), 0, 0, -1
    while code != 0:
        attempts += 1
        driver, hit = Driver(path, logs / f"{output.name}-{attempts:02d}.log"), False
        try:
            while driver.running:
                watch.look(driver)
                hit = watch.strike(driver) or hit
                time.sleep(0.01)
        finally:
            code = driver.process.returncode
            orphaned.close()
            # Of a killed driver, workers live for some seconds and store what they have in hand: the next run meets
            # them, as it would outside.
            if hit and code == -signal.SIGKILL:
                orphaned.callback(driver.end)
            else:
                driver.end()
        failures += code not in (0, -signal.SIGKILL)
        if code != 0 and (not hit or attempts > len(kills)):  # every rerun has a kill that it is for
            raise RuntimeError(f"run {attempts} ended with {code}:\n{driver.log()}")
    watch.end()
    return Outcome(driver.result(), time.monotonic() - begun, attempts - 1, failures, watch.redone)


# Judging


def listed(folder: Path) -> list[str]:
    """Every file below a folder, by the operating system's own listing, as a manifest names them."""
    found, folders = [], [os.fsencode(folder)]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                else:
                    found.append(listed_as(os.path.relpath(entry.path, os.fsencode(folder))))
    return sorted(found)


def parts(manifest: Path) -> dict[str, str]:
    """The sha256 of each Parquet file of a manifest, by its name."""
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(manifest.glob("*.parquet"))}


def books(manifest: Path, folder: Path, hostile: dict[str, Hostile]) -> list[str]:
    """What is wrong with a manifest's books, by Arrow and the operating system alone; nothing when they are right."""
    names = collections.Counter(listed(folder))
    rows = [
        row
        for file in sorted(manifest.glob("*.parquet"))
        for row in pq.ParquetFile(file).read(columns=["uri", "decision", "reason"]).to_pylist()
    ]
    told = json.loads((manifest / "manifest.json").read_text())["counts"]
    decisions = collections.Counter(row["decision"] for row in rows)
    uris = collections.Counter(row["uri"] for row in rows)
    wrong = [f"{uri!r} has {n} rows too many" for uri, n in sorted((uris - names).items())]
    wrong += [f"{name!r} has {n} rows too few" for name, n in sorted((names - uris).items())]
    files = names.total()
    if len(rows) != files or sum(told.values()) != files or {k: v for k, v in told.items() if v} != decisions:
        wrong.append(f"{files} files, {len(rows)} rows, {dict(decisions)}, told {told}")
    if set(decisions) - {"kept", "dropped", "held", "failed"}:
        wrong.append(f"decisions {sorted(decisions)}")
    for row in rows:
        outcome = row["reason"] if row["decision"] == "failed" else "passed"
        expected = hostile[row["uri"]].expected if row["uri"] in hostile else {"passed"}
        if outcome not in expected:
            wrong.append(f"{row['uri']!r} is {outcome}, not {' or '.join(sorted(expected))}")
    return wrong


@dataclass(frozen=True)
class Report:
    """Both runs, side by side."""

    peace: Outcome
    fire: Outcome
    kills: list[Kill]
    differing: list[str]  # names of parts that are not the same in both, and "id"
    wrong: list[str]  # in the books


def compare(scratch: Path, inputs: int, kills: int, seed: int = 0, **changes: Any) -> Report:
    """Makes the heap, runs both runs and compares their manifests."""
    heap = scratch / "heap"
    heap.mkdir()
    hostile = write_heap(heap, inputs, seed, 2**24 if inputs >= 5_000 else 2**18)
    outcomes: list[Outcome] = []
    planned: list[Kill] = []
    for name in ("peace", "fire"):
        output = scratch / name
        if outcomes:
            planned = plan(kills, len(stored(scratch / "peace")), random.Random(seed))
        outcomes.append(run(job(heap, output, **changes), output, scratch, planned, seed))
    peace, fire = outcomes
    manifests = [Path(outcome.result["manifest"]) for outcome in outcomes]
    first, second = (parts(manifest) for manifest in manifests)
    differing = [name for name in sorted(first.keys() | second.keys()) if first.get(name) != second.get(name)]
    if peace.result["id"] != fire.result["id"]:
        differing.append("id")
    wrong = [fault for manifest in manifests for fault in books(manifest, heap / "pictures", hostile)]
    return Report(peace, fire, planned, differing, sorted(set(wrong)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--kills", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        show(compare(Path(scratch), options.inputs, options.kills, options.seed))


def show(report: Report) -> None:
    peace, fire = report.peace, report.fire
    counts = peace.result["counts"]
    print(f"{peace.result['rows']:,} inputs = " + " + ".join(f"{n:,} {name}" for name, n in counts.items()))
    print(", ".join(f"{name} {n:,}" for name, n in sorted(peace.result["reasons"].items(), key=lambda x: -x[1])))
    print(f"{'':<14}{'seconds':>9}{'reruns':>9}{'own failures':>14}{'results written twice':>24}")
    for name, found in (("undisturbed", peace), ("under fire", fire)):
        print(f"{name:<14}{found.seconds:>9.1f}{found.reruns:>9}{found.failures:>14}{found.redone:>24}")
    for number, kill in enumerate(report.kills, 1):
        moment = "publishing" if kill.at is None else f"{kill.at} results stored"
        print(f"kill {number:>2}  {kill.kind:<11} {moment:<22} next result after {kill.seconds:>5.1f} s  {kill.hit}")
    for fault in report.wrong[:40]:
        print(f"wrong: {fault}")
    print(f"differing: {', '.join(report.differing) or 'nothing'}")
    done = sum(1 for kill in report.kills if kill.hit)
    ratios = {
        "identical": int(not report.differing),
        "reconciled": int(not report.wrong),
        "kills_survived": round(done / max(1, len(report.kills)), 3),
        "results_lost_per_kill": round(fire.redone / max(1, done), 3),
    }
    print(json.dumps({"ratios": ratios}))


if __name__ == "__main__":
    main()
