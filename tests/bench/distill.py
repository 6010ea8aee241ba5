"""A teacher against its few-step students on OpenMoji drawings: `python -m tests.bench.distill`.

Trains a small teacher on drawings rendered at 32 x 32, distils it to 8 and to 4 steps, each in one halving of its own
guided steps, the student of 4 to 2 and that to 1, and draws the same prompts with the same seeds by all of them.
Everything is kept in `--out`, so that a bench that was interrupted goes on, and a larger one is a matter of options:

    python -m tests.bench.distill --pictures 150 --preset tiny --images 44000 --stage-images 32000 --out runs/distill

- retrieval: share of the pictures whose own prompt the embedded CLIP ranks first among all; of the real ones, too.
- FD: Fréchet distance to the training pictures in that CLIP's image embeddings. It is not FID.
- near-copies: share of the pictures that lie nearer to a training picture than half the way from that one to its own
  nearest other one (root mean square of pixels). So small a set is known by heart: the teacher's own share is the bar.
- to teacher: mean squared error of pixels against the teacher's 50 steps from the same noise.

Intervals are 95 % bootstraps over pictures. Last line: {"ratios": {"evaluations_saved", "retrieval_points_lost",
"frechet_over_teacher"}}, of the student's 4 steps against the teacher's 50; evaluations are counted, not reckoned.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from curation.clip import ClipConfig
from curation.manifest import Manifest
from pipelines import pictures as drawings
from tests.training.conftest import write_manifest
from training import distances
from training.bundle import DiffusionModel, load_bundle
from training.data import TrainingSet, load
from training.distill_job import DistillJob
from training.distill_loop import Teacher, distill
from training.job import TrainJob
from training.learner import Place
from training.loop import train
from training.sampling import SamplingParams, sample
from training.text import CONFIG_FILE, TextEncoder
from training.tracking import resolve

GUIDANCE = 2.5
STUDENTS = (8, 4, 2, 1)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=24, help="drawings in the set, from the demo's list")
    parser.add_argument("--images", type=int, default=12_000, help="the teacher's budget in images seen")
    parser.add_argument("--stage-images", type=int, default=3_000, help="of each halving; there are four")
    parser.add_argument("--lr", type=float, default=1e-3, help="learning rate that each halving begins with")
    parser.add_argument("--seeds", type=int, default=4, help="pictures of each prompt")
    parser.add_argument("--preset", help="a U-Net of that name behind patches of 2; else a smaller one, patches of 4")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--teacher", help="a bundle or models:/NAME@alias instead; then also --manifest")
    parser.add_argument("--manifest", help="the teacher's")
    parser.add_argument("--out", help="folder to keep everything in; a temporary one when not given")
    return parser.parse_args()


def _drawings(root: Path, count: int) -> str:
    """A manifest of the demo's first drawings at 32 x 32."""
    import csv

    drawings.prepare(root / "drawings")
    with (root / "drawings" / drawings.METADATA).open(newline="") as file:
        rows = list(csv.DictReader(file))[:count]
    made = []
    for row in rows:
        with Image.open(root / "drawings" / drawings.PICTURES / row["path"]) as picture:
            small = picture.convert("RGB").resize((32, 32), Image.Resampling.LANCZOS)
        made.append((row["title"], np.asarray(small)))
    return write_manifest(root / "manifests", made).uri


def _teacher(root: Path, data: TrainingSet, images: int, preset: str | None) -> str:
    """The demo's recipe, with the budget given; by default with a network that learns in a minute."""
    tower = root / "text_encoder"
    if not (tower / CONFIG_FILE).is_file():
        tower.mkdir(parents=True, exist_ok=True)
        ClipConfig().build().export_text_tower(tower)
    unet = (
        {"network": {"block_out_channels": (32, 64, 64)}, "patch_size": 4}
        if preset is None
        else {"network": {"preset": preset}}
    )
    job = TrainJob.model_validate(
        {
            **unet, "precision": "fp32", "name": "teacher", "manifest": "-", "output": "-", "images": images,
            "prediction": "sample",
            "checkpoint_every": 2000, "sample": {"steps": 50, "guidance_scale": GUIDANCE},
        }
    )  # fmt: skip
    outcome = train(job, folder=str(root / f"teacher-{images}"), data=data, text=TextEncoder(tower), place=Place())
    assert outcome.bundle is not None
    return outcome.bundle


def _students(root: Path, teacher: str, data: TrainingSet, images: int, lr: float) -> dict[int, str]:
    """Bundles by steps. Where the teacher draws as well in twice as many guided steps, one halving of those loses less
    than several: what a student gets wrong, those that it teaches get wrong, too."""
    bundles: dict[int, str] = {}
    for steps in STUDENTS:
        master, guidance = (teacher, GUIDANCE) if steps >= 4 else (bundles[2 * steps], 1.0)
        method = {"kind": "progressive", "teacher_steps": 2 * steps, "images_per_stage": images}
        job = DistillJob.model_validate(
            {
                "teacher": "-", "output": "-", "method": method, "steps": steps, "optimizer": {"lr": lr},
                "precision": "fp32", "checkpoint_every": 2000,
            }
        )  # fmt: skip
        begun = time.process_time()
        wise = Teacher(load_bundle(master), resolve(master).tags["bundle_sha256"], guidance)
        outcome = distill(job, folder=str(root / f"student-{steps}"), teacher=wise, data=data)
        print(f"student of {steps} steps: {job.budget:,} images, {time.process_time() - begun:.0f} CPU s", flush=True)
        assert outcome.bundle is not None
        bundles[steps] = outcome.bundle
    return bundles


class _Judge:
    """Measures drawn pictures, uint8 (N, H, W, 3), of `prompts`."""

    def __init__(self, data: TrainingSet, prompts: list[str]) -> None:
        self._clip = ClipConfig().build()
        self._texts = self._clip.embed_texts(sorted(set(prompts)))
        places = {prompt: place for place, prompt in enumerate(sorted(set(prompts)))}
        self._wanted = np.array([places[prompt] for prompt in prompts])
        self._real = data.pictures.permute(0, 2, 3, 1).numpy()
        self._real_features = self.features(self._real)
        flat = self._real.reshape(len(self._real), -1).astype(np.float64) / 255
        apart = _rms(flat, flat)
        np.fill_diagonal(apart, np.inf)
        self._flat, self._own = flat, apart.min(axis=1)
        captions = [places[caption] for caption in data.captions]
        self.real_retrieval = float((np.argmax(self._real_features @ self._texts.T, axis=1) == captions).mean())

    def features(self, drawn: np.ndarray) -> np.ndarray:
        return self._clip.embed_images(np.stack([self._clip.prepare(Image.fromarray(picture)) for picture in drawn]))

    def row(self, drawn: np.ndarray, by_teacher: np.ndarray) -> dict[str, float | tuple[float, float]]:
        features = self.features(drawn)
        right = (np.argmax(features @ self._texts.T, axis=1) == self._wanted).astype(np.float64)
        apart = _rms(drawn.reshape(len(drawn), -1).astype(np.float64) / 255, self._flat)
        copies = (apart.min(axis=1) < 0.5 * self._own[apart.argmin(axis=1)]).astype(np.float64)
        return {
            "retrieval": float(right.mean()),
            "retrieval_ci": tuple(distances.mean_interval(right)),
            "fd": distances.frechet(features, self._real_features),
            "fd_ci": tuple(distances.frechet_interval(features, self._real_features)),
            "copies": float(copies.mean()),
            "copies_ci": tuple(distances.mean_interval(copies)),
            "to_teacher": float(np.square((drawn.astype(np.float64) - by_teacher) / 255).mean()),
        }


def _rms(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(N, M)."""
    squares = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None, :] - 2 * a @ b.T
    return np.sqrt(np.maximum(squares, 0) / a.shape[1])


def _draw(
    model: DiffusionModel, prompts: list[str], seeds: list[int], params: SamplingParams
) -> tuple[np.ndarray, float]:
    """Pictures, and evaluations of the network for each."""
    evaluated = 0

    def count(_: object, given: tuple[torch.Tensor, ...]) -> None:
        nonlocal evaluated
        evaluated += len(given[0])

    hook = model.unet.register_forward_pre_hook(count)
    parts = [
        sample(model, prompts[first : first + 32], seeds[first : first + 32], params, exact=False)
        for first in range(0, len(prompts), 32)
    ]
    hook.remove()
    return np.concatenate(parts), evaluated / len(prompts)


def main() -> None:
    options = _arguments()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as scratch:
        _run(options, Path(options.out or scratch))


def _run(options: argparse.Namespace, root: Path) -> None:
    root.mkdir(parents=True, exist_ok=True)
    kept = root / f"manifest-{options.pictures}.txt"
    if options.manifest is None and not kept.is_file():
        kept.write_text(_drawings(root, options.pictures))
    data = load(Manifest.open(options.manifest or kept.read_text()))
    begun = time.process_time()
    teacher = options.teacher and resolve(options.teacher).bundle
    teacher = teacher or _teacher(root, data, options.images, options.preset)
    print(f"teacher: {len(data)} drawings, {time.process_time() - begun:.0f} CPU s", flush=True)
    bundles = _students(root, teacher, data, options.stage_images, options.lr)
    prompts = sorted(set(data.captions)) * options.seeds
    judge = _Judge(data, prompts)
    master = load_bundle(teacher)
    rows = [
        (f"teacher {steps}", master, SamplingParams(steps=steps, guidance_scale=GUIDANCE)) for steps in (50, 20, 10, 4)
    ]
    rows += [
        (f"DPM-Solver++ {steps}", master, SamplingParams(steps=steps, guidance_scale=GUIDANCE, sampler="dpmsolver++"))
        for steps in (8, 4)
    ]
    rows += [
        (f"student {s}", load_bundle(bundle), SamplingParams(steps=s, guidance_scale=1))
        for s, bundle in bundles.items()
    ]
    table: dict[str, dict[str, float | tuple[float, float]]] = {}
    by_teacher = np.zeros(0)
    print(f"{len(prompts)} pictures each; of the real ones CLIP finds {judge.real_retrieval:.1%}")
    print(f"{'':16}{'evaluations':>12}{'retrieval':>28}{'FD (CLIP)':>26}{'near-copies':>28}{'to teacher':>12}")
    for name, model, params in rows:
        drawn, evaluations = _draw(model, prompts, list(range(len(prompts))), params)
        by_teacher = by_teacher if len(by_teacher) else drawn.astype(np.float64)
        row = table[name] = {"evaluations": evaluations, **judge.row(drawn, by_teacher)}
        cells = [
            f"{row[k]:.3f} [{row[f'{k}_ci'][0]:.3f}, {row[f'{k}_ci'][1]:.3f}]" for k in ("retrieval", "fd", "copies")
        ]  # type: ignore[index]
        print(
            f"{name:16}{evaluations:12.0f}{cells[0]:>28}{cells[1]:>26}{cells[2]:>28}{row['to_teacher']:12.5f}",
            flush=True,
        )
    (root / "table.json").write_text(json.dumps(table, indent=1))
    whole, student = table["teacher 50"], table["student 4"]
    ratios = {
        "evaluations_saved": _of(whole, "evaluations") / _of(student, "evaluations"),
        "retrieval_points_lost": round(100 * (_of(whole, "retrieval") - _of(student, "retrieval")), 2),
        "frechet_over_teacher": round(_of(student, "fd") / _of(whole, "fd"), 3),
    }
    print(json.dumps({"ratios": ratios}))


def _of(row: dict[str, float | tuple[float, float]], name: str) -> float:
    value = row[name]
    assert isinstance(value, float)
    return value


if __name__ == "__main__":
    main()
