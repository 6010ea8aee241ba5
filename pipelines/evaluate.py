"""`cleanplate evaluate`: how good a model version is, and whether it redraws what it was trained on.

Off the training path: a job of its own, on a bundle or a registered version. It writes `result.json`, `report.md` and
two pictures; of a registered version it also leaves them on the run, and what it found in tags, which `cleanplate
promote` reads.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator

from curation import storage
from curation.clip import EMBEDDED, Clip, ClipConfig
from curation.errors import UserError
from curation.manifest import Manifest, Name, now
from training.memorization import MemorizationConfig
from training.sampling import SamplingParams

if TYPE_CHECKING:
    from pipelines.evaluation_sets import Sets
    from training.bundle import BundleInfo, DiffusionModel
    from training.evaluate import Evaluation, Judge, Pictures
    from training.tracking import ModelVersion

TAG = "eval."
"""Of a version's tag, followed by a metric's name; its value is a `StoredMetric`."""
MEMORIZATION_TAG = "memorization"
"""Of a version's tag, whose value is a `StoredMemorization`."""


class EvaluateJob(BaseModel):
    """`kind: evaluate`: a model version or a bundle in, a report out."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["evaluate"] = "evaluate"
    name: Name = Field("evaluation", description="of the job, where it is submitted to a cluster")
    model: str = Field(description="models:/NAME/3, models:/NAME@alias, NAME, or a bundle's folder")
    manifest: str | None = Field(None, description="what it was trained on; null: where its bundle says that it lies")
    holdout: str | None = Field(
        None, description="a manifest with pictures that it was not trained on; null: those of `manifest` that it was "
        "not"
    )  # fmt: skip
    ledger: str | None = Field(None, description="takedown ledger; null: the manifest's own")
    samples: int = Field(256, ge=8, le=100_000, description="pictures drawn, and compared with as many real ones")
    pictures: int = Field(
        1000, ge=8, le=100_000, description="training pictures at most that samples are compared with"
    )
    prompts: tuple[str, ...] | None = Field(None, min_length=1, description="null: captions of training pictures")
    sampling: SamplingParams | None = Field(None, description="null: as the bundle says")
    loss_buckets: int = Field(8, ge=0, le=100, description="ranges of log-SNR; 0: no losses")
    loss_pictures: int = Field(128, ge=1, le=10_000, description="of each kind that losses are measured on")
    inception: str | None = Field(None, description="TorchScript of Inception's features: gives FID and KID")
    cmmd: ClipConfig | None = Field(None, description="a CLIP of yours, with `weights` as a path: gives CMMD")
    memorization: MemorizationConfig | None = Field(MemorizationConfig(), description="null: not asked")
    device: str = Field(
        "auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="cpu, cuda or cuda:1; auto: a GPU where there is one"
    )
    seed: int = Field(0, ge=0, le=2**31, description="of the first picture; the next ones count on")
    output: str = Field("runs/evaluations", description="a folder on this machine, for a folder of each evaluation")
    tracking_uri: str | None = Field(
        None, description="MLflow; null: $MLFLOW_TRACKING_URI, else sqlite:///runs/mlflow.db"
    )

    @field_validator("output")
    @classmethod
    def _is_local(cls, output: str) -> str:
        if storage.is_remote(output):
            raise ValueError("must be a folder on this machine; a registered version's run has the files, too")
        return output


class StoredMetric(BaseModel):
    """What a version's tag says of a metric."""

    model_config = ConfigDict(frozen=True)
    value: float
    low: float
    high: float
    n: int
    floor: float | None


class StoredMemorization(BaseModel):
    """What a version's tag says of the memorisation gate; see `training.memorization.Memorization`."""

    model_config = ConfigDict(frozen=True)
    verdict: Literal["passed", "over", "undecided"]
    excess: float
    share: float
    weighted: float
    false_positives: float | None
    ratio: float


class Evaluated(BaseModel):
    """The result: what was measured, and where it is written."""

    folder: str
    logged: bool
    evaluation: Any


def plan(job: EvaluateJob) -> dict[str, Any]:
    """What evaluating would take; checks that the model and the manifest are there."""
    from pipelines.trainings import without_password
    from training.tracking import find, info_of, resolve, tracking_uri

    version = find(job.model, tracking_uri=job.tracking_uri) if job.model.startswith("models:/") else None
    info = info_of(version or resolve(job.model, tracking_uri=job.tracking_uri), tracking_uri=job.tracking_uri)
    manifest = Manifest.open(_manifest_of(job, info))
    sampling = job.sampling or info.sampling
    probes = 0 if job.memorization is None else job.memorization.probes
    return {
        "manifest": manifest.id,
        "samples": job.samples + probes,
        "network_evaluations": (job.samples + probes) * sampling.steps * (2 if sampling.guidance_scale > 1 else 1),
        "tracking_uri": without_password(tracking_uri(job.tracking_uri)),
        "cpus": 1,
        "gpus": 0 if job.device == "cpu" else 1,
    }


def _manifest_of(job: EvaluateJob, info: BundleInfo) -> str:
    if info.frames is not None:
        raise UserError("films cannot be evaluated yet", field="model", remedy="evaluate a model of pictures")
    uri = job.manifest or info.manifest_uri
    if uri is None:
        raise UserError("the bundle does not say where its manifest lies", field="manifest", remedy="name it")
    return uri


def run(job: EvaluateJob) -> Evaluated:
    """Draws, measures, writes the report, and leaves it with the version."""
    from pipelines.evaluation_sets import gather
    from training.bundle import load_bundle
    from training.tracking import resolve

    version = resolve(job.model, tracking_uri=job.tracking_uri)
    device = _device(job.device)
    model = load_bundle(version.bundle, device)
    manifest = Manifest.open(_manifest_of(job, model.info))
    sets = gather(job, version, model.info, manifest)
    told = json.dumps([job.model_dump(mode="json"), version.tags["bundle_sha256"]])
    name = f"{version.name}-{version.version}-{hashlib.sha256(told.encode()).hexdigest()[:8]}"
    folder = Path(storage.filesystem(job.output)[1]) / name
    folder.mkdir(parents=True, exist_ok=True)
    found = _evaluate(job, version, model, manifest, sets, folder)
    _write(found, folder)
    if version.name != "local":
        _leave(job, version, found, folder)
    return Evaluated(folder=str(folder), logged=version.run_id is not None, evaluation=found)


def _evaluate(
    job: EvaluateJob, version: ModelVersion, model: DiffusionModel, manifest: Manifest, sets: Sets, folder: Path
) -> Evaluation:
    from training.evaluate import Evaluation, Pictures, drawing, losses, measure
    from training.features import EfficientNetLite0, Inception

    device = str(model.device)
    judge, note = judge_of(manifest, device)
    extractors: list[EfficientNetLite0 | Inception] = [EfficientNetLite0(EMBEDDED / "model.safetensors", device)]
    if job.inception is not None:
        extractors.append(Inception(job.inception, device))
    params = job.sampling or model.info.sampling
    prompts = [sets.prompts[i % len(sets.prompts)] for i in range(job.samples)] + sets.probes
    # a million apart, so that the noise of one seed is not that of the next
    seeds = [job.seed * 1_000_000 + i for i in range(len(prompts))]
    drawn = Pictures([str(seed) for seed in seeds], drawing(model, params)(prompts, seeds), prompts)
    metrics = measure(
        drawn.take(range(job.samples)),  # probes are about copies alone
        sets.reference,
        sets.held_out,
        judge=judge,
        extractors={extractor.name: extractor for extractor in extractors},
        cmmd=None if job.cmmd is None else embedder(_cmmd(job.cmmd, device)),
        seed=job.seed,
    )
    some = [
        None if s is None else s.take(range(min(len(s), job.loss_pictures))) for s in (sets.reference, sets.held_out)
    ]
    assert some[0] is not None
    return Evaluation(
        model=version.bundle if version.name == "local" else f"models:/{version.name}/{version.version}",
        bundle_sha256=version.tags["bundle_sha256"],
        manifest_id=manifest.id,
        holdout_id=sets.holdout_id,
        clip=judge.name,
        extractors={extractor.name: extractor.digest for extractor in extractors},
        at=now(),
        images_seen=model.info.images_seen,
        seed=job.seed,
        sampling=params,
        prompts=prompts,
        noise_seeds=seeds,
        metrics=metrics,
        loss=losses(model, some[0], some[1], buckets=job.loss_buckets, seed=job.seed),
        memorization=_memorization(job.memorization, drawn, sets, judge, folder),
        notes=[*sets.notes, *note],
    )


def _memorization(config: MemorizationConfig | None, drawn: Pictures, sets: Sets, judge: Judge, folder: Path) -> Any:
    from training.memorization import Gate, pairs

    if config is None:
        return None
    held_out = drawn.pixels[:0] if sets.held_out is None else sets.held_out.pixels
    verdict, near = Gate(sets.trained, judge.pictures).judge(drawn.pixels, held_out, config)
    figure, withheld = pairs(drawn.pixels, sets.trained, near, sets.revoked)
    figure.save(folder / "pairs.png")
    return verdict.model_copy(update={"withheld": withheld})


def judge_of(manifest: Manifest, device: str) -> tuple[Judge, list[str]]:
    """The manifest's CLIP. One that was made without is judged by the embedded one.

    Raises:
        UserError: it is no longer there, or another one by now.
    """
    from training.evaluate import Judge

    said = manifest.info.job.get("clip")
    config = ClipConfig.model_validate(said or {}).model_copy(update={"device": device})
    config.check()
    if said and manifest.info.clip is not None and config.name() != manifest.info.clip.name:
        raise UserError(
            f"the manifest's embeddings are by {manifest.info.clip.name}, but {config.model} is now {config.name()}",
            field="manifest",
            remedy="restore that model",
        )
    clip = config.build()
    notes = [] if said else ["the manifest was made without a CLIP: the embedded one judges"]
    return Judge(clip.name, embedder(clip), clip.embed_texts), notes


def embedder(clip: Clip) -> Callable[[np.ndarray | Sequence[np.ndarray]], np.ndarray]:
    """A CLIP as training takes it: pictures of any size to unit vectors."""

    def embed(pictures: np.ndarray | Sequence[np.ndarray]) -> np.ndarray:
        parts = [np.zeros((0, clip.dim), np.float32)]
        for start in range(0, len(pictures), 256):
            prepared = [clip.prepare(picture) for picture in pictures[start : start + 256]]
            parts.append(clip.embed_images(np.stack(prepared)))
        return np.concatenate(parts)

    return embed


def _cmmd(config: ClipConfig, device: str) -> Clip:
    if config.weights is None or not Path(config.weights).expanduser().is_file():
        raise UserError("CMMD takes a CLIP's weights by path", field="cmmd.weights", remedy="name the file of weights")
    return config.model_copy(update={"device": device}).build()


def _device(wanted: str) -> str:
    import torch

    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted != "cpu" and not torch.cuda.is_available():
        raise UserError("there is no CUDA device here", field="device", remedy="use auto or cpu")
    return wanted


def _write(found: Evaluation, folder: Path) -> None:
    from pipelines.evaluate_page import page, plot

    plot(found, folder / "metrics.png")
    (folder / "report.md").write_text(page(found), encoding="utf-8")
    (folder / "result.json").write_text(found.model_dump_json(indent=1), encoding="utf-8")


def _leave(job: EvaluateJob, version: ModelVersion, found: Evaluation, folder: Path) -> None:
    """Puts the report on the version's run, and what it says in the version's tags."""
    from training import tracking

    tags = {"evaluated_at": found.at.isoformat(timespec="seconds"), "evaluated_on": found.manifest_id}
    values: dict[str, float] = {}
    for name, metric in found.metrics.items():
        made, floor = metric.samples, metric.floor
        stored = StoredMetric(
            value=made.value,
            low=made.interval.low,
            high=made.interval.high,
            n=made.n,
            floor=None if floor is None else floor.value,
        )
        tags[TAG + name] = stored.model_dump_json()
        values[f"eval/{name}"] = made.value
        values |= {} if floor is None else {f"eval/{name}_floor": floor.value}
    if found.memorization is not None:
        told = found.memorization.model_dump() | {"ratio": found.memorization.limit.ratio}
        tags[MEMORIZATION_TAG] = StoredMemorization.model_validate(told).model_dump_json()
        values["eval/memorization_excess"] = found.memorization.excess
    tracking.log_evaluation(version, folder, values, found.images_seen, tracking_uri=job.tracking_uri)
    tracking.tag_version(version.name, version.version, tags, tracking_uri=job.tracking_uri)


def summary(done: Evaluated) -> list[str]:
    """The result for a person."""
    from pipelines.evaluate_page import told

    found: Evaluation = done.evaluation
    lines = [f"{name}: {told(m.samples)}; floor {told(m.floor)}" for name, m in found.metrics.items()]
    if found.memorization is not None:
        lines.append(f"memorisation {found.memorization.verdict}: {found.memorization.why}")
    return [*lines, f"report {done.folder}/report.md"]
