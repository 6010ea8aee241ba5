"""`cleanplate demo`: the whole road on real drawings, as a person would walk it, in one go.

Every step is the verb of its name with the job file that ships beside it (`jobs/demo-*.yaml`), so what works here works
from the command line. Rerunning resumes: a finished step is found and not repeated.
"""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from curation.errors import UserError
from pipelines import config, curate, register, serve, train
from pipelines import index as training_pictures
from pipelines.pictures import METADATA, OPTOUT, PICTURES, PROMPTS, prepare

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from curation.manifest import Manifest

SEEDS = (0, 1, 2, 3)
_JOBS = ("curate", "train", "register", "index", "serve")
CPUS = 3  # two workers, and one more for Ray Serve's replica
_STEPS = 6
_TITLE = "cleanplate demo: twelve prompts, four seeds"


class DemoResult(BaseModel):
    """What `summary.json` says."""

    inputs: int
    counts: dict[str, int]
    reasons: dict[str, int]
    manifest: str
    manifest_id: str
    images_seen: int
    mlflow_run: str
    model: str
    model_version: str
    bundle: str
    endpoint: str
    answers: list[dict[str, Any]]
    retrieval_top1: float  # share of the pictures whose own prompt CLIP ranks first among the twelve; chance is 1/12
    seconds: dict[str, float]
    grid: str
    summary: str


def run(out: str, sets: list[str]) -> DemoResult:
    """Runs the demo into a folder.

    Args:
        out: the folder, made when absent.
        sets: overrides of the demo's jobs, `JOB.a.b=value` with JOB one of curate, train, register, index, serve.

    Raises:
        UserError: for a bad override, or when the extra `demo` is not installed.
    """
    from pipelines.cluster import connect

    folder = Path(out)
    overrides = by_job(sets, _JOBS)
    clock = Clock(_STEPS)
    with clock.step("prepare", "rendering OpenMoji drawings, and breaking a few files"):
        files = _prepare(folder)
    with connect(cpus=CPUS):
        from serving.app import check_port

        check_port(job_of("demo", "serve", overrides, {}))  # now, not after six minutes of training
        with clock.step("curate", f"curating {files} files"):
            curate_job = _curate_job(folder, overrides)
            curated = curate.run(curate_job)
        with clock.step("train", "training on what was kept"):
            paths = {"manifest": curated.manifest, "output": str(folder / "training")}
            trained = train.run(job_of("demo", "train", overrides, paths))
        with clock.step("register", "making it a model version, with an index of what it was trained on"):
            paths = {"bundle": trained.bundle, "run_id": trained.run_id}
            version = register.run(job_of("demo", "register", overrides, paths))
            training_pictures.run(
                job_of("demo", "index", overrides, {"model": f"models:/{version.name}/{version.version}"})
            )
        serve_job = job_of("demo", "serve", overrides, {"model": f"models:/{version.name}@{version.alias}"})
        with clock.step("serve", "bringing the endpoint up, and asking it for twelve prompts"):
            begun = time.monotonic()
            with serve.endpoint(serve_job) as url:
                clock.seconds["endpoint_start"] = round(time.monotonic() - begun, 2)
                answers, drawn = _ask(url)
    with clock.step("judge", "ranking the prompts with CLIP, and drawing the grid"):
        from curation.manifest import Manifest

        manifest = Manifest.open(curated.manifest)
        top1, nearest = _judge(curate_job, manifest, drawn)
        grid = folder / "grid.png"
        _draw_grid(grid, drawn, nearest, _caption(manifest, trained.images_seen))
    result = DemoResult(
        inputs=curated.rows,
        counts=curated.counts,
        reasons=curated.reasons,
        manifest=curated.manifest,
        manifest_id=curated.id,
        images_seen=trained.images_seen,
        mlflow_run=trained.run_id,
        model=version.name,
        model_version=version.version,
        bundle=trained.bundle,
        endpoint=serve_job.url,
        answers=answers,
        retrieval_top1=top1,
        seconds=clock.seconds | {"total": round(time.monotonic() - clock.begun, 2)},
        grid=str(grid),
        summary=str(folder / "summary.json"),
    )
    Path(result.summary).write_text(json.dumps(result.model_dump(), indent=2) + "\n")
    return result


def summary(result: DemoResult) -> list[str]:
    """The result for a person."""
    counts = ", ".join(f"{n} {decision}" for decision, n in result.counts.items())
    drawn = len(PROMPTS) * len(SEEDS)
    return [
        "",
        f"{result.inputs} inputs = {counts}",
        f"CLIP ranks the right prompt first for {result.retrieval_top1:.0%} of {drawn} pictures (chance: 8%)",
        f"whole demo: {result.seconds['total']:.0f} s",
        "",
        f"open      {result.grid}",
        f"numbers   {result.summary}",
        f"rows      cleanplate inspect {result.manifest}",
        "one more  cleanplate generate 'red apple' --seed 3 --out apple.png",
        "from here cleanplate verify apple.png",
        f"endpoint  cleanplate serve {job_file('demo', 'serve')}, then",
        f"          curl {result.endpoint}/v1/images/generations -H 'Content-Type: application/json' "
        f'-d \'{{"prompt": "red apple", "seed": 3}}\'',
        "runs      mlflow ui --backend-store-uri sqlite:///runs/mlflow.db",
    ]


class Clock:
    """Announces the steps, of so many, and keeps their seconds."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self.begun = time.monotonic()
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str, doing: str) -> Iterator[None]:
        at = time.monotonic()
        number = sum(step != "endpoint_start" for step in self.seconds) + 1
        print(f"[{number}/{self._steps}] {name}: {doing}", file=sys.stderr, flush=True)
        yield
        self.seconds[name] = round(time.monotonic() - at, 2)


def by_job(sets: list[str], jobs: tuple[str, ...]) -> dict[str, list[str]]:
    """Overrides `JOB.a.b=value`, by job. Raises UserError for one of another job."""
    found: dict[str, list[str]] = {name: [] for name in jobs}
    for override in sets:
        job, separator, rest = override.partition(".")
        if job not in found or not separator:
            raise UserError(
                f"{override!r} names no job of the demo", field="--set", remedy=f"begin with one of {', '.join(jobs)}"
            )
        found[job].append(rest)
    return found


def job_of(demo: str, kind: str, overrides: dict[str, list[str]], paths: dict[str, str]) -> Any:
    """The job that ships as `jobs/DEMO-KIND.yaml`, told where things lie, and then what was overridden."""
    given = [f"{name}={json.dumps(value)}" for name, value in paths.items()]
    return config.load_job(str(job_file(demo, kind)), [*given, *overrides[kind]], kind=kind)


def job_file(demo: str, kind: str) -> Path:
    """A job that ships; as a person in the checkout would name it."""
    file = Path(__file__).parent / "jobs" / f"{demo}-{kind}.yaml"
    return file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file


def _curate_job(folder: Path, overrides: dict[str, list[str]]) -> Any:
    paths = {
        "source.path": str(folder / PICTURES),
        "source.metadata": str(folder / METADATA),
        "optout.0.path": str(folder / OPTOUT),
        "output": str(folder / "manifests"),
    }
    return job_of("demo", "curate", overrides, paths)


def jobs(out: str, sets: list[str]) -> list[Any]:
    """The demo's five jobs, for `--dry-run`; what a step gets from the one before stands as it is in the job file."""
    overrides = by_job(sets, _JOBS)
    return [_curate_job(Path(out), overrides), *(job_of("demo", kind, overrides, {}) for kind in _JOBS[1:])]


def _prepare(folder: Path) -> int:
    with needs_extra():
        return prepare(folder)


@contextmanager
def needs_extra() -> Iterator[None]:
    """Says which extra is to be installed, where a package of it is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(
            f"{error.name} is not installed", field="demo", remedy='install the extra: pip install -e ".[demo]"'
        ) from None


def _ask(url: str) -> tuple[list[dict[str, Any]], dict[str, list[Image.Image]]]:
    """Every prompt once, with as many pictures as there are seeds; what the endpoint said, and what it drew."""
    from PIL import Image

    from pipelines.progress import progress
    from serving.client import generate

    answers: list[dict[str, Any]] = []
    drawn: dict[str, list[Image.Image]] = {}
    with progress("prompts") as report:
        for done, prompt in enumerate(PROMPTS):
            report("generate", done, len(PROMPTS))
            answer = generate(url, prompt, n=len(SEEDS), seed=SEEDS[0])
            data = [datum.picture() for datum in answer.data]
            drawn[prompt] = [Image.open(io.BytesIO(picture)).convert("RGB") for picture in data if picture is not None]
            said = answer.model_dump(mode="json", exclude={"data"})
            said["images"] = [datum.model_dump(mode="json", exclude={"b64_json"}) for datum in answer.data]
            answers.append({"prompt": prompt, **said})
        report("generate", len(PROMPTS), len(PROMPTS))
    return answers, drawn


def draw(bundle: str, prompts: Sequence[str], seed: int) -> np.ndarray:
    """A picture, or a film, of each prompt, drawn without a server: uint8 (N, …, H, W, 3)."""
    from pipelines.progress import progress
    from training.bundle import load_bundle
    from training.sampling import sample

    model = load_bundle(bundle)
    with progress("steps") as report:
        seeds = [seed] * len(prompts)
        return sample(model, prompts, seeds, model.info.sampling, on_step=lambda done, of: report("draw", done, of))


def nearest(drawn: np.ndarray, known: np.ndarray) -> list[int]:
    """The row of `known`, uint8 (M, …), nearest by pixels to each of `drawn`, uint8 (N, …)."""
    import numpy as np

    flat = known.reshape(len(known), -1).astype(np.float32)
    return [int(((flat - each.reshape(-1).astype(np.float32)) ** 2).mean(axis=1).argmin()) for each in drawn]


def _judge(
    job: Any, manifest: Manifest, drawn: dict[str, list[Image.Image]]
) -> tuple[float, dict[str, tuple[str, Image.Image]]]:
    """CLIP's top-1 share among the prompts, and for each prompt the training picture nearest to what was drawn.

    Nearest by pixels: what a model knows by heart it draws pixel for pixel, and that is what the grid is to show.
    """
    import numpy as np
    from PIL import Image

    from curation.manifest import Decision

    clip = job.clip.build()
    rows = manifest.table(["caption", "image"], decision=Decision.KEPT).to_pylist()
    known = [Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB") for row in rows]
    training = np.stack([np.asarray(picture, np.float32) for picture in known])
    texts = clip.embed_texts(list(drawn))
    right = total = 0
    nearest = {}
    for index, (prompt, pictures) in enumerate(drawn.items()):
        if not pictures:
            continue
        embeddings = clip.embed_images(np.stack([clip.prepare(picture) for picture in pictures]))
        right += int((np.argmax(embeddings @ texts.T, axis=1) == index).sum())
        total += len(pictures)
        apart = [((training - np.asarray(picture, np.float32)) ** 2).mean(axis=(1, 2, 3)) for picture in pictures]
        row = int(np.argmin(np.mean(apart, axis=0)))
        nearest[prompt] = (rows[row]["caption"], known[row])
    return right / max(total, 1), nearest


def _caption(manifest: Manifest, images_seen: int) -> str:
    kept = manifest.info.counts["kept"]
    return (
        f"A model of {kept} OpenMoji drawings (CC BY-SA 4.0), {images_seen:,} images seen. It is this small that it "
        "knows its drawings by heart: compare with the nearest training picture, framed."
    )


def _draw_grid(
    path: Path, drawn: dict[str, list[Image.Image]], nearest: dict[str, tuple[str, Image.Image]], caption: str
) -> None:
    """Two columns of prompts; each row is a prompt, its pictures by seed, and the nearest training picture framed."""
    from PIL import Image, ImageDraw, ImageFont

    cell, gap, label, head, columns = 96, 8, 26, 64, 2
    width = (len(SEEDS) + 1) * (cell + gap) + 3 * gap
    height = cell + label + 2 * gap
    rows = -(-len(drawn) // columns)
    sheet = Image.new("RGB", (columns * width + gap, head + rows * height + gap), "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((2 * gap, gap), _TITLE, fill="black", font=ImageFont.load_default(20))
    pen.text((2 * gap, gap + 28), caption, fill="#555555", font=ImageFont.load_default(12))
    font, small = ImageFont.load_default(16), ImageFont.load_default(11)
    for index, (prompt, pictures) in enumerate(drawn.items()):
        x = (index // rows) * width + 2 * gap
        y = head + (index % rows) * height
        pen.text((x, y + 2), prompt, fill="black", font=font)
        y += label
        for number, picture in enumerate(pictures):
            sheet.paste(picture.resize((cell, cell), Image.Resampling.BICUBIC), (x + number * (cell + gap), y))
        if prompt in nearest:
            name, picture = nearest[prompt]
            at = x + len(SEEDS) * (cell + gap) + gap
            pen.text((at, y - 16), name[:16], fill="#555555", font=small)
            sheet.paste(picture.resize((cell, cell), Image.Resampling.BICUBIC), (at, y))
            pen.rectangle((at - 2, y - 2, at + cell + 1, y + cell + 1), outline="#888888")
    sheet.save(path)
