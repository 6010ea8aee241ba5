"""Zero-shot groups with the shipped CLIP, and with vectors that are known."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from curation.clip import Clip, ClipConfig
from curation.groups import UNSURE, Assigned, GroupsConfig, mean_embedding
from tests.curation.test_clip import NAMES, SPRITE


@pytest.fixture(scope="module")
def clip() -> Clip:
    return ClipConfig(device="cpu", batch_size=4).build()


def config(sets: Any, **more: Any) -> GroupsConfig:
    return GroupsConfig.model_validate({"sets": sets, **more})


def test_pictures_go_to_the_group_that_names_them(clip: Clip) -> None:
    sprite = Image.open(SPRITE).convert("RGB")
    row = next(iter(NAMES))
    pictures = [clip.prepare(sprite.crop((32 * i, 0, 32 * i + 32, 32))) for i in range(12)]
    embeddings = clip.embed_images(np.stack(pictures))
    groups = config({"what": NAMES[row]}, margin=0).build(clip)
    found = [assigned["what"].group for assigned in groups.assign(embeddings)]
    assert sum(a == b for a, b in zip(found, NAMES[row], strict=True)) >= 6  # of twelve: chance would be one


def test_shares_are_clips_softmax(clip: Clip) -> None:
    groups = config({"colour": {"red": ["red", "a red thing"], "blue": ["blue"]}}).build(clip)
    embedding = clip.embed_texts(["a red hen"])[0]
    vectors = np.stack([mean_embedding(clip, ("blue",)), mean_embedding(clip, ("red", "a red thing"))])
    logits = np.exp(2.996) * (vectors.astype(np.float64) @ embedding)  # the temperature that the shipped CLIP learned
    expected = np.exp(logits) / np.exp(logits).sum()
    shares = groups.shares(embedding)["colour"]
    assert list(shares) == ["blue", "red"]
    assert list(shares.values()) == pytest.approx(expected, rel=0.01)
    assert sum(shares.values()) == pytest.approx(1)


def test_neither_prompts_that_say_the_same_nor_nonsense_are_sure(clip: Clip) -> None:
    same = config({"x": {"a": ["cat"], "b": ["cat"]}}, margin=0.001).build(clip)
    embedding = clip.embed_texts(["cat"])[0]
    assert same.assign(embedding[None])[0]["x"] == Assigned(UNSURE, pytest.approx(0.5))
    assert same.assign(np.full((1, clip.dim), np.nan, np.float32))[0]["x"].group == UNSURE
    sure = config({"x": ["cat", "house"]}, margin=0.001).build(clip)
    assert sure.assign(embedding[None])[0]["x"].group == "cat"


def test_neighbours_and_the_order_of_groups_change_no_bit(clip: Clip) -> None:
    rows = np.random.default_rng(0).normal(size=(17, clip.dim)).astype(np.float32)
    names = {"cat": ["cat"], "dog": ["dog"], "house": ["house"]}
    groups = config({"a": names, "b": ["red", "blue"]}).build(clip)
    together = groups.assign(rows)
    assert together == [groups.assign(rows[i : i + 1])[0] for i in range(17)]
    assert groups.assign(rows[::-1])[::-1] == together
    turned = config({"b": ["blue", "red"], "a": dict(reversed(names.items()))}).build(clip)
    assert turned.assign(rows) == together


def test_a_list_of_names_gets_templates() -> None:
    assert config({"s": ["cat", "dog"]}).sets["s"]["cat"] == ("a picture of cat", "cat")
    assert config({"s": ["cat", "dog"]}) == config(config({"s": ["cat", "dog"]}).model_dump()["sets"])


@pytest.mark.parametrize(
    "sets",
    [
        cast(Any, {"s": ["cat"]}),
        {"s": []},
        {"s": ["cat", UNSURE]},
        {"s": ["cat", " "]},
        {"s": ["cat", 3]},
        {"s": {"cat": [], "dog": ["dog"]}},
        {"s": {"cat": [""], "dog": ["dog"]}},
        {"s": "cat"},
        ["cat", "dog"],
    ],
)
def test_sets_without_a_choice_are_refused(sets: Any) -> None:
    with pytest.raises(ValidationError):
        config(sets)
