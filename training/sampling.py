"""Sampling: from prompts and seeds to pictures, with diffusers' solvers, and for flows with our own.

Every random number is a pure function of the picture's seed, and by default every picture is computed alone, so the
same (prompt, negative prompt, seed, parameters) gives the same bytes in any company, on one machine and thread count.

The solvers themselves are in `training.stepper`, one step at a time; here a whole batch is taken to its end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from training import network
from training.objective import Prediction
from training.space import shape
from training.stepper import SAMPLERS, Sampler, Stepper, timestep_grid

if TYPE_CHECKING:
    from training.bundle import DiffusionModel

__all__ = ["SAMPLERS", "Sampler", "SamplingParams", "integrate", "sample", "timestep_grid"]

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
    size: tuple[int, int] | None = None,
    on_step: OnStep | None = None,
    exact: bool = True,
) -> np.ndarray:
    """Draws one picture per prompt.

    Args:
        negative_prompts: what guidance steers away from, one per prompt; empty prompts by default.
        size: width and height in pixels; None: the model's own side, square.
        on_step: called with (steps done, steps in all) over the whole call.
        exact: one picture at a time, so that its bytes do not depend on the others. False runs all in one batch:
            faster, equal up to rounding.

    Returns:
        uint8 (N, H, W, 3); films are (N, F, H, W, 3).

    Raises:
        ValueError: the lists differ in length.
        UserError: a sampler that cannot draw with this model.
    """
    negative_prompts = [""] * len(prompts) if negative_prompts is None else negative_prompts
    if not len(prompts) == len(seeds) == len(negative_prompts):
        raise ValueError(f"{len(prompts)} prompts, {len(seeds)} seeds, {len(negative_prompts)} negative prompts")
    width, height = size or (model.image_size, model.image_size)
    groups = [[i] for i in range(len(prompts))] if exact else [list(range(len(prompts)))]
    frames = () if model.space.frames is None else (model.space.frames,)
    pictures = np.zeros((len(prompts), *frames, height, width, 3), np.uint8)
    for number, group in enumerate(groups if prompts else []):
        predict = _guided(
            model, [prompts[i] for i in group], [negative_prompts[i] for i in group], params.guidance_scale
        )
        x0 = integrate(
            predict,
            [seeds[i] for i in group],
            shape(model.space, (width, height)),
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
    stepper = Stepper(
        seeds, shape, betas=betas, prediction=prediction, sampler=sampler, steps=steps, device=device, clip=clip
    )
    seen = 0
    while not stepper.finished:
        stepper.advance(predict(stepper.x, stepper.timestep))
        if on_step is not None and stepper.done > seen:
            seen = stepper.done
            on_step(seen, stepper.steps)
    return stepper.x
