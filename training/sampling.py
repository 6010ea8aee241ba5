"""Sampling: from prompts and seeds to pictures, with diffusers' solvers, and for flows with our own.

Every random number is a pure function of the picture's seed, and by default every picture is computed alone, so the
same (prompt, negative prompt, seed, parameters) gives the same bytes in any company, on one machine and thread count.

Whatever the network predicts is turned into a clean picture, clipped to the range of pixels, and only then given to the
solver; so the solvers need no prediction type and clipping works for all of them.

A flow is a plain differential equation in continuous time, for which Euler's and Heun's methods are a few lines.
diffusers' Euler gives the same (tested); its Heun cannot be told which times to visit, and spends its last two steps
between t = 1/T and 0.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from training import network, objective
from training.objective import Prediction
from training.pairs import FLOW_SAMPLERS, refuse_sampler
from training.randomness import Purpose, normal
from training.schedules import alphas_cumprod
from training.space import shape

if TYPE_CHECKING:
    from training.bundle import DiffusionModel

Sampler = Literal["ddim", "pndm", "dpmsolver++", "ddpm", "euler", "heun"]
SAMPLERS: tuple[Sampler, ...] = ("ddim", "pndm", "dpmsolver++", "ddpm")  # of all models but flows

# Multistep solvers extrapolate in noise and blow up where almost no signal is left, so they start at this half log-SNR:
# the value diffusers' documentation gives for the cosine schedule.
_MULTISTEP_LOWEST_HALF_LOG_SNR = -5.1
# What stands for an alpha-bar of 0 where a solver takes its logarithm, or the root of a difference that may come out
# just below 0: diffusers' value for zero terminal SNR.
_ALMOST_ZERO = 2.0**-24

# (xt (N, C, H, W), timestep) -> the network's output, guidance already applied; of a flow, time times T, not whole
Predict = Callable[[Tensor, float], Tensor]
OnStep = Callable[[int, int], None]


class SamplingParams(BaseModel):
    """How a picture is drawn."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    steps: int = Field(20, ge=1, le=1000, description="solver steps; more is slower and usually better")
    guidance_scale: float = Field(
        2.5, ge=0, le=50, description="classifier-free guidance (Ho & Salimans 2022); at 1 and below it is off"
    )
    sampler: Sampler = Field(
        "ddim", description="ddim, dpmsolver++ and pndm are deterministic, ddpm adds noise; a flow has euler and heun"
    )


@torch.inference_mode()
def sample(
    model: DiffusionModel,
    prompts: Sequence[str],
    seeds: Sequence[int],
    params: SamplingParams,
    *,
    negative_prompts: Sequence[str] | None = None,
    on_step: OnStep | None = None,
    exact: bool = True,
) -> np.ndarray:
    """Draws one picture per prompt.

    Args:
        negative_prompts: what guidance steers away from, one per prompt; empty prompts by default.
        on_step: called with (steps done, steps in all) over the whole call.
        exact: one picture at a time, so that its bytes do not depend on the others. False runs all in one batch:
            faster, equal up to rounding.

    Returns:
        uint8 (N, H, W, 3).

    Raises:
        ValueError: the lists differ in length.
        UserError: a sampler that cannot draw with this model.
    """
    negative_prompts = [""] * len(prompts) if negative_prompts is None else negative_prompts
    if not len(prompts) == len(seeds) == len(negative_prompts):
        raise ValueError(f"{len(prompts)} prompts, {len(seeds)} seeds, {len(negative_prompts)} negative prompts")
    size = model.image_size
    groups = [[i] for i in range(len(prompts))] if exact else [list(range(len(prompts)))]
    pictures = np.zeros((len(prompts), size, size, 3), np.uint8)
    for number, group in enumerate(groups if prompts else []):
        predict = _guided(
            model, [prompts[i] for i in group], [negative_prompts[i] for i in group], params.guidance_scale
        )
        x0 = integrate(
            predict,
            [seeds[i] for i in group],
            shape(model.space, size),
            betas=model.betas,
            prediction=model.prediction,
            sampler=params.sampler,
            steps=params.steps,
            device=model.device,
            clip=model.space.clip,
            on_step=_overall(on_step, number, len(groups)),
        )
        pictures[group] = model.space.decode(x0)
    return pictures


def _overall(on_step: OnStep | None, group: int, groups: int) -> OnStep | None:
    if on_step is None:
        return None
    return lambda done, total: on_step(group * total + done, groups * total)


def _guided(model: DiffusionModel, prompts: list[str], negatives: list[str], scale: float) -> Predict:
    """The network on fixed prompts; conditional and unconditional rows go through it as one batch."""
    guided = scale > 1
    told = model.text.encode([*prompts, *negatives] if guided else prompts).to(model.device)
    count = len(prompts)
    told_as = torch.float32 if model.prediction == "flow" else torch.int64

    def predict(xt: Tensor, t: float) -> Tensor:
        doubled = torch.cat([xt, xt]) if guided else xt
        steps = torch.full((len(doubled),), t, dtype=told_as, device=xt.device)
        output = network.predict(model.unet, doubled, steps, told)
        if not guided:
            return output
        conditional, unconditional = output[:count], output[count:]
        return unconditional + scale * (conditional - unconditional)

    return predict


def integrate(
    predict: Predict,
    seeds: Sequence[int],
    shape: tuple[int, ...],
    *,
    betas: np.ndarray,
    prediction: Prediction,
    sampler: Sampler,
    steps: int,
    device: torch.device | str = "cpu",
    clip: float | None = 1.0,
    on_step: OnStep | None = None,
) -> Tensor:
    """Runs a solver from noise to clean patches, float32 (N, *shape).

    Args:
        predict: the network, or any denoiser of that form.
        seeds: one per row; all randomness of the row follows from it.
        betas: float64 (T,), the training schedule.
        clip: the clean picture's range at every step; None for no clipping.

    Raises:
        UserError: a sampler that cannot draw with this model.
    """
    refuse_sampler(sampler, prediction, betas)
    index = torch.tensor([_int64(seed) for seed in seeds], dtype=torch.int64, device=device)
    x = normal(0, Purpose.SAMPLE_NOISE, index, shape)
    if sampler in FLOW_SAMPLERS:
        return _flow(predict, x, sampler=sampler, steps=steps, timesteps=len(betas), clip=clip, on_step=on_step)
    grid = timestep_grid(betas, sampler, steps)
    abar_of = alphas_cumprod(betas)[grid]
    solver = _solver(sampler, abar_of)
    solver.set_timesteps(len(grid), device=device)
    total = len(solver.timesteps)
    for number, level in enumerate(solver.timesteps.tolist()):
        abar = torch.full((len(x),), float(abar_of[level]), dtype=torch.float64, device=device)
        x0 = objective.to_x0(prediction, predict(x, int(grid[level])).float(), x, abar)
        if clip is not None:
            x0 = x0.clamp(-clip, clip)
        if sampler == "ddpm":
            noise = normal(0, Purpose.SAMPLE_STEP, index, shape, step=number)
            x = solver.step(x0, level, x, eta=1.0, variance_noise=noise).prev_sample
        elif sampler == "pndm":
            x = solver.step(objective.to_epsilon("sample", x0, x, abar), level, x).prev_sample
        else:
            x = solver.step(x0, level, x).prev_sample
        if on_step is not None:
            on_step(number + 1, total)
    return x


def _flow(
    predict: Predict, x: Tensor, *, sampler: Sampler, steps: int, timesteps: int, clip: float | None,
    on_step: OnStep | None,
) -> Tensor:  # fmt: skip
    """Follows the velocity from t = 1 to t = 0 in even steps; Heun's last one is Euler's, as in Karras et al. 2022
    (arXiv 2206.00364, algorithm 1), so it takes 2 steps - 1 evaluations."""

    def velocity(x: Tensor, t: float) -> Tensor:
        v = predict(x, t * timesteps).float()
        return v if clip is None else (x - (x - t * v).clamp(-clip, clip)) / t

    times = np.linspace(1, 0, steps + 1).tolist()
    for number, (t, after) in enumerate(itertools.pairwise(times)):
        v = velocity(x, t)
        if sampler == "heun" and after > 0:
            v = 0.5 * (v + velocity(x + (after - t) * v, after))
        x = x + (after - t) * v
        if on_step is not None:
            on_step(number + 1, steps)
    return x


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
        # takes no `sample` predictions: `integrate` hands it the noise that the clipped picture implies
        return diffusers.PNDMScheduler(**levels, prediction_type="epsilon", skip_prk_steps=True, set_alpha_to_one=True)
    return diffusers.DPMSolverMultistepScheduler(
        **levels,
        prediction_type="sample",
        algorithm_type="dpmsolver++",
        solver_order=2,
        final_sigmas_type="zero",
    )
