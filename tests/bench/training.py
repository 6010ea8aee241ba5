"""Samples per second of the real loop against a bare PyTorch loop on the same U-Net: `python -m tests.bench.training`.

The platform side is `training.loop.train` itself: rows of a manifest, text states, counter-based randomness, caption
dropout, EMA, clipping, the learning rate, a point told after every step. The bare side is what a researcher writes in
ten lines: resident data, torch's generator, no EMA, no logging. It runs inside the callback that takes the points, so
both sides alternate step by step in one process, on one thread, and a busy machine slows both alike. So do the loader
and the steps that take its batches (`tests.bench.loader`), a checkpoint written in place and one written beside
training (`checkpoint_stall_ms`, no ratio), the loop under torchrun and in Ray Train (`tests.bench.orchestration`), and
the loop beside diffusers' own script (`tests.bench.diffusers_script`).

Last line: {"ratios": {"over_bare_loop", "ray_over_torchrun", "loader_over_demand", "loader_over_demand_shards",
"loader_over_demand_texts", "over_diffusers_script"}}, of the medians; the last is null where `DIFFUSERS_EXAMPLES` does
not say where the script is.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from tests.bench import diffusers_script, loader, orchestration
from tests.training.conftest import shapes, write_manifest, write_tower
from training import checkpoint, network, objective
from training.checkpoint import CheckpointInfo, Identity
from training.data import TrainingSet, load
from training.job import TrainJob
from training.learner import Learner, Place
from training.loop import train
from training.progress import Point
from training.schedules import alphas_cumprod
from training.space import PatchSpace
from training.text import TextEncoder
from training.writer import Writer

STEPS = 70  # of each side
WARM_UP = 10  # of these, not counted


def bare_loop(job: TrainJob, data: TrainingSet, text: TextEncoder) -> Callable[[], None]:
    """A step of the loop that does nothing but train."""
    torch.manual_seed(0)
    space = PatchSpace(job.patch_size)
    side = data.image_size // space.factor
    unet = network.build(job.network, channels=space.channels, side=side, width=text.width)
    unet.train()
    optimizer = torch.optim.AdamW(unet.parameters(), lr=job.optimizer.lr, betas=job.optimizer.betas, fused=True)
    x0_all = space.encode(data.pictures)
    told_all = text.encode(data.captions).cropped()
    abars = torch.as_tensor(alphas_cumprod(job.schedule.betas()))

    def step() -> None:
        rows = torch.randint(len(x0_all), (job.batch_size,))
        x0, noise = x0_all[rows], torch.randn(job.batch_size, *x0_all.shape[1:])
        t = torch.randint(len(abars), (job.batch_size,))
        xt = objective.q_sample(x0, noise, abars[t])
        with torch.autocast("cpu", torch.bfloat16, enabled=job.precision == "bf16"):
            told = told_all[rows]
            output = unet(
                xt, t, told.states, class_labels=told.pooled, encoder_attention_mask=told.mask, return_dict=False
            )[0]
        target = objective.target(job.prediction, x0, noise, abars[t])
        torch.nn.functional.mse_loss(output.float(), target).backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), job.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def over_bare_loop(job: TrainJob, data: TrainingSet, text: TextEncoder, folder: Path) -> float:
    """Steps per second of the platform over those of the bare loop."""
    seconds: dict[str, list[float]] = {"bare": [], "platform": []}
    bare = bare_loop(job, data, text)
    returned = time.perf_counter()

    def take(point: Point) -> None:
        nonlocal returned
        if point.grid is None:
            arrived = time.perf_counter()
            bare()
            seconds["platform"].append(arrived - returned)
            seconds["bare"].append(time.perf_counter() - arrived)
        returned = time.perf_counter()

    train(job, folder=str(folder), data=data, text=text, place=Place(), report=take)
    for name, values in seconds.items():
        median, best = statistics.median(values[WARM_UP:]), min(values[WARM_UP:])
        print(f"{name:10} {job.batch_size / median:18.1f} {job.batch_size / best:16.1f}")
    return statistics.median(seconds["bare"][WARM_UP:]) / statistics.median(seconds["platform"][WARM_UP:])


def checkpoint_stall(learner: Learner, folder: Path, batch_size: int) -> dict[str, float]:
    """Milliseconds that a checkpoint keeps the training thread waiting, and its megabytes.

    Three ways in turns, each with a step after it: written `in_place`; `copied` before training goes on, and written
    beside it; `beside`, as the loop does, where the copy is taken during the step's passes and only the update waits
    for it. `own` is the processor time of the last in the training thread: what it would be on a quiet machine.
    """
    info = CheckpointInfo(
        images_seen=0,
        identity=Identity(manifest_id="", training_set_digest="", text_encoder_sha256="", config={}),
        topology={},
        libraries={},
        points=(),
    )
    writers = {name: Writer(str(folder / name), keep=2) for name in ("copied", "beside")}
    waited: dict[str, list[float]] = {"in_place": [], "copied": [], "beside": [], "own": []}

    def waits(what: Callable[[], object]) -> None:
        began, own = time.perf_counter(), time.thread_time()
        what()
        waited[name][-1] += 1000 * (time.perf_counter() - began)
        if name == "beside":
            waited["own"][-1] += 1000 * (time.thread_time() - own)

    for images in range(0, 45 * batch_size, batch_size):
        name = ("in_place", "copied", "beside")[images // batch_size % 3]
        told = info.model_copy(update={"images_seen": images})
        waited[name].append(0.0)
        if name == "in_place":
            waits(lambda: checkpoint.save(str(folder / "in_place"), learner.state(), told, keep=2))  # noqa: B023
            learner.step(images)
            continue
        if name == "beside":
            waited["own"].append(0.0)
        writer = writers[name]
        waits(lambda: writer.save(learner.state(), told, copies_beside=name == "beside"))  # noqa: B023
        learner.step(images, before_change=lambda: waits(writer.taken))  # noqa: B023
        writer.flush()  # long before the next one is due
    for writer in writers.values():
        writer.close()
    size = sum(tensor.nbytes for part in learner.state().values() for tensor in part.values()) / 1e6
    return {name: round(statistics.median(values), 1) for name, values in waited.items()} | {
        "megabytes": round(size, 1)
    }


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        manifest = write_manifest(root / "manifests", shapes(32))
        data = load(manifest)
        tower = write_tower(root / "text_encoder")
        text = TextEncoder(tower)
        job = TrainJob(manifest=manifest.uri, output="-", images=STEPS * 32, batch_size=32)
        print(f"{'loop':10} {'images/s (median)':>18} {'images/s (best)':>16}")
        ratios: dict[str, float | None] = {"over_bare_loop": over_bare_loop(job, data, text, root / "run")}
        learner = Learner(job, data, text, Place())
        ratios |= loader.over_demand(tower, root / "loader")
        stall = checkpoint_stall(learner, root, job.batch_size)
        print(f"a checkpoint keeps training waiting, in ms: {json.dumps(stall)}")
        several = job.model_copy(update={"workers": 2, "images": 2 * STEPS * 32})
        ratios["ray_over_torchrun"] = orchestration.compare(several, tower, root / "turns")
    ratios["over_diffusers_script"] = diffusers_script.over_diffusers_script()["over_diffusers_script"]
    rounded = {name: None if value is None else round(value, 3) for name, value in ratios.items()}
    print(json.dumps({"ratios": rounded, "checkpoint_stall_ms": stall}))


if __name__ == "__main__":
    main()
