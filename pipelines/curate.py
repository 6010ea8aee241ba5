"""`cleanplate curate`: images in, a manifest out."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

from curation.costs import told
from pipelines.progress import progress

if TYPE_CHECKING:
    from curation.engine import CurateResult
    from curation.job import CurateJob


def plan(job: CurateJob) -> dict[str, Any]:
    """What the job would take; reads the input list and every list the job names, and the log of earlier attempts."""
    from curation import costs, events, listing, record

    found = listing.listing(job)
    planned = listing.plan(job, found)
    pace = costs.pace_of(events.read(record.folder_of(job.output)), record.like(found), "measure")
    asked = {"cpus": planned["cpus"], "gpus": planned["gpus"], "prices": job.observability.prices}
    left = costs.estimate(planned["inputs_to_do"], job.workers + job.scorers, pace, **asked)
    return planned | {"estimate": dataclasses.asdict(left)}


def run(job: CurateJob) -> CurateResult:
    """Runs the job on a Ray cluster, resuming what an earlier run of it left."""
    from curation import engine, listing
    from pipelines.cluster import connect

    found = listing.listing(job)
    listing.check_output(job)
    cpus = math.ceil((job.workers + job.scorers) * job.cpus_per_worker)
    with connect(cpus=cpus, gpus=(job.scorers or job.workers) * job.gpus_per_worker), progress("images") as report:
        return engine.curate(found, report)


def summary(result: CurateResult) -> list[str]:
    """The result for a person: the funnel, and where things are."""
    measured = f"{result.units_measured} of {result.units} units measured, the rest were there"
    if result.units_measured == result.units:
        measured = f"{result.units} units measured"
    counts = ", ".join(f"{n:,} {decision}" for decision, n in result.counts.items())
    return [
        *_funnel(result),
        f"{result.rows:,} inputs = {counts}  ({measured})",
        *([] if result.spent is None else [told(result.spent)]),
        f"manifest {result.manifest}",
        f"look at it with: cleanplate report {result.manifest}",
    ]


def _funnel(result: CurateResult) -> list[str]:
    lines = [f"{'':<12}{'reached':>10}{'removed':>10}"]
    for step in result.funnel:
        if step.removed:
            reasons = ", ".join(f"{reason} {n:,}" for reason, n in step.reasons.items())
            lines.append(f"{step.stage:<12}{step.reached:>10,}{step.removed:>10,}  {reasons}")
    return [*lines, f"{'kept':<12}{result.counts['kept']:>10,}"]
