"""What networks are told: classes, both, nothing; and that a network of any kind heeds it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from curation.errors import UserError
from curation.manifest import Manifest
from tests.training.conftest import shapes, write_manifest
from training import conditioning, network
from training.bundle import load_bundle
from training.conditioning import ClassEncoder, ConditioningConfig
from training.data import TrainingSet, classes_of, load
from training.job import TrainJob
from training.learner import Learner, Place
from training.loop import train
from training.sampling import SamplingParams, sample
from training.text import TextEncoder

MakeJob = Callable[..., TrainJob]


@pytest.fixture(scope="module")
def grouped(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Eight pictures whose captioner `shape` and whose dataset say the last word of their captions."""
    return write_manifest(
        tmp_path_factory.mktemp("grouped"),
        shapes(8),
        dataset=lambda caption: caption.split()[-1],
        captions=lambda caption: [{"text": caption.split()[-1], "source": "shape"}],
    )


@given(named=st.text(st.characters(exclude_characters="|"), max_size=8).map(str.strip), caption=st.text(max_size=20))
def test_class_and_caption_come_out_as_they_went_in(named: str, caption: str) -> None:
    assert conditioning.split(conditioning.join(named, caption)) == (named, caption)


def test_classes_are_one_hot_and_nothing_is_zero() -> None:
    told = ClassEncoder(["cat", "dog"]).encode(["dog", "", "cat"])
    assert told.pooled.tolist() == [[0, 1], [0, 0], [1, 0]]
    assert torch.equal(told.states, told.pooled[:, None])
    assert told.mask.all()
    nothing = ClassEncoder([]).encode(["", ""])
    assert nothing.states.shape == (2, 1, 1)
    assert not nothing.states.any()


def test_both_hold_what_each_holds(text: TextEncoder) -> None:
    both = ClassEncoder(["cat", "dog"], text).encode(["dog | a red one", "a red one", ""])
    alone = text.encode(["a red one", "a red one", ""])
    assert torch.equal(both.states[:, 1:, : text.width], alone.states)
    assert torch.equal(both.mask[:, 1:], alone.mask)
    assert torch.equal(both.pooled[:, : text.width], alone.pooled)
    assert both.pooled[:, text.width :].tolist() == [[0, 1], [0, 0], [0, 0]]


@pytest.mark.parametrize("classes", [["cat"], []])
def test_an_unknown_class_is_named(classes: list[str]) -> None:
    with pytest.raises(UserError, match="'bird'") as caught:
        ClassEncoder(classes).encode(["bird"])
    assert caught.value.field == "prompt"


@pytest.mark.parametrize("kind", ["class", "both", "none"])
def test_what_is_saved_is_loaded(kind: str, tower: Path, tmp_path: Path) -> None:
    config = ConditioningConfig.model_validate({"kind": kind})
    ours = conditioning.encoder(config, tower, ("cat", "dog"))
    ours.save(tmp_path)
    theirs = conditioning.load(tmp_path)
    assert (theirs.width, theirs.length, theirs.classes, theirs.digest()) == (
        ours.width, ours.length, ours.classes, ours.digest(),
    )  # fmt: skip


def test_the_column_of_classes_is_checked(grouped: Manifest) -> None:
    classes = classes_of(grouped, "dataset")
    assert len(classes) > 1
    assert classes_of(grouped, "captions.shape") == classes
    for column in ("species", "captions.nobody", "creator"):
        with pytest.raises(UserError) as caught:
            classes_of(grouped, column)
        assert caught.value.field == "conditioning.classes"


@pytest.mark.parametrize("kind", ["class", "both", "none"])
@pytest.mark.parametrize("backbone", [{"kind": "dit", "preset": "nano"}, None])
def test_a_run_of_any_kind_ends_in_a_bundle_that_draws(
    make_job: MakeJob, grouped: Manifest, tower: Path, tmp_path: Path, kind: str, backbone: dict[str, Any] | None
) -> None:
    changes = {} if backbone is None else {"network": backbone}
    job = make_job(manifest=grouped.uri, conditioning={"kind": kind}, images=16, **changes)
    data = load(grouped, conditioning=job.conditioning)
    assert bool(data.classes) == job.conditioning.reads_classes
    text = conditioning.encoder(job.conditioning, tower, data.classes)
    outcome = train(job, folder=str(tmp_path), data=data, text=text, place=Place())
    assert outcome.bundle is not None
    model = load_bundle(outcome.bundle)
    prompt = {"class": data.classes[0] if data.classes else "", "both": "a red circle", "none": ""}[kind]
    params = SamplingParams(steps=2, sampler="ddim")
    first, again = (sample(model, [prompt, ""], [1, 2], params) for _ in range(2))
    assert first.shape == (2, data.image_size, data.image_size, 3)
    assert (first == again).all()


@pytest.mark.parametrize("backbone", [{"kind": "unet", "preset": "nano"}, {"kind": "dit", "preset": "nano"}])
def test_a_network_learns_to_heed_what_it_is_told(
    make_job: MakeJob, data: TrainingSet, text: TextEncoder, backbone: dict[str, Any]
) -> None:
    job = make_job(network=backbone, images=64)
    learner = Learner(job, data, text, Place())
    for step in range(3):
        learner.step(step * job.batch_size)
    xt, t = torch.randn(2, 3, 8, 8), torch.tensor([5, 500])
    told = text.encode(["a red circle", "a blue square"])
    with torch.no_grad():
        one, other = (network.predict(learner.unet, xt, t, told[torch.tensor(rows)]) for rows in ([0, 0], [0, 1]))
    assert torch.equal(one[0], other[0])
    assert not torch.equal(one[1], other[1])


def test_the_old_name_of_a_network_is_the_same_run() -> None:
    told = {"manifest": "m", "output": "o"}
    old, new = (TrainJob.model_validate({**told, name: {"preset": "small"}}) for name in ("unet", "network"))
    assert old == new
    assert new.identity()["unet"]["preset"] == "small"
    assert "conditioning" not in new.identity()
    assert TrainJob.model_validate({**told, "network": {"kind": "dit"}}).identity()["network"]["kind"] == "dit"
