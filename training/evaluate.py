"""What a model's samples are worth: pure functions of samples and real pictures, and its loss on fixed noise.

Beside every metric stands its floor: the same measured on real pictures that the model was not trained on, against
those that it was. No model can be asked to do better than that.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from training import distances, network, objective, randomness
from training.distances import Interval
from training.memorization import Embed, Memorization
from training.randomness import Purpose
from training.sampling import SamplingParams, sample
from training.schedules import alphas_cumprod

if TYPE_CHECKING:
    from training.bundle import DiffusionModel
    from training.data import TrainingSet

NEIGHBOURS = 3  # of precision and recall, as Kynkäänniemi et al. use it
_REPLICATES = 200
_REPLICATES_OF_FRECHET = 30  # each takes a decomposition
_BATCH = 32

Draw = Callable[[Sequence[str], Sequence[int]], np.ndarray]
"""Prompts and seeds, one each a picture, to uint8 (N, H, W, 3)."""


@dataclass(frozen=True)
class Pictures:
    """N pictures, uint8 (N, H, W, 3), with their ids and captions; of samples the captions are the prompts."""

    ids: Sequence[str]
    pixels: np.ndarray
    captions: Sequence[str]

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def of_set(cls, loaded: TrainingSet) -> Pictures:
        """All of a set that was read for training; of several captions of a picture the first."""
        pixels = loaded.pictures.permute(0, 2, 3, 1).contiguous().numpy()
        return cls(loaded.roster.ids, pixels, [options[0][0] for options in loaded.options])

    def take(self, places: Sequence[int]) -> Pictures:
        """Some of them."""
        chosen = np.asarray(places, np.int64)
        return Pictures([self.ids[i] for i in chosen], self.pixels[chosen], [self.captions[i] for i in chosen])


@dataclass(frozen=True)
class Judge:
    """A CLIP, as callables: training does not know where it comes from."""

    name: str
    pictures: Embed
    texts: Callable[[Sequence[str]], np.ndarray]


class Measured(BaseModel):
    """A value of `n` pictures with its 95 % interval."""

    model_config = ConfigDict(frozen=True)
    value: float
    interval: Interval
    n: int


class Metric(BaseModel):
    """A measure of samples and, where there are held-out pictures, of those."""

    model_config = ConfigDict(frozen=True)
    better: Literal["lower", "higher"]
    samples: Measured
    floor: Measured | None


class LossBucket(BaseModel):
    """The mean squared error of what the network predicts, over the timesteps of a range of log-SNR."""

    model_config = ConfigDict(frozen=True)
    log_snr: Interval
    held_out: Measured | None
    trained: Measured


class Evaluation(BaseModel):
    """All that was measured of a model, and what it takes to measure it again."""

    model_config = ConfigDict(frozen=True)
    model: str
    bundle_sha256: str | None  # None of a checkpoint, which is none yet
    manifest_id: str
    holdout_id: str | None
    clip: str
    extractors: dict[str, str]  # sha256 of the weights, 8 digits, by name
    at: datetime
    images_seen: int
    seed: int
    sampling: SamplingParams
    prompts: list[str]
    noise_seeds: list[int]
    metrics: dict[str, Metric]
    loss: list[LossBucket]
    memorization: Memorization | None
    notes: list[str]

    def values(self) -> dict[str, float]:
        """Every number by a name, as a curve is drawn of it: metrics with their intervals and floors, and losses."""
        told: dict[str, float] = {}
        for name, metric in self.metrics.items():
            told |= {name: metric.samples.value, f"{name}_low": metric.samples.interval.low}
            told |= {f"{name}_high": metric.samples.interval.high}
            told |= {} if metric.floor is None else {f"{name}_floor": metric.floor.value}
        for kind in ("trained", "held_out"):
            found = [getattr(bucket, kind) for bucket in self.loss]
            if found and None not in found:
                told[f"loss_{kind}"] = sum(bucket.value for bucket in found) / len(found)
                told |= {f"loss_{kind}_{number}": bucket.value for number, bucket in enumerate(found)}
        return told

    def score(self, name: str) -> float | None:
        """A metric's value, such that lower is better; None where it was not measured."""
        value = self.values().get(name)
        higher = name in self.metrics and self.metrics[name].better == "higher"
        return -value if higher and value is not None else value


def choose(ids: Sequence[str], count: int, seed: int) -> list[int]:
    """The places of at most `count` ids: those with the lowest hashes, in the order of these."""
    hashed = [hashlib.sha256(f"{seed}:{id_}".encode()).digest() for id_ in ids]
    return sorted(range(len(ids)), key=hashed.__getitem__)[:count]


def drawing(model: DiffusionModel, params: SamplingParams) -> Draw:
    """A model's samples, in batches: equal up to rounding to those drawn one by one."""

    def draw(prompts: Sequence[str], seeds: Sequence[int]) -> np.ndarray:
        parts = [np.zeros((0, model.image_size, model.image_size, 3), np.uint8)]
        for start in range(0, len(prompts), _BATCH):
            some = slice(start, start + _BATCH)
            parts.append(sample(model, prompts[some], seeds[some], params, exact=False))
        return np.concatenate(parts)

    return draw


def measure(
    samples: Pictures,
    trained: Pictures,
    held_out: Pictures | None,
    *,
    judge: Judge,
    extractors: Mapping[str, Embed],
    cmmd: Embed | None = None,
    seed: int = 0,
) -> dict[str, Metric]:
    """Every metric by its name.

    Args:
        trained: pictures that the model was trained on; distances are to these.
        held_out: others; at most as many as samples are used, since distances depend on how many there are.
        extractors: by name. `inception` gives `FID` and `KID`, any other `fd_NAME` and `kd_NAME`; precision and recall
            are by the first one.
        cmmd: the embedder of a CLIP of the user's, for `CMMD`.

    Raises:
        ValueError: too few pictures for a metric.
    """
    if held_out is not None:
        held_out = held_out.take(range(min(len(held_out), len(samples))))
    metrics = _by_clip(samples, held_out, judge, seed)
    for number, (name, extract) in enumerate(extractors.items()):
        real, made = extract(trained.pixels), extract(samples.pixels)
        other = None if held_out is None else extract(held_out.pixels)
        official = name == "inception"
        metrics["FID" if official else f"fd_{name}"] = _metric("lower", made, other, partial(_fd, real=real, seed=seed))
        kernel = partial(_mmd, real=real, kernel=distances.polynomial, seed=seed)
        metrics["KID" if official else f"kd_{name}"] = _metric("lower", made, other, kernel)
        if not number:
            metrics["precision"] = _metric("higher", made, other, partial(_precision, real=real, seed=seed))
            metrics["recall"] = _metric("higher", made, other, partial(_recall, real=real, seed=seed))
    if cmmd is not None:
        real, made = cmmd(trained.pixels), cmmd(samples.pixels)
        other = None if held_out is None else cmmd(held_out.pixels)
        gaussian = partial(_mmd, real=real, kernel=distances.gaussian, seed=seed)
        metrics["CMMD"] = _metric("lower", made, other, gaussian)
    return metrics


def _metric(
    better: Literal["lower", "higher"],
    samples: np.ndarray,
    held_out: np.ndarray | None,
    of: Callable[[np.ndarray], Measured],
) -> Metric:
    return Metric(better=better, samples=of(samples), floor=None if held_out is None else of(held_out))


def _fd(features: np.ndarray, real: np.ndarray, seed: int) -> Measured:
    value = distances.frechet(features, real)
    ends = distances.frechet_interval(features, real, _REPLICATES_OF_FRECHET, seed)
    return Measured(value=value, interval=ends, n=len(features))


def _mmd(features: np.ndarray, real: np.ndarray, kernel: distances.Kernel, seed: int) -> Measured:
    mmd = distances.Mmd(features, real, kernel)
    return Measured(value=mmd.value(), interval=distances.mmd_interval(mmd, _REPLICATES, seed), n=len(features))


def _precision(features: np.ndarray, real: np.ndarray, seed: int) -> Measured:
    return _mean(distances.inside(real, features, NEIGHBOURS).astype(np.float64), seed)


def _recall(features: np.ndarray, real: np.ndarray, seed: int) -> Measured:
    return _mean(distances.inside(features, real, NEIGHBOURS).astype(np.float64), seed)


def _mean(values: np.ndarray, seed: int) -> Measured:
    ends = distances.mean_interval(values, _REPLICATES, seed)
    return Measured(value=float(values.mean()), interval=ends, n=len(values))


def _by_clip(samples: Pictures, held_out: Pictures | None, judge: Judge, seed: int) -> dict[str, Metric]:
    """`clip_score`: 100 times the cosine of picture and prompt, at least 0 (Hessel et al. 2021, arXiv 2104.08718).
    `clip_retrieval`: the share of pictures that are nearer to their own prompt than to any other of the samples'.
    """
    others = sorted(set(samples.captions))
    known = judge.texts(others)
    scores: list[tuple[Measured, Measured]] = []
    for given in (samples, held_out):
        if given is None:
            continue
        seen, own = judge.pictures(given.pixels), judge.texts(given.captions)
        cosine = (seen * own).sum(axis=1)
        different = np.array(others, object)[None] != np.array(given.captions, object)[:, None]
        rival = np.where(different, seen @ known.T, -np.inf).max(axis=1)
        scores.append((_mean(100 * cosine.clip(min=0), seed), _mean((cosine > rival).astype(np.float64), seed)))
    floor = scores[1] if len(scores) > 1 else (None, None)
    return {
        "clip_score": Metric(better="higher", samples=scores[0][0], floor=floor[0]),
        "clip_retrieval": Metric(better="higher", samples=scores[0][1], floor=floor[1]),
    }


def losses(
    model: DiffusionModel, trained: Pictures, held_out: Pictures | None, *, buckets: int, seed: int
) -> list[LossBucket]:
    """The loss by log-SNR, on pictures that were trained on and on others: where these part, it learns by heart.

    The timesteps are cut into ranges of equal length. In each, the timestep and the noise of a picture are functions of
    its id and the seed, so that models are compared on the same ones.
    """
    abar = alphas_cumprod(model.betas).clip(1e-9, 1 - 1e-9)  # the last one may be 0
    log_snr = np.log(abar / (1 - abar))
    found = []
    for number in range(buckets):
        first, end = number / buckets, (number + 1) / buckets
        held = None if held_out is None else _mean(_errors(model, held_out, first, end, number, seed), seed)
        known = _mean(_errors(model, trained, first, end, number, seed), seed)
        last = max(math.ceil(end * len(abar)) - 1, 0)
        ends = Interval(float(log_snr[last]), float(log_snr[int(first * len(abar))]))
        found.append(LossBucket(log_snr=ends, held_out=held, trained=known))
    return found


@torch.inference_mode()
def _errors(model: DiffusionModel, pictures: Pictures, first: float, end: float, bucket: int, seed: int) -> np.ndarray:
    """The squared error (N,) of each picture, at its time in [first, end) of the way from picture to noise."""
    index = torch.tensor([int(hashlib.sha256(id_.encode()).hexdigest()[:15], 16) for id_ in pictures.ids])
    time = first + randomness.uniform(seed + bucket, Purpose.TIMESTEP, index) * (end - first)
    steps, levels = _levels(model, time)
    errors = []
    for start in range(0, len(pictures), _BATCH):
        some = slice(start, start + _BATCH)
        x0 = model.space.encode(torch.from_numpy(pictures.pixels[some]).permute(0, 3, 1, 2).to(model.device))
        # the step keeps it apart from the noise of training
        noise = randomness.normal(seed, Purpose.NOISE, index[some], tuple(x0.shape[1:]), step=bucket + 1).to(x0)
        told = model.text.encode(pictures.captions[some]).to(model.device)
        xt = objective.q_sample(x0, noise, levels[some], model.prediction)
        output = network.predict(model.unet, xt, steps[some], told)
        wanted = objective.target(model.prediction, x0, noise, levels[some])
        errors.append((output.float() - wanted).square().flatten(1).mean(dim=1).double().cpu())
    return torch.cat(errors).numpy()


def _levels(model: DiffusionModel, time: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What the network is told of times (N,) in [0, 1), and the levels as `objective` takes them."""
    time = time.to(model.device)
    if model.prediction == "flow":
        return (time * len(model.betas)).float(), time
    t = (time * len(model.betas)).to(torch.int64)
    return t, objective.table(alphas_cumprod(model.betas), model.device)[t]
