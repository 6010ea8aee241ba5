"""A run on a Ray cluster of its own that grows by a node and loses it again: `drive`, or as a process of its own.

It starts with room for one worker. Once a checkpoint was written, a second node joins, and Ray Train begins anew with
two workers. Once those have written one, Ray announces that the node will be taken away, the state is saved between two
steps, the node is lost, and one worker goes on. Events are awaited, not times. The last line is the result.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import training.launch
from training import checkpoint
from training.checkpoint import CheckpointInfo
from training.follow import Told
from training.job import TrainJob
from training.launch import _worker as the_runs_own
from training.launch import launch
from training.notice import Notice
from training.prepare import TrainResult, prepare
from training.progress import Point, Progress

ROOT = Path(__file__).parents[2]
NOTICED = "noticed"


def drive(job: TrainJob, tower: str, limit_s: float = 600) -> TrainResult:
    """Runs this module in a process of its own, as its cluster has other settings than the session's."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    command = [sys.executable, "-m", "tests.bench.elastic", job.model_dump_json(), tower]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=limit_s)
    if done.returncode:
        raise RuntimeError(done.stderr[-6_000:])
    return TrainResult.model_validate_json(done.stdout.splitlines()[-1])


class _Gate:
    """Stands before the mailbox of a run, on a worker: a point passes once `Limits` allows it for so many workers."""

    def __init__(self, mailbox: Any, folder: str) -> None:
        self._mailbox = mailbox
        self._limits = Limits(folder)
        self.put, self.finish, self.ending, self.keep = self, mailbox.finish, mailbox.ending, mailbox.keep

    def remote(self, told: Told) -> None:
        import ray.train

        while isinstance(told, Point) and told.images > self._limits.of(ray.train.get_context().get_world_size()):
            time.sleep(0.05)
        self._mailbox.put.remote(told)


def worker(config: dict[str, Any]) -> None:
    """The run's own worker, which waits at a gate. Must stay importable by name: it is shipped by reference."""
    import ray.train

    if ray.train.get_context().get_world_rank() == 0:  # the one that saves

        def give(notice: Notice, *, ends: bool = False) -> None:
            gives(notice, ends=ends)
            (Path(config["folder"]) / NOTICED).touch()

        gives, Notice.give = Notice.give, give  # type: ignore[method-assign]
    the_runs_own(config | {"mailbox": _Gate(config["mailbox"], config["folder"])})


class Limits:
    """How far so many workers may train, in images; a file beside the run's, so that its pace is that of the events."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)

    def of(self, workers: int) -> float:
        try:
            return float((self._folder / f"limit-{workers}").read_text())
        except FileNotFoundError:
            return 0

    def set(self, workers: int, images: float) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        new = self._folder / f".limit-{workers}"
        new.write_text(str(images))
        new.replace(self._folder / f"limit-{workers}")


def _change_the_cluster(cluster: Any, folder: str, job: TrainJob, running: Future[TrainResult]) -> None:
    """Adds a node, has Ray tell that it will be taken away, and takes it once the state was saved for that."""
    limits, every = Limits(folder), job.checkpoint_every
    first = 2 * every + job.batch_size  # where one worker waits for another
    limits.set(1, first)
    limits.set(2, second := first + 2 * every)

    def until(happened: Callable[[], bool]) -> None:
        while not happened():
            if running.done():
                running.result()
                raise RuntimeError("the run ended before its cluster had changed")
            time.sleep(0.2)

    def saved(found: Callable[[CheckpointInfo], bool]) -> bool:
        newest = checkpoint.latest(f"{folder}/checkpoints")
        return newest is not None and found(checkpoint.read_info(newest))

    until(lambda: saved(lambda info: info.images_seen >= 2 * every))
    node = cluster.add_node(num_cpus=1)
    print("a node joined", file=sys.stderr, flush=True)
    until(lambda: saved(lambda info: [leg.topology["workers"] for leg in info.legs] == [1, 2]))
    _drain(cluster.address, node.node_id)
    print("a node is about to be lost", file=sys.stderr, flush=True)
    until((Path(folder) / NOTICED).exists)
    limits.set(2, second + every - job.batch_size)  # steps in which to take the notice, and no state saved but for it
    until(lambda: saved(lambda info: info.images_seen % every != 0))
    cluster.remove_node(node, allow_graceful=False)
    print("a node was lost, after its state was saved", file=sys.stderr, flush=True)
    limits.set(1, job.steps * job.batch_size)


def _drain(address: str, node_id: str) -> None:
    told = [
        "--reason",
        "DRAIN_NODE_REASON_PREEMPTION",
        "--reason-message",
        "spot",
        "--deadline-remaining-seconds",
        "600",
    ]
    command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", address, "--node-id", node_id]
    subprocess.run([*command, *told], check=True, stdout=sys.stderr)


def main() -> None:
    os.environ |= {
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
        "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "0.5",
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",  # a lost node is asked for until Ray Train looks anew
        "RAY_health_check_period_ms": "1000",
    }
    # one thread in each worker, however many there are: with two each on two cores, steps take many times as long
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    import ray
    from ray.cluster_utils import Cluster

    training.launch._worker = worker
    job, tower = TrainJob.model_validate(json.loads(sys.argv[1])), sys.argv[2]
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    os.environ["RAY_ADDRESS"] = cluster.address  # a cluster that can grow
    ray.init(address=cluster.address, log_to_driver=False)
    began = time.monotonic()

    def tell(progress: Progress) -> None:
        print(f"{time.monotonic() - began:.0f} s: at {progress.images_seen}", file=sys.stderr, flush=True)

    # nodes can only be added by the main thread
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(launch, job, text_encoder=tower, on_progress=tell)
        _change_the_cluster(cluster, prepare(job).folder, job, running)
        result = running.result()
    ray.shutdown()
    cluster.shutdown()
    print(result.model_dump_json())


if __name__ == "__main__":
    main()
