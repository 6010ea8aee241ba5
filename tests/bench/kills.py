"""An endpoint on a Ray cluster of three nodes whose parts are killed under load: `drive`, or as a process of its own.

The head has the gateway and no room for a sampler; each of the two other nodes has room for one. Four clients ask
without a pause, and ask again when the server or their connection failed, as OpenAI's client does. Killed are, with
SIGKILL: a replica of the sampler, the gateway's replica, and a whole node. After each, it is waited until answers come
again at the full number of clients, and until Serve has its replicas again where that is possible. Every request's
pictures must be those that it got when nothing was killed. The last line is the result.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from serving.job import ServeJob
from tests.bench.callers import Answer, Callers
from tests.ports import free_port
from tests.serving import tiny

ROOT = Path(__file__).parents[2]
CLIENTS = 4
BODIES = [{"prompt": "a red apple", "seed": seed, "num_inference_steps": 12} for seed in range(3)]


def drive(rounds: int = 1, limit_s: float = 900) -> dict[str, float]:
    """Runs this module in a process of its own, as its cluster has other settings than the session's."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    command = [sys.executable, "-m", "tests.bench.kills", str(rounds)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=limit_s)
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr[-6_000:])
    *told, result = done.stdout.splitlines()
    print("\n".join(told))
    ratios: dict[str, float] = json.loads(result)
    return ratios


def processes(name: str) -> list[int]:
    """Replicas of a deployment among the descendants of this process."""
    from tests.bench.endpoint import _descendants, _name

    pattern = re.compile(rb"ServeReplica:\w+:" + name.encode() + rb"\b")
    return [pid for pid in _descendants(os.getpid()) if _alive(pid) and pattern.search(_name(pid))]


def _alive(pid: int) -> bool:
    return Path(f"/proc/{pid}/cmdline").exists()


def until(found: Callable[[], bool], what: str, limit_s: float = 120) -> None:
    begun = time.monotonic()
    while not found():
        if time.monotonic() > begun + limit_s:
            raise TimeoutError(f"{what} did not come within {limit_s:g} s")
        time.sleep(0.1)


class Story:
    """Kills one part after the other and writes down what the clients saw of it."""

    def __init__(self, cluster: Any, nodes: list[Any], callers: Callers) -> None:
        self._cluster = cluster
        self._nodes = nodes
        self._callers = callers
        self.seen: dict[str, list[Answer]] = {}

    def kill(self, what: str, act: Callable[[], None]) -> None:
        """Does it, and waits until the clients have had answers to requests that began after it."""
        callers = self._callers
        at, had = time.monotonic(), len(callers.answers)
        act()
        until(
            lambda: sum(a.begun > at and a.status == 200 for a in callers.answers[had:]) >= 3 * CLIENTS,
            f"an answer after {what} was killed",
        )
        answers = self.seen.setdefault(what, [])
        answers += callers.answers[had:]
        again = sum(a.tries > 1 for a in callers.answers[had:])
        slowest = max(a.seconds for a in callers.answers[had:])
        print(
            f"{what}: {len(callers.answers) - had} answers, {sum(a.status != 200 for a in callers.answers[had:])} "
            f"failed, {again} were sent again by the client, the slowest took {slowest:.1f} s",
            flush=True,
        )

    def replica(self) -> None:
        os.kill(processes("sampler")[0], signal.SIGKILL)

    def gateway(self) -> None:
        os.kill(processes("gateway")[0], signal.SIGKILL)

    def node(self) -> None:
        """One that the gateway does not run on: that one's death was seen before."""
        gateway = Path(f"/proc/{processes('gateway')[0]}/stat").read_text().rpartition(")")[2].split()[1]
        node = next(n for n in self._nodes if n.all_processes["raylet"][0].process.pid != int(gateway))
        self._nodes.remove(node)
        self._cluster.remove_node(node, allow_graceful=False)


def run(rounds: int, folder: Path) -> dict[str, float]:
    import ray
    from ray.cluster_utils import Cluster

    bundle = tiny.write_bundle(folder, tiny.write_clip(folder), image_size=32, channels=(32, 64))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        ray.init(address=cluster.address, log_to_driver=False)
        return under_kills(rounds, bundle, cluster, nodes)
    finally:
        ray.shutdown()
        cluster.shutdown()


def under_kills(rounds: int, bundle: Path, cluster: Any, nodes: list[Any]) -> dict[str, float]:
    from serving import app

    job = ServeJob(model=str(bundle), port=free_port(), replicas=2, threads=1, max_queued_requests=32)
    with Callers(app.run(job), BODIES, count=CLIENTS, retries=5) as callers:
        callers.wait(4 * CLIENTS)
        story = Story(cluster, nodes, callers)
        for _ in range(rounds):
            story.kill("replica", story.replica)
            until(lambda: len(processes("sampler")) == 2, "another replica")
            story.kill("gateway", story.gateway)
        story.kill("node", story.node)
    answers, seen = callers.answers, story.seen
    drawn = {(answer.body, answer.pictures) for answer in answers if answer.status == 200}
    assert len(drawn) == len(BODIES), "the same request had other pictures"
    return {
        "failed_under_kills": sum(answer.status != 200 for answer in answers),
        "lost_under_replica_kill": sum(answer.tries > 1 for answer in seen["replica"]),
        "lost_under_gateway_kill": sum(answer.tries > 1 for answer in seen["gateway"]) / rounds,
        "lost_under_node_kill": sum(answer.tries > 1 for answer in seen["node"]),
    }


def main() -> None:
    os.environ |= {"RAY_health_check_period_ms": "1000", "RAY_health_check_failure_threshold": "3"}
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["XDG_CACHE_HOME"] = scratch
        result = run(int(sys.argv[1]), Path(scratch))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
