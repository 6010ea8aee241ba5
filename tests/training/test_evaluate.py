"""Metrics on sets that are known to be alike or not, and losses by closed forms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from curation.errors import UserError
from tests.training.test_memorization import draw
from training.bundle import DiffusionModel
from training.evaluate import Judge, Metric, Pictures, choose, drawing, losses, measure
from training.features import EfficientNetLite0, Inception
from training.network import build
from training.sampling import SamplingParams
from training.schedules import CosineSchedule, alphas_cumprod
from training.space import PatchSpace
from training.text import TextEncoder
from training.unet import UnetConfig

pytestmark = pytest.mark.slow  # networks are trained, in seconds each

COLOURS = {"red": 0, "green": 1, "blue": 2}
WEIGHTS = Path(__file__).parents[2] / "curation" / "embedded" / "model.safetensors"


def coloured(captions: list[str], seed: int) -> Pictures:
    """A picture in the colour that each caption names, with some noise."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 60, (len(captions), 8, 8, 3), np.uint8)
    for i, caption in enumerate(captions):
        pixels[i, ..., COLOURS[caption]] += 190
    return Pictures([f"{seed}-{i}" for i in range(len(captions))], pixels, captions)


def mean_colour(pictures: np.ndarray) -> np.ndarray:
    mean = pictures.reshape(len(pictures), -1, 3).mean(axis=1)
    return np.asarray(mean / np.linalg.norm(mean, axis=1, keepdims=True), np.float32)


def named_colour(texts: Any) -> np.ndarray:
    return np.eye(3, dtype=np.float32)[[COLOURS[text] for text in texts]]


JUDGE = Judge("colours", mean_colour, named_colour)


def of_colours(samples: Pictures, held_out: Pictures | None, extract: Any = None) -> dict[str, Metric]:
    trained = coloured(list(COLOURS) * 40, 0)
    return measure(
        samples, trained, held_out, judge=JUDGE, extractors=extract or {"colours": mean_colour}, cmmd=mean_colour
    )


def test_samples_of_the_same_distribution_are_as_good_as_the_floor() -> None:
    found = of_colours(coloured(list(COLOURS) * 20, 1), coloured(list(COLOURS) * 30, 2))
    assert list(found) == [
        "clip_score", "clip_retrieval", "fd_colours", "kd_colours", "precision", "recall", "CMMD",
    ]  # fmt: skip
    for metric in found.values():
        assert metric.floor is not None
        assert metric.samples.n in (60, 120)
        low, high = metric.samples.interval
        assert low <= metric.samples.value <= high
    assert found["clip_retrieval"].samples.value == found["clip_retrieval"].floor.value == 1  # type: ignore[union-attr]
    assert found["fd_colours"].samples.value == pytest.approx(found["fd_colours"].floor.value, abs=1e-3)  # type: ignore[union-attr]
    assert found["precision"].samples.value > 0.8


def test_samples_that_miss_their_prompts_and_a_colour() -> None:
    """Everything comes out red, whatever was asked for."""
    red = coloured(["red"] * 60, 1)
    samples = Pictures(red.ids, red.pixels, list(COLOURS) * 20)
    found = of_colours(samples, coloured(list(COLOURS) * 20, 2))
    assert found["clip_retrieval"].samples.value == pytest.approx(1 / 3)
    assert found["recall"].samples.value < 0.5
    assert found["precision"].samples.value > 0.8
    for name in ("fd_colours", "kd_colours", "CMMD"):
        floor = found[name].floor
        assert floor is not None
        assert found[name].samples.interval.low > floor.interval.high
    score = found["clip_score"]
    assert score.floor is not None
    assert score.samples.interval.high < score.floor.interval.low


def test_only_inception_gives_fid(tmp_path: Path) -> None:
    """A module in the form of NVIDIA's, of which the official numbers have their names."""

    class Means(torch.nn.Module):
        def forward(self, pictures: torch.Tensor, return_features: bool = False) -> torch.Tensor:
            return pictures.float().mean(dim=(2, 3))

    path = str(tmp_path / "inception.pt")
    torch.jit.script(Means()).save(path)
    inception = Inception(path)
    some = coloured(list(COLOURS), 3).pixels
    assert inception(some) == pytest.approx(some.reshape(3, -1, 3).mean(axis=1), rel=1e-5)
    found = of_colours(coloured(list(COLOURS) * 20, 1), None, {"colours": mean_colour, inception.name: inception})
    assert {"FID", "KID", "fd_colours"} < set(found)
    assert all(metric.floor is None for metric in found.values())
    (tmp_path / "broken.pt").write_bytes(b"no module")
    for wrong in ("broken.pt", "missing.pt"):
        with pytest.raises(UserError, match="TorchScript"):
            Inception(str(tmp_path / wrong))


def test_the_shipped_extractor_tells_distributions_apart() -> None:
    extract = EfficientNetLite0(WEIGHTS)
    sets = [draw(12, seed) for seed in (1, 2)]
    features = [extract(pictures) for pictures in (*sets, 255 - sets[1] // 4)]
    assert features[0].shape == (12, 1280)
    assert np.array_equal(extract(sets[0][:3]), extract(sets[0][:3]))
    from training.distances import Mmd

    alike, other = Mmd(features[0], features[1]).value(), Mmd(features[0], features[2]).value()
    assert other > 5 * abs(alike)


def test_the_choice_of_pictures_is_a_function_of_ids_and_seed() -> None:
    ids = [f"{i:064x}" for i in range(100)]
    chosen = [ids[i] for i in choose(ids, 10, 0)]
    assert chosen == [ids[::-1][i] for i in choose(ids[::-1], 10, 0)]
    assert chosen != [ids[i] for i in choose(ids, 10, 1)]
    # a picture that goes leaves the others as they were
    left = [id_ for id_ in ids if id_ != chosen[0]]
    assert [left[i] for i in choose(left, 9, 0)] == chosen[1:]
    assert choose(ids, 1000, 0) != list(range(100))


@pytest.fixture(scope="module")
def model(text: TextEncoder) -> DiffusionModel:
    shape = UnetConfig(block_out_channels=(32,), layers_per_block=1, attention_heads=2)
    torch.manual_seed(1)
    unet = build(shape, channels=3, side=8, width=text.width).eval()
    return DiffusionModel(
        unet=unet, text=text, betas=CosineSchedule().betas(), prediction="sample", image_size=8, patch_size=1
    )


class Answers:
    """A network that always draws the same."""

    def __init__(self, picture: torch.Tensor) -> None:
        self._picture = picture

    def __call__(self, xt: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor]:
        return (self._picture.expand_as(xt),)


def test_the_loss_of_a_network_that_knows_one_picture(model: DiffusionModel) -> None:
    """Its error is that picture's distance to each other one, at every level."""
    known, others = coloured(["red"] * 5, 4), coloured(["green"] * 7, 5)
    x0 = PatchSpace(1).encode(torch.from_numpy(known.pixels[:1]).permute(0, 3, 1, 2))
    fixed = DiffusionModel(
        unet=Answers(x0), text=model.text, betas=model.betas, prediction="sample", image_size=8, patch_size=1
    )
    found = losses(fixed, known.take([0]), others, buckets=4, seed=0)
    apart = (known.pixels[:1].astype(float) - others.pixels) / 127.5
    for bucket in found:
        assert bucket.trained.value == pytest.approx(0, abs=1e-12)
        assert bucket.held_out is not None
        assert bucket.held_out.value == pytest.approx((apart**2).mean(), rel=1e-5)
        assert bucket.held_out.n == 7
    abar = alphas_cumprod(model.betas)
    assert found[0].log_snr.high == pytest.approx(np.log(abar[0] / (1 - abar[0])))
    lows, highs = [b.log_snr.low for b in found], [b.log_snr.high for b in found]
    assert all(low > high for low, high in zip(lows[:-1], highs[1:], strict=True)), "ranges follow without overlap"


def test_the_loss_of_a_picture_does_not_depend_on_its_company(model: DiffusionModel) -> None:
    pictures = coloured(list(COLOURS), 6)
    together = losses(model, pictures, None, buckets=2, seed=3)
    alone = [losses(model, pictures.take([i]), None, buckets=2, seed=3) for i in range(3)]
    for number, bucket in enumerate(together):
        each = [found[number].trained.value for found in alone]
        assert bucket.trained.value == pytest.approx(np.mean(each), rel=1e-5)
        assert bucket.held_out is None
    assert losses(model, pictures, None, buckets=2, seed=3) == together
    assert losses(model, pictures, None, buckets=2, seed=4) != together


def test_drawing_in_batches_gives_what_each_prompt_gives_alone(model: DiffusionModel) -> None:
    draw_ = drawing(model, SamplingParams(steps=2))
    prompts, seeds = ["red", "green", "blue"] * 12, list(range(36))
    together = draw_(prompts, seeds).astype(int)
    assert together.shape == (36, 8, 8, 3)
    assert abs(together[33:34] - draw_(prompts[33:34], seeds[33:34]).astype(int)).max() <= 1
