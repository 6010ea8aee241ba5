"""The best checkpoint of a run, by its job's `best_by`, and the bundle that is made of it."""

from __future__ import annotations

from curation import storage
from training import checkpoint, finish
from training import checkpoint_evaluation as evaluations
from training.bundle import INFO_FILE, load_bundle
from training.checkpoint import CheckpointInfo, Standing
from training.evaluation_config import BY_LOSS
from training.job import TrainJob
from training.run_record import BEST_BUNDLE, Best


def standing(folder: str, best_by: str) -> evaluations.Standings | None:
    """Says how the checkpoints of a run stand; None where that is their own loss."""
    return None if best_by == BY_LOSS else evaluations.Standings(folder, best_by)


def best_of(folder: str, best_by: str) -> Best | None:
    """The best checkpoint in a run's folder; None where nothing is known of any."""
    ranked = standing(folder, best_by)
    found: Standing | None = None if ranked is None else ranked()
    path = checkpoint.best(storage.join(folder, "checkpoints"), found)
    if path is None:
        return None
    info = checkpoint.read_info(path)
    value = info.loss if found is None else evaluations.read(folder, info.images_seen).values()[best_by]
    assert value is not None
    return Best(images_seen=info.images_seen, by=best_by, value=value, checkpoint=path)


def settle(job: TrainJob, folder: str) -> Best | None:
    """At the end of a run: removes the checkpoints that are not kept, and makes a bundle of the best if it is to be."""
    if not job.keep_best_checkpoints:
        return None
    ranked = standing(folder, job.best_by)
    checkpoint.remove_old(
        storage.join(folder, "checkpoints"),
        job.keep_checkpoints,
        job.keep_best_checkpoints,
        None if ranked is None else ranked(),
    )
    found = best_of(folder, job.best_by)
    return found if found is None or job.bundle == "last" else with_bundle(folder, found)


def with_bundle(folder: str, best: Best) -> Best:
    """Makes `bundle_best` beside a finished run's `bundle`, unless it is there.

    Raises:
        UserError: no bundle, or a checkpoint that is damaged.
    """
    target = storage.join(folder, BEST_BUNDLE)
    if storage.exists(storage.join(target, INFO_FILE)):
        return best.model_copy(update={"bundle": target})
    info, state = checkpoint.load(best.checkpoint, checkpoint.read_info(best.checkpoint).identity)
    model = load_bundle(storage.join(folder, "bundle"))
    model.unet.load_state_dict(state["ema"])
    told = {
        "images_seen": info.images_seen,
        "state_sha256": checkpoint.state_sha256(state),
        "metrics": {**_measured(info), best.by: best.value},
    }
    finish.write(target, model, model.info.model_copy(update=told))
    return best.model_copy(update={"bundle": target})


def _measured(info: CheckpointInfo) -> dict[str, float]:
    """What was measured last before a checkpoint."""
    values = [point.values for point in info.points if "loss" in point.values]
    return {key: values[-1][key] for key in ("loss", "grad_norm")} if values else {}
