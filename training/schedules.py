"""Noise schedules: how much of the picture is left at each of T timesteps.

A schedule is its alpha-bar, float64 (T,): `x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise`. Every schedule leaves the
process as explicit betas, which all diffusers schedulers take (`trained_betas`), so none needs our code to sample.

With `zero_terminal_snr` the last timestep is noise and nothing else, as it is where sampling begins (Lin et al. 2023,
arXiv 2305.08891). Its alpha-bar is 0 exactly, and noise predicted there says nothing of the picture.
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
    zero_terminal_snr: bool = Field(
        False, description="rescale so that the last level is pure noise (Lin et al. 2023); not for epsilon"
    )

    def _finished(self, betas: np.ndarray) -> np.ndarray:
        return with_zero_terminal_snr(betas) if self.zero_terminal_snr else betas


class LinearSchedule(_Schedule):
    """Betas in equal steps (Ho et al. 2020, arXiv 2006.11239, section 4). The two ends are those of T = 1000."""

    kind: Literal["linear"] = "linear"
    beta_start: float = Field(1e-4, gt=0, lt=1, description="first beta at T = 1000")
    beta_end: float = Field(0.02, gt=0, lt=1, description="last beta at T = 1000")

    def betas(self) -> np.ndarray:
        """Float64 (T,). Scaled by 1000/T, so that another T ends at the same noise (Dhariwal & Nichol 2021)."""
        return self._finished(_per_step(np.linspace(self.beta_start, self.beta_end, self.timesteps)))


class ScaledLinearSchedule(_Schedule):
    """Betas whose square roots go in equal steps: the schedule of latent diffusion (Rombach et al. 2022) and of Stable
    Diffusion, whose ends are the defaults. They leave a tenth of the signal: consider `zero_terminal_snr`."""

    kind: Literal["scaled_linear"] = "scaled_linear"
    beta_start: float = Field(0.00085, gt=0, lt=1, description="first beta at T = 1000")
    beta_end: float = Field(0.012, gt=0, lt=1, description="last beta at T = 1000")

    def betas(self) -> np.ndarray:
        """Float64 (T,). Scaled by 1000/T like the linear ones."""
        roots = np.linspace(math.sqrt(self.beta_start), math.sqrt(self.beta_end), self.timesteps)
        return self._finished(_per_step(roots**2))


class CosineSchedule(_Schedule):
    """Cosine alpha-bar (Nichol & Dhariwal 2021, arXiv 2102.09672, equation 17)."""

    kind: Literal["cosine"] = "cosine"
    offset: float = Field(0.008, ge=0, lt=1, description="s of equation 17: keeps the first betas from vanishing")

    def betas(self) -> np.ndarray:
        """Float64 (T,)."""
        t = np.arange(self.timesteps + 1) / self.timesteps
        return self._finished(_betas_of(np.cos((t + self.offset) / (1 + self.offset) * math.pi / 2) ** 2))


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
        return self._finished(_betas_of((value[-1] - value) / (value[-1] - value[0])))


class SigmoidBetaSchedule(_Schedule):
    """Betas along a sigmoid from -6 to 6 (GeoDiff, Xu et al. 2022, arXiv 2203.02923): what diffusers calls sigmoid."""

    kind: Literal["sigmoid_beta"] = "sigmoid_beta"
    beta_start: float = Field(1e-4, gt=0, lt=1, description="where the betas begin at T = 1000")
    beta_end: float = Field(0.02, gt=0, lt=1, description="where the betas end at T = 1000")

    def betas(self) -> np.ndarray:
        """Float64 (T,). Scaled by 1000/T like the linear ones."""
        rise = 1 / (1 + np.exp(-np.linspace(-6, 6, self.timesteps)))
        return self._finished(_per_step(rise * (self.beta_end - self.beta_start) + self.beta_start))


class FlowPath(BaseModel):
    """The straight line `x_t = (1 - t) x_0 + t noise` of flow matching, with continuous t: for `prediction: flow`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["flow"] = "flow"
    timesteps: int = Field(1000, ge=2, le=10_000, description="the network is told t times this, and most steps")

    def betas(self) -> np.ndarray:
        """Float64 (T,): the betas with the line's SNR, ((1 - t) / t)^2, at t = 1/T to 1. Nothing is trained or drawn by
        them; they say which levels there are, where something asks any model."""
        t = np.arange(1, self.timesteps + 1) / self.timesteps
        abar = (1 - t) ** 2 / ((1 - t) ** 2 + t**2)
        betas: np.ndarray = 1 - abar / np.concatenate([[1.0], abar[:-1]])
        return betas


Schedule = LinearSchedule | ScaledLinearSchedule | CosineSchedule | SigmoidSchedule | SigmoidBetaSchedule | FlowPath
ScheduleConfig = Annotated[Schedule, Field(discriminator="kind")]


def _per_step(betas: np.ndarray) -> np.ndarray:
    """Betas (T,) that are meant for T = 1000, for this T."""
    scaled: np.ndarray = np.clip(betas * (1000 / len(betas)), 0, MAX_BETA)
    return scaled


def _betas_of(alpha_bar: np.ndarray) -> np.ndarray:
    """Betas (T,) of an alpha-bar given at T + 1 points from t = 0 (where it is 1) to t = T."""
    betas: np.ndarray = np.clip(1 - alpha_bar[1:] / alpha_bar[:-1], 0, MAX_BETA)
    return betas


def alphas_cumprod(betas: np.ndarray) -> np.ndarray:
    """alpha-bar, float64 (T,), of betas (T,): the product of 1 - beta (Ho et al. 2020, equation 4)."""
    product: np.ndarray = np.cumprod(1 - np.asarray(betas, dtype=np.float64))
    return product


def with_zero_terminal_snr(betas: np.ndarray) -> np.ndarray:
    """Betas (T,) whose alpha-bar ends at 0 and begins where it did: its square root is shifted and stretched (Lin et
    al. 2023, algorithm 1). The last beta is 1."""
    root = np.sqrt(alphas_cumprod(betas))
    abar = ((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2
    rescaled: np.ndarray = 1 - abar / np.concatenate([[1.0], abar[:-1]])
    return rescaled
