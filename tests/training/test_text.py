"""The text tower: states, masks, and a prompt's independence of its neighbours."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from curation.errors import UserError
from tests.training.conftest import WIDTH
from training.text import TextEncoder, digest


def test_states_and_mask(text: TextEncoder) -> None:
    states, mask = text.encode(["a red circle", "", "!!"])
    assert states.shape == (3, 12, WIDTH)
    assert mask.dtype == torch.bool
    assert mask.sum(dim=1).tolist() == [5, 2, 3]  # start, words, end; "!!" begins with token 0, which also pads
    assert (states[~mask] == 0).all()
    assert torch.isfinite(states).all()


def test_a_prompts_bits_do_not_depend_on_its_neighbours(text: TextEncoder) -> None:
    alone, _ = text.encode(["a blue square"])
    company, _ = text.encode(["x", "a blue square", "a very long caption " * 10])
    assert torch.equal(alone[0], company[1])
    chunked, mask = text.encode(["x", "a blue square", "y"], chunk=2)
    torch.testing.assert_close(chunked[1], alone[0])
    assert mask.shape == (3, 12)


def test_no_prompts(text: TextEncoder) -> None:
    states, mask = text.encode([])
    assert states.shape == (0, 12, WIDTH)
    assert mask.shape == (0, 12)


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
