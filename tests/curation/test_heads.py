"""All heads on embeddings, with the shipped CLIP and a generated aesthetic head."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from curation import manifest
from curation.aesthetic import AestheticConfig
from curation.clip import Clip, ClipConfig
from curation.errors import UserError
from curation.groups import GroupsConfig
from curation.heads import Heads, HeadsConfig

CLIP = ClipConfig(device="cpu", batch_size=4)


@pytest.fixture(scope="module")
def clip() -> Clip:
    return CLIP.build()


@pytest.fixture(scope="module")
def config(clip: Clip, tmp_path_factory: pytest.TempPathFactory) -> HeadsConfig:
    torch.manual_seed(1)
    weights = tmp_path_factory.mktemp("head") / "linear.pth"
    torch.save(torch.nn.Linear(clip.dim, 1).state_dict(), weights)
    return HeadsConfig(
        concepts=("weapon", "cat"),
        groups=GroupsConfig.model_validate({"sets": {"animal": ["cat", "dog"]}}),
        aesthetic=AestheticConfig(weights=str(weights)),
    )


@pytest.fixture(scope="module")
def heads(clip: Clip, config: HeadsConfig) -> Heads:
    return config.build(clip)


@pytest.fixture(scope="module")
def embeddings(clip: Clip) -> np.ndarray:
    return clip.embed_texts(["a cat", "a dog", "a rifle", "a house", "the sea", "red"])


def all_of(rows: np.ndarray) -> np.ndarray:
    return np.ones(len(rows), bool)


def test_every_head_says_something_and_what_clip_says(clip: Clip, heads: Heads, embeddings: np.ndarray) -> None:
    found = heads(embeddings, all_of(embeddings))
    first = found["safety"][0]
    assert first is not None
    assert [entry["concept"] for entry in first] == ["cat", "weapon"]
    assert first[0]["score"] == pytest.approx(float(clip.concept("cat") @ embeddings[0]), abs=1e-3)
    assert [row and row[0]["group"] for row in found["groups"][:2]] == ["cat", "dog"]
    assert {entry["name"] for row in found["scores"] for entry in row or ()} == {"aesthetic"}


def test_rows_without_a_picture_have_nothing(heads: Heads, embeddings: np.ndarray) -> None:
    present = np.array([True, False, True, False, False, True])
    whole, some = heads(embeddings, all_of(embeddings)), heads(embeddings, present)
    for name, column in some.items():
        assert column == [row if there else None for row, there in zip(whole[name], present, strict=True)]
    assert heads(embeddings[:0], present[:0]) == {"safety": [], "groups": [], "scores": []}


def test_neighbours_and_precision_change_no_bit(heads: Heads, embeddings: np.ndarray) -> None:
    whole = heads(embeddings, all_of(embeddings))
    for i in range(len(embeddings)):
        alone = heads(embeddings[i : i + 1], all_of(embeddings[:1]))
        assert {name: column[0] for name, column in alone.items()} == {n: column[i] for n, column in whole.items()}
    assert heads(embeddings.astype(np.float16), all_of(embeddings)) == whole


def test_results_fit_the_manifest(heads: Heads, embeddings: np.ndarray) -> None:
    found = heads(embeddings, np.array([True] * 5 + [False]))
    for name, kind in (("safety", manifest.SAFETY), ("groups", manifest.GROUPS), ("scores", manifest.SCORES)):
        column = pa.array(found[name], kind)
        assert column.null_count == 1
        if name != "groups":
            assert column[0].as_py() == found[name][0]  # float32 already: nothing is rounded by storing


def test_without_heads_rows_are_empty_lists(clip: Clip, embeddings: np.ndarray) -> None:
    found = HeadsConfig().build(clip)(embeddings[:1], all_of(embeddings[:1]))
    assert found == {"safety": [[]], "groups": [[]], "scores": [[]]}


def test_identity_changes_with_what_is_measured(config: HeadsConfig, tmp_path: Path) -> None:
    known = json.dumps(config.identity(CLIP))
    changed = [
        config.model_copy(update={"concepts": ("weapon",)}),
        config.model_copy(update={"groups": None}),
        config.model_copy(update={"aesthetic": None}),
    ]
    assert len({known, *(json.dumps(other.identity(CLIP)) for other in changed)}) == 4
    turned = config.model_copy(update={"concepts": ("cat", "weapon")})
    assert json.dumps(turned.identity(CLIP)) == known
    gone = AestheticConfig(weights=str(tmp_path / "none.pth"))
    with pytest.raises(UserError):
        config.model_copy(update={"aesthetic": gone}).identity(CLIP)
