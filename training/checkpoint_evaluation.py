"""An evaluation of a run's newest checkpoint, beside the training: what it reads, what it measures, what it leaves.

All is in the run's folder: `evaluations/model`, a bundle of the untrained network, into which a checkpoint's weights
are put; `evaluations/held_out.parquet`, the roster of what is not trained on; and of each evaluation
`images-<images seen>.json`, written last, with a grid of its first pictures. `busy.json` says which checkpoint is being
evaluated; that one is not removed.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict

from curation import storage
from curation.manifest import Manifest, now
from training import checkpoint
from training.checkpoint import Standing
from training.evaluate import Evaluation, Judge, Pictures, choose, drawing, losses, measure
from training.job import TrainJob
from training.memorization import Embed
from training.roster import FILE as ROSTER_FILE
from training.roster import Roster

FOLDER = "evaluations"
HELD_OUT_FILE = "held_out.parquet"
MODEL = "model"
CURVES_FILE = "curves.png"
_BUSY_FILE = "busy.json"
_COLUMNS = 8  # of a grid
_SHOWN = 32


class EvaluationTask(BaseModel):
    """All that an evaluation needs to know: it may run in another process or on another machine.

    Attributes:
        folder: the run's.
        skip: images seen of checkpoints that could not be evaluated.
    """

    model_config = ConfigDict(frozen=True)
    job: TrainJob
    folder: str
    skip: tuple[int, ...] = ()

    @property
    def device(self) -> str:
        assert self.job.evaluation is not None
        return "cuda" if self.job.evaluation.gpus else "cpu"


Evaluator = Callable[[EvaluationTask], None]
"""Evaluates the newest checkpoint that is due. A function of a module: other processes find it by its name."""


@dataclass(frozen=True)
class Judges:
    """Who measures: training does not know where a CLIP comes from.

    Attributes:
        extractors: of features, by name; the first one's also give precision and recall.
        digests: of their weights.
        notes: for the record.
    """

    clip: Judge
    extractors: Mapping[str, Embed]
    digests: Mapping[str, str]
    notes: Sequence[str] = ()


def path_of(folder: str, images: int, ending: str) -> str:
    """Where an evaluation's JSON or PNG is."""
    return storage.join(folder, FOLDER, f"images-{images:012d}.{ending}")


def done(folder: str) -> list[int]:
    """Images seen of the checkpoints of a run that were evaluated, ascending."""
    names = [info.base_name for info in storage.list_files(storage.join(folder, FOLDER))]
    return sorted(int(name[7:-5]) for name in names if name.startswith("images-") and name.endswith(".json"))


def busy(folder: str) -> int | None:
    """Images seen of the checkpoint that is being evaluated; None where none is."""
    try:
        images: int | None = json.loads(storage.read_bytes(storage.join(folder, FOLDER, _BUSY_FILE)))
    except (FileNotFoundError, ValueError):
        return None
    return images


def set_busy(folder: str, images: int | None) -> None:
    """Says which checkpoint is being evaluated."""
    storage.write_bytes(storage.join(folder, FOLDER, _BUSY_FILE), json.dumps(images).encode())


def read(folder: str, images: int) -> Evaluation:
    """The evaluation of a run's checkpoint after so many images."""
    return Evaluation.model_validate_json(storage.read_bytes(path_of(folder, images, "json")))


def due(task: EvaluationTask) -> list[int]:
    """Images seen of the checkpoints that are still to be evaluated, ascending."""
    found = [checkpoint.images_of(path) for path in checkpoint.paths(storage.join(task.folder, "checkpoints"))]
    gone = {*done(task.folder), *task.skip}
    return [images for images in found if images not in gone and task.job.evaluates_at(images)]


class Standings:
    """How a run's checkpoints stand by a metric of their evaluations. Reads each evaluation once."""

    def __init__(self, folder: str, metric: str) -> None:
        self._folder = folder
        self._metric = metric
        self._scores: dict[int, float | None] = {}

    def __call__(self) -> Standing:
        for images in done(self._folder):
            if images not in self._scores:
                self._scores[images] = read(self._folder, images).score(self._metric)
        scores = {images: score for images, score in self._scores.items() if score is not None}
        now_at = busy(self._folder)
        return Standing(scores, busy=() if now_at is None else (now_at,))


def evaluate(task: EvaluationTask, judges: Judges) -> Evaluation | None:
    """Evaluates the newest checkpoint that is due, and writes what it found; None where none is.

    Raises:
        UserError: pictures or the model cannot be read any more.
    """
    from training.bundle import load_bundle

    config = task.job.evaluation
    assert config is not None
    waiting = due(task)
    if not waiting:
        return None
    images = waiting[-1]
    set_busy(task.folder, images)
    path = storage.join(task.folder, "checkpoints", f"images-{images:012d}")
    info, weights = checkpoint.read_part(path, "ema")
    model = load_bundle(storage.join(task.folder, FOLDER, MODEL), task.device)
    model.unet.load_state_dict(weights)
    trained, held_out, holdout_id = _sets(task)
    captions = [trained.captions[i] for i in choose(trained.ids, config.samples, config.seed + 1)]
    wanted = list(config.prompts or captions)
    prompts = [wanted[i % len(wanted)] for i in range(config.samples)]
    # a million apart, so that the noise of one seed is not that of the next
    seeds = [config.seed * 1_000_000 + i for i in range(len(prompts))]
    params = model.info.sampling
    drawn = Pictures([str(seed) for seed in seeds], drawing(model, params)(prompts, seeds), prompts)
    metrics = measure(drawn, trained, held_out, judge=judges.clip, extractors=judges.extractors, seed=config.seed)
    some = [None if of is None else of.take(range(min(len(of), config.loss_pictures))) for of in (trained, held_out)]
    assert some[0] is not None
    found = Evaluation(
        model=path,
        bundle_sha256=None,
        manifest_id=info.identity.manifest_id,
        holdout_id=holdout_id,
        clip=judges.clip.name,
        extractors=dict(judges.digests),
        at=now(),
        images_seen=images,
        seed=config.seed,
        sampling=params,
        prompts=prompts,
        noise_seeds=seeds,
        metrics=metrics,
        loss=losses(model, some[0], some[1], buckets=config.loss_buckets, seed=config.seed),
        memorization=None,
        notes=list(judges.notes),
    )
    storage.write_bytes(path_of(task.folder, images, "png"), _grid(drawn.pixels[:_SHOWN]))
    storage.write_bytes(path_of(task.folder, images, "json"), found.model_dump_json(indent=1).encode())
    set_busy(task.folder, None)
    return found


def _sets(task: EvaluationTask) -> tuple[Pictures, Pictures | None, str | None]:
    """Pictures that are trained on, pictures that are not, and the id of the manifest of the latter."""
    config, job = task.job.evaluation, task.job
    assert config is not None
    where = storage.join(task.folder, ROSTER_FILE)
    roster = Roster.from_parquet(storage.read_bytes(where), where)
    trained = _some(Manifest.open(job.manifest), roster, config.pictures, job)
    if config.holdout is None:
        return trained, None, None
    where = storage.join(task.folder, FOLDER, HELD_OUT_FILE)
    apart = Roster.from_parquet(storage.read_bytes(where), where)
    count = max(config.samples, config.loss_pictures)
    return trained, _some(Manifest.open(apart.info.manifest_uri), apart, count, job), apart.info.manifest_id


def _some(manifest: Manifest, roster: Roster, count: int, job: TrainJob) -> Pictures:
    """At most `count` of a roster's pictures, those with the lowest hashes first."""
    from training.data import load

    assert job.evaluation is not None
    chosen = roster.only([roster.ids[i] for i in choose(roster.ids, count, job.evaluation.seed)])
    pictures = Pictures.of_set(load(manifest, job.image_size, None, chosen, job.conditioning))
    return pictures.take(choose(pictures.ids, count, job.evaluation.seed))


def _grid(pixels: np.ndarray) -> bytes:
    """A PNG of pictures (N, H, W, 3) in rows of eight."""
    count, height, width, _ = pixels.shape
    rows = -(-count // _COLUMNS)
    page = np.full((rows * _COLUMNS, height, width, 3), 255, np.uint8)
    page[:count] = pixels
    page = page.reshape(rows, _COLUMNS, height, width, 3).transpose(0, 2, 1, 3, 4)
    buffer = io.BytesIO()
    Image.fromarray(page.reshape(rows * height, _COLUMNS * width, 3)).save(buffer, "PNG")
    return buffer.getvalue()
