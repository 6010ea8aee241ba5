"""Solvers against an exact denoiser, and the promise that equal requests get equal bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from training import objective
from training.bundle import DiffusionModel
from training.objective import Prediction
from training.randomness import Purpose, normal
from training.sampling import SAMPLERS, Sampler, SamplingParams, integrate, sample, timestep_grid
from training.schedules import CosineSchedule, LinearSchedule, SigmoidSchedule, alphas_cumprod
from training.text import TextEncoder
from training.unet import UnetConfig, build_unet

MEAN, STD = 0.2, 0.25


def oracle(betas: np.ndarray, prediction: Prediction) -> Callable[[torch.Tensor, int], torch.Tensor]:
    """The perfect network for pictures whose pixels are independent N(MEAN, STD^2): E[x0 | xt] in closed form."""
    abars = alphas_cumprod(betas)

    def predict(xt: torch.Tensor, t: int) -> torch.Tensor:
        abar = torch.full((len(xt),), abars[t], dtype=torch.float64)
        a, variance = float(np.sqrt(abars[t])), float(1 - abars[t])
        x0 = MEAN + a * STD**2 / (a**2 * STD**2 + variance) * (xt - a * MEAN)
        return objective.target(prediction, x0, objective.to_epsilon("sample", x0, xt, abar), abar)

    return predict


@pytest.mark.parametrize("schedule", [LinearSchedule(), CosineSchedule(), SigmoidSchedule()], ids=lambda s: s.kind)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_draws_the_oracles_gaussian(
    sampler: Sampler, prediction: Prediction, schedule: CosineSchedule
) -> None:
    betas = schedule.betas()
    x = integrate(
        oracle(betas, prediction), range(64), (3, 8, 8), betas=betas, prediction=prediction, sampler=sampler, steps=100,
        clip=None,
    )  # fmt: skip
    assert float(x.mean()) == pytest.approx(MEAN, abs=0.02)
    assert float(x.std()) == pytest.approx(STD, rel=0.13)  # a first-order solver falls short by 1 / steps


@pytest.mark.parametrize("sampler", ["ddim", "pndm", "dpmsolver++"])
def test_deterministic_samplers_follow_the_exact_flow(sampler: Sampler) -> None:
    # the probability flow of a Gaussian is affine: each pixel keeps its distance from the mean in standard deviations
    betas = CosineSchedule().betas()
    x = integrate(
        oracle(betas, "v_prediction"), range(4), (3, 8, 8), betas=betas, prediction="v_prediction", sampler=sampler,
        steps=250, clip=None,
    )  # fmt: skip
    noise = normal(0, Purpose.SAMPLE_NOISE, torch.arange(4), (3, 8, 8))
    assert float((x - (MEAN + STD * noise)).abs().max()) < 0.02


@pytest.mark.parametrize(("sampler", "order"), [("ddim", 1), ("dpmsolver++", 2)])
def test_solvers_converge_at_their_order(sampler: Sampler, order: int) -> None:
    betas = CosineSchedule().betas()
    exact = MEAN + STD * normal(0, Purpose.SAMPLE_NOISE, torch.arange(4), (3, 8, 8))
    errors = []
    for steps in (20, 40):
        x = integrate(
            oracle(betas, "sample"), range(4), (3, 8, 8), betas=betas, prediction="sample", sampler=sampler,
            steps=steps, clip=None,
        )  # fmt: skip
        errors.append(float((x - exact).abs().mean()))
    assert errors[0] / errors[1] > 0.85 * 2**order


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
    unet = build_unet(shape, image_size=16, patch_size=2, text_width=text.width).eval()
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
    for wrong in ({"steps": 0}, {"steps": 1001}, {"guidance_scale": -1}, {"sampler": "euler"}, {"eta": 1}):
        with pytest.raises(ValidationError):
            SamplingParams.model_validate(wrong)
