"""Samples per second of the real loop against a bare PyTorch loop on the same U-Net: `python -m tests.bench.training`.

The platform side is `training.loop.train` itself: rows of a manifest, text states, counter-based randomness, caption
dropout, EMA, clipping, the learning rate, a point told after every step. The bare side is what a researcher writes in
ten lines: resident data, torch's generator, no EMA, no logging. It runs inside the callback that takes the points, so
both sides alternate step by step in one process, on one thread, and a busy machine slows both alike.

Last line: {"ratios": {"over_bare_loop": platform / bare}}, of the medians.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from tests.training.conftest import shapes, write_manifest, write_tower
from training import objective
from training.data import TrainingSet, load
from training.job import TrainJob
from training.learner import Place
from training.loop import train
from training.progress import Point
from training.schedules import alphas_cumprod
from training.text import TextEncoder
from training.unet import build_unet, to_patches

STEPS = 70  # of each side
WARM_UP = 10  # of these, not counted


def bare_loop(job: TrainJob, data: TrainingSet, text: TextEncoder) -> Callable[[], None]:
    """A step of the loop that does nothing but train."""
    torch.manual_seed(0)
    unet = build_unet(job.unet, image_size=data.image_size, patch_size=job.patch_size, text_width=text.width)
    unet.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(unet.parameters(), lr=job.optimizer.lr, betas=job.optimizer.betas, fused=True)
    x0_all = to_patches(data.pictures.float() / 127.5 - 1, job.patch_size)
    told_all = text.encode(data.captions).cropped()
    abars = torch.as_tensor(alphas_cumprod(job.schedule.betas()))

    def step() -> None:
        rows = torch.randint(len(x0_all), (job.batch_size,))
        x0, noise = x0_all[rows], torch.randn(job.batch_size, *x0_all.shape[1:])
        t = torch.randint(len(abars), (job.batch_size,))
        xt = objective.q_sample(x0, noise, abars[t]).contiguous(memory_format=torch.channels_last)
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


def main() -> None:
    torch.set_num_threads(1)
    seconds: dict[str, list[float]] = {"bare": [], "platform": []}
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        data = load(write_manifest(root / "manifests", shapes(32)))
        text = TextEncoder(write_tower(root / "text_encoder"))
        job = TrainJob(manifest="-", output="-", images=STEPS * 32, batch_size=32)
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

        train(job, folder=str(root / "run"), data=data, text=text, place=Place(), report=take)
    print(f"{'loop':10} {'images/s (median)':>18} {'images/s (best)':>16}")
    for name, values in seconds.items():
        median, best = statistics.median(values[WARM_UP:]), min(values[WARM_UP:])
        print(f"{name:10} {job.batch_size / median:18.1f} {job.batch_size / best:16.1f}")
    ratio = statistics.median(seconds["bare"][WARM_UP:]) / statistics.median(seconds["platform"][WARM_UP:])
    print(json.dumps({"ratios": {"over_bare_loop": round(ratio, 3)}}))


if __name__ == "__main__":
    main()
