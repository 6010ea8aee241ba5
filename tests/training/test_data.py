"""The training set: what it takes from a manifest and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from curation.errors import UserError
from curation.manifest import Manifest
from tests.training.conftest import shapes, write_manifest
from training.data import CaptionStates, TrainingSet, load, picture_size, training_set_digest
from training.text import TextEncoder


def test_kept_rows_come_in_the_order_of_their_ids(manifest: Manifest, data: TrainingSet) -> None:
    table = manifest.table(["id", "caption"])
    captions = dict(zip(table["id"].to_pylist(), table["caption"].to_pylist(), strict=True))
    assert data.captions == tuple(captions[row] for row in sorted(captions))
    assert data.digest == training_set_digest(list(captions))
    assert data.pictures.shape == (8, 3, 8, 8)
    assert data.licences == {"CC0-1.0": 8}
    picture = dict(shapes(8))[data.captions[0]]
    np.testing.assert_array_equal(data.pictures[0].permute(1, 2, 0).numpy(), picture)


def test_channel_statistics(data: TrainingSet) -> None:
    mean, std = data.channel_stats()
    pixels = data.pictures.double() / 127.5 - 1
    torch.testing.assert_close(torch.tensor(mean).double(), pixels.mean(dim=(0, 2, 3)), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        torch.tensor(std).double(), pixels.std(dim=(0, 2, 3), correction=0), rtol=1e-6, atol=1e-6
    )


def test_another_size_is_refused(manifest: Manifest, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="8 x 8 pixels, not 16 x 16"):
        load(manifest, 16)
    mixed = write_manifest(tmp_path, [*shapes(8), ("wide", np.zeros((8, 10, 3), np.uint8))])
    with pytest.raises(UserError, match="10 x 8 pixels"):
        load(mixed, 8)


def test_nothing_kept_and_damaged_pictures_are_refused(tmp_path: Path) -> None:
    empty = write_manifest(tmp_path / "a", shapes(8), decision="dropped", image=None)
    with pytest.raises(UserError, match="keeps no picture"):
        load(empty)
    for image in (None, {"bytes": b"not a picture", "path": None}):
        broken = write_manifest(tmp_path / str(image is None), shapes(8)[:1], image=image)
        with pytest.raises(UserError, match="cannot be trained on"):
            picture_size(broken)


@pytest.mark.parametrize("cap", [1 << 30, 0], ids=["resident", "encoded batch by batch"])
def test_text_states_are_those_of_the_captions(data: TrainingSet, text: TextEncoder, cap: int) -> None:
    states = CaptionStates(text, data.captions, cap=cap)
    found = states.lookup(torch.tensor([3, 5, 3]), torch.tensor([False, False, True]))
    expected = text.encode([data.captions[3], data.captions[5], ""])
    used = found.states.shape[1]
    assert torch.equal(found.mask, expected.mask[:, :used])
    assert not expected.mask[:, used:].any()
    torch.testing.assert_close(found.states, expected.states[:, :used])
    torch.testing.assert_close(found.pooled, expected.pooled)
