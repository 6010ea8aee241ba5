"""The whole story, by the command line alone: a model is trained and served, somebody opts out, and it is undone.

What a user would type is typed here, the plan's own script included.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import yaml

from curation.manifest import Decision, Manifest
from tests.curation.pictures import drawing, encoded, noise
from tests.ports import free_port
from training import randomness

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1200)]

ROOT = Path(__file__).parents[2]
IMAGES, BATCH = 96, 4
HERS = ("hers.png", "hers again.jpg")


@dataclass
class Desk:
    """A folder, and the commands that are typed in it."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        own = {
            "MLFLOW_TRACKING_URI": f"sqlite:///{self.folder}/mlflow.db",
            "CLEANPLATE_LEDGER": str(self.folder / "ledger"),
            "XDG_CACHE_HOME": str(self.folder / "cache"),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        return {**os.environ, **own}

    def shell(self, command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", "-c", command], cwd=self.folder, env=self.environment, capture_output=True, text=True
        )

    def __call__(self, command: str) -> dict[str, Any]:
        """Runs `cleanplate …  --json` and returns its last line."""
        done = self.shell(f"cleanplate {command} --json")
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found

    def write(self, name: str, job: dict[str, Any]) -> None:
        (self.folder / name).write_text(yaml.safe_dump(job))


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    rows = ["path,title,creator,licence"]

    def add(name: str, data: bytes, creator: str) -> None:
        (pictures / name).write_bytes(data)
        rows.append(f"{name},{name.partition('.')[0]},{creator},CC0-1.0")

    for i in range(14):
        add(f"noise {i}.png", encoded(noise(i)), "John Roe")
    for shape in ("circle", "square"):
        for colour in ("red", "blue"):
            add(f"{colour} {shape}.png", encoded(drawing(shape, colour)), "John Roe")
    add(HERS[0], encoded(noise(100)), "Jane Doe")
    add(HERS[1], encoded(noise(100), "JPEG", quality=85), "Somebody Else")  # her picture, by another name
    (tmp_path / "pictures.csv").write_text("\n".join(rows) + "\n")
    return Desk(tmp_path)


def kept(manifest: Path) -> dict[str, str]:
    """id by uri."""
    table = Manifest.open(str(manifest)).table(["uri", "id"], decision=Decision.KEPT)
    return dict(zip(table["uri"].to_pylist(), table["id"].to_pylist(), strict=True))


def late_seed(ids: dict[str, str]) -> int:
    """A seed whose order shows her pictures late in the first epoch, so that there is something to save."""
    slots = [sorted(ids.values()).index(ids[name]) for name in HERS]
    for seed in range(10_000):
        if int(randomness.first_seen(seed, IMAGES, len(ids))[slots].min()) >= 3 * BATCH:
            return seed
    raise AssertionError("no such seed")


def times_by_hand(seed: int, ids: dict[str, str]) -> dict[str, int]:
    order = randomness.rows(seed, torch.arange(IMAGES), len(ids)).tolist()
    names = sorted(ids.values())
    return {ids[name]: sum(names[slot] == ids[name] for slot in order) for name in HERS}


def test_the_whole_story(desk: Desk) -> None:
    # --- a model is made and served ---
    desk.write(
        "curate.yaml",
        {
            "kind": "curate",
            "name": "drawings",
            "source": {"kind": "folder", "path": "pictures", "metadata": "pictures.csv"},
            "licences": {"allow": ["CC0-1.0"]},
            "duplicates": {"perceptual": None},  # near copies are kept apart, which an opt-out does not mind
            "captions": [{"kind": "template", "text": "a picture of {title}"}],
            "image_size": 16,
            "output": "manifests",
        },
    )
    curated = desk("curate curate.yaml")
    ids = kept(desk.folder / curated["manifest"])
    assert len(ids) == 20
    seed = late_seed(ids)
    desk.write(
        "train.yaml",
        {
            "kind": "train",
            "name": "drawings",
            "manifest": "manifests",
            "output": "training",
            "patch_size": 2,
            "network": {"block_out_channels": [32, 32], "layers_per_block": 1, "attention_heads": 2},
            "images": IMAGES,
            "batch_size": BATCH,
            "milestones": BATCH,
            "conditioning_images": BATCH,
            "precision": "fp32",
            "seed": seed,
            "sample": {"steps": 2},
        },
    )
    trained = desk("train train.yaml")
    desk.write(
        "register.yaml",
        {"kind": "register", "name": "drawings", "bundle": trained["bundle"], "run_id": trained["run_id"]},
    )
    first = desk("register register.yaml")
    assert first["version"] == "1"
    port = free_port()
    safety: dict[str, Any] = {"concepts": {}}
    serve = {
        "kind": "serve",
        "model": "models:/drawings@champion",
        "port": port,
        "takedowns": "refuse",
        "safety": safety,
    }
    desk.write("serve.yaml", serve)
    assert served(desk, port)["data"]

    # --- somebody opts out ---
    entry = desk(
        'takedown add --by "Jane Doe <jane@example.org>" --ground "Art. 4(3) DSM" --creator "Jane Doe" --reference T-1'
    )
    entry_id = entry["entry"]["id"]
    seen = desk(f"trace {entry_id}")
    (training,) = [t for t in seen["trainings"] if t["verdict"] == "trained_on"]
    assert [v["version"] for v in training["versions"]] == ["1"]
    by_hand = times_by_hand(seed, ids)
    assert training["times"] == sum(by_hand.values())
    assert {p["id"]: p["times"] for p in training["pictures"]} == by_hand
    assert [s["model"] for s in seen["serving"]] == ["models:/drawings@champion"]

    # Whoever nobody has looked at since is not served either.
    unexamined = desk.shell("cleanplate serve serve.yaml")
    assert unexamined.returncode == 2, unexamined.stderr

    # --- and it is undone, as the plan says ---
    plan = desk(f"takedown plan {entry_id} --out plan")
    assert [v["model"] for v in plan["versions"]] == ["models:/drawings/1"]
    (retraining,) = plan["retrainings"]
    assert retraining["checkpoint"] is not None
    assert retraining["images_saved"] >= 2 * BATCH
    before = desk(f"takedown status {entry_id}")["entries"][0]
    assert (before["state"], all(step["done"] for step in before["steps"])) == ("open", False)
    script = desk.shell("sh plan/plan.sh")
    assert script.returncode == 0, script.stdout[-3000:] + script.stderr[-3000:]

    # The derived manifest lacks her picture and its near copy, and nothing else.
    derived = plan["manifests"][0]["into"]
    assert kept(desk.folder / curated["manifest"]).keys() - kept(Path(derived)).keys() == set(HERS)
    assert kept(Path(derived)).items() < ids.items()
    assert Manifest.open(derived).info.base_id == curated["id"]

    # The new version is trained, promoted and served; the old one is flagged, and by policy served no more.
    after = desk(f"takedown status {entry_id}")["entries"][0]
    assert (after["state"], [step for step in after["steps"] if not step["done"]]) == ("resolved", [])
    assert served(desk, port)["data"]
    desk.write("old.yaml", {**serve, "model": "models:/drawings/1"})
    refused = desk.shell("cleanplate serve old.yaml")
    assert refused.returncode == 2
    assert "drawings version 1" in refused.stderr
    version = desk("trace models:/drawings/1")
    assert version["aliases"] == []
    assert entry_id[:12] in json.dumps(version)

    # Retrained from the checkpoint is what training from scratch comes to, as the plan claims.
    again = json.loads((desk.folder / "plan" / "retrain-drawings.yaml.json").read_text().splitlines()[-1])
    assert again["resumed_from"] == retraining["images_saved"]
    scratch = desk("train plan/retrain-drawings.yaml --set resume_from=null --set output=scratch")
    assert scratch["resumed_from"] == 0
    assert "bit" in retraining["claim"]
    assert scratch["state_sha256"] == again["state_sha256"] != trained["state_sha256"]

    # Proofs of inclusion in the old set and of absence from the new one, checked by a stranger.
    for version_number, kind in (("1", "inclusion"), ("2", "absence")):
        for name in HERS:
            proof = desk(f"prove {ids[name]} --model models:/drawings/{version_number} --out proof.json")
            assert proof["kind"] == kind
            stranger = desk.shell(f"{sys.executable} -I {ROOT}/docs/verify_proof.py proof.json {proof['digest']}")
            assert stranger.returncode == 0, stranger.stdout
            other = desk.shell(f"{sys.executable} -I {ROOT}/docs/verify_proof.py proof.json {'0' * 64}")
            assert other.returncode == 1

    # The audit record tells it all, in order.
    told = [action["what"] for action in after["actions"]]
    wanted = ["version_refused", "version_tagged", "plan_written", "manifest_derived", "alias_moved", "entry_resolved"]
    assert [what for what in dict.fromkeys(told) if what in wanted] == wanted, told


def served(desk: Desk, port: int) -> dict[str, Any]:
    """Serves `serve.yaml`, asks for one picture, and ends the server."""
    server = subprocess.Popen(
        ["cleanplate", "serve", "serve.yaml"], cwd=desk.folder, env=desk.environment, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert server.stdout is not None
        line = server.stdout.readline()  # it says where once it answers
        assert str(port) in line, line + (server.stderr.read() if server.stderr else "")
        request = {"prompt": "a picture of red circle", "seed": 1}
        answer = httpx.post(f"http://127.0.0.1:{port}/v1/images/generations", json=request, timeout=120)
        answer.raise_for_status()
        found: dict[str, Any] = answer.json()
    finally:
        server.terminate()
        _, told = server.communicate(timeout=60)
    assert "served 1 requests, 1 pictures, 0 refused, 0 blocked" in told
    assert server.returncode == 0
    return found
