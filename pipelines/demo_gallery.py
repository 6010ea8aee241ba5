"""`cleanplate demo --gallery`: a longer run on more drawings at 64 pixels, to the README's gallery, with what it cost.

Every step is the verb of its name with the job file that ships beside it (`jobs/gallery-*.yaml`); rerunning resumes.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from pipelines import curate, register, train
from pipelines.demo import Clock, by_job, draw, job_of, nearest, needs_extra
from pipelines.pictures import METADATA, PICTURES, render, write_table

if TYPE_CHECKING:
    import numpy as np

    from training.prepare import TrainResult

_JOBS = ("curate", "train", "register")
CPUS = 2
_STEPS = 5
_SEED = 0
_COLUMNS = 10
DRAWINGS = (
    "🍎🍏🍐🍊🍋🍌🍉🍇🍓🍒🍑🥝🍅🥑🍆🥕🌽🌶🍄🥜🍞🥐🥨🧀🍔🍟🍕🌭🥚🍿🍩🍪🎂🍰🧁🍫🍭🍦🍯☕🫖🍷🍺🍹"
    "🐵🐶🐺🦊🐱🦁🐯🐴🦄🐮🐷🐭🐹🐰🐻🐼🐔🐧🐦🦆🦢🦩🦚🦜🦉🐸🐢🐊🐍🐉🦕🐳🐬🐟🐠🦈🐙🦀🦋🐌🐝🐞🕷🐘🦓🦔"
    "🌵🌲🌴🌻🌷🌹🍀🍁🌈🌙⭐☀☁❄🔥🌋⛄💧🪐"
    "🏠⛪🏰⛺⛲🚗🚌🚒🚜🚲🚂✈🚀🛸🚁⛵⚓🚦"
    "⚽🏀🎾🎱🎈🎁🏆🎸🎺🎻🥁🎹🔔📷💡📖✏✂🔑🔨🔒⌚⏰☂👑🎩👓👟👜💎🧲🎃👻🤖"
    "❤🧡💛💚💙🤎🖤🔴🟡🟢🔵🟣🟥🟧🟨🟦🟪📗📙"
)
KNOWN = (
    *("red apple", "cactus", "rocket", "octopus", "sailboat", "hamburger", "sunflower", "owl", "rainbow", "mushroom"),
    *("guitar", "unicorn", "strawberry", "penguin", "castle", "doughnut", "butterfly", "ringed planet", "fox", "robot"),
    *("birthday cake", "flamingo", "volcano", "teapot", "turtle", "fire engine", "pizza", "panda", "tulip", "trophy"),
    *("peacock", "helicopter", "watermelon", "elephant", "balloon", "honeybee", "crown", "tropical fish", "ghost"),
    "evergreen tree",
)
"""Prompts that are captions of drawings."""
NEW = (
    *("purple heart", "orange circle", "green square", "blue book", "blue apple"),
    *("purple mushroom", "green automobile", "red fish", "yellow owl", "red umbrella"),
)
"""Prompts that are not: words it was trained on, in pairs that it never was."""


class GalleryResult(BaseModel):
    """What `summary.json` says."""

    inputs: int
    counts: dict[str, int]
    manifest: str
    images_seen: int
    parameters: int
    training_cpu_hours: float  # of the process that trained, all its threads
    mlflow_run: str
    model: str
    model_version: str
    bundle: str
    nearest_is_asked_for: float  # share of all captions whose picture has their own drawing nearest, by pixels
    chance: float
    seconds: dict[str, float]
    gallery: str
    summary: str


def run(out: str, sets: list[str]) -> GalleryResult:
    """Makes the gallery in a folder.

    Args:
        out: the folder, made when absent.
        sets: overrides of its jobs, `JOB.a.b=value` with JOB one of curate, train, register.

    Raises:
        UserError: for a bad override, or when the extra `demo` is not installed.
    """
    from curation.manifest import Manifest
    from pipelines.cluster import connect

    folder = Path(out)
    overrides = by_job(sets, _JOBS)
    clock = Clock(_STEPS)
    with clock.step("prepare", f"rendering {len(DRAWINGS)} OpenMoji drawings"), needs_extra():
        inputs = prepare(folder)
    with clock.step("curate", f"curating {inputs} files"), connect(cpus=CPUS):
        curated = curate.run(_curate_job(folder, overrides))
    with clock.step("train", "training on what was kept"):
        paths = {"manifest": curated.manifest, "output": str(folder / "training")}
        begun = time.process_time()
        trained = train.run(job_of("gallery", "train", overrides, paths))
        hours = _cost(folder / "cost.json", trained, time.process_time() - begun)
    with clock.step("register", "making it a model version"):
        paths = {"bundle": trained.bundle, "run_id": trained.run_id}
        version = register.run(job_of("gallery", "register", overrides, paths))
    with clock.step("draw", "drawing every caption and what it never saw, and looking for the drawing nearest to each"):
        from training.bundle import read_info
        from training.data import load

        known = load(Manifest.open(curated.manifest))
        originals = known.pictures.movedim(1, -1).numpy()
        captions = sorted(set(known.captions))
        prompts, parameters = [*captions, *NEW], read_info(trained.bundle).parameters
        pictures = draw(trained.bundle, prompts, _SEED)
        drawn, rows = dict(zip(prompts, pictures, strict=True)), nearest(pictures, originals)
        right = sum(known.captions[row] == caption for row, caption in zip(rows, captions, strict=False))
        gallery = folder / "gallery.png"
        beside = {new: originals[row] for new, row in zip(NEW, rows[len(captions) :], strict=True)}
        _show(gallery, drawn, beside, _caption(len(captions), parameters, trained.images_seen, hours))
    result = GalleryResult(
        inputs=inputs,
        counts=curated.counts,
        manifest=curated.manifest,
        images_seen=trained.images_seen,
        parameters=parameters,
        training_cpu_hours=round(hours, 3),
        mlflow_run=trained.run_id,
        model=version.name,
        model_version=version.version,
        bundle=trained.bundle,
        nearest_is_asked_for=right / len(captions),
        chance=1 / len(known),
        seconds=clock.seconds | {"total": round(time.monotonic() - clock.begun, 2)},
        gallery=str(gallery),
        summary=str(folder / "summary.json"),
    )
    Path(result.summary).write_text(json.dumps(result.model_dump(), indent=2) + "\n")
    return result


def summary(result: GalleryResult) -> list[str]:
    """The result for a person."""
    return [
        "",
        f"{result.images_seen:,} images seen in {result.training_cpu_hours:.2f} CPU hours",
        f"{result.nearest_is_asked_for:.0%} of the pictures of its captions have their own drawing nearest "
        f"(chance: {result.chance:.1%})",
        "",
        f"open      {result.gallery}",
        f"numbers   {result.summary}",
        f"one more  cleanplate generate 'fox' --model models:/{result.model}@champion --out fox.png",
    ]


def jobs(out: str, sets: list[str]) -> list[Any]:
    """The gallery's jobs, for `--dry-run`; what a step gets from the one before stands as it is in the job file."""
    overrides = by_job(sets, _JOBS)
    return [_curate_job(Path(out), overrides), *(job_of("gallery", kind, overrides, {}) for kind in _JOBS[1:])]


def prepare(folder: Path, *, drawings: str = DRAWINGS, size: int = 256) -> int:
    """Renders drawings into `folder/pictures`, with `pictures.csv` beside it, and says how many."""
    pictures = folder / PICTURES
    pictures.mkdir(parents=True, exist_ok=True)
    write_table(folder / METADATA, [render(pictures, symbol, (), size) for symbol in drawings])
    return len(drawings)


def _curate_job(folder: Path, overrides: dict[str, list[str]]) -> Any:
    paths = {
        "source.path": str(folder / PICTURES),
        "source.metadata": str(folder / METADATA),
        "output": str(folder / "manifests"),
    }
    return job_of("gallery", "curate", overrides, paths)


def _cost(path: Path, trained: TrainResult, seconds: float) -> float:
    """CPU hours of the whole training.

    They are written down once, since a finished run is found and not repeated. Of a run that was resumed this process
    trained a part, which stands for the rest by its images.
    """
    if path.is_file():
        told = json.loads(path.read_text())
        if told["run_id"] == trained.run_id:
            return float(told["cpu_hours"])
    hours = seconds / 3600 * trained.images_seen / max(trained.images_seen - trained.resumed_from, 1)
    path.write_text(json.dumps({"run_id": trained.run_id, "cpu_hours": hours}) + "\n")
    return hours


def _caption(drawings: int, parameters: int, images_seen: int, hours: float) -> str:
    return (
        f"A model of {parameters / 1e6:.1f} million parameters, trained on {drawings} OpenMoji drawings (CC BY-SA 4.0) "
        f"for {images_seen:,} images seen: {hours:.2f} CPU hours. It knows them by heart."
    )


def _show(path: Path, drawn: dict[str, np.ndarray], beside: dict[str, np.ndarray], caption: str) -> None:
    """Rows of what it was trained on, then a row of what it was not, with the nearest drawing below each, framed."""
    from PIL import Image, ImageDraw, ImageFont

    cell, gap, label, head = 96, 12, 18, 34
    step, height = cell + gap, cell + label + gap
    shown = [prompt for prompt in KNOWN if prompt in drawn]
    rows = -(-len(shown) // _COLUMNS)
    sheet = Image.new("RGB", (_COLUMNS * step + gap, 2 * head + (rows + 2) * height), "white")
    pen = ImageDraw.Draw(sheet)
    title, small = ImageFont.load_default(14), ImageFont.load_default(11)

    def paste(picture: np.ndarray, x: int, y: int) -> None:
        sheet.paste(Image.fromarray(picture).resize((cell, cell), Image.Resampling.BICUBIC), (x, y))

    pen.text((gap, gap), caption, fill="black", font=title)
    for index, prompt in enumerate(shown):
        x, y = index % _COLUMNS * step + gap, head + index // _COLUMNS * height
        pen.text((x, y), prompt, fill="black", font=small)
        paste(drawn[prompt], x, y + label)
    y = head + rows * height
    told = "Words that it was never trained on together; below each, framed, the drawing that comes nearest:"
    pen.text((gap, y + gap), told, fill="black", font=title)
    for index, new in enumerate(beside):
        x, top = index * step + gap, y + head
        pen.text((x, top), new, fill="black", font=small)
        paste(drawn[new], x, top + label)
        below = top + label + height - gap
        paste(beside[new], x, below)
        pen.rectangle((x - 2, below - 2, x + cell + 1, below + cell + 1), outline="#888888")
    sheet.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
