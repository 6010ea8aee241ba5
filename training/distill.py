"""The mathematics of distillation: what a student that draws in few steps is asked for.

*Progressive distillation* (Salimans & Ho 2022, arXiv 2202.00512, algorithm 2): one DDIM step of the student lands where
two of its teacher's do; then the student is the teacher of one that takes half as many. In the first halving the
teacher is guided (Meng et al. 2022, arXiv 2210.03142), so that the student needs one evaluation where it needed two.

*Consistency distillation* (Luo et al. 2023, arXiv 2310.04378): the student answers the same clean picture anywhere on
the way that the guided teacher takes through noise.

Both are stated in clean pictures, whatever the networks predict, and on a path `x = signal x0 + noise-level noise`. So
flows are no other case: on their line DDIM's step is Euler's (`landed`), and the way of their differential equation is
one that any solver's step follows (Song et al. 2023, arXiv 2303.01469, algorithm 2). What noise says of the
picture is lost where there is little signal: see `pairs.refuse_teacher`.

Noise levels are those that the sampler visits (`sampling.timestep_grid`; of a flow, even steps of time), so that what
is learned is what is asked at inference. Shapes as in `training.objective`; `level` is int64 (N,), 0 for the clean
picture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from training.objective import Prediction
from training.sampling import timestep_grid
from training.schedules import alphas_cumprod

# (xt (N, C, H, W), level (N,)) -> the clean picture (N, C, H, W) that a network takes it for
Denoise = Callable[[Tensor, Tensor], Tensor]

SIGMA_DATA = 0.5  # of the boundary scalings, as in the LCM paper and in diffusers
TIMESTEP_SCALING = 10.0  # in the same two


@dataclass(frozen=True)
class Grid:
    """The noise levels that DDIM visits in some number of steps, or for a flow Euler's method.

    Attributes:
        timesteps: (steps + 1,), ascending: what the network is told at each level, int64; of a flow, float32, time
            times T. The first one is of the clean picture, which no network is asked about.
        level: float64 (steps + 1,), as `training.objective` takes it: alpha-bar, from 1; of a flow, time, from 0.
        signal, noise: float64 (steps + 1,), how much of the picture and of the noise is in each level.
        thousandths: float64 (steps + 1,), how far along the way a level is as the LCM paper counts it, in a thousand
            steps.
    """

    timesteps: Tensor
    level: Tensor
    signal: Tensor
    noise: Tensor
    thousandths: Tensor

    @classmethod
    def of(
        cls, betas: np.ndarray, steps: int, device: torch.device | str = "cpu", *, prediction: Prediction = "epsilon"
    ) -> Grid:
        """The grid of `steps` steps; the grid of half as many is every other level of it."""
        if prediction == "flow":
            time = torch.linspace(0, 1, steps + 1, dtype=torch.float64, device=device)
            return cls((time * len(betas)).float(), time, 1 - time, time, 1000 * time)
        visited = timestep_grid(betas, "ddim", steps)
        abar = torch.as_tensor(np.concatenate([[1.0], alphas_cumprod(betas)[visited]]), device=device)
        told = torch.as_tensor(np.concatenate([[0], visited]), device=device)
        return cls(told, abar, abar.sqrt(), (1 - abar).sqrt(), told.double())

    def __len__(self) -> int:
        """Its steps."""
        return len(self.timesteps) - 1


def landed(x0: Tensor, xt: Tensor, grid: Grid, level: Tensor, after: Tensor) -> Tensor:
    """Where a deterministic step from `level` to the level `after` of each row leads, towards the clean picture `x0`.

    It is DDIM's (Song et al. 2020, arXiv 2010.02502, equation 12): the same noise, less of it. On a flow's line that is
    Euler's, `xt + (t' - t) v` with `v = (xt - x0) / t`.
    """
    a, s, a_next, s_next = _columns(xt, grid.signal[level], grid.noise[level], grid.signal[after], grid.noise[after])
    return a_next * x0 + s_next / s * (xt - a * x0)


def two_steps(teacher: Denoise, grid: Grid, xt: Tensor, level: Tensor) -> Tensor:
    """The clean picture with which one step from `level` to `level - 2` lands where two of the teacher's do.

    It is (z'' - s''/s z) / (a'' - s''/s a) of appendix G of the paper, written as what it comes to: a mean of the
    teacher's two answers, so that clipped answers give a target within the range of pixels and nothing cancels.

    Args:
        grid: the teacher's.
        level: int64 (N,), of the teacher's grid, at least 2.
    """
    first = teacher(xt, level)
    second = teacher(landed(first, xt, grid, level, level - 1), level - 1)
    r_first = grid.noise[level - 1] / grid.noise[level]
    r_second = grid.noise[level - 2] / grid.noise[level - 1]
    of_first = r_second * (grid.signal[level - 1] - r_first * grid.signal[level])
    of_second = grid.signal[level - 2] - r_second * grid.signal[level - 1]
    (share,) = _columns(xt, of_first / (of_first + of_second))
    return share * first + (1 - share) * second


def truncated_snr(grid: Grid, level: Tensor, most: float | None = None) -> Tensor:
    """max(SNR, 1), (N,): the weight of an error of the clean picture (equation 9 of the paper).

    Args:
        most: the largest weight, as min-SNR has it (Hang et al. 2023, arXiv 2303.09556). Of 16 even steps the last one
            has over half of all weight without it, and a student of few steps never asks there.
    """
    return (grid.signal[level] / grid.noise[level]).square().clamp(min=1, max=most)


def halving_loss(answer: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Squared error of clean pictures in float32, weighted (N,), as by `truncated_snr`; a scalar."""
    error = (answer.float() - target.float()).square().flatten(1).mean(dim=1)
    return (weight.to(error.dtype) * error).mean()


def consistent(x0: Tensor, xt: Tensor, thousandths: Tensor) -> Tensor:
    """The consistency function of a denoiser's answer: where there is no noise it is `xt` itself, whatever the answer.

    c_skip and c_out as in the LCM paper, section 4.1. From the first level that a sampler visits on, c_skip is below a
    thousandth of a grey level, which is why sampling can do without them.
    """
    scaled = thousandths * TIMESTEP_SCALING
    c_skip = SIGMA_DATA**2 / (scaled**2 + SIGMA_DATA**2)
    c_out = scaled / (scaled**2 + SIGMA_DATA**2).sqrt()
    skip, out = _columns(xt, c_skip, c_out)
    return skip * xt + out * x0


def consistency_target(teacher: Denoise, average: Denoise, grid: Grid, xt: Tensor, level: Tensor) -> Tensor:
    """What the student is to answer at `level`: what its moving average answers one step of the teacher further.

    Args:
        grid: the solver's; one of its steps skips many of the schedule's.
        level: int64 (N,), at least 1.
    """
    nearer = landed(teacher(xt, level), xt, grid, level, level - 1)
    # a network is not asked about the clean picture: at level 0 its answer has no weight, so any level will do
    return consistent(average(nearer, (level - 1).clamp(min=1)), nearer, grid.thousandths[level - 1])


def pseudo_huber(answer: Tensor, target: Tensor, c: float) -> Tensor:
    """sqrt(d^2 + c^2) - c of each number, meaned (Song & Dhariwal 2023, arXiv 2310.14189); a scalar."""
    return ((answer.float() - target.float()).square() + c**2).sqrt().mean() - c


def _columns(like: Tensor, *values: Tensor) -> list[Tensor]:
    """Each (N,) as (N, 1, 1, ...), in the precision of `like`."""
    return [value.to(like.dtype).view(-1, *(1,) * (like.ndim - 1)) for value in values]
