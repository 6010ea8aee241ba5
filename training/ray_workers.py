"""Ray Train around a loop, whatever it trains: its workers, and what comes back to the driver.

The first worker sends its points to a mailbox (an actor without a CPU of its own), and a thread of the driver empties
it. `ray.train.report` is not used: it is a barrier paced by the controller's poll, and the loops keep their own
checkpoints, which they also find again after a restart.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from curation import storage
from curation.errors import UserError, cause_of
from training import ray_notice
from training.follow import Follower, Mailbox
from training.notice import Notice, Terminated
from training.progress import Report

if TYPE_CHECKING:
    from training.learner import Place


def fit(
    worker: Callable[[dict[str, Any]], None],
    told: dict[str, Any],
    *,
    folder: str,
    scaling: dict[str, Any],
    max_failures: int,
    follower: Follower,
) -> dict[str, Any]:
    """Runs workers to their end; the first one's outcome as a dict.

    Args:
        worker: importable by name, as it is shipped by reference; it calls `work` with its `mailbox`.
        told: what each worker is given beside `mailbox`.
        folder: of the run.
        scaling: arguments of Ray Train's `ScalingConfig`.
        max_failures: of workers, that are retried.

    Raises:
        UserError: a mistake that a worker found.
        Terminated: after SIGTERM to this process, when the state is saved.
    """
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # how soon the end or a failure is noticed
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    mailbox = mailbox_here()
    system, path = storage.filesystem(folder)
    trainer = TorchTrainer(
        worker,
        train_loop_config=told | {"mailbox": mailbox},
        scaling_config=ScalingConfig(**scaling),
        run_config=RunConfig(
            name="ray",
            storage_path=path,
            storage_filesystem=system if storage.is_remote(folder) else None,
            failure_config=FailureConfig(max_failures=max_failures),
            callbacks=[ray_notice.losses(mailbox)],
        ),
    )
    with follower.following(lambda: ray.get(mailbox.drain.remote())):
        try:
            ray_notice.run_or_end(trainer.fit, mailbox)
        except TrainingFailedError as error:
            mistake = _user_error(error)
            if mistake is not None:
                raise mistake from None
            raise
    outcome: dict[str, Any] | None = ray.get(mailbox.outcome.remote())
    if outcome is None:
        raise RuntimeError("the workers ended without an outcome")
    return outcome


def mailbox_here() -> Any:
    """A mailbox as an actor on the driver's own node: it is not lost with a worker's, which the run would survive."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(Mailbox).options(num_cpus=0, scheduling_strategy=here).remote()


def fixed(workers: int, gpus_per_worker: int) -> dict[str, Any]:
    """What Ray Train is asked for by a number of workers."""
    gpus = gpus_per_worker
    return {
        "num_workers": workers,
        "use_gpu": gpus > 0,
        "resources_per_worker": {"CPU": 1, "GPU": gpus} if gpus else {"CPU": 1},
    }


def check_resources(workers: int, gpus_per_worker: int) -> None:
    """Refuses what this machine lacks: a cluster of our own on it cannot grow, so waiting would never end.

    Raises:
        UserError: too few processors or GPUs for so many workers.
    """
    import ray

    if "RAY_ADDRESS" in os.environ:
        return
    have = ray.cluster_resources()
    for kind, needed, field in (("CPU", workers, "workers"), ("GPU", workers * gpus_per_worker, "gpus_per_worker")):
        if needed > have.get(kind, 0):
            raise UserError(
                f"{workers} workers need {needed} {kind}s, this machine offers {have.get(kind, 0):g}",
                field=field,
                remedy="ask for less, or submit the job to a cluster",
            )


def _user_error(error: BaseException) -> UserError | None:
    """The user's mistake that made a worker fail, if it was one."""
    failures = getattr(error, "worker_failures", {}).values()
    return next((found for failure in failures if (found := cause_of(failure, UserError)) is not None), None)


def work(mailbox: Any, at: Callable[[Place, Report, Notice], dict[str, Any]]) -> None:
    """What a worker of `fit` does.

    Args:
        at: trains as one worker, at its place; its outcome as a dict.
    """
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
    with ray_notice.on_notices(mailbox, place.rank) as notice:
        try:
            outcome = at(place, lambda point: mailbox.put.remote(point), notice)
        except Terminated as end:
            ray_notice.wait_for_the_end(place.rank, end.images, mailbox)
    if place.rank == 0:
        ray.get(mailbox.finish.remote(outcome))
