"""Solvers one step at a time: company and interruption change nothing, and the questions are counted beforehand."""

from __future__ import annotations

import pytest
import torch

from training.objective import Prediction
from training.pairs import FLOW_SAMPLERS
from training.sampling import SAMPLERS, Sampler, integrate
from training.schedules import CosineSchedule, FlowPath
from training.stepper import Stepper

ALL: tuple[Sampler, ...] = (*SAMPLERS, "euler", "heun")
SHAPE = (3, 5, 5)


def network(x: torch.Tensor, t: float) -> torch.Tensor:
    return 0.9 * torch.sin(1.3 * x + 0.01 * t) + 0.05 * x


def stepper(sampler: Sampler, seed: int, steps: int) -> Stepper:
    flow = sampler in FLOW_SAMPLERS
    betas = (FlowPath() if flow else CosineSchedule()).betas()
    prediction: Prediction = "flow" if flow else "v_prediction"
    return Stepper([seed], SHAPE, betas=betas, prediction=prediction, sampler=sampler, steps=steps)


def finish(one: Stepper) -> torch.Tensor:
    while not one.finished:
        one.advance(network(one.x, one.timestep))
    return one.x


@pytest.mark.parametrize("sampler", ALL)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_evaluations_and_steps_are_known_before_the_first(sampler: Sampler, steps: int) -> None:
    one = stepper(sampler, 3, steps)
    asked, done = 0, []
    while not one.finished:
        one.advance(network(one.x, one.timestep))
        asked += 1
        done.append(one.done)
    assert asked == one.evaluations
    assert sorted(set(done) - {0}) == list(range(1, one.steps + 1))
    assert one.evaluations == {"heun": 2 * steps - 1, "pndm": steps + (steps > 1)}.get(sampler, steps)


def test_solvers_that_take_turns_end_where_they_end_alone() -> None:
    """Every sampler at its own number of steps, advanced in turn: none touches another's state."""
    told = [(sampler, seed, steps) for seed, (sampler, steps) in enumerate(zip(ALL * 2, range(1, 13), strict=True))]
    alone = [finish(stepper(*each)) for each in told]
    together = [stepper(*each) for each in told]
    while not all(one.finished for one in together):
        for one in together:
            if not one.finished:
                one.advance(network(one.x, one.timestep))
    for one, expected in zip(together, alone, strict=True):
        assert torch.equal(one.x, expected)


@pytest.mark.parametrize("sampler", ALL)
def test_the_clean_picture_of_the_last_answer_is_there_for_a_preview(sampler: Sampler) -> None:
    one = stepper(sampler, 1, 8)
    assert one.clean is None
    seen = []
    while not one.finished:
        one.advance(network(one.x, one.timestep))
        assert one.clean is not None
        assert float(one.clean.abs().max()) <= 1
        seen.append(one.clean)
    if sampler != "pndm":  # which extrapolates in noise; the others' last step ends at it
        torch.testing.assert_close(seen[-1], one.x, rtol=0, atol=1e-5)
    assert not torch.equal(seen[0], seen[-1])


@pytest.mark.parametrize("sampler", ALL)
def test_a_batch_taken_to_its_end_is_the_stepper_of_that_batch(sampler: Sampler) -> None:
    flow = sampler in FLOW_SAMPLERS
    betas = (FlowPath() if flow else CosineSchedule()).betas()
    prediction: Prediction = "flow" if flow else "v_prediction"
    batch = integrate(network, [1, 2], SHAPE, betas=betas, prediction=prediction, sampler=sampler, steps=5)
    rows = torch.cat([finish(stepper(sampler, seed, 5)) for seed in (1, 2)])
    torch.testing.assert_close(batch, rows, rtol=0, atol=1e-5)
