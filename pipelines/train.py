"""`cleanplate train`: a manifest in, a bundle out."""

from __future__ import annotations

import dataclasses
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curation.costs import told
from curation.errors import UserError
from pipelines.progress import progress

if TYPE_CHECKING:
    from curation.manifest import Manifest
    from training.job import TrainJob
    from training.prepare import TrainResult
    from training.run_record import Best


def plan(job: TrainJob) -> dict[str, Any]:
    """What the job would take; opens the manifest, asks the takedown ledger and reads the logs of earlier runs."""
    from training import prepare

    planned = prepare.plan(job, memory=True)
    return planned | {"estimate": _estimate(job, planned)}


def _estimate(job: TrainJob, planned: dict[str, Any]) -> dict[str, Any]:
    from curation import costs, events, storage
    from training import checkpoint, prepare
    from training.record import STAGE, like

    folder, left = str(planned["run_folder"]), int(planned["images"])
    if prepare.finished(storage.absolute(folder)) is not None:
        left = 0
    elif there := checkpoint.paths(storage.join(folder, "checkpoints")):
        left -= checkpoint.images_of(there[-1])
    others = (storage.join(job.output, name) for name in storage.list_folders(job.output))
    entries = [entry for each in others for entry in events.read(each)]
    pace = costs.pace_of(sorted(entries, key=lambda entry: entry.at), like(job), STAGE)
    asked = {"cpus": planned["cpus"], "gpus": planned["gpus"], "prices": job.observability.prices}
    return dataclasses.asdict(costs.estimate(left, job.most_workers, pace, **asked))


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
        *([] if result.spent is None else [told(result.spent)]),
        f"bundle {result.bundle}",
        *([] if result.best is None else [_told(result.best)]),
        f"register it with: cleanplate register JOB.yaml --set bundle={result.bundle}",
    ]


def _told(best: Best) -> str:
    bundle = "" if best.bundle is None else f": bundle {best.bundle}"
    return f"best checkpoint by {best.by}, {best.value:.4g}: after {best.images_seen:,} images{bundle}"
