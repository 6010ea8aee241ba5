"""Solvers against an exact denoiser, and the promise that equal requests get equal bytes."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from curation.errors import UserError
from training import objective
from training.bundle import DiffusionModel
from training.network import build
from training.objective import Prediction
from training.pairs import FLOW_SAMPLERS
from training.randomness import Purpose, normal
from training.sampling import SAMPLERS, Sampler, SamplingParams, integrate, sample, timestep_grid
from training.schedules import (
    CosineSchedule,
    FlowPath,
    LinearSchedule,
    ScaledLinearSchedule,
    Schedule,
    SigmoidBetaSchedule,
    SigmoidSchedule,
    alphas_cumprod,
)
from training.text import TextEncoder
from training.unet import UnetConfig

MEAN, STD = 0.2, 0.25


def oracle(betas: np.ndarray, prediction: Prediction) -> Callable[[torch.Tensor, float], torch.Tensor]:
    """The perfect network for pictures whose pixels are independent N(MEAN, STD^2): E[x0 | xt] in closed form."""
    abars = alphas_cumprod(betas)

    def predict(xt: torch.Tensor, t: float) -> torch.Tensor:
        level = t / len(betas) if prediction == "flow" else float(abars[int(t)])
        a, s = (1 - level, level) if prediction == "flow" else (level**0.5, (1 - level) ** 0.5)
        xt = xt.double()
        away = (xt - a * MEAN) / (a**2 * STD**2 + s**2)
        x0, noise = MEAN + a * STD**2 * away, s * away
        rows = torch.full((len(xt),), level, dtype=torch.float64)
        return objective.target(prediction, x0, noise, rows).float()

    return predict


ZERO = CosineSchedule(zero_terminal_snr=True)
DRAWN: list[tuple[Schedule, Prediction, Sampler]] = [
    *itertools.product(
        [LinearSchedule(), ScaledLinearSchedule(), CosineSchedule(), SigmoidSchedule(), SigmoidBetaSchedule()],
        ("epsilon", "v_prediction", "sample"),
        SAMPLERS,
    ),
    *itertools.product(
        [ZERO, ScaledLinearSchedule(zero_terminal_snr=True)],
        ("v_prediction", "sample"),
        ("ddim", "dpmsolver++", "ddpm"),
    ),
    *itertools.product([FlowPath()], ("flow",), FLOW_SAMPLERS),
]  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("schedule", "prediction", "sampler"),
    DRAWN,
    ids=lambda s: s if isinstance(s, str) else s.kind + "-zero" * getattr(s, "zero_terminal_snr", False),
)
def test_every_sampler_draws_the_oracles_gaussian(schedule: Schedule, prediction: Prediction, sampler: Sampler) -> None:
    betas = schedule.betas()
    x = integrate(
        oracle(betas, prediction), range(64), (3, 8, 8), betas=betas, prediction=prediction, sampler=sampler, steps=200,
        clip=None,
    )  # fmt: skip
    assert float(x.mean()) == pytest.approx(MEAN, abs=0.02)
    assert float(x.std()) == pytest.approx(STD, rel=0.1)  # a first-order solver falls short by 1 / steps


@pytest.mark.parametrize(
    ("schedule", "prediction", "sampler"),
    [
        (CosineSchedule(), "v_prediction", "ddim"),
        (CosineSchedule(), "v_prediction", "pndm"),
        (CosineSchedule(), "v_prediction", "dpmsolver++"),
        (ZERO, "v_prediction", "ddim"),
        (ZERO, "sample", "dpmsolver++"),
        (FlowPath(), "flow", "euler"),
        (FlowPath(), "flow", "heun"),
    ],
    ids=lambda s: s if isinstance(s, str) else s.kind,
)
def test_deterministic_samplers_follow_the_exact_flow(
    schedule: Schedule, prediction: Prediction, sampler: Sampler
) -> None:
    # the probability flow of a Gaussian is affine: each pixel keeps its distance from the mean in standard deviations
    betas = schedule.betas()
    x = integrate(
        oracle(betas, prediction), range(4), (3, 8, 8), betas=betas, prediction=prediction, sampler=sampler,
        steps=250, clip=None,
    )  # fmt: skip
    noise = normal(0, Purpose.SAMPLE_NOISE, torch.arange(4), (3, 8, 8))
    assert float((x - (MEAN + STD * noise)).abs().max()) < 0.02


def even_steps(count: int) -> np.ndarray:
    """Betas of levels evenly spaced in log-SNR, in which the solvers' orders are stated: nothing is trained by them."""
    half_log_snr = np.linspace(8, -4, count)
    abar = 1 / (1 + np.exp(-2 * half_log_snr))
    betas: np.ndarray = 1 - abar / np.concatenate([[1.0], abar[:-1]])
    return betas


@pytest.mark.parametrize(
    ("sampler", "order"), [("ddim", 1), ("pndm", 2), ("dpmsolver++", 2), ("euler", 1), ("heun", 2)]
)
def test_solvers_converge_at_their_order(sampler: Sampler, order: int) -> None:
    """The slope of log error over log steps. PNDM's is the order that Liu et al. 2022 (arXiv 2202.09778) prove: its
    first steps are of second order."""
    prediction: Prediction = "flow" if sampler in FLOW_SAMPLERS else "v_prediction"
    counts, errors = (32, 64, 128, 256), []
    for count in counts:
        betas = FlowPath().betas() if prediction == "flow" else even_steps(count)
        start = normal(0, Purpose.SAMPLE_NOISE, torch.arange(4), (3, 8, 8)).double()
        if prediction == "flow":
            exact = MEAN + STD * start
        else:  # the noisiest level is not quite noise: the flow from the start that the sampler takes
            abar = float(alphas_cumprod(betas)[-1])
            exact = MEAN + STD * (start - abar**0.5 * MEAN) / (abar * STD**2 + 1 - abar) ** 0.5
        x = integrate(
            oracle(betas, prediction), range(4), (3, 8, 8), betas=betas, prediction=prediction, sampler=sampler,
            steps=count, clip=None,
        )  # fmt: skip
        errors.append(float((x - exact).abs().mean()))
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert slope == pytest.approx(order, abs=0.15)


def test_diffusers_euler_takes_the_same_steps() -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    betas = FlowPath().betas()
    predict = oracle(betas, "flow")
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 10, 10).tolist())
    x = normal(0, Purpose.SAMPLE_NOISE, torch.arange(2), (3, 4, 4))
    for t in scheduler.timesteps:
        x = scheduler.step(predict(x, float(t)), t, x).prev_sample
    ours = integrate(predict, range(2), (3, 4, 4), betas=betas, prediction="flow", sampler="euler", steps=10, clip=None)
    torch.testing.assert_close(ours, x, atol=1e-5, rtol=1e-5)


def test_diffusers_ddim_takes_the_same_steps_from_zero_terminal_snr() -> None:
    from diffusers import DDIMScheduler

    betas = ZERO.betas()
    predict = oracle(betas, "v_prediction")
    scheduler = DDIMScheduler(
        trained_betas=betas, prediction_type="v_prediction", clip_sample=False, timestep_spacing="trailing"
    )
    scheduler.set_timesteps(10)
    assert int(scheduler.timesteps[0]) == 999
    x = normal(0, Purpose.SAMPLE_NOISE, torch.arange(2), (3, 4, 4))
    for t in scheduler.timesteps.tolist():
        x = scheduler.step(predict(x, t), t, x).prev_sample
    ours = integrate(
        predict, range(2), (3, 4, 4), betas=betas, prediction="v_prediction", sampler="ddim", steps=10, clip=None
    )
    torch.testing.assert_close(ours, x, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("schedule", "prediction", "sampler"),
    [
        (FlowPath(), "flow", "ddim"),
        (FlowPath(), "flow", "ddpm"),
        (CosineSchedule(), "sample", "heun"),
        (ZERO, "sample", "pndm"),
    ],
)
def test_a_sampler_that_cannot_draw_is_refused(schedule: Schedule, prediction: Prediction, sampler: Sampler) -> None:
    betas = schedule.betas()
    with pytest.raises(UserError) as caught:
        integrate(
            oracle(betas, prediction), [0], (3, 4, 4), betas=betas, prediction=prediction, sampler=sampler, steps=2
        )
    assert caught.value.field == "sampler"
    assert caught.value.remedy


@pytest.mark.parametrize("sampler", FLOW_SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_a_flow_takes_as_many_steps_as_it_is_told(sampler: Sampler, steps: int) -> None:
    betas = FlowPath(timesteps=100).betas()
    evaluated, seen = [], []

    def predict(xt: torch.Tensor, t: float) -> torch.Tensor:
        evaluated.append(t)
        return oracle(betas, "flow")(xt, t)

    x = integrate(
        predict, [5], (3, 4, 4), betas=betas, prediction="flow", sampler=sampler, steps=steps,
        on_step=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert seen == [(n, steps) for n in range(1, steps + 1)]
    assert len(evaluated) == (steps if sampler == "euler" else 2 * steps - 1)
    assert (evaluated[0], min(evaluated)) == (100, pytest.approx(100 / steps))
    assert float(x.abs().max()) <= 1 + 1e-6  # clipped


@pytest.mark.parametrize("sampler", ["ddim", "dpmsolver++", "ddpm"])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize(
    "schedule",
    # the linear one's last level but one has less signal than what diffusers takes for none
    [ZERO, CosineSchedule(timesteps=10_000, zero_terminal_snr=True), LinearSchedule(zero_terminal_snr=True)],
    ids=lambda s: f"{s.kind} {s.timesteps}",
)
def test_sampling_begins_at_zero_terminal_snr(sampler: Sampler, steps: int, schedule: Schedule) -> None:
    betas = schedule.betas()
    assert timestep_grid(betas, sampler, steps)[-1] == schedule.timesteps - 1
    x = integrate(
        oracle(betas, "v_prediction"), range(4), (3, 4, 4), betas=betas, prediction="v_prediction", sampler=sampler,
        steps=steps,
    )  # fmt: skip
    assert torch.isfinite(x).all()
    assert float((x - MEAN).abs().mean()) < 1.5 * STD


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 1000])
def test_any_number_of_steps_stays_finite(sampler: Sampler, steps: int) -> None:
    betas = CosineSchedule().betas()
    seen: list[tuple[int, int]] = []
    x = integrate(
        oracle(betas, "epsilon"), [5], (3, 4, 4), betas=betas, prediction="epsilon", sampler=sampler, steps=steps,
        on_step=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert torch.isfinite(x).all()
    assert seen[-1][0] == seen[-1][1] >= min(steps, 900)
    if sampler != "pndm" or steps > 3:  # PNDM needs four evaluations to fill its history
        assert float((x - MEAN).abs().mean()) < 1.5 * STD + 0.05


def test_ancestral_step_is_ddpms_posterior() -> None:
    """DDIM with eta = 1 is DDPMScheduler's mean and variance (Ho et al. 2020, equations 6 and 7)."""
    import diffusers

    betas = LinearSchedule(timesteps=50).betas()
    x = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    x0 = x * 0.3
    common = {"num_train_timesteps": 50, "trained_betas": betas, "prediction_type": "sample", "clip_sample": False}
    ddpm = diffusers.DDPMScheduler(**common, variance_type="fixed_small")
    ddim = diffusers.DDIMScheduler(**common)
    ddpm.set_timesteps(50)
    ddim.set_timesteps(50)
    noise = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    for t in (49, 20, 1):
        ours = ddim.step(x0, t, x, eta=1.0, variance_noise=noise).prev_sample
        theirs = ddpm.step(x0, t, x, generator=torch.Generator().manual_seed(1)).prev_sample
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)


def test_the_grid_ends_at_the_noisiest_usable_level() -> None:
    betas = CosineSchedule().betas()
    assert timestep_grid(betas, "ddim", 4).tolist() == [249, 499, 749, 999]
    assert timestep_grid(betas, "ddim", 1000).tolist() == list(range(1000))
    assert 900 < timestep_grid(betas, "pndm", 20)[-1] < 999


@pytest.fixture(scope="module")
def model(tower: Path) -> DiffusionModel:
    torch.manual_seed(1)
    text = TextEncoder(tower)
    shape = UnetConfig(block_out_channels=(32, 32), layers_per_block=1, attention_heads=2)
    unet = build(shape, channels=12, side=8, width=text.width).eval()
    return DiffusionModel(
        unet=unet, text=text, betas=CosineSchedule().betas(), prediction="v_prediction", image_size=16, patch_size=2
    )


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_bytes_do_not_depend_on_company(model: DiffusionModel, sampler: Sampler) -> None:
    params = SamplingParams(steps=3, sampler=sampler)
    together = sample(
        model, ["a red square", "a blue circle", "x"], [1, 2, 3], params, negative_prompts=["", "red", ""]
    )
    alone = sample(model, ["a blue circle"], [2], params, negative_prompts=["red"])
    assert together.shape == (3, 16, 16, 3)
    assert together.dtype == np.uint8
    assert (together[1] == alone[0]).all()
    batched = sample(
        model, ["a red square", "a blue circle"], [1, 2], params, negative_prompts=["", "red"], exact=False
    )
    assert np.abs(batched.astype(int) - together[:2]).max() <= 1


def test_seed_prompt_negative_and_guidance_matter(model: DiffusionModel) -> None:
    params = SamplingParams(steps=3)
    base = sample(model, ["a red square"], [1], params)
    assert (base == sample(model, ["a red square"], [1], params)).all()
    assert (base != sample(model, ["a red square"], [2], params)).any()
    assert (base != sample(model, ["a blue square"], [1], params)).any()
    assert (base != sample(model, ["a red square"], [1], params, negative_prompts=["blue"])).any()
    assert (base != sample(model, ["a red square"], [1], params.model_copy(update={"guidance_scale": 1.0}))).any()
    assert sample(model, ["a"], [2**64 - 1], params).shape == (1, 16, 16, 3)
    assert sample(model, [], [], params).shape == (0, 16, 16, 3)


def test_progress_counts_the_whole_call(model: DiffusionModel) -> None:
    seen: list[tuple[int, int]] = []
    sample(model, ["a", "b"], [0, 1], SamplingParams(steps=3), on_step=lambda done, total: seen.append((done, total)))
    assert seen == [(n, 6) for n in range(1, 7)]


def test_bad_requests_are_refused(model: DiffusionModel) -> None:
    with pytest.raises(ValueError, match="2 prompts, 1 seeds"):
        sample(model, ["a", "b"], [1], SamplingParams())
    for wrong in ({"steps": 0}, {"steps": 1001}, {"guidance_scale": -1}, {"sampler": "unipc"}, {"eta": 1}):
        with pytest.raises(ValidationError):
            SamplingParams.model_validate(wrong)
