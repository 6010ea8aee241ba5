"""Checkpoints: whole or absent, checked, and only for the run they belong to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from curation.errors import UserError
from training import checkpoint
from training.checkpoint import CheckpointInfo, Identity, Standing, state_sha256
from training.progress import Point

STATE = {
    "weights": {"a": torch.randn(3, 4, 5, 2).to(memory_format=torch.channels_last), "b": torch.ones(2)},
    "optimizer": {"step.a": torch.tensor(3.0)},
}
OWN = Identity(manifest_id="m1", training_set_digest="d1", text_encoder_sha256="t1", config={"seed": 0, "lr": 1})


def info(images: int, **changes: Any) -> CheckpointInfo:
    point = Point(images=images, time=1.0, values={"loss": 0.5})
    own = OWN.model_copy(update=changes)
    return CheckpointInfo(images_seen=images, identity=own, topology={"workers": 1}, libraries={}, points=[point])


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    path = checkpoint.save(str(tmp_path), STATE, info(32), keep=2)
    assert checkpoint.latest(str(tmp_path)) == path
    found, state = checkpoint.load(path, OWN)
    assert found.images_seen == 32
    assert found.points[0].values == {"loss": 0.5}
    assert state_sha256(state) == state_sha256(STATE)
    assert torch.equal(state["weights"]["a"], STATE["weights"]["a"])


def test_the_hash_sees_every_bit_and_every_name() -> None:
    reference = state_sha256(STATE)
    nudged = torch.nextafter(STATE["weights"]["b"], torch.tensor(9.0))
    assert state_sha256({**STATE, "weights": {**STATE["weights"], "b": nudged}}) != reference
    renamed = {"a": STATE["weights"]["a"], "c": STATE["weights"]["b"]}
    assert state_sha256({**STATE, "weights": renamed}) != reference


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for images in (8, 16, 24, 100):
        checkpoint.save(str(tmp_path), STATE, info(images), keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images-000000000024", "images-000000000100"]


def test_the_best_by_another_measure_are_kept_and_what_is_measured_stays(tmp_path: Path) -> None:
    scores = {8: 3.0, 16: 1.0, 24: 2.0, 32: 5.0}
    for images in (8, 16, 24, 32, 40, 48):
        busy = (32,) if images < 48 else ()
        checkpoint.save(
            str(tmp_path), STATE, info(images), keep=1, keep_best=1, standing=lambda busy=busy: Standing(scores, busy)
        )
        left = [checkpoint.images_of(path) for path in checkpoint.paths(str(tmp_path))]
        assert left == {
            8: [8], 16: [16], 24: [16, 24], 32: [16, 32], 40: [16, 32, 40], 48: [16, 48]
        }[images]  # fmt: skip
    assert checkpoint.best(str(tmp_path), Standing(scores)) == f"{tmp_path}/images-000000000016"
    assert checkpoint.best(str(tmp_path), Standing({48: 0.0, 16: 0.0})) == f"{tmp_path}/images-000000000048"
    assert checkpoint.best(str(tmp_path)) is None, "their losses are not known"


def test_milestones_stay_and_are_not_counted(tmp_path: Path) -> None:
    for images in (8, 16, 24, 32, 40):
        told = info(images).model_copy(update={"milestone": images % 16 == 0})
        checkpoint.save(str(tmp_path), STATE, told, keep=1)
    assert [path[-2:] for path in checkpoint.paths(str(tmp_path))] == ["16", "32", "40"]
    assert checkpoint.latest(str(tmp_path)) == f"{tmp_path}/images-000000000040"


def test_a_checkpoint_of_an_older_version_is_read(tmp_path: Path) -> None:
    path = checkpoint.save(str(tmp_path), STATE, info(8), keep=1)
    file = Path(path) / "checkpoint.json"
    raw = json.loads(file.read_text())
    for field in ("milestone", "base_digest", "removed_digest", "seen_sha256"):
        del raw[field]
    file.write_text(json.dumps(raw))
    assert checkpoint.load(path, OWN)[0].milestone is False


def test_half_written_checkpoints_do_not_count(tmp_path: Path) -> None:
    whole = checkpoint.save(str(tmp_path), STATE, info(8), keep=2)
    torn = tmp_path / "images-000000000016"
    torn.mkdir()
    (torn / "weights.safetensors").write_bytes(b"half")
    leftover = tmp_path / ".images-000000000016.abcd.partial"
    leftover.mkdir()
    assert checkpoint.latest(str(tmp_path)) == whole
    checkpoint.sweep(str(tmp_path))
    assert not leftover.exists()


def test_a_damaged_one_is_passed_over_refused_and_replaced(tmp_path: Path) -> None:
    older = checkpoint.save(str(tmp_path), STATE, info(8), keep=2)
    newer = checkpoint.save(str(tmp_path), STATE, info(16), keep=2)
    weights = Path(newer) / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert checkpoint.latest(str(tmp_path)) == older
    with pytest.raises(UserError, match="is damaged"):
        checkpoint.load(newer, OWN)
    checkpoint.save(str(tmp_path), STATE, info(16), keep=2)
    assert checkpoint.latest(str(tmp_path)) == newer


def test_no_checkpoint_at_all(tmp_path: Path) -> None:
    assert checkpoint.latest(str(tmp_path / "absent")) is None


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"manifest_id": "m2"}, "manifest"),
        ({"text_encoder_sha256": "t2"}, "text_encoder"),
        ({"config": {"seed": 0, "lr": 2}}, "lr"),
        ({"config": {"seed": 0}}, "lr"),
    ],
)
def test_another_runs_checkpoint_is_refused_by_field(tmp_path: Path, change: dict[str, Any], field: str) -> None:
    path = checkpoint.save(str(tmp_path), STATE, info(8, **change), keep=1)
    with pytest.raises(UserError) as caught:
        checkpoint.load(path, OWN)
    assert caught.value.field == field
    assert caught.value.remedy
