"""A small world for the tests of traces and takedowns: a manifest, a ledger beside it, trainings and versions."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from curation.hashes import perceptual, pixel_hash
from curation.job import CurateJob
from curation.manifest import Decision, Manifest
from curation.recheck import derive, record, sources
from curation.takedowns import Entry, Ledger, Selector
from curation.takedowns.events import Kind
from tests.training.conftest import many, write_manifest
from training import tracking
from training.job import TrainJob
from training.launch import launch
from training.prepare import TrainResult

AGAIN = "picture 0 again"


@dataclass
class World:
    """Twelve pictures of noise, four of each of the hosts a.example, b.example and c.example, by as many creators; and
    `AGAIN`, a near-copy of the first one at mirror.example."""

    root: Path
    tower: Path
    manifest: Manifest
    ledger: Ledger
    tracking_uri: str

    @classmethod
    def make(cls, root: Path, tower: Path, store: Path) -> World:
        (root / "mlflow").mkdir(parents=True)
        shutil.copy(store, root / "mlflow" / "mlflow.db")
        manifests = root / "manifests"
        manifest = cls.publish(manifests)
        ledger = Ledger.open(str(manifests / "takedowns"))
        return cls(root, tower, manifest, ledger, f"sqlite:///{root}/mlflow/mlflow.db")

    @staticmethod
    def publish(output: Path) -> Manifest:
        pictures = {f"picture {i}": picture for i, (_, picture) in enumerate(many(12))}
        again = pictures["picture 0"].copy()
        again[0, 0] ^= 1
        pictures[AGAIN] = again
        hosts = {caption: f"{'abc'[i % 3]}.example" for i, caption in enumerate(pictures)} | {AGAIN: "mirror.example"}
        job = CurateJob.model_validate(
            {"source": {"kind": "folder", "path": "pictures"}, "output": str(output), "clip": None, "captions": []}
        )
        return write_manifest(
            output,
            list(pictures.items()),
            said={"job": job.model_dump(mode="json")},
            uri=lambda caption: f"https://{hosts[caption]}/{caption.replace(' ', '-')}.png",
            host=hosts.__getitem__,
            domain=hosts.__getitem__,
            dataset="noise",
            creator=lambda caption: f"Painter {hosts[caption][0].upper()}",
            reason="passed",
            embedding=[0.0] * 4,
            pixel_hash=lambda caption: pixel_hash(pictures[caption]),
            phash=lambda caption: perceptual(pictures[caption]).phash,
            colour_layout=lambda caption: perceptual(pictures[caption]).colour_layout,
        )

    def id_of(self, caption: str, manifest: Manifest | None = None) -> str:
        rows = (manifest or self.manifest).table(["id", "caption"]).to_pylist()
        (found,) = [row["id"] for row in rows if row["caption"] == caption]
        return str(found)

    def ids_at(self, host: str) -> set[str]:
        rows = self.manifest.table(["id", "host"], decision=Decision.KEPT).to_pylist()
        return {row["id"] for row in rows if row["host"] == host}

    def picture(self, caption: str) -> bytes:
        rows = self.manifest.table(["caption", "image"]).to_pylist()
        (found,) = [row["image"]["bytes"] for row in rows if row["caption"] == caption]
        return bytes(found)

    def ask(self, kind: Kind, value: str, reference: str = "1") -> Entry:
        return self.ledger.append_entry(
            requester="Jane Doe", ground="copyright", selectors=[Selector.of(kind, value)], reference=reference
        )

    def job(self, **changes: Any) -> TrainJob:
        fields: dict[str, Any] = {
            "name": "noise",
            "manifest": self.manifest.uri,
            "output": str(self.root / "training"),
            "patch_size": 1,
            "network": {"block_out_channels": (32, 32), "layers_per_block": 1, "attention_heads": 2},
            "images": 64,
            "batch_size": 8,
            "conditioning_images": 8,
            "precision": "fp32",
            "checkpoint_every": 16,
            "workers": 0,
            "sample": {"steps": 2},
            "tracking": {"uri": self.tracking_uri, "experiment": "world"},
            "ledger": self.ledger.uri,
        }
        return TrainJob.model_validate({**fields, **changes})

    def train(self, **changes: Any) -> TrainResult:
        return launch(self.job(**changes), text_encoder=str(self.tower))

    def register(
        self, result: TrainResult, name: str = "drawings", alias: str | None = "champion", run: bool = True
    ) -> tracking.ModelVersion:
        run_id = result.run_id if run else None
        return tracking.register(result.bundle, name, alias=alias, tracking_uri=self.tracking_uri, run_id=run_id)

    def recheck(self, manifest: Manifest | None = None, output: str | None = None) -> Manifest:
        """What is left by the ledger, without asking the web."""
        found = sources(manifest or self.manifest, ledger=self.ledger.uri)
        result = derive(found, None, output)
        record(found, result, "a test")
        return Manifest.open(result.manifest)


def seen_by_force(job: TrainJob, slots: np.ndarray, base_rows: int, images: int) -> dict[int, list[int]]:
    """The samples that show each slot, found by looking at every sample."""
    import torch

    from training.randomness import rows

    removed = np.ones(base_rows, bool)
    removed[slots] = False
    shown: dict[int, list[int]] = {int(slot): [] for slot in slots}
    for index in range(images):
        slot = int(rows(job.seed, torch.tensor([index]), base_rows, torch.from_numpy(removed))[0])
        shown[slot].append(index)
    return shown
