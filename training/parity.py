"""Whether an exported network is the network: single predictions, rows for themselves, and whole pictures.

A relative error is the largest difference over the largest magnitude that the reference has; 0 is equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from training.export_job import Limits
from training.onnx_denoiser import AsUnet, Denoiser, Rows, with_unet
from training.sampling import SamplingParams, sample

if TYPE_CHECKING:
    from training.bundle import DiffusionModel

_NO_NUMBER = 1e9  # stands for an error that is no number, so that every report is plain JSON
_EQUAL_PSNR = 100.0  # stands for the infinite one of equal pictures


class Parity(BaseModel):
    """Single predictions, in batches of random sizes and with a timestep of its own for every row."""

    model_config = ConfigDict(frozen=True)
    batch_sizes: list[int]
    max_abs_error: float
    max_relative_error: float
    max_row_error: float = Field(description="a row alone, and in another order, against the row in its batch")
    rows_bit_identical: bool


class Likeness(BaseModel):
    """Whole pictures against torch's at the same seeds, by uint8 pixels."""

    model_config = ConfigDict(frozen=True)
    pictures: int
    sampling: SamplingParams
    psnr: float = Field(description=f"dB, mean over the pictures; {_EQUAL_PSNR:.0f} for equal ones")
    worst_psnr: float
    picture_error: float = Field(description="1.4 would be as far off as another picture of the same model")


class Checks(BaseModel):
    """Everything that was measured of one artifact."""

    model_config = ConfigDict(frozen=True)
    parity: Parity
    likeness: Likeness

    def summary(self) -> str:
        """The figures in a line."""
        parity, likeness = self.parity, self.likeness
        return (
            f"relative error {parity.max_relative_error:.2g}, between rows {parity.max_row_error:.2g}; "
            f"pictures {likeness.psnr:.1f} dB, relative error {likeness.picture_error:.2g}"
        )

    def failures(self, limits: Limits) -> list[str]:
        """What is over its limit, in words; empty where all is well."""
        parity, likeness = self.parity, self.likeness
        upper = [
            ("relative error of a prediction", parity.max_relative_error, limits.max_relative_error),
            ("influence of other rows", parity.max_row_error, limits.max_row_error),
            ("relative error of the pictures", likeness.picture_error, limits.max_picture_error),
        ]
        found = [
            f"{what} {value:.3g}, limit {most:g}" for what, value, most in upper if most is not None and value > most
        ]
        if limits.min_psnr is not None and likeness.psnr < limits.min_psnr:
            found.append(f"PSNR of the pictures {likeness.psnr:.1f} dB, limit {limits.min_psnr:g}")
        return found


def parity(denoiser: Denoiser, reference: Denoiser, pool: Rows, *, timesteps: int, batches: int, seed: int) -> Parity:
    """Compares two networks on random batches drawn from a pool of inputs.

    Args:
        pool: what a sampler once asked; a batch takes some of its rows, and timesteps of its own.
        timesteps: length of the schedule.
        batches: how many batches; the first is of one row, the others of 2 to 16, by chance.
    """
    rng = np.random.default_rng(seed)
    sizes = [1, *(int(size) for size in rng.integers(2, 17, batches - 1))]
    absolute, relative, rows, identical = 0.0, 0.0, 0.0, True
    for size in sizes:
        batch = pool[rng.integers(0, len(pool), size)]
        times = rng.integers(0, timesteps, size).astype(batch.timestep.dtype)
        batch = replace(batch, timestep=times)
        got, wanted = denoiser.predict(batch), reference.predict(batch)
        absolute = max(absolute, _largest(got - wanted))
        relative = max(relative, _relative(got, wanted))
        order = rng.permutation(size)
        alone = np.concatenate([denoiser.predict(batch[i : i + 1]) for i in range(size)])
        shuffled = denoiser.predict(batch[order])
        rows = max(rows, _relative(alone, got), _relative(shuffled, got[order]))
        identical = identical and bool((alone == got).all() and (shuffled == got[order]).all())
    return Parity(
        batch_sizes=sizes,
        max_abs_error=absolute,
        max_relative_error=relative,
        max_row_error=rows,
        rows_bit_identical=identical,
    )


def _largest(difference: np.ndarray) -> float:
    found = float(np.abs(difference).max(initial=0))
    return found if np.isfinite(found) else _NO_NUMBER


def _relative(got: np.ndarray, wanted: np.ndarray) -> float:
    return min(_largest(got - wanted) / max(_largest(wanted), 1e-12), _NO_NUMBER)


def likeness(
    model: DiffusionModel,
    denoiser: Denoiser,
    reference: np.ndarray,
    prompts: Sequence[str],
    seeds: Sequence[int],
    params: SamplingParams,
) -> Likeness:
    """Draws pictures with a denoiser in the model's place.

    Args:
        reference: uint8 (N, H, W, 3), the model's own of the same prompts, seeds and parameters.
    """
    return compare(sample(with_unet(model, AsUnet(denoiser)), prompts, seeds, params), reference, params)


def compare(pictures: np.ndarray, reference: np.ndarray, params: SamplingParams) -> Likeness:
    """uint8 pictures (N, H, W, 3) against those that they should be."""
    psnr = [_psnr(one, other) for one, other in zip(pictures, reference, strict=True)]
    spread = reference - reference.mean(axis=0, dtype=np.float64)
    error = _rms(pictures.astype(np.float64) - reference) / max(_rms(spread), 1e-12)
    return Likeness(
        pictures=len(pictures),
        sampling=params,
        psnr=float(np.mean(psnr)),
        worst_psnr=min(psnr),
        picture_error=min(error, _NO_NUMBER),
    )


def _psnr(one: np.ndarray, other: np.ndarray) -> float:
    error = _rms(one.astype(np.float64) - other)
    return min(20 * float(np.log10(255 / error)), _EQUAL_PSNR) if error else _EQUAL_PSNR


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))
