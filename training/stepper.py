"""Solvers one step at a time: what the network is to be asked next, and what follows from its answer.

diffusers' solvers, and for flows our own. Whoever holds a `Stepper` decides when it is asked, and in what company: a
loop takes one from noise to picture (`training.sampling.integrate`), a server takes many at different steps forward
together (`serving.engine`).

Whatever the network predicts is turned into a clean picture, clipped to the range of pixels, and only then given to the
solver; so the solvers need no prediction type and clipping works for all of them.

A flow is a plain differential equation in continuous time, for which Euler's and Heun's methods are a few lines.
diffusers' Euler gives the same (tested); its Heun cannot be told which times to visit, and spends its last two steps
between t = 1/T and 0.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from training import objective
from training.objective import Prediction
from training.pairs import FLOW_SAMPLERS, refuse_sampler
from training.randomness import Purpose, normal
from training.schedules import alphas_cumprod

Sampler = Literal["ddim", "pndm", "dpmsolver++", "ddpm", "euler", "heun"]
SAMPLERS: tuple[Sampler, ...] = ("ddim", "pndm", "dpmsolver++", "ddpm")  # of all models but flows

# Multistep solvers extrapolate in noise and blow up where almost no signal is left, so they start at this half log-SNR:
# the value diffusers' documentation gives for the cosine schedule.
_MULTISTEP_LOWEST_HALF_LOG_SNR = -5.1
# What stands for an alpha-bar of 0 where a solver takes its logarithm, or the root of a difference that may come out
# just below 0: diffusers' value for zero terminal SNR.
_ALMOST_ZERO = 2.0**-24

# yields (x, timestep) of the next question, is sent the network's output, returns the clean pictures
_Walk = Generator[tuple[Tensor, float], Tensor, Tensor]


class Stepper:
    """A solver on its way from noise to clean pictures, with its own state.

    Until it is `finished`, the network is to be asked about `x` at `timestep`, and `advance` given its output.

    Attributes:
        x: float32 (N, *shape), what the network is asked about; when finished, the clean pictures.
        timestep: of that question, a whole number; of a flow, time times T. When finished, that of the last one.
        clean: float32 (N, *shape), the clean pictures as the last answer had them; None before the first.
        done, steps: solver steps behind it, and in all.
        evaluations: questions in all; more than steps for Heun's method.
        finished: whether nothing is left to be asked.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        shape: tuple[int, ...],
        *,
        betas: np.ndarray,
        prediction: Prediction,
        sampler: Sampler,
        steps: int,
        device: torch.device | str = "cpu",
        clip: float | None = 1.0,
    ) -> None:
        """Stands before the first step.

        Args:
            seeds: one per row; all randomness of the row follows from it.
            betas: float64 (T,), the training schedule.
            clip: the clean picture's range at every step; None for no clipping.

        Raises:
            UserError: a sampler that cannot draw with this model.
        """
        refuse_sampler(sampler, prediction, betas)
        self._sampler = sampler
        self._prediction: Prediction = prediction
        self._clip = clip
        self._index = torch.tensor([_int64(seed) for seed in seeds], dtype=torch.int64, device=device)
        self.clean: Tensor | None = None
        self.done = 0
        self.finished = False
        noise = normal(0, Purpose.SAMPLE_NOISE, self._index, shape)
        if sampler in FLOW_SAMPLERS:
            self.steps = steps
            self.evaluations = 2 * steps - 1 if sampler == "heun" else steps
            self._walk = self._flow(noise, len(betas))
        else:
            grid = timestep_grid(betas, sampler, steps)
            abar_of = alphas_cumprod(betas)[grid]
            solver = _solver(sampler, abar_of)
            solver.set_timesteps(len(grid), device=device)
            self.steps = self.evaluations = len(solver.timesteps)
            self._walk = self._levels(noise, solver, grid, abar_of)
        self.x, self.timestep = next(self._walk)

    def advance(self, output: Tensor) -> None:
        """Takes the network's answer about `x` at `timestep`, (N, *shape) with guidance applied."""
        try:
            self.x, self.timestep = self._walk.send(output)
        except StopIteration as end:
            self.x, self.finished = end.value, True

    def _levels(self, x: Tensor, solver: Any, grid: np.ndarray, abar_of: np.ndarray) -> _Walk:
        for level in solver.timesteps.tolist():
            abar = torch.full((len(x),), float(abar_of[level]), dtype=torch.float64, device=x.device)
            output = yield x, int(grid[level])
            x0 = self._clipped(objective.to_x0(self._prediction, output.float(), x, abar))
            if self._sampler == "ddpm":
                noise = normal(0, Purpose.SAMPLE_STEP, self._index, tuple(x.shape[1:]), step=self.done)
                x = solver.step(x0, level, x, eta=1.0, variance_noise=noise).prev_sample
            elif self._sampler == "pndm":
                x = solver.step(objective.to_epsilon("sample", x0, x, abar), level, x).prev_sample
            else:
                x = solver.step(x0, level, x).prev_sample
            self.done += 1
        return x

    def _flow(self, x: Tensor, timesteps: int) -> _Walk:
        """Follows the velocity from t = 1 to t = 0 in even steps; Heun's last one is Euler's, as in Karras et al. 2022
        (arXiv 2206.00364, algorithm 1), so it takes 2 steps - 1 evaluations."""
        times = np.linspace(1, 0, self.steps + 1).tolist()
        for t, after in itertools.pairwise(times):
            output = yield x, t * timesteps
            v = self._velocity(x, t, output)
            if self._sampler == "heun" and after > 0:
                ahead = x + (after - t) * v
                output = yield ahead, after * timesteps
                v = 0.5 * (v + self._velocity(ahead, after, output))
            x = x + (after - t) * v
            self.done += 1
        return x

    def _velocity(self, x: Tensor, t: float, output: Tensor) -> Tensor:
        """That which leads to the clipped clean picture."""
        v = output.float()
        x0 = self._clipped(x - t * v)
        return v if self._clip is None else (x - x0) / t

    def _clipped(self, x0: Tensor) -> Tensor:
        self.clean = x0 if self._clip is None else x0.clamp(-self._clip, self._clip)
        return self.clean


def timestep_grid(betas: np.ndarray, sampler: Sampler, steps: int) -> np.ndarray:
    """The timesteps that a solver visits, int64 ascending, evenly spaced and with the noisiest usable one at the end.

    (Lin et al. 2023, arXiv 2305.08891, table 2, "trailing".) At most as many as there are usable noise levels. With
    zero terminal SNR all are usable: the first step, from infinitely far away, looks at no other.
    """
    abar = alphas_cumprod(betas)
    usable = len(abar)
    if sampler in ("pndm", "dpmsolver++") and abar[-1] > 0:
        half_log_snr = 0.5 * np.log(abar / (1 - abar))
        usable = max(1, int((half_log_snr >= _MULTISTEP_LOWEST_HALF_LOG_SNR).sum()))
    count = min(steps, usable)
    return np.round(np.arange(1, count + 1) * (usable / count)).astype(np.int64) - 1


def _int64(seed: int) -> int:
    seed &= (1 << 64) - 1
    return seed - (1 << 64) if seed >= 1 << 63 else seed


def _solver(sampler: Sampler, abar: np.ndarray) -> Any:
    """A new solver (they hold the state of one run) that knows only the visited noise levels.

    Over the whole schedule diffusers steps by the rounded-down T // steps, which does not meet the timesteps it lists
    unless T divides; over the visited levels the stride is 1 and exact.
    """
    if sampler in ("dpmsolver++", "ddpm") and abar[-1] == 0:
        least = min(_ALMOST_ZERO, abar[-2] / 16) if len(abar) > 1 else _ALMOST_ZERO
        abar = np.append(abar[:-1], least)
    solver = _scheduler(sampler, abar)
    # diffusers keeps single precision, in which the variance of a step out of almost pure noise comes out negative
    solver.alphas_cumprod = torch.from_numpy(abar)
    return solver


def _scheduler(sampler: Sampler, abar: np.ndarray) -> Any:
    import diffusers

    levels: dict[str, Any] = {
        "num_train_timesteps": len(abar),
        "trained_betas": 1 - abar / np.concatenate([[1.0], abar[:-1]]),
        "timestep_spacing": "trailing",
    }
    if sampler in ("ddim", "ddpm"):
        # DDIM with eta = 1 is the ancestral sampler of DDPM (Song et al. 2020, arXiv 2010.02502, equation 16) on any
        # subset of the steps; and unlike DDPMScheduler it takes the noise from outside.
        return diffusers.DDIMScheduler(**levels, prediction_type="sample", clip_sample=False)
    if sampler == "pndm":
        # takes no `sample` predictions: it is handed the noise that the clipped picture implies
        return diffusers.PNDMScheduler(**levels, prediction_type="epsilon", skip_prk_steps=True, set_alpha_to_one=True)
    return diffusers.DPMSolverMultistepScheduler(
        **levels,
        prediction_type="sample",
        algorithm_type="dpmsolver++",
        solver_order=2,
        final_sigmas_type="zero",
    )
