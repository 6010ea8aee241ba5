"""An evaluation as a process of its own: `python -m training.evaluation_child MODULE:FUNCTION`, for `training.watch`.

The task comes as a line of JSON on standard input, which stays open: when it ends, the training has ended, however that
came about, and so does this.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading

from training.checkpoint_evaluation import EvaluationTask, Evaluator

_LOWER = 10  # than the training's priority


def named(evaluator: Evaluator) -> str:
    """What another process finds an evaluator by."""
    return f"{evaluator.__module__}:{evaluator.__qualname__}"


def evaluate_as(name: str, task: EvaluationTask) -> None:
    """Runs the evaluator of a name at low priority, in as many threads as the job gives it."""
    import torch

    assert task.job.evaluation is not None
    os.nice(_LOWER)
    torch.set_num_threads(task.job.evaluation.cpus)
    module, _, function = name.partition(":")
    evaluator: Evaluator = getattr(importlib.import_module(module), function)
    evaluator(task)


def _end_with_the_parent() -> None:
    sys.stdin.read()
    os._exit(1)


def main() -> None:
    task = EvaluationTask.model_validate_json(sys.stdin.readline())
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    evaluate_as(sys.argv[1], task)


if __name__ == "__main__":
    main()
