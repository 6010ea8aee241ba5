"""Nodes that are lost while a submitted job runs on them: what it makes is what it makes where nothing is lost."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.curation.pictures import encoded, noise
from tests.nodes import Node, Nodes, nodes, until
from tests.training.conftest import many, write_manifest

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    """A head without room for work, and two nodes with room for one worker each."""
    with nodes() as found:
        found.add(cpus=0)
        for _ in range(2):
            found.add()
        yield found


def submitted(cluster: Nodes, folder: Path, name: str, raw: dict[str, Any]) -> str:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(raw | {"output": str(folder / name)}))
    accepted = cluster.cleanplate("submit", str(path), "--no-follow", "--json")
    assert accepted.returncode == 0, accepted.stdout + accepted.stderr
    return str(json.loads(accepted.stdout.splitlines()[-1])["job_id"])


def result(cluster: Nodes, job_id: str) -> dict[str, Any]:
    followed = cluster.cleanplate("jobs", "logs", job_id, "--follow")
    assert followed.returncode == 0, followed.stdout[-6000:] + followed.stderr
    found: dict[str, Any] = next(
        json.loads(line) for line in reversed(followed.stdout.splitlines()) if line.startswith("{")
    )
    return found


def lose(cluster: Nodes, job_id: str, actor: str, once: Callable[[], bool]) -> Node:
    """Kills a node that runs such actors, once something has come, and has another in its place."""

    def found() -> list[Node]:
        assert cluster.job(job_id)["status"] in ("PENDING", "RUNNING"), cluster.logs(job_id)
        return [node for node in cluster.others if once() and node.runs(actor)]

    until(lambda: bool(found()), f"a node that runs {actor}")
    node = found()[0]
    home = Path(os.readlink(f"/proc/{node.runs(actor)[0].pid}/cwd"))
    assert home.is_relative_to(node.folder), "the code came by what was shipped"
    cluster.kill(node)
    cluster.add()
    return node


def test_a_node_is_lost_while_pictures_are_curated(cluster: Nodes, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for i in range(240):
        (tmp_path / "pictures" / f"{i}.png").write_bytes(encoded(noise(i, (256, 256))))
    raw = {
        "kind": "curate", "name": "noise", "source": {"kind": "folder", "path": str(tmp_path / "pictures")},
        "licences": {"unstated": "keep"}, "image_size": 32, "unit_size": 4, "workers": 2, "clip": None,
    }  # fmt: skip
    job_id = submitted(cluster, tmp_path, "lost", raw)
    work = tmp_path / "lost" / ".work"
    lose(cluster, job_id, "MapWorker", lambda: any(work.rglob("unit-*.parquet")))
    lost = result(cluster, job_id)
    peace = result(cluster, submitted(cluster, tmp_path, "peace", raw))
    assert (lost["id"], lost["counts"]["kept"]) == (peace["id"], 240)


@pytest.mark.long
def test_a_node_is_lost_while_two_train(cluster: Nodes, tmp_path: Path) -> None:
    raw = {
        "kind": "train", "name": "noise", "manifest": write_manifest(tmp_path / "manifests", many(32)).uri,
        "workers": 2, "patch_size": 1, "conditioning": {"kind": "none"}, "images": 480, "batch_size": 8,
        "network": {"block_out_channels": [32, 32], "layers_per_block": 1, "attention_heads": 2},
        "checkpoint_every": 80, "max_failures": 5, "sample": {"steps": 2},
        "tracking": {"uri": f"sqlite:///{tmp_path}/mlflow.db"},
    }  # fmt: skip
    job_id = submitted(cluster, tmp_path, "lost", raw)
    lose(cluster, job_id, "RayTrainWorker", lambda: any((tmp_path / "lost").glob("*/checkpoints/images-*")))
    assert cluster.head.runs("Mailbox"), "it would be lost with a worker's node, and the run with it"
    lost = result(cluster, job_id)
    assert lost["resumed_from"] >= 80
    peace = result(cluster, submitted(cluster, tmp_path, "peace", raw))
    assert lost["training_set_digest"] == peace["training_set_digest"]
    assert lost["state_sha256"] == peace["state_sha256"]
