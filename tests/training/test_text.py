"""The text tower: states, masks, and a prompt's independence of its neighbours."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from curation.errors import UserError
from tests.training.conftest import WIDTH
from training.text import TextEncoder, digest


def test_states_and_mask(tower: Path) -> None:
    text = TextEncoder(tower)
    told = text.encode(["a red circle", "", "!!"])
    assert told.states.shape == (3, 12, WIDTH)
    assert told.mask.dtype == torch.bool
    assert told.mask.sum(dim=1).tolist() == [5, 2, 3]  # start, words, end; "!!" begins with token 0, which also pads
    assert (told.states[~told.mask] == 0).all()
    assert torch.isfinite(told.states).all()
    for row, last in enumerate((4, 1, 2)):
        assert torch.equal(told.pooled[row], told.states[row, last])


def test_a_prompts_bits_do_not_depend_on_its_neighbours(text: TextEncoder) -> None:
    alone = text.encode(["a blue square"])
    company = text.encode(["x", "a blue square", "a very long caption " * 10])
    assert torch.equal(alone.states[0], company.states[1])
    assert torch.equal(alone.pooled[0], company.pooled[1])
    chunked = text.encode(["x", "a blue square", "y"], chunk=2)
    torch.testing.assert_close(chunked.states[1], alone.states[0])
    assert chunked.mask.shape == (3, 12)


def test_states_are_standardised_over_the_captions_and_the_statistics_travel(tower: Path, tmp_path: Path) -> None:
    captions = [f"a {colour} {shape}" for colour in ("red", "green", "blue") for shape in ("circle", "square", "cross")]
    text = TextEncoder(tower)
    text.measure(captions)
    told = text.encode(captions)
    own = told.states[told.mask]
    torch.testing.assert_close(own.mean(dim=0), torch.zeros(WIDTH), atol=1e-4, rtol=0)
    varying = told.pooled.std(dim=0, correction=0)
    torch.testing.assert_close(varying, torch.ones(WIDTH), atol=1e-3, rtol=0)
    copy = tmp_path / "tower"
    shutil.copytree(tower, copy)
    text.save(copy)
    assert torch.equal(TextEncoder(copy).encode(captions).states, told.states)
    text.measure(["one caption only"])  # nothing varies from caption to caption: no division by zero
    assert torch.isfinite(text.encode(["another"]).pooled).all()


def test_no_prompts(text: TextEncoder) -> None:
    told = text.encode([])
    assert told.states.shape == (0, 12, WIDTH)
    assert told.mask.shape == (0, 12)
    assert told.pooled.shape == (0, WIDTH)


@pytest.mark.parametrize("name", ["open_clip_text.json", "model.safetensors"])
def test_a_missing_or_damaged_file_is_named(tower: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "tower"
    shutil.copytree(tower, folder)
    (folder / name).write_bytes(b"\0\0")
    with pytest.raises(UserError, match=r"damaged|does not load"):
        TextEncoder(folder)
    (folder / name).unlink()
    with pytest.raises(UserError, match="is missing"):
        TextEncoder(folder)
    with pytest.raises(UserError, match="is missing"):
        digest(folder)
