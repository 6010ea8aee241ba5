"""`cleanplate autoencoder`: a manifest in, an autoencoder for latent diffusion out."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from pipelines.progress import progress

if TYPE_CHECKING:
    from training.autoencoder_job import AutoencoderJob
    from training.autoencoding import AutoencoderResult


def plan(job: AutoencoderJob) -> dict[str, Any]:
    """What the job would take; opens the manifest and asks the takedown ledger."""
    from training import autoencoding

    return autoencoding.plan(job)


def run(job: AutoencoderJob) -> AutoencoderResult:
    """Trains, resuming what an earlier run of the same job left."""
    from pipelines.cluster import connect
    from training import autoencoding

    prepared = autoencoding.prepare(job)
    autoencoding.plan(job, prepared)
    with ExitStack() as stack:
        if job.workers:
            stack.enter_context(connect(cpus=job.workers, gpus=job.gpus_per_worker))
        report = stack.enter_context(progress("images"))
        return autoencoding.launch(
            job,
            prepared=prepared,
            on_progress=lambda p: report("autoencoder", p.images_seen, p.images_total, f"loss {p.loss:.4f}"),
        )


def summary(result: AutoencoderResult) -> list[str]:
    """The result for a person."""
    resumed = f", resumed at {result.resumed_from:,}" if result.resumed_from else ""
    excluded = ", ".join(f"{rows} by entry {entry}" for entry, rows in result.excluded.items())
    return [
        f"trained on {result.images_seen:,} images seen{resumed}; MLflow run {result.run_id}",
        f"{result.metrics['factor']:g} times fewer numbers a picture, PSNR {result.metrics['psnr']:.1f} dB on training "
        f"pictures; see {result.bundle}/comparison.png",
        *([f"left out since the manifest was made, by the takedown ledger: {excluded}"] if excluded else []),
        f"autoencoder {result.bundle}",
        f"train in its latents with: cleanplate train JOB.yaml --set autoencoder.path={result.bundle}",
    ]
