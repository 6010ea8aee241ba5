"""`cleanplate demo --moving`: the same road with loops that move, from GIFs and folders of frames to films.

Every step is the verb of its name with the job file that ships beside it (`jobs/moving-*.yaml`); rerunning resumes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from pipelines import curate, moving, register, train
from pipelines.demo import Clock, by_job, draw, job_file, job_of, nearest, needs_extra

if TYPE_CHECKING:
    import numpy as np

_JOBS = ("curate", "train", "register")
CPUS = 2
_STEPS = 5
_ASKED = 16  # prompts, spread over the training captions
_SHOWN = 6  # of these, in the pictures
_SEED = 0


class MovingResult(BaseModel):
    """What `summary.json` says."""

    inputs: int
    counts: dict[str, int]
    manifest: str
    images_seen: int
    mlflow_run: str
    model: str
    model_version: str
    bundle: str
    frames: int
    nearest_is_asked_for: float  # share of films whose nearest training film, by pixels, is the one that was asked for
    chance: float
    prompts: list[str]
    seconds: dict[str, float]
    film: str
    strip: str
    summary: str


def run(out: str, sets: list[str]) -> MovingResult:
    """Runs the demo of films into a folder.

    Args:
        out: the folder, made when absent.
        sets: overrides of the demo's jobs, `JOB.a.b=value` with JOB one of curate, train, register.

    Raises:
        UserError: for a bad override, or when the extra `demo` is not installed.
    """
    from curation.manifest import Manifest
    from pipelines.cluster import connect

    folder = Path(out)
    overrides = by_job(sets, _JOBS)
    clock = Clock(_STEPS)
    with clock.step("prepare", "drawing loops of OpenMoji drawings, as GIFs and as folders of frames"), needs_extra():
        inputs = moving.write(folder)
    with connect(cpus=CPUS):
        with clock.step("curate", f"curating {inputs} loops"):
            curated = curate.run(_curate_job(folder, overrides))
        with clock.step("train", "training on what was kept"):
            paths = {"manifest": curated.manifest, "output": str(folder / "training")}
            trained = train.run(job_of("moving", "train", overrides, paths))
    with clock.step("register", "making it a model version"):
        paths = {"bundle": trained.bundle, "run_id": trained.run_id}
        version = register.run(job_of("moving", "register", overrides, paths))
    with clock.step("draw", f"drawing {_ASKED} films, and looking for the training film nearest to each"):
        from training.data import load

        known = load(Manifest.open(curated.manifest))
        prompts = _asked(known.captions)
        films = draw(trained.bundle, prompts, _SEED)
        rows = nearest(films, known.pictures.movedim(2, -1).numpy())
        film, strip = folder / "moving.webp", folder / "moving.png"
        _show(prompts, films, film, strip)
    right = sum(known.captions[row] == prompt for row, prompt in zip(rows, prompts, strict=True))
    result = MovingResult(
        inputs=inputs,
        counts=curated.counts,
        manifest=curated.manifest,
        images_seen=trained.images_seen,
        mlflow_run=trained.run_id,
        model=version.name,
        model_version=version.version,
        bundle=trained.bundle,
        frames=films.shape[1],
        nearest_is_asked_for=right / len(prompts),
        chance=1 / len(known),
        prompts=prompts,
        seconds=clock.seconds | {"total": round(time.monotonic() - clock.begun, 2)},
        film=str(film),
        strip=str(strip),
        summary=str(folder / "summary.json"),
    )
    Path(result.summary).write_text(json.dumps(result.model_dump(), indent=2) + "\n")
    return result


def summary(result: MovingResult) -> list[str]:
    """The result for a person."""
    counts = ", ".join(f"{n} {decision}" for decision, n in result.counts.items() if n)
    return [
        "",
        f"{result.inputs} loops = {counts}",
        f"of {len(result.prompts)} films, {result.nearest_is_asked_for:.0%} have the training film of their own words "
        f"nearest (chance: {result.chance:.1%})",
        f"whole demo: {result.seconds['total']:.0f} s",
        "",
        f"open      {result.film}, which moves, and {result.strip}, its frames side by side",
        f"numbers   {result.summary}",
        f"one more  cleanplate generate 'rocket moving up' --model models:/{result.model}@champion --out rocket.webp",
        f"endpoint  cleanplate serve {job_file('moving', 'serve')}",
    ]


def jobs(out: str, sets: list[str]) -> list[Any]:
    """The demo's jobs, for `--dry-run`; what a step gets from the one before stands as it is in the job file."""
    overrides = by_job(sets, _JOBS)
    return [_curate_job(Path(out), overrides), *(job_of("moving", kind, overrides, {}) for kind in _JOBS[1:])]


def _curate_job(folder: Path, overrides: dict[str, list[str]]) -> Any:
    paths = {
        "source.path": str(folder / moving.MOVING),
        "source.metadata": str(folder / moving.METADATA),
        "output": str(folder / "manifests"),
    }
    return job_of("moving", "curate", overrides, paths)


def _asked(captions: Sequence[str]) -> list[str]:
    """Prompts: captions of the training set, spread over it."""
    texts = sorted(set(captions))
    return texts[:: max(1, len(texts) // _ASKED)][:_ASKED]


def _show(prompts: Sequence[str], films: np.ndarray, film: Path, strip: Path) -> None:
    """The first films, as one that moves and as rows of frames, under their prompts."""
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    from training.films import encoded

    cell, gap, label = 96, 8, 20
    height = cell + label + gap
    font = ImageFont.load_default(14)
    shown = min(_SHOWN, len(prompts))
    frames = films.shape[1]

    def sheet(columns: int, rows: int) -> Image.Image:
        return Image.new("RGB", (columns * (cell + gap) + gap, rows * height + gap), "white")

    def paste(onto: Image.Image, which: int, frame: int, x: int, y: int) -> None:
        picture = Image.fromarray(films[which, frame]).resize((cell, cell), Image.Resampling.BICUBIC)
        onto.paste(picture, (x, y + label))

    still = sheet(frames, shown)
    for which in range(shown):
        y = which * height + gap
        ImageDraw.Draw(still).text((gap, y), prompts[which], fill="black", font=font)
        for frame in range(frames):
            paste(still, which, frame, frame * (cell + gap) + gap, y)
    still.save(strip)
    moves = []
    for frame in range(frames):
        page = sheet(2 * shown // 3, 3)
        for which in range(shown):
            x, y = which // 3 * 2 * (cell + gap) + gap, which % 3 * height + gap
            ImageDraw.Draw(page).text((x, y), prompts[which], fill="black", font=font)
            paste(page, which, frame, x, y)
        moves.append(np.asarray(page))
    film.write_bytes(encoded(np.stack(moves), "WEBP", lossless=True))
