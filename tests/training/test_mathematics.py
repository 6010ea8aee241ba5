"""Closed forms: q(x_t), parametrisations, weightings, EMA, learning rate."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training import objective
from training.ema import Ema
from training.job import OptimizerConfig
from training.learner import learning_rate
from training.objective import Prediction

PREDICTIONS: tuple[Prediction, ...] = ("epsilon", "v_prediction", "sample", "flow")
ON_ABAR = PREDICTIONS[:3]


@pytest.mark.parametrize(
    ("prediction", "level", "mean", "variance"),
    [("sample", abar, math.sqrt(abar), 1 - abar) for abar in (0.9, 0.3, 0.01, 0.0)]
    + [("flow", t, 1 - t, t**2) for t in (0.1, 0.5, 0.9, 1.0)],
)
def test_moments_of_q(prediction: Prediction, level: float, mean: float, variance: float) -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(20_000, 1, 2, 2, generator=generator)
    x0 = torch.full_like(noise, 0.7)
    xt = objective.q_sample(x0, noise, torch.full((20_000,), level, dtype=torch.float64), prediction)
    # four standard errors of 80,000 draws
    assert float(xt.mean()) == pytest.approx(mean * 0.7, abs=4 * math.sqrt(variance / 80_000) + 1e-6)
    assert float(xt.var()) == pytest.approx(variance, rel=4 * math.sqrt(2 / 80_000))


@given(level=st.floats(0.01, 0.99), seed=st.integers(0, 1000), prediction=st.sampled_from(PREDICTIONS))
def test_parametrisations_agree(level: float, seed: int, prediction: Prediction) -> None:
    generator = torch.Generator().manual_seed(seed)
    x0, noise = torch.randn(2, 3, 3, 4, 4, generator=generator, dtype=torch.float64).unbind(0)
    rows = torch.full((3,), level, dtype=torch.float64)
    xt = objective.q_sample(x0, noise, rows, prediction)
    perfect = objective.target(prediction, x0, noise, rows)
    torch.testing.assert_close(objective.to_x0(prediction, perfect, xt, rows), x0)
    torch.testing.assert_close(objective.to_epsilon(prediction, perfect, xt, rows), noise)
    velocity: Prediction = "flow" if prediction == "flow" else "v_prediction"
    torch.testing.assert_close(
        objective.to_v(prediction, perfect, xt, rows), objective.target(velocity, x0, noise, rows)
    )


@given(abar=st.floats(0.01, 0.99), seed=st.integers(0, 1000), predictions=st.permutations(ON_ABAR))
def test_any_output_can_be_said_in_any_other_way_and_back(
    abar: float, seed: int, predictions: list[Prediction]
) -> None:
    """Also one that is wrong: x0 and epsilon of it determine what each parametrisation would have answered."""
    generator = torch.Generator().manual_seed(seed)
    xt, output = torch.randn(2, 3, 3, 4, 4, generator=generator, dtype=torch.float64).unbind(0)
    rows = torch.full((3,), abar, dtype=torch.float64)
    said, here = output, predictions[0]
    for there in (*predictions[1:], predictions[0]):
        x0, noise = objective.to_x0(here, said, xt, rows), objective.to_epsilon(here, said, xt, rows)
        torch.testing.assert_close(objective.q_sample(x0, noise, rows), xt)
        said, here = objective.target(there, x0, noise, rows), there
    torch.testing.assert_close(said, output)


def test_the_velocity_of_a_flow_is_the_derivative_of_its_path() -> None:
    x0, noise = torch.randn(2, 1, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).unbind(0)
    t, h = torch.tensor([0.3], dtype=torch.float64), 1e-6
    ahead, behind = (objective.q_sample(x0, noise, t + step, "flow") for step in (h, -h))
    torch.testing.assert_close((ahead - behind) / (2 * h), objective.target("flow", x0, noise, t), atol=1e-8, rtol=1e-8)


def weight_of_x0(weighting: str, snr: torch.Tensor, gamma: float) -> torch.Tensor:
    """Of the squared error of the clean picture, as the papers state it."""
    return torch.minimum(snr, torch.tensor(gamma)) if weighting == "min_snr_gamma" else 1 / (1 / snr + 1 / gamma)


@pytest.mark.parametrize("weighting", ["min_snr_gamma", "soft_min_snr_gamma"])
@pytest.mark.parametrize("prediction", ON_ABAR)
def test_weightings_weigh_every_parametrisation_like_x0(prediction: Prediction, weighting: str) -> None:
    # the same error of the clean picture costs the same, whatever the network predicts
    generator = torch.Generator().manual_seed(0)
    x0, noise, error = torch.randn(3, 6, 1, 4, 4, generator=generator, dtype=torch.float64).unbind(0)
    abar = torch.tensor([0.999, 0.9, 0.5, 0.2, 0.05, 0.01], dtype=torch.float64)
    snr = abar / (1 - abar)
    xt = objective.q_sample(x0, noise, abar)
    wrong = x0 + error
    implied_noise = objective.to_epsilon("sample", wrong, xt, abar)
    output = objective.target(prediction, wrong, implied_noise, abar)
    loss = objective.loss(output, x0, noise, abar, prediction=prediction, **{weighting: 5.0})
    expected = (weight_of_x0(weighting, snr, 5.0) * error.square().flatten(1).mean(1)).mean()
    assert float(loss) == pytest.approx(float(expected), rel=1e-4)


def test_the_soft_weight_is_below_the_hard_one_and_meets_it_far_away() -> None:
    abar = torch.tensor([1e-6, 0.1, 0.5, 0.9, 1 - 1e-6], dtype=torch.float64)
    hard, soft = (f("sample", abar, 4.0) for f in (objective.min_snr_weight, objective.soft_min_snr_weight))
    assert (soft < hard).all()
    torch.testing.assert_close(soft[[0, -1]], hard[[0, -1]], rtol=1e-5, atol=0)


def test_a_flow_has_no_weight_by_snr() -> None:
    with pytest.raises(ValueError, match="how its times are drawn"):
        objective.min_snr_weight("flow", torch.tensor([0.5]), 5.0)


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
