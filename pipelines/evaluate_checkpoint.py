"""The evaluator of checkpoints while `cleanplate train` goes on: the manifest's CLIP and the embedded network judge.

It runs in a process of its own, which the training's driver starts (`training.watch`) by the name of `evaluate`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from training.checkpoint_evaluation import EvaluationTask


def evaluate(task: EvaluationTask) -> None:
    """Evaluates the newest checkpoint that is due, and draws the curves of all evaluations so far."""
    from curation import storage
    from curation.clip import EMBEDDED
    from curation.manifest import Manifest
    from pipelines.evaluate import judge_of
    from pipelines.evaluate_page import curves
    from training import checkpoint_evaluation as evaluations
    from training.features import EfficientNetLite0

    clip, notes = judge_of(Manifest.open(task.job.manifest), task.device)
    features = EfficientNetLite0(EMBEDDED / "model.safetensors", task.device)
    judges = evaluations.Judges(clip, {features.name: features}, {features.name: features.digest}, notes)
    if evaluations.evaluate(task, judges) is not None:
        found = [evaluations.read(task.folder, images) for images in evaluations.done(task.folder)]
        where = storage.join(task.folder, evaluations.FOLDER, evaluations.CURVES_FILE)
        storage.write_bytes(where, curves(found))
