"""Images per second of the real loop beside diffusers' own script: `python -m tests.bench.diffusers_script`.

The script, `train_text_to_image.py`, is run as it stands in the folder that `DIFFUSERS_EXAMPLES` names (`examples` of a
checkout), in an environment of its own. Both sides are processes of one thread that are alive at once and take turns of
some steps: the one whose turn it is not stands still (SIGSTOP), so that a busy machine slows both alike. Seconds are
counted between lines of their progress within a turn: no start, no waiting, no saving.

Same on both sides: pictures (PNG, 32 pixels) and captions, the `tiny` U-Net, batch, bf16 autocast, v-prediction on the
cosine schedule, AdamW, clipping, a moving average of the weights (the script's by `--foreach_ema`), a loss told after
every step. The script has what it can have beyond that: a process that loads pictures beside it, which makes it the
only one to have a second core, and no tracker. Its U-Net lacks the embedding of the pooled caption and the mask of the
caption's tokens, since it passes neither: work that only ours does.

What the script does in each step and ours does not: it decodes and normalises pictures again, tokenizes captions, and
runs its autoencoder and text tower, which are as small as they can be (`peers.make_pipeline`); AdamW and the schedule
run parameter by parameter and through accelerate's wrappers. Ours keeps pictures and caption states in memory, and
computes its noise by counter, which is dearer than torch's generator.

Last line: {"ratios": {"over_diffusers_script"}}, by the clock and, for a machine that is not quiet, `by_cpu`.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import queue
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tests.bench.peers.cpu import MARK, CpuWatch
from tests.bench.peers.environments import environment
from tests.training.conftest import WIDTH, shapes, write_manifest, write_tower
from training.job import TrainJob

VARIABLE = "DIFFUSERS_EXAMPLES"
SCRIPT = Path("text_to_image/train_text_to_image.py")
REQUIREMENTS = (
    "torch==2.13.0",
    "torchvision==0.28.0",
    "diffusers==0.42.1",
    "accelerate==1.15.0",
    "transformers==5.24.0",
    "datasets==5.2.0",
)
PICTURES = 4096  # an epoch of 128 steps: its end does not come while a turn is taken
BATCH = 32
STEPS = 400  # that both are told to do; they are ended before
WARM_UP = 12
TURNS = 12  # of each side
TURN = 8  # steps, of which the first one also holds the time that the side stood still
_PROGRESS = re.compile(rb"^Steps: .*?(\d+)/\d+ \[")


@dataclass
class Side:
    """A training that is under way, and the seconds of its steps."""

    name: str
    process: subprocess.Popen[bytes]
    watch: CpuWatch
    began: float
    started: float = 0.0  # seconds until the first step was done
    clock: list[float] = field(default_factory=list)  # seconds a step
    cpu: list[float] = field(default_factory=list)  # of all its processes, mean of each turn
    _lines: queue.Queue[tuple[float, int]] = field(default_factory=queue.Queue)
    _said: list[bytes] = field(default_factory=list)

    @classmethod
    def start(cls, name: str, command: list[str], cwd: Path) -> Side:
        watch = CpuWatch()
        told = os.environ | {MARK: watch.mark, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        process = subprocess.Popen(
            command, env=told, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
        )
        side = cls(name, process, watch, time.perf_counter())
        watch.start()
        threading.Thread(target=side._listen, daemon=True).start()
        return side

    def _listen(self) -> None:
        """Progress bars rewrite their line: what ends in a carriage return is a line as well."""
        assert self.process.stderr is not None
        line, last = b"", 0
        while byte := self.process.stderr.read1(1 << 16):
            now = time.perf_counter()
            *lines, line = re.split(rb"[\r\n]", line + byte)
            self._said = [*self._said, *lines][-60:]
            # a bar is drawn after its carriage return, and is whole though none has followed
            for found in map(_PROGRESS.match, [*lines, line]):
                if found and int(found[1]) > last:
                    last = int(found[1])
                    self._lines.put((now, last))
        self._lines.put((time.perf_counter(), -1))

    def _next(self) -> tuple[float, int]:
        when, step = self._lines.get()
        if step < 0:
            said = b"\n".join(self._said).decode(errors="replace")
            raise RuntimeError(f"{self.name} ended with {self.process.wait()}:\n{said}")
        return when, step

    def until(self, step: int) -> None:
        """Waits for the end of a step."""
        while (told := self._next())[1] < step:
            if not self.started and told[1] == 1:
                self.started = told[0] - self.began

    def turn(self) -> None:
        """Goes on for some steps, and is measured."""
        self.signal(signal.SIGCONT)
        begun = self._next()
        used = self.watch.read()
        last = begun
        while last[1] < begun[1] + TURN - 1:
            now = self._next()
            self.clock.append((now[0] - last[0]) / (now[1] - last[1]))
            last = now
        self.cpu.append((self.watch.read() - used) / (last[1] - begun[1]))
        self.signal(signal.SIGSTOP)

    def signal(self, number: int) -> None:
        """Sends a signal to all processes of the side."""
        os.killpg(self.process.pid, number)

    def end(self) -> None:
        """Nothing is left of it."""
        if self.process.poll() is None:
            self.signal(signal.SIGKILL)
        self.process.wait()
        self.watch.stop()


def pictures(count: int) -> list[tuple[str, np.ndarray]]:
    """Captions, and coloured shapes of 32 pixels somewhere in a grainy picture."""
    rng, drawn = np.random.default_rng(0), shapes(32)
    found = []
    for number in range(count):
        caption, picture = drawn[number % len(drawn)]
        moved = np.roll(picture, rng.integers(-6, 7, 2), (0, 1)).astype(np.int16) + rng.integers(-8, 9, picture.shape)
        found.append((caption, moved.clip(0, 255).astype(np.uint8)))
    return found


def image_folder(folder: Path, rows: list[tuple[str, np.ndarray]]) -> None:
    """The pictures as `datasets` reads them: PNGs and a `metadata.jsonl`."""
    from PIL import Image

    folder.mkdir()
    lines = []
    for number, (caption, picture) in enumerate(rows):
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "PNG")
        (folder / f"{number:06d}.png").write_bytes(buffer.getvalue())
        lines.append(json.dumps({"file_name": f"{number:06d}.png", "text": caption}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))


def platform(root: Path, job: TrainJob) -> Side:
    """Our side: `training.loop.train`, in a process of its own."""
    (root / "ours.json").write_text(job.model_dump_json())
    return Side.start("ours", [sys.executable, "-m", "tests.bench.diffusers_script", "--side", str(root)], Path.cwd())


def script(root: Path, job: TrainJob, examples: Path, binaries: Path, loaders: int) -> Side:
    """diffusers' side: the pipeline that it starts from, and the script itself."""
    from training import network
    from training.space import PatchSpace

    space = PatchSpace(job.patch_size)
    unet = network.build(job.network, channels=space.channels, side=32 // space.factor, width=WIDTH)
    config = dict(unet.config) | {"class_embed_type": None, "projection_class_embeddings_input_dim": None}
    (root / "unet.json").write_text(json.dumps(config))
    maker = Path(__file__).parent / "peers" / "make_pipeline.py"
    subprocess.run([binaries / "python", maker, root / "unet.json", root / "pipeline"], check=True)
    flags = {
        "pretrained_model_name_or_path": root / "pipeline", "train_data_dir": root / "pictures", "resolution": 32,
        "train_batch_size": job.batch_size, "max_train_steps": STEPS, "checkpointing_steps": 10 * STEPS,
        "learning_rate": job.optimizer.lr, "mixed_precision": job.precision, "prediction_type": job.prediction,
        "max_grad_norm": job.grad_clip, "dataloader_num_workers": loaders, "output_dir": root / "script",
        "cache_dir": root / "cache",
    }  # fmt: skip
    told = [text for name, value in flags.items() for text in (f"--{name}", str(value))]
    command = [str(binaries / "python"), str(examples / SCRIPT), *told, "--use_ema", "--foreach_ema"]
    return Side.start("script", command, root)


def over_diffusers_script(loaders: int = 1) -> dict[str, float | None]:
    """Steps per second of the platform over those of the script, and `by_cpu`; None where there is no script.

    Args:
        loaders: processes that load pictures for the script.
    """
    where = os.environ.get(VARIABLE)
    if where is None or not (Path(where) / SCRIPT).is_file():
        print(f"over_diffusers_script: set {VARIABLE} to the folder `examples` of a checkout of huggingface/diffusers")
        return {"over_diffusers_script": None}
    binaries = environment(Path("~/.cache/cleanplate-bench").expanduser(), "diffusers", REQUIREMENTS)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        rows = pictures(PICTURES)
        image_folder(root / "pictures", rows)
        manifest = write_manifest(root / "manifests", rows)
        write_tower(root / "text_encoder")
        job = TrainJob(manifest=manifest.uri, output="-", images=STEPS * BATCH, batch_size=BATCH)
        sides: list[Side] = []
        try:
            for start in (lambda: script(root, job, Path(where), binaries, loaders), lambda: platform(root, job)):
                sides.append(side := start())
                side.until(WARM_UP)
                side.signal(signal.SIGSTOP)
            for _ in range(TURNS):
                for side in sides:
                    side.turn()
        finally:
            for side in sides:
                side.end()
    for side in sides:
        rates = [BATCH / statistics.median(side.clock), BATCH / min(side.clock), BATCH / statistics.median(side.cpu)]
        rest = f"{rates[2]:.1f} a CPU second, first step after {side.started:.1f} s"
        print(f"{side.name:10} {rates[0]:18.1f} {rates[1]:16.1f}   {rest}")
    theirs, ours = sides
    return {
        "over_diffusers_script": statistics.median(theirs.clock) / statistics.median(ours.clock),
        "by_cpu": statistics.median(theirs.cpu) / statistics.median(ours.cpu),
    }


def run_ours(root: Path) -> None:
    """The process of our side."""
    import torch

    from curation.manifest import Manifest
    from training.data import load
    from training.learner import Place
    from training.loop import train
    from training.progress import Point
    from training.text import TextEncoder

    torch.set_num_threads(1)
    job = TrainJob.model_validate_json((root / "ours.json").read_text())
    done = 0

    def tell(point: Point) -> None:
        nonlocal done
        done += 1
        print(f"Steps: {done}/{STEPS} [", file=sys.stderr, flush=True)

    text = TextEncoder(root / "text_encoder")
    train(job, folder=str(root / "run"), data=load(Manifest.open(job.manifest)), text=text, place=Place(), report=tell)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--loaders", type=int, default=1, help="processes that load pictures for the script")
    parser.add_argument("--side", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        run_ours(options.side)
        return
    print(f"{'loop':10} {'images/s (median)':>18} {'images/s (best)':>16}")
    found = over_diffusers_script(options.loaders)
    print(json.dumps({"ratios": {name: value and round(value, 3) for name, value in found.items()}}))


if __name__ == "__main__":
    main()
