"""What a training run is worth after kills and on other workers: `python -m tests.bench.resume [--plain N] [--ray N]`.

Runs are killed by SIGKILL at random moments: the driver, a Ray Train worker, and whichever of them is just writing a
checkpoint; then started again until they end. `bit_identical_share` is the share whose final weights, average and
optimizer have the undisturbed run's sha256. Then one run goes on with one, two and one workers, on a cluster that grows
by a node and loses it (`tests.bench.elastic`): `elastic_loss_relative_error` is the largest difference of a point of
its loss curve from that of a run in one process.

Last line: {"ratios": {"bit_identical_share": ..., "elastic_loss_relative_error": ...}}.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.bench import elastic
from tests.training.conftest import many, write_manifest, write_tower
from training import checkpoint
from training.job import TrainJob
from training.launch import launch
from training.prepare import TrainResult, finished, prepare

ROOT = Path(__file__).parents[2]
LIMIT_S = 900  # for one run with all its kills
DRIVER = """
import json, sys, torch
from pipelines.cluster import connect
from training.job import TrainJob
from training.launch import launch
torch.set_num_threads(1)
job = TrainJob.model_validate(json.loads(sys.argv[1]))
if job.workers == 0:
    launch(job, text_encoder=sys.argv[2])
else:
    with connect(cpus=2):
        launch(job, text_encoder=sys.argv[2])
"""


class Driver:
    """A process that launches a job, in a session of its own, which its cluster shares: nothing else is killed."""

    def __init__(self, job: TrainJob, tower: str, log: Path) -> None:
        self._log = log
        environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        command = [sys.executable, "-c", DRIVER, job.model_dump_json(), tower]
        with log.open("ab") as err:
            self._process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=err, stderr=err, start_new_session=True
            )

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def workers(self) -> list[int]:
        """Ray Train's workers, by process id."""
        return [pid for pid in self._members() if b"RayTrainWorker" in _read(f"/proc/{pid}/cmdline")]

    def _members(self) -> list[int]:
        found = []
        for entry in os.listdir("/proc"):
            state = _read(f"/proc/{entry}/stat").rpartition(b")")[2].split() if entry.isdigit() else []
            if state and state[0] != b"Z" and int(state[3]) == self._process.pid:
                found.append(int(entry))
        return found

    def end(self) -> None:
        """Kills the driver, and what it leaves behind."""
        self._process.kill()
        while members := self._members():
            for pid in members:
                _kill(pid)
            time.sleep(0.05)
        self._process.wait()

    def kill(self, kind: str, chance: random.Random) -> bool:
        """Kills the driver or a worker; False when there was none."""
        if kind == "driver":
            self.end()
            return True
        workers = self.workers()
        if workers:
            _kill(chance.choice(workers))
        return bool(workers)

    def check(self) -> None:
        """Raises RuntimeError with what the driver said when it failed."""
        if self._process.poll():
            raise RuntimeError(self._log.read_text(errors="replace")[-6_000:])


def under_fire(job: TrainJob, tower: str, kinds: Sequence[str], log: Path, chance: random.Random) -> TrainResult:
    """Runs a job to its end through these kills, each after some more of the run was checkpointed."""
    folder = prepare(job).folder
    checkpoints = Path(folder) / "checkpoints"
    budget = job.steps * job.batch_size
    moments = sorted(chance.randrange(job.checkpoint_every, budget - 2 * job.checkpoint_every) for _ in kinds)
    waiting = list(zip(moments, kinds, strict=True))
    deadline = time.monotonic() + LIMIT_S
    driver = Driver(job, tower, log)
    try:
        while (result := finished(folder)) is None:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{waiting} were left after {LIMIT_S} s")
            if not driver.running:
                driver.check()
            if waiting and _reached(checkpoints) >= waiting[0][0]:
                kind = waiting[0][1]
                if kind == "writing":
                    _await_write(checkpoints, driver)
                    kind = "worker" if job.workers else "driver"
                if driver.kill(kind, chance):
                    print(f"killed: {waiting.pop(0)}", file=sys.stderr, flush=True)
                    if not driver.running:
                        driver = Driver(job, tower, log)
            time.sleep(0.05)
    finally:
        driver.end()
    if waiting:
        raise RuntimeError(f"the run ended before {waiting}")
    return result


def _reached(checkpoints: Path) -> int:
    """Images seen at the newest checkpoint; one that is half removed or half written may count."""
    return max((int(path.name.removeprefix("images-")) for path in checkpoints.glob("images-*")), default=0)


def _await_write(checkpoints: Path, driver: Driver) -> None:
    while driver.running and not any(checkpoints.glob(".images-*.partial/*")):
        time.sleep(0.0005)


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""


def curve(run_folder: str) -> dict[int, float]:
    """The loss at each point of a finished run."""
    newest = checkpoint.latest(f"{run_folder}/checkpoints")
    assert newest is not None
    points = checkpoint.read_info(newest).points
    return {point.images: point.values["loss"] for point in points if "loss" in point.values}


def relative_error(ours: dict[int, float], theirs: dict[int, float]) -> float:
    """The largest relative difference of two curves.

    Raises:
        ValueError: when they were not measured at the same points, but for the one after an interruption.
    """
    if len(both := set(ours) & set(theirs)) < len(theirs) - 1:
        raise ValueError(f"{len(both)} of {len(theirs)} points are comparable")
    return max(abs(ours[images] - theirs[images]) / theirs[images] for images in both)


def identical(options: argparse.Namespace, root: Path, settings: dict[str, Any], tower: str) -> float:
    """The share of killed runs that end in the bits of the undisturbed one of their topology."""
    chance = random.Random(options.seed)
    trials = [(0, ("driver", "writing"))] * options.plain + [(2, ("driver", "worker", "writing"))] * options.ray
    straight: dict[int, TrainResult] = {}
    same = []
    for number, (workers, kinds) in enumerate(trials):
        if workers not in straight:
            whole = TrainJob.model_validate({**settings, "workers": workers, "output": str(root / f"whole-{workers}")})
            straight[workers] = under_fire(whole, tower, (), root / "log", chance)
        job = TrainJob.model_validate({**settings, "workers": workers, "output": str(root / f"killed-{number}")})
        began = time.monotonic()
        result = under_fire(job, tower, chance.sample(kinds, len(kinds)), root / "log", chance)
        same.append(result.state_sha256 == straight[workers].state_sha256)
        print(f"{workers} workers, killed {len(kinds)} times, {time.monotonic() - began:.0f} s: identical {same[-1]}")
    return sum(same) / len(same)


def across_workers(root: Path, settings: dict[str, Any], tower: str) -> float:
    """The largest relative difference of the loss when the number of workers goes from 1 to 2 to 1."""
    changes = {"images": 32 * 150, "batch_size": 32, "checkpoint_every": 320, "max_failures": 5}
    workers = {"min": 1, "max": 2, "check_seconds": 2}
    job = TrainJob.model_validate({**settings, **changes, "workers": workers, "output": str(root / "elastic")})
    whole = job.model_copy(update={"workers": 0, "output": str(root / "one")})
    result = elastic.drive(job, tower)
    told = [(leg.images, leg.topology["workers"]) for leg in result.legs]
    print(f"from so many images on, so many workers: {told}")
    straight = launch(whole, text_encoder=tower)
    if [workers for _, workers in told] != [1, 2, 1]:
        raise RuntimeError("the number of workers did not change as planned")
    return relative_error(curve(str(Path(result.bundle).parent)), curve(str(Path(straight.bundle).parent)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plain", type=int, default=4, help="killed runs in one process")
    parser.add_argument("--ray", type=int, default=1, help="killed runs of two Ray Train workers")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        settings = {
            "name": "resume",
            "manifest": write_manifest(root / "manifests", many(64)).uri,
            "output": "-",
            "patch_size": 1,
            "network": {"block_out_channels": (32, 64), "layers_per_block": 1, "attention_heads": 2},
            "images": 8 * 400,
            "batch_size": 8,
            "precision": "fp32",
            "checkpoint_every": 160,
            "max_failures": 20,
            "sample": {"steps": 2},
            "tracking": {"uri": f"sqlite:///{root}/mlflow.db"},
        }
        tower = str(write_tower(root / "text_encoder"))
        share = identical(options, root, settings, tower)
        error = across_workers(root, settings, tower)
    told = {"bit_identical_share": round(share, 3), "elastic_loss_relative_error": float(f"{error:.2g}")}
    print(json.dumps({"ratios": told}))


if __name__ == "__main__":
    main()
