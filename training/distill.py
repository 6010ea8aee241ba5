"""The mathematics of distillation: what a student that draws in few steps is asked for.

*Progressive distillation* (Salimans & Ho 2022, arXiv 2202.00512, algorithm 2): one DDIM step of the student lands where
two of its teacher's do; then the student is the teacher of one that takes half as many. In the first halving the
teacher is guided (Meng et al. 2022, arXiv 2210.03142), so that the student needs one evaluation where it needed two.

*Consistency distillation* (Luo et al. 2023, arXiv 2310.04378): the student answers the same clean picture anywhere on
the way that the guided teacher takes through noise.

Noise levels are those that the sampler visits (`sampling.timestep_grid`), so that what is learned is what is asked at
inference. Shapes as in `training.objective`; `level` is int64 (N,), 0 for the clean picture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from training.sampling import timestep_grid
from training.schedules import alphas_cumprod

# (xt (N, C, H, W), level (N,)) -> the clean picture (N, C, H, W) that a network takes it for
Denoise = Callable[[Tensor, Tensor], Tensor]

SIGMA_DATA = 0.5  # of the boundary scalings, as in the LCM paper and in diffusers
TIMESTEP_SCALING = 10.0  # in the same two


@dataclass(frozen=True)
class Grid:
    """The noise levels that DDIM visits in some number of steps.

    Attributes:
        timesteps: int64 (steps + 1,), ascending: what the network is told at each level. The first one is of the clean
            picture, which no network is asked about.
        abar: float64 (steps + 1,), alpha-bar of each level, from 1.
    """

    timesteps: Tensor
    abar: Tensor

    @classmethod
    def of(cls, betas: np.ndarray, steps: int, device: torch.device | str = "cpu") -> Grid:
        """The grid of `steps` steps; the grid of half as many is every other level of it."""
        visited = timestep_grid(betas, "ddim", steps)
        abar = np.concatenate([[1.0], alphas_cumprod(betas)[visited]])
        told = np.concatenate([[0], visited])
        return cls(torch.as_tensor(told, device=device), torch.as_tensor(abar, dtype=torch.float64, device=device))

    def __len__(self) -> int:
        """Its steps."""
        return len(self.timesteps) - 1


def ddim(x0: Tensor, xt: Tensor, abar: Tensor, abar_next: Tensor) -> Tensor:
    """A deterministic DDIM step (Song et al. 2020, arXiv 2010.02502, equation 12) between the levels of each row."""
    a, s, a_next, s_next = _columns(xt, abar.sqrt(), (1 - abar).sqrt(), abar_next.sqrt(), (1 - abar_next).sqrt())
    return a_next * x0 + s_next / s * (xt - a * x0)


def two_steps(teacher: Denoise, grid: Grid, xt: Tensor, level: Tensor) -> Tensor:
    """The clean picture with which one DDIM step from `level` to `level - 2` lands where two of the teacher's do.

    It is (z'' - s''/s z) / (a'' - s''/s a) of appendix G of the paper, written as what it comes to: a mean of the
    teacher's two answers, so that clipped answers give a target within the range of pixels and nothing cancels.

    Args:
        grid: the teacher's.
        level: int64 (N,), of the teacher's grid, at least 2.
    """
    abar, middle, end = grid.abar[level], grid.abar[level - 1], grid.abar[level - 2]
    first = teacher(xt, level)
    second = teacher(ddim(first, xt, abar, middle), level - 1)
    r_first, r_second = ((1 - middle) / (1 - abar)).sqrt(), ((1 - end) / (1 - middle)).sqrt()
    of_first = r_second * (middle.sqrt() - r_first * abar.sqrt())
    of_second = end.sqrt() - r_second * middle.sqrt()
    (share,) = _columns(xt, of_first / (of_first + of_second))
    return share * first + (1 - share) * second


def truncated_snr(abar: Tensor) -> Tensor:
    """max(SNR, 1), (N,): the weight of an error of the clean picture (equation 9 of the paper)."""
    return (abar / (1 - abar)).clamp(min=1)


def halving_loss(answer: Tensor, target: Tensor, abar: Tensor) -> Tensor:
    """Squared error of clean pictures in float32, weighted by `truncated_snr`; a scalar."""
    error = (answer.float() - target.float()).square().flatten(1).mean(dim=1)
    return (truncated_snr(abar).to(error.dtype) * error).mean()


def consistent(x0: Tensor, xt: Tensor, timestep: Tensor) -> Tensor:
    """The consistency function of a denoiser's answer: at timestep 0 it is `xt` itself, whatever the answer.

    c_skip and c_out as in the LCM paper, section 4.1. From the first level that a sampler visits on, c_skip is below a
    thousandth of a grey level, which is why sampling can do without them.
    """
    scaled = timestep.double() * TIMESTEP_SCALING
    c_skip = SIGMA_DATA**2 / (scaled**2 + SIGMA_DATA**2)
    c_out = scaled / (scaled**2 + SIGMA_DATA**2).sqrt()
    skip, out = _columns(xt, c_skip, c_out)
    return skip * xt + out * x0


def consistency_target(teacher: Denoise, average: Denoise, grid: Grid, xt: Tensor, level: Tensor) -> Tensor:
    """What the student is to answer at `level`: what its moving average answers one DDIM step of the teacher further.

    Args:
        grid: the solver's; one of its steps skips many of the schedule's.
        level: int64 (N,), at least 1.
    """
    nearer = ddim(teacher(xt, level), xt, grid.abar[level], grid.abar[level - 1])
    # a network is not asked about the clean picture: at level 0 its answer has no weight, so any level will do
    return consistent(average(nearer, (level - 1).clamp(min=1)), nearer, grid.timesteps[level - 1])


def pseudo_huber(answer: Tensor, target: Tensor, c: float) -> Tensor:
    """sqrt(d^2 + c^2) - c of each number, meaned (Song & Dhariwal 2023, arXiv 2310.14189); a scalar."""
    return ((answer.float() - target.float()).square() + c**2).sqrt().mean() - c


def _columns(like: Tensor, *values: Tensor) -> list[Tensor]:
    """Each (N,) as (N, 1, 1, ...), in the precision of `like`."""
    return [value.to(like.dtype).view(-1, *(1,) * (like.ndim - 1)) for value in values]
