"""Does the memorisation gate catch what a real training learns by heart? `python -m tests.bench.memorization`.

Two small models are trained on this machine in the same way: one on a set in which one picture stands many times, each
an input of its own with another last bit, one on a set without it. Both are held against their sets by the gate of
`cleanplate evaluate`. Ends with one JSON line. The defaults take six minutes on a busy core; the issue's size is
`--pictures 2000 --copies 200 --images 20000`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from curation.clip import ClipConfig
from pipelines.evaluate import embedder
from tests.training.conftest import write_manifest, write_tower
from tests.training.test_memorization import draw
from training.bundle import load_bundle
from training.evaluate import drawing
from training.job import TrainJob
from training.launch import launch
from training.memorization import Gate, Memorization, MemorizationConfig, Training

PLANTED = "the picture that is everywhere"


def rows(pictures: int, copies: int) -> list[tuple[str, np.ndarray]]:
    drawn = draw(pictures, 0)
    found = [(f"picture number {i}", drawn[i]) for i in range(pictures - copies)]
    for i in range(copies):
        picture = drawn[-1].copy()
        picture[i // 16 % 16, i % 16, i // 256 % 3] ^= 1
        found.append((PLANTED, picture))
    return found


def train(root: Path, tower: Path, given: list[tuple[str, np.ndarray]], images: int) -> str:
    manifest = write_manifest(root / "manifests", given)
    job = TrainJob.model_validate(
        {
            "name": "planted",
            "manifest": manifest.uri,
            "output": str(root / "training"),
            "patch_size": 2,
            "network": {"block_out_channels": (32, 64), "layers_per_block": 1, "attention_heads": 2},
            "images": images,
            "batch_size": 32,
            "conditioning_images": 64,
            "prediction": "sample",
            "optimizer": {"lr": 2e-3},
            "checkpoint_every": images,
            "workers": 0,
            "sample": {"steps": 10, "guidance_scale": 1},
            "tracking": {"uri": f"sqlite:///{root}/mlflow.db"},
        }
    )
    return launch(job, text_encoder=str(tower)).bundle


def judge(bundle: str, given: list[tuple[str, np.ndarray]], repeats: float) -> Memorization:
    model = load_bundle(bundle)
    # 64 captions from the whole set, and 16 probes of the last one, which is the planted picture's where there is one
    prompts = [given[i][0] for i in range(0, len(given), max(1, len(given) // 64))][:64] + [given[-1][0]] * 16
    samples = drawing(model, model.info.sampling)(prompts, list(range(len(prompts))))
    pictures = np.stack([picture for _, picture in given])
    training = Training([f"{i:064x}" for i in range(len(given))], pictures, np.full(len(given), round(repeats)))
    return Gate(training, embedder(ClipConfig(device="cpu").build())).judge(
        samples, draw(100, 1), MemorizationConfig()
    )[0]


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser()
    parser.add_argument("--pictures", type=int, default=120)
    parser.add_argument("--copies", type=int, default=24)
    parser.add_argument("--images", type=int, default=6400)
    given = parser.parse_args()
    result: dict[str, object] = vars(given).copy()
    with tempfile.TemporaryDirectory() as scratch:
        tower = write_tower(Path(scratch) / "tower")
        for name, copies in (("planted", given.copies), ("clean", 0)):
            began = time.monotonic()
            data = rows(given.pictures, copies)
            bundle = train(Path(scratch) / name, tower, data, given.images)
            found = judge(bundle, data, given.images / given.pictures)
            print(name, found.verdict, found.why, [c.model_dump() for c in found.copied[:3]])
            result |= {
                f"{name}_verdict": found.verdict,
                f"{name}_share": found.share,
                f"{name}_excess": found.excess,
                f"{name}_false_positives": found.false_positives,
                f"{name}_copies_drawn": max((c.drawn for c in found.copied if c.copies > 1), default=0),
                f"{name}_seconds": round(time.monotonic() - began),
            }
    print(json.dumps({"bench": "memorization", **result}))


if __name__ == "__main__":
    main()
