"""Schedules against published values, closed forms and diffusers' own."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from training.schedules import (
    CosineSchedule,
    FlowPath,
    LinearSchedule,
    ScaledLinearSchedule,
    Schedule,
    SigmoidBetaSchedule,
    SigmoidSchedule,
    alphas_cumprod,
    with_zero_terminal_snr,
)

SCHEDULES: list[Schedule] = [
    LinearSchedule(), ScaledLinearSchedule(), CosineSchedule(), SigmoidSchedule(), SigmoidBetaSchedule()
]  # fmt: skip


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.kind)
def test_a_schedule_goes_from_picture_to_noise(schedule: Schedule) -> None:
    betas = schedule.betas()
    abar = alphas_cumprod(betas)
    assert betas.shape == (1000,)
    assert ((betas > 0) & (betas < 1)).all()
    assert abar[0] > 0.999
    assert abar[-1] < (0.005 if schedule.kind == "scaled_linear" else 1e-4)
    assert (np.diff(abar) < 0).all()


@pytest.mark.parametrize(
    ("schedule", "snr", "root"),
    [
        (LinearSchedule(), 4.035993e-05, 0.006353),
        (CosineSchedule(), 2.428735e-09, 4.928220e-05),
        (ScaledLinearSchedule(), 0.004682, 0.068265),
    ],
    ids=lambda s: getattr(s, "kind", ""),
)
def test_terminal_noise_is_as_published(schedule: Schedule, snr: float, root: float) -> None:
    """Lin et al. 2023, table 1: SNR and square root of alpha-bar at T, in single precision there."""
    last = alphas_cumprod(schedule.betas())[-1]
    assert last / (1 - last) == pytest.approx(snr, rel=1e-4)
    assert math.sqrt(last) == pytest.approx(root, rel=1e-4)


@pytest.mark.parametrize(
    ("schedule", "name"),
    [
        (LinearSchedule(), "linear"),
        (ScaledLinearSchedule(beta_start=1e-4, beta_end=0.02), "scaled_linear"),
        (CosineSchedule(), "squaredcos_cap_v2"),
        (SigmoidBetaSchedule(), "sigmoid"),
    ],
    ids=lambda s: getattr(s, "kind", ""),
)
@pytest.mark.parametrize("zero", [False, True], ids=["", "zero"])
def test_diffusers_has_the_same_betas(schedule: Schedule, name: str, zero: bool) -> None:
    from diffusers import DDPMScheduler

    theirs = DDPMScheduler(beta_schedule=name, beta_start=1e-4, beta_end=0.02, rescale_betas_zero_snr=zero)
    ours = schedule.model_copy(update={"zero_terminal_snr": zero}).betas()
    np.testing.assert_allclose(np.sqrt(alphas_cumprod(ours)), theirs.alphas_cumprod.sqrt().numpy(), atol=2e-6)
    # and what it makes of ours is ours: the schedule leaves us as explicit betas
    given = DDPMScheduler(trained_betas=ours)
    np.testing.assert_allclose(given.betas.numpy(), ours, rtol=1e-6)


def test_cosine_is_equation_17() -> None:
    abar = alphas_cumprod(CosineSchedule().betas())
    t = np.array([0, 250, 500, 900])
    f = np.cos(((t + 1) / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2
    np.testing.assert_allclose(abar[t], f / np.cos(0.008 / 1.008 * math.pi / 2) ** 2, rtol=1e-9)


@pytest.mark.parametrize(("start", "end", "tau"), [(-3, 3, 1.0), (0, 3, 0.3), (-3, 3, 0.5)])
def test_sigmoid_is_the_gamma_function(start: float, end: float, tau: float) -> None:
    """Chen 2023, algorithm 1, in torch's sigmoid; up to the cut at the last betas."""
    abar = alphas_cumprod(SigmoidSchedule(start=start, end=end, tau=tau).betas())
    t = (torch.arange(1000, dtype=torch.float64) + 1) / 1000
    low, high = (torch.sigmoid(torch.tensor(end_ / tau, dtype=torch.float64)) for end_ in (start, end))
    gamma = (high - torch.sigmoid((t * (end - start) + start) / tau)) / (high - low)
    np.testing.assert_allclose(abar[:-1], gamma[:-1].numpy(), rtol=1e-6)


def test_sigmoid_is_symmetric_about_the_middle() -> None:
    abar = alphas_cumprod(SigmoidSchedule(timesteps=1000).betas())
    np.testing.assert_allclose(abar[499], 0.5, atol=1e-9)
    np.testing.assert_allclose(abar[99] + abar[899], 1.0, atol=1e-9)


@pytest.mark.parametrize("kind", [LinearSchedule, ScaledLinearSchedule, SigmoidBetaSchedule])
def test_schedules_of_betas_end_alike_for_any_number_of_steps(
    kind: type[LinearSchedule | ScaledLinearSchedule | SigmoidBetaSchedule],
) -> None:
    ends = [alphas_cumprod(kind(timesteps=t).betas())[-1] for t in (500, 1000, 4000)]
    assert max(ends) / min(ends) < 2


def test_betas_begin_and_end_where_they_are_told_to() -> None:
    np.testing.assert_allclose(LinearSchedule().betas()[[0, -1]], [1e-4, 0.02])
    np.testing.assert_allclose(ScaledLinearSchedule().betas()[[0, -1]], [0.00085, 0.012])
    np.testing.assert_allclose(SigmoidBetaSchedule().betas()[[0, -1]], [1e-4, 0.02], rtol=0.5)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.kind)
def test_zero_terminal_snr_moves_the_end_alone_to_zero(schedule: Schedule) -> None:
    plain = np.sqrt(alphas_cumprod(schedule.betas()))
    betas = schedule.model_copy(update={"zero_terminal_snr": True}).betas()
    root = np.sqrt(alphas_cumprod(betas))
    assert root[-1] == 0
    assert betas[-1] == 1
    assert root[0] == pytest.approx(plain[0], rel=1e-12)
    # shifted and stretched: an affine function of what it was
    np.testing.assert_allclose(root, (plain - plain[-1]) * plain[0] / (plain[0] - plain[-1]), atol=1e-12)
    np.testing.assert_allclose(with_zero_terminal_snr(betas), betas, atol=1e-9)  # once is enough


def test_the_flow_path_has_the_lines_snr() -> None:
    abar = alphas_cumprod(FlowPath(timesteps=10).betas())
    t = np.arange(1, 11) / 10
    np.testing.assert_allclose(abar / (1 - abar), ((1 - t) / t) ** 2, atol=1e-12)
    assert abar[-1] == 0
