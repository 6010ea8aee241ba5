"""Closed forms: schedules, q(x_t), parametrisations, min-SNR, EMA, learning rate."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training import objective
from training.ema import Ema
from training.job import OptimizerConfig
from training.learner import learning_rate
from training.objective import Prediction
from training.schedules import CosineSchedule, LinearSchedule, SigmoidSchedule, alphas_cumprod

SCHEDULES = [LinearSchedule(), CosineSchedule(), SigmoidSchedule()]
PREDICTIONS: tuple[Prediction, ...] = ("epsilon", "v_prediction", "sample")


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.kind)
def test_a_schedule_goes_from_picture_to_noise(schedule: LinearSchedule | CosineSchedule | SigmoidSchedule) -> None:
    betas = schedule.betas()
    abar = alphas_cumprod(betas)
    assert betas.shape == (1000,)
    assert ((betas > 0) & (betas < 1)).all()
    assert abar[0] > 0.999
    assert abar[-1] < 1e-4
    assert (np.diff(abar) < 0).all()


def test_cosine_is_equation_17() -> None:
    abar = alphas_cumprod(CosineSchedule().betas())
    t = np.array([0, 250, 500, 900])
    f = np.cos(((t + 1) / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2
    np.testing.assert_allclose(abar[t], f / np.cos(0.008 / 1.008 * math.pi / 2) ** 2, rtol=1e-9)


def test_sigmoid_is_symmetric_about_the_middle() -> None:
    abar = alphas_cumprod(SigmoidSchedule(timesteps=1000).betas())
    np.testing.assert_allclose(abar[499], 0.5, atol=1e-9)
    np.testing.assert_allclose(abar[99] + abar[899], 1.0, atol=1e-9)


def test_linear_ends_alike_for_any_number_of_steps() -> None:
    ends = [alphas_cumprod(LinearSchedule(timesteps=t).betas())[-1] for t in (500, 1000, 4000)]
    assert max(ends) / min(ends) < 2
    np.testing.assert_allclose(LinearSchedule().betas()[[0, -1]], [1e-4, 0.02])


def test_moments_of_q() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(20_000, 1, 2, 2, generator=generator)
    x0 = torch.full_like(noise, 0.7)
    for abar in (0.9, 0.3, 0.01):
        xt = objective.q_sample(x0, noise, torch.full((20_000,), abar, dtype=torch.float64))
        assert float(xt.mean()) == pytest.approx(math.sqrt(abar) * 0.7, abs=0.02)
        assert float(xt.var()) == pytest.approx(1 - abar, rel=0.03)


@given(abar=st.floats(0.01, 0.99), seed=st.integers(0, 1000), prediction=st.sampled_from(PREDICTIONS))
def test_parametrisations_agree(abar: float, seed: int, prediction: Prediction) -> None:
    generator = torch.Generator().manual_seed(seed)
    x0, noise = torch.randn(2, 3, 3, 4, 4, generator=generator, dtype=torch.float64).unbind(0)
    rows = torch.full((3,), abar, dtype=torch.float64)
    xt = objective.q_sample(x0, noise, rows)
    perfect = objective.target(prediction, x0, noise, rows)
    torch.testing.assert_close(objective.to_x0(prediction, perfect, xt, rows), x0)
    torch.testing.assert_close(objective.to_epsilon(prediction, perfect, xt, rows), noise)
    torch.testing.assert_close(
        objective.to_v(prediction, perfect, xt, rows), objective.target("v_prediction", x0, noise, rows)
    )


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_min_snr_weighs_every_parametrisation_like_x0(prediction: Prediction) -> None:
    # the same error of the clean picture costs the same, whatever the network predicts: min(SNR, gamma) |x0 error|^2
    generator = torch.Generator().manual_seed(0)
    x0, noise, error = torch.randn(3, 6, 1, 4, 4, generator=generator, dtype=torch.float64).unbind(0)
    abar = torch.tensor([0.999, 0.9, 0.5, 0.2, 0.05, 0.01], dtype=torch.float64)
    snr = abar / (1 - abar)
    xt = objective.q_sample(x0, noise, abar)
    wrong = x0 + error
    implied_noise = objective.to_epsilon("sample", wrong, xt, abar)
    output = objective.target(prediction, wrong, implied_noise, abar)
    loss = objective.loss(output, x0, noise, abar, prediction=prediction, min_snr_gamma=5.0)
    expected = (snr.clamp(max=5.0) * error.square().flatten(1).mean(1)).mean()
    assert float(loss) == pytest.approx(float(expected), rel=1e-4)


def test_plain_loss_is_the_mean_squared_error() -> None:
    x0 = torch.zeros(2, 1, 2, 2)
    noise = torch.ones_like(x0)
    abar = torch.tensor([0.5, 0.5], dtype=torch.float64)
    assert float(objective.loss(x0, x0, noise, abar, prediction="epsilon", min_snr_gamma=None)) == 1.0


def test_ema_is_the_recursion() -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    ema = Ema(model, decay=0.9, warmup=True)
    expected = model.weight.detach().clone()
    for step in range(1, 40):
        with torch.no_grad():
            model.weight.add_(torch.randn(2, 3))
        ema.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.weight.detach()
    torch.testing.assert_close(ema.model.weight.detach(), expected)
    assert not ema.model.weight.requires_grad


def test_the_learning_rate_is_a_function_of_images_seen() -> None:
    config = OptimizerConfig(lr=1e-3, warmup_images=100)
    assert learning_rate(config, 50, 1100) == pytest.approx(5e-4)
    assert learning_rate(config, 100, 1100) == pytest.approx(1e-3)
    assert learning_rate(config, 600, 1100) == pytest.approx(5e-4)
    assert learning_rate(config, 1100, 1100) == pytest.approx(0, abs=1e-12)
    level = OptimizerConfig(lr=1e-3, warmup_images=0, decay="constant")
    assert {learning_rate(level, images, 1000) for images in (0, 500, 1000)} == {1e-3}
