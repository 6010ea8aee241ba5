"""A grid of pictures, drawn while a model is being trained."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from training.bundle import DiffusionModel
from training.sampling import SamplingParams, sample

_ROWS = 2


def grid(model: DiffusionModel, prompts: Sequence[str], params: SamplingParams) -> bytes:
    """A PNG with one column per prompt and one row per seed; the same seeds each time."""
    seeds = [row for row in range(_ROWS) for _ in prompts]
    pictures = sample(model, [*prompts] * _ROWS, seeds, params, exact=False)
    rows = [np.concatenate(list(pictures[i : i + len(prompts)]), axis=1) for i in range(0, len(seeds), len(prompts))]
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(rows)).save(buffer, "PNG")
    return buffer.getvalue()
