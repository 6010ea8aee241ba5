"""The real loop in two processes under torchrun and in two Ray Train workers, which take turns, step by step.

Both groups are alive at once and wait for each other at a turn, so that a busy machine slows both alike and neither
has the other's noise. Start-up is not counted. `compare` is for `tests.bench.training`; as a process of its own this
is a torchrun worker.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from curation.manifest import Manifest
from training.data import load
from training.follow import Mailbox
from training.job import TrainJob
from training.learner import Place
from training.loop import train
from training.progress import Point, Report
from training.text import TextEncoder

STEPS = 5  # of a turn
WARM_UP = 2  # turns of each side that are not counted
SIDES = ("torchrun", "ray")


class Turns:
    """Of one side: lets the loop go on for `STEPS` steps, and then not before the other has done as many."""

    def __init__(self, side: str, folder: Path, then: Report) -> None:
        self._side, self._other = side, SIDES[1 - SIDES.index(side)]
        self._folder = folder
        self._then = then
        self._points = 0
        self._began = 0.0

    def __call__(self, point: Point) -> None:
        self._then(point)
        if point.grid is not None:
            return
        if self._points % STEPS == 0:
            if self._points:
                with (self._folder / f"{self._side}.seconds").open("a") as file:
                    file.write(f"{time.perf_counter() - self._began}\n")
            self._pass_on()
            self._began = time.perf_counter()
        self._points += 1

    def _pass_on(self) -> None:
        """The first one to arrive waits for the other; the turn is the one's whose file is there."""
        mine, others = self._folder / f"{self._side}.turn", self._folder / f"{self._other}.turn"
        if self._points or self._side == SIDES[1]:
            others.touch()
        while not mine.exists() and not (self._folder / f"{self._other}.done").exists():
            time.sleep(0.0005)
        mine.unlink(missing_ok=True)

    def done(self) -> None:
        (self._folder / f"{self._side}.done").touch()
        (self._folder / f"{self._other}.turn").touch()


def work(told: dict[str, str], side: str, place: Place, then: Report) -> None:
    """One worker of either side."""
    torch.set_num_threads(1)
    job = TrainJob.model_validate_json(told["job"])
    turns = Turns(side, Path(told["folder"]), then)
    data, text = load(Manifest.open(job.manifest)), TextEncoder(Path(told["tower"]), place.device)
    train(job, folder=f"{told['folder']}/{side}", data=data, text=text, place=place, report=turns)
    if place.rank == 0:
        turns.done()


def ray_worker(config: dict[str, Any]) -> None:
    """Must stay importable by name: it is shipped by reference."""
    import ray.train

    context, mailbox = ray.train.get_context(), config["mailbox"]
    place = Place(rank=context.get_world_rank(), world_size=context.get_world_size())
    work(config["told"], "ray", place, lambda point: mailbox.put.remote(point))


def compare(job: TrainJob, tower: Path, folder: Path) -> float:
    """Steps per second of Ray Train over those of torchrun, of the medians."""
    folder.mkdir()
    told = {"job": job.model_dump_json(), "tower": str(tower), "folder": str(folder)}
    with ThreadPoolExecutor(1) as thread:
        torchrun = thread.submit(_torchrun, told)
        _ray(told)
        torchrun.result()
    medians = {}
    for side in SIDES:
        seconds = [float(line) for line in (folder / f"{side}.seconds").read_text().split()][WARM_UP:]
        medians[side] = statistics.median(seconds)
        print(f"{side:10} {STEPS * job.batch_size / medians[side]:18.1f} {STEPS * job.batch_size / min(seconds):16.1f}")
    return medians["torchrun"] / medians["ray"]


def _torchrun(told: dict[str, str]) -> None:
    module = ["--standalone", "--nproc-per-node", "2", "-m", "tests.bench.orchestration", json.dumps(told)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", *module]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-6_000:])


def _ray(told: dict[str, str]) -> None:
    from pipelines.cluster import connect

    with connect(cpus=2):
        import ray
        from ray.train import RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        mailbox: Any = ray.remote(Mailbox).options(num_cpus=0).remote()
        TorchTrainer(
            ray_worker,
            train_loop_config={"told": told, "mailbox": mailbox},
            scaling_config=ScalingConfig(num_workers=2),
            run_config=RunConfig(name="ray", storage_path=told["folder"]),
        ).fit()


def main() -> None:
    torch.distributed.init_process_group("gloo")
    place = Place(torch.distributed.get_rank(), torch.distributed.get_world_size())
    work(json.loads(sys.argv[1]), "torchrun", place, lambda point: None)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
