"""Evaluators that other processes find by name: small judges that measure something real in no time."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from training.checkpoint_evaluation import EvaluationTask, Judges
from training.checkpoint_evaluation import evaluate as evaluate_with
from training.evaluate import Judge


def quadrants(pictures: np.ndarray) -> np.ndarray:
    """Mean colours of the quarters of pictures, as unit vectors (N, 12)."""
    half = pictures.shape[1] // 2
    parts = [pictures[:, y : y + half, x : x + half].mean(axis=(1, 2)) for y in (0, half) for x in (0, half)]
    found = np.concatenate(parts, axis=1) + 1e-3
    return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True), np.float32)


def hashed(texts: Sequence[str]) -> np.ndarray:
    """A unit vector (12,) of each text."""
    seeds = [int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) for text in texts]
    found = np.stack([np.random.default_rng(seed).normal(size=12) for seed in seeds])
    return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True), np.float32)


JUDGES = Judges(Judge("quadrants", quadrants, hashed), {"efficientnet_lite0": quadrants}, {"efficientnet_lite0": "0"})


def evaluate(task: EvaluationTask) -> None:
    evaluate_with(task, JUDGES)


def fail(task: EvaluationTask) -> None:
    raise RuntimeError("this judge is ill")


def never(task: EvaluationTask) -> None:
    """Takes the newest checkpoint and never comes to an end."""
    import threading

    from training import checkpoint_evaluation as evaluations

    evaluations.set_busy(task.folder, evaluations.due(task)[-1])
    threading.Event().wait()
