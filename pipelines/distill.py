"""`cleanplate distill`: a model in, a student that draws in few steps out."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from pipelines.progress import progress

if TYPE_CHECKING:
    from training.distill_job import DistillJob
    from training.distillation import DistillResult


def plan(job: DistillJob) -> dict[str, Any]:
    """What the job would take; finds the teacher, opens the manifest and asks the takedown ledger."""
    from training import distillation

    return distillation.plan(job)


def run(job: DistillJob) -> DistillResult:
    """Distils, resuming what an earlier run of the same job left."""
    from pipelines.cluster import connect
    from training import distillation

    prepared = distillation.prepare(job)
    distillation.plan(job, prepared)
    with ExitStack() as stack:
        if job.workers:
            stack.enter_context(connect(cpus=job.workers, gpus=job.workers * job.gpus_per_worker))
        report = stack.enter_context(progress("images"))
        return distillation.launch(
            job,
            prepared=prepared,
            on_progress=lambda p: report("distill", p.images_seen, p.images_total, f"loss {p.loss:.4f}"),
            on_stage=report,
        )


def summary(result: DistillResult) -> list[str]:
    """The result for a person."""
    resumed = f", resumed at {result.resumed_from:,}" if result.resumed_from else ""
    fewer = result.teacher_evaluations / result.evaluations
    excluded = ", ".join(f"{rows} by entry {entry}" for entry, rows in result.excluded.items())
    other = (
        "the teacher was trained on another set of pictures than the student: what was taken down since is in its "
        "weights still, and so may be in the student's"
    )
    return [
        f"distilled {result.teacher} over {result.images_seen:,} images seen{resumed}; MLflow run {result.run_id}",
        f"{result.evaluations} evaluations a picture; the teacher takes {result.teacher_evaluations}, {fewer:g} times "
        "as many",
        *([f"left out since the manifest was made, by the takedown ledger: {excluded}"] if excluded else []),
        *([other] if result.other_set else []),
        f"bundle {result.bundle}",
        f"register it with: cleanplate register JOB.yaml --set bundle={result.bundle}",
    ]
