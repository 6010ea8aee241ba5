"""A distillation on Ray Train's workers, as `training.launch` has a training on them."""

from __future__ import annotations

import dataclasses
from typing import Any

from training import ray_workers
from training.distill_job import DistillJob
from training.distillation import Task, distill_at
from training.follow import Follower


def distill_on_ray(task: Task, follower: Follower) -> dict[str, Any]:
    """Distils on the job's workers; the first one's `distill_loop.Outcome` as a dict.

    Raises:
        UserError: more is asked for than this machine has, or a mistake that a worker found.
        Terminated: after SIGTERM, when the state is saved.
    """
    job = task.job
    ray_workers.check_resources(job.workers, job.gpus_per_worker)
    told = {field.name: getattr(task, field.name) for field in dataclasses.fields(task)}
    return ray_workers.fit(
        _worker,
        {"task": told | {"job": job.model_dump(mode="json")}},
        folder=task.folder,
        scaling=ray_workers.fixed(job.workers, job.gpus_per_worker),
        max_failures=job.max_failures,
        follower=follower,
    )


def _worker(config: dict[str, Any]) -> None:
    """One Ray Train worker. Must stay importable by name: it is shipped by reference."""
    task = Task(**config["task"] | {"job": DistillJob.model_validate(config["task"]["job"])})
    ray_workers.work(config["mailbox"], lambda place, report, notice: distill_at(task, place, report, notice))
