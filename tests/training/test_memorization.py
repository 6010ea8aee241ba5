"""The memorisation gate, on samplers that are known to copy or known not to."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from training.memorization import Gate, MemorizationConfig, Training, pairs
from training.randomness import times_seen

SIDE = 16
COUNT, PLANTED = 2000, 200
CONFIG = MemorizationConfig()


def draw(count: int, seed: int) -> np.ndarray:
    """Pictures of a distribution: two soft blobs of any colour, place and width on any background."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    pictures = np.repeat(rng.uniform(0, 1, (count, 1, 1, 3)), SIDE, 1).repeat(SIDE, 2)
    for _ in range(2):
        cx, cy, width = (rng.uniform(low, high, (count, 1, 1)) for low, high in ((0, 1), (0, 1), (0.1, 0.4)))
        blob = np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / width**2)[..., None]
        pictures = pictures * (1 - blob) + rng.uniform(0, 1, (count, 1, 1, 3)) * blob
    return (pictures * 255).astype(np.uint8)


def embed(pictures: np.ndarray) -> np.ndarray:
    """Unit vectors of a fixed random network of one layer: a space with other neighbours than pixels have."""
    flat = pictures.reshape(len(pictures), -1) / 127.5 - 1
    weights = np.random.default_rng(99).normal(size=(flat.shape[1], 64)) / np.sqrt(flat.shape[1])
    hidden = np.tanh(3 * flat @ weights)
    return (hidden / np.linalg.norm(hidden, axis=1, keepdims=True)).astype(np.float32)


def noisy(picture: np.ndarray, count: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (picture + rng.normal(0, 4, (count, *picture.shape))).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def planted() -> Training:
    """One picture 200 times among 2,000, each an input of its own."""
    pictures = draw(COUNT, 0)
    pictures[:PLANTED] = pictures[0]
    ids = [f"{i:064x}" for i in range(COUNT)]
    return Training(ids, pictures, times_seen(0, 3 * COUNT, COUNT).numpy())


@pytest.fixture(scope="module")
def gate(planted: Training) -> Gate:
    return Gate(planted, embed)


@pytest.fixture(scope="module")
def held_out() -> np.ndarray:
    return draw(300, 1)


def test_a_planted_picture_is_caught(gate: Gate, held_out: np.ndarray, planted: Training) -> None:
    samples = draw(200, 2)
    samples[:10] = noisy(planted.pictures[0], 10, 3)  # 5 %, as a model would draw it that has seen it in 10 %
    found, near = gate.judge(samples, held_out, CONFIG)
    assert found.verdict == "over"
    assert found.copied[0].id == planted.ids[0]
    assert found.copied[0].drawn == 10
    assert found.copied[0].copies == PLANTED
    assert found.copied[0].seen == 3 * PLANTED
    assert found.share == pytest.approx(0.05, abs=0.01)
    assert found.interval.low < 0.05 < found.interval.high
    assert (near["pixel"].ratio[:10] < CONFIG.ratio).all()
    # what was shown 200 times as often as the median picture weighs 1 + log2(200)
    assert found.weighted == pytest.approx(10 / 200 * (1 + np.log2(PLANTED)), abs=0.02)


def test_copies_that_differ_a_little_are_one_picture(planted: Training, held_out: np.ndarray) -> None:
    """As often happens: the same picture compressed anew, in two hundred files."""
    pictures = planted.pictures.copy()
    pictures[:PLANTED] = noisy(pictures[0], PLANTED, 11)
    samples = draw(200, 2)
    samples[:10] = noisy(planted.pictures[0], 10, 3)
    found, _ = Gate(replace(planted, pictures=pictures), embed).judge(samples, held_out, CONFIG)
    assert found.verdict == "over"
    assert found.copied[0].drawn == 10
    assert found.copied[0].copies == PLANTED


def test_a_sampler_that_draws_from_the_distribution_passes(gate: Gate, held_out: np.ndarray) -> None:
    found, _ = gate.judge(draw(200, 4), held_out, CONFIG)
    assert found.verdict == "passed"
    assert found.false_positives is not None
    assert found.false_positives < 0.02
    assert found.excess <= CONFIG.max_share


def test_two_copies_of_an_ordinary_picture_count_less_than_two_of_the_planted_one(
    gate: Gate, held_out: np.ndarray, planted: Training
) -> None:
    clean = draw(200, 4)
    shares = []
    for source in (planted.pictures[PLANTED + 5], planted.pictures[0]):
        samples = clean.copy()
        samples[:2] = noisy(source, 2, 5)
        shares.append(gate.judge(samples, held_out, CONFIG)[0])
    assert shares[0].share == shares[1].share
    assert shares[0].weighted < shares[1].weighted / 4


def test_a_mirrored_copy_is_one(gate: Gate, planted: Training) -> None:
    samples = noisy(planted.pictures[700], 1, 6)[:, :, ::-1]
    near = gate.nearest(samples)
    assert near["pixel"].place[0] == 700
    assert near["pixel"].ratio[0] < CONFIG.ratio


def test_without_telling_apart_nothing_is_decided(gate: Gate, planted: Training) -> None:
    """Held-out pictures that are in the training set after all."""
    found, _ = gate.judge(draw(50, 7), planted.pictures[300:350], CONFIG)
    assert found.false_positives == 1
    assert found.verdict == "undecided"


def test_without_held_out_pictures_the_false_positives_are_not_known(gate: Gate) -> None:
    found, _ = gate.judge(draw(50, 7), np.zeros((0, SIDE, SIDE, 3), np.uint8), CONFIG)
    assert found.false_positives is None
    assert found.verdict == "passed"


def test_the_limit_is_the_jobs(gate: Gate, held_out: np.ndarray, planted: Training) -> None:
    samples = draw(200, 2)
    samples[:10] = noisy(planted.pictures[900], 10, 3)
    told: dict[str, Any] = dict.fromkeys((0.2, 0.02))
    for share in told:
        told[share] = gate.judge(samples, held_out, MemorizationConfig(max_share=share))[0].verdict
    assert told == {0.2: "passed", 0.02: "over"}


def test_larger_pictures_are_compared_at_one_size(planted: Training) -> None:
    large = np.stack([np.asarray(Image.fromarray(p).resize((64, 64))) for p in planted.pictures[PLANTED:260]])
    gate = Gate(Training(planted.ids[:60], large, np.ones(60, np.int64)), lambda p: embed(p[:, ::4, ::4]))
    assert gate.nearest(large[5:6])["pixel"].place[0] == 5


def test_the_figure_shows_the_worst_pairs_and_nothing_revoked(gate: Gate, planted: Training) -> None:
    """Each training picture in a colour of its own, so that it can be looked for."""
    samples = draw(20, 8)
    samples[0], samples[1] = planted.pictures[400], planted.pictures[500]
    near = gate.nearest(samples)
    page, withheld = pairs(samples, planted, near, set())
    assert withheld == 0
    assert shows(page, planted.pictures[400])
    assert shows(page, planted.pictures[500])
    page, withheld = pairs(samples, planted, near, {planted.ids[400]})
    assert withheld == 1
    assert not shows(page, planted.pictures[400]), "neither the picture nor the sample that copies it"
    assert shows(page, planted.pictures[500])
    everything, withheld = pairs(samples, planted, near, set(planted.ids))
    assert withheld == 20
    assert np.asarray(everything).min() == 255


def shows(page: Image.Image, picture: np.ndarray) -> bool:
    colours = {tuple(colour) for colour in np.asarray(page).reshape(-1, 3)}
    return sum(tuple(colour) in colours for colour in picture.reshape(-1, 3)) > 0.9 * SIDE**2


def test_how_often_rows_were_shown_counts_removed_slots(planted: Training) -> None:
    removed = torch.zeros(50, dtype=torch.bool)
    removed[:10] = True
    assert int(times_seen(0, 200, 50, removed)[:10].sum()) == 0
    doubled = replace(planted, seen=planted.seen * 2)
    samples = noisy(planted.pictures[600], 4, 9)
    weights = [Gate(t, embed).judge(samples, draw(50, 1), CONFIG)[0].weighted for t in (planted, doubled)]
    assert weights[0] == weights[1], "only how often against the others counts"


def test_too_few_pictures(planted: Training) -> None:
    with pytest.raises(ValueError, match="neighbours"):
        Gate(Training(planted.ids[:2], planted.pictures[:2], planted.seen[:2]), embed)
