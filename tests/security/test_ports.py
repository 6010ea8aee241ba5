"""What a default start opens, and what every port of it says to who has no token."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from curation.errors import UserError
from pipelines import cluster
from tests.ports import free_port
from tests.security.planted import Program
from tests.security.sockets import Listener, listeners
from tests.serving import tiny

ROOT = Path(__file__).parents[2]
# One call of every kind of Ray's processes, which would be answered if it were let in.
CALLS = {
    "control": "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
    "keys and values": "/ray.rpc.InternalKVGcsService/InternalKVGet",
    "raylet": "/ray.rpc.NodeManagerService/GetNodeStats",
    "objects": "/ray.rpc.ObjectManagerService/Pull",
    "worker": "/ray.rpc.CoreWorkerService/GetCoreWorkerStats",
    "agent": "/ray.rpc.ReporterService/ReportOCMetrics",
    "replica": "/ray.serve.ASGIService/HandleRequest",
}
PATHS = ("/", "/api/job_agent/jobs/", "/get_or_create_runtime_env", "/api/jobs/", "/-/routes", "/logs", "/metrics")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, int]]:
    """`cleanplate serve` as it comes: its process, and its port."""
    folder = tmp_path_factory.mktemp("server")
    bundle = tiny.write_bundle(folder, tiny.write_clip(tmp_path_factory.mktemp("clip")))
    port = free_port()
    (folder / "serve.yaml").write_text(yaml.safe_dump({"kind": "serve", "model": str(bundle), "port": port}))
    ours = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    command = [sys.executable, "-m", "pipelines", "serve", "serve.yaml"]
    with (folder / "told").open("wb") as told:
        process = subprocess.Popen(
            command, cwd=folder, env={**ours, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=told
        )
    try:
        assert process.stdout is not None
        assert str(port).encode() in process.stdout.readline(), (folder / "told").read_text()
        yield process.pid, port
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=120)


@pytest.fixture(scope="module")
def found(server: tuple[int, int]) -> list[Listener]:
    return listeners(server[0])


@pytest.mark.ray
def test_nothing_listens_in_public_but_what_asks_for_the_token(found: list[Listener], server: tuple[int, int]) -> None:
    assert server[1] in {listener.port for listener in found}
    assert len(found) > 8, "Ray's processes are among them"
    public = [listener for listener in found if listener.reached_from_elsewhere]
    # Ray Serve opens a port in every replica for its own calls, on every address; the next test asks it for a pickle.
    assert {listener.process.split(":")[2] for listener in public} <= {"ServeReplica"}, public


@pytest.mark.ray
def test_no_port_answers_who_has_no_token(found: list[Listener], server: tuple[int, int], tmp_path: Path) -> None:
    grpc = pytest.importorskip("grpc")
    from ray.serve.generated.serve_pb2 import ASGIRequest

    planted = ASGIRequest(pickled_request_metadata=pickle.dumps(Program(tmp_path / "ran"))).SerializeToString()
    said = defaultdict[str, set[str]](set)
    for listener in found:
        for header in ((), (("authorization", "Bearer " + "0" * 64),)):
            with grpc.insecure_channel(f"127.0.0.1:{listener.port}") as channel:
                for kind, method in CALLS.items():
                    call = channel.unary_unary(method)
                    try:
                        call(planted if kind == "replica" else b"", metadata=header, timeout=10)
                        said[kind].add("OK")
                    except grpc.RpcError as error:
                        said[kind].add(error.code().name)
    assert not (tmp_path / "ran").exists()
    for kind, codes in said.items():
        assert "OK" not in codes, f"{kind}: {codes}"
        assert "UNAUTHENTICATED" in codes, f"no port of the kind {kind} was there to refuse: {codes}"

    with httpx.Client(timeout=10, trust_env=False) as client:
        for listener in found:
            for path in PATHS:
                for verb in ("GET", "POST"):
                    answer = _asked(client, verb, listener.port, path)
                    assert answer is None or answer.status_code >= 400 or _public(answer, listener.port == server[1]), (
                        f"{verb} {listener} {path}: {answer} {answer.text[:200]}"
                    )


def _asked(client: httpx.Client, verb: str, port: int, path: str) -> httpx.Response | None:
    """An answer; None where no HTTP is spoken."""
    try:
        return client.request(verb, f"http://127.0.0.1:{port}{path}")
    except httpx.TransportError:
        return None


def _public(answer: httpx.Response, ours: bool) -> bool:
    """Whether an answer is for everybody on this machine: the endpoint's own, and how busy Ray is."""
    return ours or answer.text.startswith("# HELP")


def test_ray_s_folder_is_one_s_own(tmp_path: Path) -> None:
    """Sockets lie in it, and /tmp is everybody's."""
    made = cluster.own_folder(str(tmp_path / "made"))
    assert Path(made).stat().st_mode & 0o777 == 0o700
    Path(made).chmod(0o777)
    assert Path(cluster.own_folder(made)).stat().st_mode & 0o777 == 0o700
    (tmp_path / "link").symlink_to(made)
    with pytest.raises(UserError, match="no folder of yours"):
        cluster.own_folder(str(tmp_path / "link"))
