"""Films: from a manifest of film strips to a bundle that draws moving pictures."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from curation.errors import UserError
from curation.manifest import Manifest
from pipelines import evaluate
from pipelines import train as verb
from pipelines.evaluate import EvaluateJob
from tests.training.conftest import shapes, write_manifest
from training import distillation, films
from training.bundle import load_bundle
from training.data import TrainingSet, load
from training.distill_job import DistillJob
from training.job import TrainJob
from training.learner import Place
from training.loop import train
from training.sampling import SamplingParams, sample
from training.space import FilmSpace, PatchSpace, shape
from training.text import TextEncoder

MakeJob = Callable[..., TrainJob]
FRAMES = 4


@pytest.fixture(scope="module")
def strips(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Eight films of four frames of 8 x 8 pixels, each frame another shift of its picture."""
    rows = [
        (caption, np.concatenate([np.roll(picture, step, axis=1) for step in range(FRAMES)]))
        for caption, picture in shapes(8)
    ]
    return write_manifest(tmp_path_factory.mktemp("strips"), rows, frames=FRAMES)


@pytest.fixture(scope="module")
def moving(strips: Manifest) -> TrainingSet:
    return load(strips)


def test_a_strip_is_read_as_a_film(moving: TrainingSet) -> None:
    assert moving.pictures.shape == (8, FRAMES, 3, 8, 8)
    assert (moving.frames, moving.image_size) == (FRAMES, 8)
    for film in moving.pictures:
        for step, frame in enumerate(film):
            assert torch.equal(frame, film[0].roll(step, dims=-1))


def test_what_goes_into_the_space_comes_out(moving: TrainingSet) -> None:
    space = FilmSpace(PatchSpace(2), FRAMES)
    x0 = space.encode(moving.pictures)
    assert x0.shape == (8, *shape(space, 8)) == (8, 12, FRAMES, 4, 4)
    assert torch.equal(torch.from_numpy(space.decode(x0)), moving.pictures.movedim(-3, -1))


@pytest.mark.parametrize(("kind", "suffix"), [("PNG", "png"), ("WEBP", "webp")])
def test_a_film_is_a_file_that_moves(moving: TrainingSet, kind: str, suffix: str) -> None:
    film = moving.pictures[0].movedim(-3, -1).numpy()
    with Image.open(io.BytesIO(films.encoded(film, kind, **({"lossless": True} if kind == "WEBP" else {})))) as image:
        frames = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)]
    assert np.array_equal(np.stack(frames), film)


def test_a_run_ends_in_a_bundle_that_draws_films(
    make_job: MakeJob, strips: Manifest, moving: TrainingSet, text: TextEncoder, tmp_path: Path
) -> None:
    job = make_job(manifest=strips.uri, network={"kind": "video_unet", "preset": "nano"}, images=16, flip=True)
    assert verb.plan(job)["frames"] == FRAMES
    outcome = train(job, folder=str(tmp_path), data=moving, text=text, place=Place())
    assert outcome.bundle is not None
    model = load_bundle(outcome.bundle)
    assert model.info.frames == FRAMES
    assert model.self_test()
    params = SamplingParams(steps=2)
    alone, together = (sample(model, prompts, [1] * len(prompts), params) for prompts in (["a"], ["a", "a long b"]))
    assert alone.shape == (1, FRAMES, 8, 8, 3)
    assert np.array_equal(alone[0], together[0])
    with Image.open(Path(outcome.bundle) / "self_test.png") as image:
        assert getattr(image, "n_frames", 1) == FRAMES
    for refused in (
        lambda: evaluate.plan(EvaluateJob(model=outcome.bundle or "")),
        lambda: distillation.prepare(DistillJob(teacher=outcome.bundle or "", output=str(tmp_path))),
    ):
        with pytest.raises(UserError, match="films"):
            refused()


@pytest.mark.parametrize(("network", "of_films"), [({"kind": "video_unet"}, False), ({"preset": "nano"}, True)])
def test_films_and_pictures_want_their_own_networks(
    make_job: MakeJob, strips: Manifest, network: dict[str, Any], of_films: bool
) -> None:
    job = make_job(network=network, **({"manifest": strips.uri} if of_films else {}))
    with pytest.raises(UserError, match="films") as caught:
        verb.plan(job)
    assert caught.value.field == "network.kind"


@pytest.mark.parametrize(
    ("change", "field"), [({"data": {"kind": "shards"}}, "data.kind"), ({"evaluation": {"every": 8}}, "evaluation")]
)
def test_what_films_cannot_have_is_named(
    make_job: MakeJob, strips: Manifest, change: dict[str, Any], field: str
) -> None:
    with pytest.raises(UserError, match="films") as caught:
        verb.plan(make_job(manifest=strips.uri, network={"kind": "video_unet", "preset": "nano"}, **change))
    assert caught.value.field == field
