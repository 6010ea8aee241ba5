"""Noise schedules: how much of the picture is left at each of T timesteps.

A schedule is its alpha-bar, float64 (T,): `x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise`. Every schedule leaves the
process as explicit betas, which all diffusers schedulers take (`trained_betas`), so none needs our code to sample.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

MAX_BETA = 0.999  # Nichol & Dhariwal 2021, section 3.2: keeps the last steps away from a division by zero


class _Schedule(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    timesteps: int = Field(1000, ge=2, le=10_000, description="T, the number of noise levels trained on")


class LinearSchedule(_Schedule):
    """Betas in equal steps (Ho et al. 2020, arXiv 2006.11239, section 4). The two ends are those of T = 1000."""

    kind: Literal["linear"] = "linear"
    beta_start: float = Field(1e-4, gt=0, lt=1, description="first beta at T = 1000")
    beta_end: float = Field(0.02, gt=0, lt=1, description="last beta at T = 1000")

    def betas(self) -> np.ndarray:
        """Float64 (T,). Scaled by 1000/T, so that another T ends at the same noise (Dhariwal & Nichol 2021)."""
        scale = 1000 / self.timesteps
        return np.clip(np.linspace(self.beta_start, self.beta_end, self.timesteps) * scale, 0, MAX_BETA)


class CosineSchedule(_Schedule):
    """Cosine alpha-bar (Nichol & Dhariwal 2021, arXiv 2102.09672, equation 17)."""

    kind: Literal["cosine"] = "cosine"
    offset: float = Field(0.008, ge=0, lt=1, description="s of equation 17: keeps the first betas from vanishing")

    def betas(self) -> np.ndarray:
        """Float64 (T,)."""
        t = np.arange(self.timesteps + 1) / self.timesteps
        return _betas_of(np.cos((t + self.offset) / (1 + self.offset) * math.pi / 2) ** 2)


class SigmoidSchedule(_Schedule):
    """Sigmoid alpha-bar (Jabri et al. 2022, arXiv 2212.11972; gamma of Chen 2023, arXiv 2301.10972, algorithm 1)."""

    kind: Literal["sigmoid"] = "sigmoid"
    start: float = Field(-3.0, description="where on the sigmoid t = 0 lies")
    end: float = Field(3.0, description="where on the sigmoid t = T lies")
    tau: float = Field(1.0, gt=0, description="temperature: smaller is steeper")

    def betas(self) -> np.ndarray:
        """Float64 (T,)."""
        t = np.arange(self.timesteps + 1) / self.timesteps
        value = 1 / (1 + np.exp(-(t * (self.end - self.start) + self.start) / self.tau))
        return _betas_of((value[-1] - value) / (value[-1] - value[0]))


ScheduleConfig = Annotated[LinearSchedule | CosineSchedule | SigmoidSchedule, Field(discriminator="kind")]


def _betas_of(alpha_bar: np.ndarray) -> np.ndarray:
    """Betas (T,) of an alpha-bar given at T + 1 points from t = 0 (where it is 1) to t = T."""
    betas: np.ndarray = np.clip(1 - alpha_bar[1:] / alpha_bar[:-1], 0, MAX_BETA)
    return betas


def alphas_cumprod(betas: np.ndarray) -> np.ndarray:
    """alpha-bar, float64 (T,), of betas (T,): the product of 1 - beta (Ho et al. 2020, equation 4)."""
    product: np.ndarray = np.cumprod(1 - np.asarray(betas, dtype=np.float64))
    return product
