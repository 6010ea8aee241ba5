"""Choices that cannot go together, refused before anything is trained: each of them would train or draw nonsense in
silence."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from curation.errors import UserError
from training.schedules import FlowPath, Schedule, alphas_cumprod

FLOW_SAMPLERS = ("euler", "heun")
_AMPLIFIED = 20.0  # times that an error of predicted noise may count in the clean picture


def refuse_objective(prediction: str, schedule: Schedule, weightings: Collection[str]) -> None:
    """Refuses what a network cannot be trained with.

    Args:
        weightings: names of the loss's fields that ask for a weighting.

    Raises:
        UserError: naming the field and what to do.
    """
    if len(weightings) > 1:
        raise UserError(
            f"two weightings at once: {' and '.join(weightings)}",
            field="loss",
            remedy="keep one and leave out the other",
        )
    if (prediction == "flow") != isinstance(schedule, FlowPath):
        raise UserError(
            f"prediction {prediction} does not go with schedule {schedule.kind}: a flow has a path of its own",
            field="schedule.kind",
            remedy="leave schedule out"
            if prediction == "flow"
            else "set prediction to flow, or choose another schedule",
        )
    if prediction == "flow":
        if weightings:
            raise UserError(
                "a flow is weighted by how often each time is drawn",
                field=f"loss.{next(iter(weightings))}",
                remedy="leave it out and set timestep_sampling (logit_normal, mean, std)",
            )
        return
    abar = alphas_cumprod(schedule.betas())
    if not abar[-2] > 0:
        raise UserError(
            f"schedule {schedule.kind} is pure noise already at level {int(np.argmin(abar > 0))} of {len(abar)}",
            field="schedule",
            remedy="choose a smaller beta_end or fewer timesteps",
        )
    if abar[-1] > 0:
        return
    if prediction == "epsilon":
        raise UserError(
            "noise predicted at zero terminal SNR says nothing of the picture: sampling would divide by zero",
            field="prediction",
            remedy="use v_prediction or sample, or set schedule.zero_terminal_snr to false",
        )
    if weightings:
        raise UserError(
            "this weighting is 0 at zero terminal SNR: the level that sampling begins at would never be trained",
            field=f"loss.{next(iter(weightings))}",
            remedy="leave it out, or set schedule.zero_terminal_snr to false",
        )


def refuse_sampler(sampler: str, prediction: str, betas: np.ndarray, *, field: str = "sampler") -> None:
    """Refuses a sampler that cannot draw with a model.

    Args:
        betas: float64 (T,), of the model's schedule.
        field: what is named in the error.

    Raises:
        UserError: naming the field and what to do.
    """
    if (prediction == "flow") != (sampler in FLOW_SAMPLERS):
        fitting = " or ".join(FLOW_SAMPLERS) if prediction == "flow" else "ddim, dpmsolver++, pndm or ddpm"
        raise UserError(
            f"sampler {sampler} cannot draw with a model whose prediction is {prediction}",
            field=field,
            remedy=f"use {fitting}",
        )
    if sampler == "pndm" and betas[-1] == 1:
        raise UserError(
            "sampler pndm works with noise, which has no meaning at zero terminal SNR",
            field=field,
            remedy="use ddim or dpmsolver++",
        )


def refuse_teacher(prediction: str, betas: np.ndarray) -> None:
    """Refuses a teacher whose answers say too little of the picture where few steps begin.

    An error of predicted noise is one of the clean picture `noise / signal` times as large, and few steps have no later
    ones to mend the first (Salimans & Ho 2022, section 4, which is why they predict v or the picture). Their weight,
    `distill.truncated_snr`, keeps such an error in the loss, but does not make it small.

    Args:
        betas: float64 (T,), of the teacher's schedule.

    Raises:
        UserError: noise is predicted, and the last level amplifies its errors too much.
    """
    if prediction != "epsilon":
        return
    abar = float(alphas_cumprod(betas)[-1])
    if abar * _AMPLIFIED**2 < 1 - abar:
        raise UserError(
            "the teacher predicts epsilon: at the first of few steps almost no signal is left, and noise says nothing "
            "there of the picture",
            field="teacher",
            remedy="train one with prediction: v_prediction, sample or flow, or with schedule.kind: scaled_linear, "
            "which leaves some signal",
        )
