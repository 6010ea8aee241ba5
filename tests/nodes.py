"""A Ray cluster of several nodes on this machine, each with its own folder and its own processes, as separate machines.

Every node is a `ray start --block` in a session of its own, below a folder of its own, bound to loopback, with the
cluster's token. What is shipped to a node is unpacked below that folder, so nothing is found there that was not sent.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.ports import free_port

ROOT = Path(__file__).parents[1]
LIMIT_S = 600.0  # for anything that is waited for


@dataclass(frozen=True)
class Process:
    """A living process, by the kernel's books."""

    pid: int
    name: str


@dataclass(frozen=True)
class Node:
    """A node's processes are those of one session, and all that is its own lies in one folder."""

    number: int
    folder: Path
    leader: subprocess.Popen[bytes]

    def members(self) -> list[Process]:
        if self.leader.returncode is not None and os.path.exists(f"/proc/{self.leader.pid}"):
            return []  # the number is somebody else's by now, and so would be the session
        return in_session(self.leader.pid)

    def runs(self, *names: str) -> list[Process]:
        """The living workers that have all of these in their titles: an actor's class, a deployment's name."""
        workers = (process for process in self.members() if process.name.startswith("ray::"))
        return [process for process in workers if all(name in process.name for name in names)]

    def kill(self) -> None:
        """As a power cut does it: all processes at once, none is asked."""
        self._signal(signal.SIGKILL)
        while left := self.members():
            for process in left:
                _signal(process.pid, signal.SIGKILL)
            self.leader.poll()
            time.sleep(0.02)
        self.leader.wait()

    def pause(self) -> None:
        """As a network that is cut off does it: connections stay open, nothing comes any more."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        # the raylet first, which would start others
        for process in sorted(self.members(), key=lambda process: "/raylet/raylet" not in process.name):
            _signal(process.pid, number)


class Nodes:
    """A running cluster.

    Attributes:
        address: of the dashboard, `http://127.…`, once there is a head.
        environment: of whoever talks to it: it has the token.
        nodes: those that were not killed, the head first.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._folder = folder
        self._started = 0
        self._gcs = ""
        self.address = ""
        self.environment = {**environment, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        self.nodes: list[Node] = []

    @property
    def head(self) -> Node:
        return self.nodes[0]

    @property
    def others(self) -> list[Node]:
        return self.nodes[1:]

    def add(self, *, cpus: int = 1, core: int | None = None) -> Node:
        """Starts a node, the first one as head, and waits until the cluster knows it.

        Ray ends a node that is not known within half a minute; it is started again, as a cluster's manager does that.

        Args:
            core: the one processor that its processes may run on; None: all.
        """
        for _ in range(5):  # a busy machine takes longer
            node = self._start(cpus, core)
            if self._comes(node):
                return node
            self.nodes.remove(node)
            node.kill()
        node = self._start(cpus, core)
        assert self._comes(node), (node.folder / "log").read_text()
        return node

    def _comes(self, node: Node) -> bool:
        """Waits until a node is known or has ended; whether it is known."""
        until(lambda: node.leader.poll() is not None or self.knows(node), f"node {node.number}")
        return self.knows(node)

    def _start(self, cpus: int, core: int | None) -> Node:
        number, folder = self._started, self._folder / str(self._started)
        folder.mkdir()
        command = [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"),
            *(f"--node-ip-address={_ip(number)}", f"--num-cpus={cpus}", "--num-gpus=0", f"--temp-dir={folder}"),
            *("--object-store-memory=100000000", "--min-worker-port=0", "--max-worker-port=0"),
            f"--dashboard-agent-listen-port={free_port()}",
        ]
        if self.nodes:
            command.append(f"--address={self._gcs}")
        else:
            self._gcs, self.address = f"{_ip(number)}:{free_port()}", f"http://{_ip(number)}:{free_port()}"
            command += ["--head", f"--port={self._gcs.rpartition(':')[2]}", f"--ray-client-server-port={free_port()}"]
            command += [f"--dashboard-host={_ip(number)}", f"--dashboard-port={self.address.rpartition(':')[2]}"]
        if core is not None:
            command = ["taskset", "--cpu-list", str(core), *command]
        with open(folder / "log", "wb") as log:
            leader = subprocess.Popen(
                command, env=self.environment, stdout=log, stderr=log, start_new_session=True, cwd=folder
            )
        self._started += 1
        self.nodes.append(Node(number, folder, leader))
        return self.nodes[-1]

    def kill(self, node: Node) -> None:
        """Kills a node's processes and waits until the cluster has noticed."""
        self.nodes.remove(node)
        node.kill()
        until(lambda: self.lacks(node), f"the loss of node {node.number}")

    def ended(self) -> list[Node]:
        """The nodes that have ended without being killed, as where a busy machine kept their health checks waiting."""
        return [node for node in self.nodes if node.leader.poll() is not None]

    def knows(self, node: Node) -> bool:
        """Whether the cluster counts on a node."""
        return _ip(node.number) in self._alive()

    def lacks(self, node: Node) -> bool:
        """Whether the cluster has given a node up."""
        alive = self._alive()
        return _ip(self.head.number) in alive and _ip(node.number) not in alive

    def _alive(self) -> set[str]:
        """The addresses of the nodes that the cluster counts on; none while its head does not answer."""
        try:
            found = self._asked("/api/v0/nodes?detail=1")["data"]["result"]["result"]
        except (urllib.error.URLError, OSError):
            return set()
        return {node["node_ip"] for node in found if node["state"] == "ALIVE"}

    def job(self, job_id: str) -> dict[str, Any]:
        """A submission, as the cluster tells of it."""
        found: dict[str, Any] = self._asked(f"/api/jobs/{job_id}")
        return found

    def logs(self, job_id: str) -> str:
        """What a submission has printed so far."""
        return str(self._asked(f"/api/jobs/{job_id}/logs")["logs"])

    def _asked(self, path: str) -> Any:
        token = {"Authorization": f"Bearer {self.environment['RAY_AUTH_TOKEN']}"}
        with urllib.request.urlopen(urllib.request.Request(self.address + path, headers=token), timeout=10) as answer:
            return json.load(answer)

    def cleanplate(self, *words: str, token: str | None = None) -> subprocess.CompletedProcess[str]:
        """Runs one of the commands that talk to a cluster.

        Args:
            token: None: the cluster's.
        """
        command = [sys.executable, "-m", "pipelines", *words, "--address", self.address]
        environment = self.environment | {"PYTHONPATH": str(ROOT)}  # the nodes have the code by what is shipped alone
        if token is not None:
            environment["RAY_AUTH_TOKEN"] = token
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)

    def end(self) -> None:
        for node in reversed(self.nodes):
            node.kill()


def _ip(number: int) -> str:
    """A node's own address; all of 127.0.0.0/8 is loopback, and 127.0.0.1 Ray replaces by the machine's in public."""
    return f"127.0.0.{2 + number}"


@contextlib.contextmanager
def nodes(environment: Mapping[str, str] | None = None) -> Iterator[Nodes]:
    """An empty cluster for the duration of a `with` block; the first node that is added is its head.

    Args:
        environment: of its nodes, beside this process' own.
    """
    folder = Path(tempfile.mkdtemp(prefix="cp-", dir="/tmp"))  # short: Ray's socket paths are limited
    ours = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "MLFLOW_", "PYTHONPATH"))}
    # A job's own python must be this environment's, as it would be in a cluster's image.
    ours |= {"RAY_worker_niceness": "0", "HF_HUB_OFFLINE": "1", "PATH": f"{Path(sys.executable).parent}:{ours['PATH']}"}
    made = Nodes(folder, {**ours, **(environment or {})})
    try:
        yield made
    finally:
        made.end()
        shutil.rmtree(folder, ignore_errors=True)


def until(happened: Callable[[], bool], what: str, limit_s: float = LIMIT_S) -> None:
    """Waits for an event.

    Raises:
        TimeoutError: it did not come.
    """
    deadline = time.monotonic() + limit_s
    while not happened():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not come within {limit_s:g} s")
        time.sleep(0.2)


def in_session(leader: int) -> list[Process]:
    """The living processes of a session."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            state = _read(f"/proc/{entry}/stat").rpartition(b")")[2].split()
            if state and state[0] != b"Z" and int(state[3]) == leader:
                name = _read(f"/proc/{entry}/cmdline").replace(b"\0", b" ").decode(errors="replace").strip()
                found.append(Process(int(entry), name))
    return found


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
