"""One pipeline on a cluster whose nodes are lost, and on one node in peace: `python -m tests.bench.cluster`.

Pictures on S3 are curated, a model is trained on them by two workers, registered and served, as one submission to a
cluster of three nodes (`tests.nodes`) whose runs are told to MLflow on PostgreSQL. Lost are, by events: a node that
curates, once some units are stored; one that trains, once checkpoints are written; one that trains and is cut off,
while its processes live on and come back as a node that was given up; and one that has a replica, under requests. A
fresh node joins after each. Then the same pipeline runs on a cluster of one node.

    manifest_identical         whether both manifests have the same id
    training_digest_identical  whether both trained on the same set and ended in the same weights, bit for bit

Both are 1 or 0; beside them stand the ratios of `tests.bench.scaling`. A run that does not end, a request without an
answer or with another picture raises.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests import nodes
from tests.bench.callers import Callers
from tests.curation.pictures import encoded, noise
from tests.curation.seaweed import S3, seaweed
from tests.infra.tracking_server import tracking_server
from tests.nodes import Node, Nodes
from tests.ports import free_port

BUCKET = "cleanplate"
CORES = sorted(os.sched_getaffinity(0))[:2]  # one for each node, so that two are two machines of one processor
CLIENTS = 4
BODIES = [{"prompt": "a noisy picture", "seed": seed, "num_inference_steps": 8} for seed in range(3)]


@dataclass(frozen=True)
class Services:
    """What a cluster works with: a store for all that lasts, and where runs are told of."""

    s3: S3
    tracking: str

    @property
    def environment(self) -> dict[str, str]:
        return {**self.s3.environment, "MLFLOW_TRACKING_URI": self.tracking}

    def names(self, prefix: str) -> list[str]:
        pages = self.s3.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        return [entry["Key"] for page in pages for entry in page.get("Contents", [])]

    def ended(self, name: str) -> dict[str, dict[str, Any]]:
        """What the steps of a pipeline that still runs have said."""
        key = f"{name}/state/{name}/state.json"
        if key not in self.names(key):
            return {}
        return {step: told["result"] for step, told in json.loads(self.s3.get(BUCKET, key)).items()}


def write_pictures(s3: S3, count: int) -> None:
    """Puts pictures and their titles into the bucket."""
    lines = ["path,title,licence"]
    for i in range(count):
        s3.put(BUCKET, f"pictures/{i:04d}.png", encoded(noise(i, (48, 48))))
        lines.append(f"{i:04d}.png,{'very ' * (i % 5)}noisy picture {i % 40},CC0-1.0")
    s3.put(BUCKET, "pictures.csv", "\n".join(lines).encode())


def write_job(folder: Path, name: str, images: int, port: int | None) -> Path:
    """The pipeline's file; all that it makes lies below `name` in the bucket. With a port it ends with serving."""
    place = f"s3://{BUCKET}/{name}"
    curate = {
        "kind": "curate", "name": "noise", "output": f"{place}/manifests", "image_size": 32, "unit_size": 8,
        "source": {"kind": "folder", "path": f"s3://{BUCKET}/pictures", "metadata": f"s3://{BUCKET}/pictures.csv"},
        "licences": {"allow": ["CC0-1.0"]}, "captions": [{"kind": "template", "text": "{title}"}],
        "clip": {"model": "embedded", "batch_size": 8}, "workers": 2,
    }  # fmt: skip
    train = {
        "kind": "train", "name": "noise", "manifest": "${curate.manifest}", "output": f"{place}/training",
        "patch_size": 2, "network": {"preset": "nano"}, "images": images, "batch_size": 8, "workers": 2,
        "checkpoint_every": 160, "max_failures": 20, "sample": {"prompts": ["noisy picture 1"], "steps": 2},
    }  # fmt: skip
    register = {"kind": "register", "name": name, "bundle": "${train.bundle}"}
    jobs: dict[str, dict[str, Any]] = {"curate": curate, "train": train, "register": register}
    if port is not None:
        model = f"models:/{name}@champion"
        jobs["serve"] = {"kind": "serve", "model": model, "port": port, "replicas": 2, "threads": 1}
    steps = [{"name": step, "job": job} for step, job in jobs.items()]
    path = folder / f"{name}.yaml"
    path.write_text(
        yaml.safe_dump({"kind": "pipeline", "name": name, "state": f"{place}/state", "steps": steps}, sort_keys=False)
    )
    return path


class Story:
    """A submission to a cluster that loses nodes."""

    def __init__(self, cluster: Nodes, services: Services, name: str) -> None:
        self._cluster, self._services, self._name = cluster, services, name
        self._cores: dict[int, int] = {}
        self._job_id = ""
        self._begun = time.monotonic()

    def run(self, folder: Path, images: int) -> dict[str, dict[str, Any]]:
        """What the pipeline's steps said."""
        self._cluster.add(cpus=0)
        for core in CORES:
            self._add(core)
        port = free_port()
        accepted = self._cluster.cleanplate(
            "submit", str(write_job(folder, self._name, images, port)), "--no-follow", "--json"
        )
        assert accepted.returncode == 0, accepted.stdout + accepted.stderr
        self._job_id = json.loads(accepted.stdout.splitlines()[-1])["job_id"]
        self.curation()
        self.training()
        self.serving(f"http://127.0.0.1:{port}")
        ended = self._services.ended(self._name)
        stopped = self._cluster.cleanplate("jobs", "stop", self._job_id)
        assert stopped.returncode == 0, stopped.stderr
        return ended

    def curation(self) -> None:
        self._until(lambda: len(self._units()) >= 3, "three stored units")
        node = self._one_that_runs("MapWorker")
        (worker, *_) = node.runs("MapWorker")
        home = Path(os.readlink(f"/proc/{worker.pid}/cwd"))
        assert home.is_relative_to(node.folder), f"{home} is not the node's own"
        had = len(self._units())
        self._lose(node)
        self._until(lambda: "curate" in self._ended(), "the end of curation")
        told = self._ended()["curate"]
        assert had < told["units"], f"all {had} units were stored when the node was lost"
        self._tell(f"curated: {had} of {told['units']} units were stored when a node was lost")

    def training(self) -> None:
        self._until(lambda: self._reached() >= 320, "two checkpoints")
        self._lose(self._one_that_runs("RayTrainWorker"))
        self._until(lambda: bool(self._that_run("RayTrainWorker")), "workers anew")
        at = self._reached()
        self._until(lambda: self._reached() >= at + 320, "two checkpoints more")
        self._cut_off(self._one_that_runs("RayTrainWorker"))
        self._until(lambda: "train" in self._ended(), "the end of training")
        told = self._ended()["train"]
        self._tell(f"trained: {told['images_seen']} images, at last from the checkpoint after {told['resumed_from']}")

    def serving(self, url: str) -> None:
        self._until(lambda: len(self._that_run("ServeReplica", "sampler")) == 2, "two replicas")
        self._until(lambda: url in self._cluster.logs(self._job_id), "the endpoint")
        with Callers(url, BODIES, count=CLIENTS, retries=5) as callers:
            callers.wait(4 * CLIENTS)
            at = time.monotonic()
            self._lose(self._one_that_runs("ServeReplica", "sampler"))
            self._until(lambda: len(self._that_run("ServeReplica", "sampler")) == 2, "two replicas again")
            callers.wait(4 * CLIENTS)
        answers = callers.answers
        failed = [answer for answer in answers if answer.status != 200]
        assert not failed, f"{len(failed)} requests had no answer"
        drawn = {(answer.body, answer.pictures) for answer in answers}
        assert len(drawn) == len(BODIES), "the same request had other pictures"
        again = sum(answer.tries > 1 for answer in answers)
        slowest = max(answer.seconds for answer in answers if answer.ended > at)
        self._tell(
            f"served: {len(answers)} answers, {again} of them to requests that the client sent again; the slowest "
            f"after the loss took {slowest:.1f} s"
        )

    def _units(self) -> list[str]:
        return [name for name in self._services.names(f"{self._name}/manifests/.work/") if "/unit-" in name]

    def _ended(self) -> dict[str, dict[str, Any]]:
        return self._services.ended(self._name)

    def _reached(self) -> int:
        """Images seen at the newest checkpoint."""
        names = (name.split("/") for name in self._services.names(f"{self._name}/training/"))
        parts = (part for name in names for part in name if part.startswith("images-"))
        return max((int(part.removeprefix("images-")) for part in parts), default=0)

    def _that_run(self, *names: str) -> list[Node]:
        return [node for node in self._cluster.others if node.runs(*names)]

    def _one_that_runs(self, *names: str) -> Node:
        self._until(lambda: bool(self._that_run(*names)), f"a node that runs {names[-1]}")
        return self._that_run(*names)[0]

    def _add(self, core: int) -> None:
        node = self._cluster.add(core=core)
        self._cores[node.number] = core

    def _lose(self, node: Node) -> None:
        at = time.monotonic()
        self._cluster.kill(node)
        self._tell(f"node {node.number} was killed, and missed after {time.monotonic() - at:.1f} s")
        self._add(self._cores[node.number])

    def _cut_off(self, node: Node) -> None:
        """Cuts a node off until it is given up and another has its place; then it comes back."""
        at = time.monotonic()
        node.pause()
        self._until(lambda: self._cluster.lacks(node), "a node that is given up")
        self._tell(f"node {node.number} was cut off, and given up after {time.monotonic() - at:.1f} s")
        self._add(self._cores[node.number])
        at = self._reached()
        self._until(lambda: self._reached() > at, "a checkpoint without it")
        self._cluster.nodes.remove(node)
        node.resume()
        try:
            self._until(lambda: not node.members(), "the end of a node that was given up")
        finally:
            node.kill()
        self._tell(f"node {node.number} came back and ended itself")

    def _until(self, happened: Callable[[], bool], what: str) -> None:
        def watched() -> bool:
            if happened():
                return True
            for node in self._cluster.ended():
                self._tell(f"node {node.number} was lost by itself")
                self._lose(node)
            job = self._cluster.job(self._job_id)
            if job["status"] not in ("PENDING", "RUNNING"):
                raise RuntimeError(f"{what} did not come: {job['status']}\n{self._cluster.logs(self._job_id)[-6000:]}")
            return False

        nodes.until(watched, what)

    def _tell(self, what: str) -> None:
        print(f"{time.monotonic() - self._begun:5.0f} s  {what}", flush=True)


def in_peace(services: Services, folder: Path, images: int) -> dict[str, dict[str, Any]]:
    """What the pipeline's steps say on one node of two processors that nothing happens to."""
    begun = time.monotonic()
    with nodes.nodes(services.environment) as cluster:
        cluster.add(cpus=2)
        done = cluster.cleanplate("submit", str(write_job(folder, "peace", images, None)), "--json")
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    print(f"{time.monotonic() - begun:5.0f} s  on one node, undisturbed", flush=True)
    steps = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"steps"')]
    found: dict[str, dict[str, Any]] = steps[-1]["steps"]
    return found


def measure(pictures: int, images: int) -> dict[str, float]:
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for name in ("s3", "mlflow"):
            (scratch / name).mkdir()
        s3 = stack.enter_context(seaweed(scratch / "s3"))
        write_pictures(s3, pictures)
        services = Services(s3, stack.enter_context(tracking_server(s3, scratch / "mlflow")))
        cluster = stack.enter_context(nodes.nodes(services.environment))
        lost = Story(cluster, services, "lost").run(scratch, images)
        cluster.end()
        peace = in_peace(services, scratch, images)
    for name, step, field in (
        ("manifest", "curate", "id"),
        ("training set", "train", "training_set_digest"),
        ("state", "train", "state_sha256"),
    ):
        print(f"{name:<14} {lost[step][field][:24]}  {peace[step][field][:24]}")
    same = (lost["train"][field] == peace["train"][field] for field in ("training_set_digest", "state_sha256"))
    return {
        "manifest_identical": int(lost["curate"]["id"] == peace["curate"]["id"]),
        "training_digest_identical": int(all(same)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pictures", type=int, default=160)
    parser.add_argument("--images", type=int, default=2400, help="samples to train on")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # its servers end with it
    ratios = measure(options.pictures, options.images)
    from tests.bench import scaling  # has torch take one thread, when it is imported

    ratios |= scaling.measure()
    print(json.dumps({"ratios": ratios}))


if __name__ == "__main__":
    main()
