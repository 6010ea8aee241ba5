"""Averages of any length, made afterwards: against the papers' values, closed forms and direct averaging."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from curation.errors import UserError
from tests.training.conftest import derive, row_id, shapes, write_manifest
from training.averages import coefficients, rebundle, reconstruct, snapshots, take_over
from training.bundle import load_bundle
from training.checkpoint import read_info
from training.data import TrainingSet, load
from training.ema import PowerEma, exponent
from training.job import TrainJob
from training.learner import Learner, Place
from training.loop import Outcome, train
from training.progress import Point
from training.retraining import Seen
from training.text import TextEncoder

pytestmark = pytest.mark.slow  # networks are trained, in seconds each

MakeJob = Callable[..., TrainJob]
PROFILES = {"ema": {"profiles": [0.05, 0.1], "snapshots": 4}}


@pytest.mark.parametrize(("sigma_rel", "gamma"), [(0.05, 16.97), (0.10, 6.94)])
def test_lengths_are_as_published(sigma_rel: float, gamma: float) -> None:
    """Karras et al. 2024, section 3.2."""
    assert exponent(sigma_rel) - 1 == pytest.approx(gamma, abs=0.005)


@given(sigma_rel=st.floats(0.01, 0.25))
def test_sigma_rel_is_the_standard_deviation_of_the_profile(sigma_rel: float) -> None:
    e = exponent(sigma_rel)
    edges = np.linspace(0, 1, 20_001)
    share, middle = np.diff(edges**e), (edges[1:] + edges[:-1]) / 2
    mean = (share * middle).sum()
    assert np.sqrt((share * (middle - mean) ** 2).sum()) == pytest.approx(sigma_rel, rel=1e-3)


def walk(steps: int) -> list[torch.Tensor]:
    """Weights that drift and tremble, as they do in training."""
    generator = torch.Generator().manual_seed(0)
    moves = torch.randn(steps, 5, generator=generator, dtype=torch.float64)
    return list((torch.arange(1, steps + 1)[:, None] / steps) ** 0.5 * 3 + 0.1 * moves + 0.02 * moves.cumsum(0))


def averaged(path: list[torch.Tensor], sigma_rel: float, stored_at: set[int]) -> dict[int, torch.Tensor]:
    model = torch.nn.Linear(5, 1, bias=False, dtype=torch.float64)
    average = PowerEma(model, sigma_rel)
    kept = {}
    for step, weights in enumerate(path, start=1):
        with torch.no_grad():
            model.weight.copy_(weights[None])
        average.update(step)
        if step in stored_at:
            kept[step] = average.weights["weight"][0].clone()
    return kept


@pytest.mark.parametrize("sigma_rel", [0.05, 0.2])
def test_updates_sum_to_the_power_function(sigma_rel: float) -> None:
    """The recursion telescopes: the weight of step k is (k^e - (k - 1)^e) / n^e, and the initial weights have none."""
    path, n, e = walk(300), 300, exponent(sigma_rel)
    share = np.diff((np.arange(n + 1) / n) ** e)
    expected = (torch.from_numpy(share)[:, None] * torch.stack(path)).sum(0)
    torch.testing.assert_close(averaged(path, sigma_rel, {n})[n], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("sigma_rel", [0.03, 0.075, 0.15, 0.2])
@pytest.mark.parametrize("step", [400, 300])
def test_any_length_is_that_of_direct_averaging(sigma_rel: float, step: int) -> None:
    path = walk(400)
    at = range(25, 401, 25)
    stored = {length: averaged(path, length, set(at)) for length in (0.05, 0.1)}
    pairs = [(s, length) for s in at if s <= step for length in stored]
    factors, misfit = coefficients(pairs, sigma_rel, step)
    made = sum(factor * stored[length][s] for factor, (s, length) in zip(factors.tolist(), pairs, strict=True))
    direct = averaged(path, sigma_rel, {step})[step]
    away = float((torch.stack([*averaged(path, 0.1, {step}).values()]) - direct).abs().mean())
    assert misfit < 0.065
    assert float((torch.as_tensor(made) - direct).abs().mean()) < 0.2 * away  # nearer than the nearest stored one
    assert factors.sum() == pytest.approx(1, abs=1e-6)


def test_what_is_stored_is_found_again_exactly() -> None:
    factors, misfit = coefficients([(50, 0.05), (50, 0.1), (100, 0.05), (100, 0.1)], 0.1, 100)
    np.testing.assert_allclose(factors, [0, 0, 0, 1], atol=1e-9)
    assert misfit < 1e-9


def test_long_runs_are_compared_in_bins_alike() -> None:
    def at(steps: int) -> np.ndarray:
        return coefficients([(steps * i // 8, p) for i in range(1, 9) for p in (0.05, 0.1)], 0.15, steps)[0]

    np.testing.assert_allclose(at(1_600_000), at(16_000), atol=2e-3)


def test_the_papers_continuous_profiles_give_the_same_factors() -> None:
    """Karras et al. 2024, algorithm 3: scalar products of power functions in closed form."""
    at = np.array([i * 5000 for i in range(1, 9) for _ in range(2)], dtype=float)
    gamma = np.array([exponent(p) - 1 for _ in range(8) for p in (0.05, 0.1)])

    def products(t: np.ndarray, g: np.ndarray) -> np.ndarray:
        ratio, later = at[:, None] / t[None], np.maximum(at[:, None], t[None])
        power = np.where(at[:, None] < t[None], g[None], -gamma[:, None])
        product: np.ndarray = (
            (gamma[:, None] + 1) * (g[None] + 1) * ratio**power / ((gamma[:, None] + g[None] + 1) * later)
        )
        return product

    theirs = np.linalg.solve(products(at, gamma), products(np.array([40_000.0]), np.array([exponent(0.15) - 1])))[:, 0]
    pairs = [(int(s), p) for s, p in zip(at, [0.05, 0.1] * 8, strict=True)]
    np.testing.assert_allclose(coefficients(pairs, 0.15, 40_000)[0], theirs, atol=0.02)


class Killed(BaseException):
    """Stands for a signal: nothing in the loop may handle it."""


def run(job: TrainJob, folder: Path, data: TrainingSet, text: TextEncoder, kill_at: int | None = None) -> Outcome:
    def report(point: Point) -> None:
        if point.images == kill_at:
            raise Killed

    return train(job, folder=str(folder), data=data, text=text, place=Place(), report=report)


def test_a_run_stores_its_averages_and_others_are_made_of_them(
    make_job: MakeJob, data: TrainingSet, text: TextEncoder, tmp_path: Path
) -> None:
    job = make_job(images=320, ema={"profiles": [0.05, 0.1], "snapshots": 20})
    run(job, tmp_path / "run", data, text)
    stored = snapshots(str(tmp_path / "run"))
    assert [s.step for s in stored] == [step for step in range(2, 41, 2) for _ in range(2)]
    assert {s.sigma_rel for s in stored} == {0.05, 0.1}

    learner = Learner(job, data, text, Place())
    direct = {length: PowerEma(learner.unet, length) for length in (0.1, 0.15)}
    for step in range(1, 41):
        learner.step((step - 1) * job.batch_size)
        for average in direct.values():
            average.update(step)
    for name, weights in reconstruct(stored, 0.1).items():
        torch.testing.assert_close(weights, direct[0.1].weights[name].contiguous(), rtol=1e-5, atol=1e-6)
    made = reconstruct(stored, 0.15)
    assert made.keys() == dict(learner.unet.named_parameters()).keys()
    flat = {
        key: torch.cat([weights[name].flatten() for name in made])
        for key, weights in {"made": made, "0.1": direct[0.1].weights, "0.15": direct[0.15].weights}.items()
    }
    assert (flat["made"] - flat["0.15"]).norm() < 0.05 * (flat["0.1"] - flat["0.15"]).norm()
    rebundle(str(tmp_path / "run"), 0.15, tmp_path / "longer")
    longer = load_bundle(tmp_path / "longer")
    assert longer.info.ema_sigma_rel == 0.15
    assert "a moving average over 0.15 of the run" in (tmp_path / "longer" / "README.md").read_text()
    assert longer.self_test()
    for name, weights in longer.unet.state_dict().items():
        assert torch.equal(weights, made[name])
    early = reconstruct(stored, 0.1, step=20)
    assert any(not torch.equal(early[name], made[name]) for name in made)


def test_an_interrupted_run_stores_the_same_averages(
    make_job: MakeJob, data: TrainingSet, text: TextEncoder, tmp_path: Path
) -> None:
    job = make_job(**PROFILES)
    straight = run(job, tmp_path / "straight", data, text)
    with pytest.raises(Killed):
        run(job, tmp_path / "killed", data, text, kill_at=40)
    resumed = run(job, tmp_path / "killed", data, text)
    assert resumed.resumed_from == 32
    assert resumed.state_sha256 == straight.state_sha256
    digests = [[s.sha256 for s in snapshots(str(tmp_path / name))] for name in ("straight", "killed")]
    assert digests[0] == digests[1]
    assert len(digests[0]) == 8


def test_profiles_change_nothing_else(make_job: MakeJob, data: TrainingSet, text: TextEncoder, tmp_path: Path) -> None:
    assert make_job(ema={"snapshots": 3}).config_sha256("id") == make_job().config_sha256("id")
    with_profiles, without = (Learner(make_job(**changes), data, text, Place()) for changes in (PROFILES, {}))
    for learner in (with_profiles, without):
        learner.step(0)
    state = with_profiles.state()
    assert state.keys() == {"weights", "ema", "optimizer", "ema_0.05", "ema_0.1"}
    for name, tensor in without.state()["ema"].items():
        assert torch.equal(tensor, state["ema"][name])


def test_a_retraining_takes_over_what_was_stored_before(make_job: MakeJob, text: TextEncoder, tmp_path: Path) -> None:
    rows = shapes(8)
    whole = write_manifest(tmp_path / "whole", rows)
    changes: dict[str, Any] = {**PROFILES, "images": 8, "batch_size": 1, "checkpoint_every": 1, "keep_checkpoints": 8}
    changes |= {"conditioning_images": 1, "ema": {"profiles": [0.05, 0.1], "snapshots": 8}}
    run(make_job(manifest=whole.uri, **changes), tmp_path / "first", load(whole), text)
    last = load(whole).roster.ids[int(load(whole).shown(0, torch.tensor([7])))]  # the picture that is shown last
    derived = derive(tmp_path / "derived", rows, {caption for caption, picture in rows if row_id(picture) == last})
    start = str(tmp_path / "first" / "checkpoints" / "images-000000000005")
    job = make_job(manifest=derived.uri, resume_from=start, **changes)
    retrained = run(job, tmp_path / "second", load(derived), text)
    assert retrained.resumed_from == 5
    scratch = run(job.model_copy(update={"resume_from": None}), tmp_path / "scratch", load(derived), text)
    assert scratch.state_sha256 == retrained.state_sha256
    second, third = (snapshots(str(tmp_path / name)) for name in ("second", "scratch"))
    assert [(s.step, s.sha256) for s in second] == [(s.step, s.sha256) for s in third]


def test_what_cannot_be_made_is_refused(
    make_job: MakeJob, data: TrainingSet, text: TextEncoder, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="no averages"):
        snapshots(str(tmp_path))
    run(make_job(**PROFILES), tmp_path, data, text)
    stored = snapshots(str(tmp_path))
    with pytest.raises(UserError, match="can be made from 2 stored ones") as caught:
        reconstruct(stored[:2], 0.1, step=8)
    assert "ema.snapshots" in str(caught.value.remedy)
    Path(stored[-1].file).write_bytes(b"torn")
    with pytest.raises(UserError, match="not what was written"):
        reconstruct(stored, 0.1)


def test_averages_of_other_samples_are_left_behind(
    make_job: MakeJob, data: TrainingSet, text: TextEncoder, tmp_path: Path
) -> None:
    job = make_job(**PROFILES)
    run(job, tmp_path / "first", data, text)
    other = load(write_manifest(tmp_path / "other", [(f"{caption} indeed", picture) for caption, picture in shapes(8)]))
    start = str(tmp_path / "first" / "checkpoints" / "images-000000000048")
    identity = read_info(start).identity
    take_over(start, str(tmp_path / "second"), identity, Seen(job, other))
    with pytest.raises(UserError, match="no averages"):
        snapshots(str(tmp_path / "second"))
    take_over(start, str(tmp_path / "third"), identity, Seen(job, data))
    assert [s.step for s in snapshots(str(tmp_path / "third"))] == [2, 2, 4, 4, 6, 6]
