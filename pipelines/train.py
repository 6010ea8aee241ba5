"""`cleanplate train`: a manifest in, a bundle out."""

from __future__ import annotations

import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curation.errors import UserError
from pipelines.progress import progress

if TYPE_CHECKING:
    from curation.manifest import Manifest
    from training.job import TrainJob
    from training.prepare import TrainResult
    from training.run_record import Best


def plan(job: TrainJob) -> dict[str, Any]:
    """What the job would take; opens the manifest and asks the takedown ledger."""
    from training import prepare

    return prepare.plan(job, memory=True)


def run(job: TrainJob) -> TrainResult:
    """Trains on a Ray cluster, or without one, resuming what an earlier run of the same job left."""
    from pipelines.cluster import connect
    from pipelines.evaluate_checkpoint import evaluate
    from training import prepare
    from training.launch import launch

    prepared = prepare.prepare(job)
    prepare.plan(job, prepared)
    reads = job.conditioning.reads_captions
    text_encoder = _text_encoder(prepared.manifest, prepared.folder) if reads else None
    workers, beside = job.fewest_workers, job.evaluation
    cluster = connect(
        cpus=workers + (beside.cpus if beside else 0),
        gpus=max(workers * job.gpus_per_worker, beside.gpus if beside else 0),
    )
    with cluster if job.workers else nullcontext(), progress("images") as report:
        return launch(
            job,
            text_encoder=text_encoder,
            evaluator=evaluate,
            prepared=prepared,
            on_progress=lambda p: report("train", p.images_seen, p.images_total, f"loss {p.loss:.4f}"),
            on_stage=report,
        )


def _text_encoder(manifest: Manifest, run_folder: str) -> str:
    """The text tower of the manifest's CLIP, exported into the run's folder: training knows nothing of curation."""
    from curation import storage
    from curation.clip import ClipConfig
    from training.folders import upload
    from training.text import CONFIG_FILE

    folder = storage.join(run_folder, "text_encoder")
    if storage.exists(storage.join(folder, CONFIG_FILE)):
        return folder
    assert manifest.info.clip is not None, "the launcher's plan has refused such a manifest"
    clip = ClipConfig.model_validate(manifest.info.job["clip"])
    clip.check()
    if clip.name() != manifest.info.clip.name:
        raise UserError(
            f"the manifest's embeddings are by {manifest.info.clip.name}, but {clip.model} is now {clip.name()}",
            field="manifest",
            remedy="restore that model, or curate again with this one",
        )
    with tempfile.TemporaryDirectory() as scratch:
        clip.build().export_text_tower(Path(scratch))
        upload(Path(scratch), folder, last=CONFIG_FILE)
    return folder


def summary(result: TrainResult) -> list[str]:
    """The result for a person."""
    resumed = f", resumed at {result.resumed_from:,}" if result.resumed_from else ""
    excluded = ", ".join(f"{rows} by entry {entry}" for entry, rows in result.excluded.items())
    return [
        f"trained on {result.images_seen:,} images seen{resumed}; MLflow run {result.run_id}",
        *([f"left out since the manifest was made, by the takedown ledger: {excluded}"] if excluded else []),
        f"bundle {result.bundle}",
        *([] if result.best is None else [_told(result.best)]),
        f"register it with: cleanplate register JOB.yaml --set bundle={result.bundle}",
    ]


def _told(best: Best) -> str:
    bundle = "" if best.bundle is None else f": bundle {best.bundle}"
    return f"best checkpoint by {best.by}, {best.value:.4g}: after {best.images_seen:,} images{bundle}"
