"""Ray Train around the loop of a distillation, as `training.launch` has it around that of a training."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from curation import storage
from training import ray_notice
from training.distill_job import DistillJob
from training.distillation import Task, distill_at
from training.follow import Follower, Mailbox
from training.launch import check_resources, user_error
from training.notice import Terminated


def distill_on_ray(task: Task, follower: Follower) -> dict[str, Any]:
    """Distils on the job's workers; the first one's `distill_loop.Outcome` as a dict.

    Raises:
        UserError: more is asked for than this machine has, or a mistake that a worker found.
    """
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # how soon the end or a failure is noticed
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    job = task.job
    check_resources(job.workers, job.gpus_per_worker)
    mailbox: Any = ray.remote(Mailbox).options(num_cpus=0).remote()
    told = {field.name: getattr(task, field.name) for field in dataclasses.fields(task)}
    system, path = storage.filesystem(task.folder)
    gpus = job.gpus_per_worker
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"task": told | {"job": job.model_dump(mode="json")}, "mailbox": mailbox},
        scaling_config=ScalingConfig(
            num_workers=job.workers,
            use_gpu=gpus > 0,
            resources_per_worker={"CPU": 1, "GPU": gpus} if gpus else {"CPU": 1},
        ),
        run_config=RunConfig(
            name="ray",
            storage_path=path,
            storage_filesystem=system if storage.is_remote(task.folder) else None,
            failure_config=FailureConfig(max_failures=job.max_failures),
        ),
    )
    with follower.following(lambda: ray.get(mailbox.drain.remote())):
        try:
            ray_notice.run_or_end(trainer.fit, mailbox)
        except TrainingFailedError as error:
            mistake = user_error(error)
            if mistake is not None:
                raise mistake from None
            raise
    outcome: dict[str, Any] | None = ray.get(mailbox.outcome.remote())
    if outcome is None:
        raise RuntimeError("the workers ended without an outcome")
    return outcome


def _worker(config: dict[str, Any]) -> None:
    """One Ray Train worker. Must stay importable by name: it is shipped by reference."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for deterministic matrix products on a GPU
    import ray
    import ray.train.torch
    import torch

    from training.learner import Place

    context = ray.train.get_context()
    # two workers with two threads each on two cores run six times slower than with one each
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // context.get_local_world_size()))
    place = Place(
        rank=context.get_world_rank(), world_size=context.get_world_size(), device=ray.train.torch.get_device()
    )
    mailbox = config["mailbox"]
    task = Task(**config["task"] | {"job": DistillJob.model_validate(config["task"]["job"])})
    with ray_notice.on_notices(mailbox, place.rank) as notice:
        try:
            outcome = distill_at(task, place, lambda point: mailbox.put.remote(point), notice)
        except Terminated as end:
            ray_notice.wait_for_the_end(place.rank, end.images, mailbox)
    if place.rank == 0:
        ray.get(mailbox.finish.remote(outcome))
