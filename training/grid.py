"""A grid of pictures, drawn while a model is being trained."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from training.bundle import DiffusionModel
from training.films import png
from training.sampling import SamplingParams, sample

_ROWS = 2


def grid(model: DiffusionModel, prompts: Sequence[str], params: SamplingParams) -> bytes:
    """A PNG with one column per prompt and one row per seed, moving where it is of films; the same seeds each time."""
    seeds = [row for row in range(_ROWS) for _ in prompts]
    pictures = sample(model, [*prompts] * _ROWS, seeds, params, exact=False)
    # along height and width, which stand before the colours
    rows = [np.concatenate(list(pictures[i : i + len(prompts)]), axis=-2) for i in range(0, len(seeds), len(prompts))]
    return png(np.concatenate(rows, axis=-3))
