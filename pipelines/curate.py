"""`cleanplate curate`: images in, a manifest out."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from pipelines.progress import progress

if TYPE_CHECKING:
    from curation.engine import CurateResult
    from curation.job import CurateJob


def plan(job: CurateJob) -> dict[str, Any]:
    """What the job would take; reads the input list and every list the job names."""
    from curation import engine

    return engine.plan(job)


def run(job: CurateJob) -> CurateResult:
    """Runs the job on a Ray cluster, resuming what an earlier run of it left."""
    from curation import engine
    from pipelines.cluster import connect

    found = engine.listing(job)
    engine.check_output(job)
    cpus, gpus = math.ceil(job.workers * job.cpus_per_worker), job.workers * job.gpus_per_worker
    with connect(cpus=cpus, gpus=gpus), progress("images") as report:
        return engine.curate(job, found, report)


def summary(result: CurateResult) -> list[str]:
    """The result for a person."""
    measured = f"{result.units_measured} of {result.units} units measured, the rest were there"
    if result.units_measured == result.units:
        measured = f"{result.units} units measured"
    counts = ", ".join(f"{n:,} {decision}" for decision, n in result.counts.items())
    return [
        f"{result.rows:,} inputs = {counts}  ({measured})",
        f"manifest {result.manifest}",
        f"look at it with: cleanplate inspect {result.manifest}",
    ]
