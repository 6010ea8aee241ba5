"""Checkpoints beside training: the state of the moment, one after another, and no failure without a word."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from threading import Event

import pytest
import torch

from tests.training.test_checkpoint import OWN, info
from training import checkpoint
from training.checkpoint import CheckpointInfo
from training.writer import Writer


def test_what_is_written_is_the_state_of_the_moment(tmp_path: Path) -> None:
    weights = torch.arange(1 << 20, dtype=torch.float32).reshape(1, 16, 256, 256).to(memory_format=torch.channels_last)
    state = {"weights": {"a": weights, "step": torch.tensor(1.0)}}
    writer = Writer(str(tmp_path), keep=5)
    expected = {}
    for images in (8, 16, 24):
        expected[images] = checkpoint.state_sha256(state)
        writer.save(state, info(images))
        weights += 1  # while it is being written
    writer.flush()
    for images, sha256 in expected.items():
        found, stored = checkpoint.load(f"{tmp_path}/images-{images:012d}", OWN)
        assert (found.images_seen, checkpoint.state_sha256(stored)) == (images, sha256)
    writer.close()


def test_a_failure_to_write_is_raised_once(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    state = {"weights": {"a": torch.zeros(2)}}
    writer = Writer(str(tmp_path / "checkpoints"), keep=1)
    writer.save(state, info(8))
    with pytest.raises(OSError, match="checkpoints"):
        writer.save(state, info(16))
    writer.flush()
    writer.save(state, info(24))
    with pytest.raises(OSError, match="checkpoints"):
        writer.flush()
    writer.close()


def test_nothing_is_being_written_once_it_is_closed(tmp_path: Path) -> None:
    writer = Writer(str(tmp_path), keep=1)
    writer.save({"weights": {"a": torch.zeros(1 << 22)}}, info(8))
    writer.close()
    assert [path.name for path in tmp_path.iterdir()] == ["images-000000000008"]
    assert checkpoint.latest(str(tmp_path)) is not None


def test_a_copy_taken_beside_is_whole_before_the_state_may_change(tmp_path: Path) -> None:
    weights = torch.zeros(1 << 22)
    writer = Writer(str(tmp_path), keep=5)
    for images in (8, 16, 24):
        writer.save({"weights": {"a": weights}}, info(images), copies_beside=True)
        writer.taken()
        weights += images
    writer.flush()
    for images, value in ((8, 0), (16, 8), (24, 24)):
        _, stored = checkpoint.load(f"{tmp_path}/images-{images:012d}", OWN)
        assert bool((stored["weights"]["a"] == value).all())
    writer.close()


def test_a_state_that_cannot_be_copied_is_not_written(tmp_path: Path) -> None:
    writer = Writer(str(tmp_path), keep=1)
    writer.save({"weights": {"a": torch.zeros(2)}}, info(8))
    writer.save({"weights": {"a": torch.zeros(3)}}, info(16), copies_beside=True)  # of another run, it seems
    with pytest.raises(RuntimeError, match="size"):
        writer.taken()
    with pytest.raises(RuntimeError, match="size"):
        writer.flush()
    writer.close()
    assert [path.name for path in tmp_path.iterdir()] == ["images-000000000008"]


def test_what_takes_time_is_said_by_the_thread_that_writes(tmp_path: Path) -> None:
    hashed: Future[str] = Future()
    writer = Writer(str(tmp_path), keep=1)
    writer.save({"weights": {"a": torch.zeros(2)}}, lambda: info(8).model_copy(update={"seen_sha256": hashed.result()}))
    assert checkpoint.latest(str(tmp_path)) is None, "it waits, and training does not"
    hashed.set_result("ab")
    writer.flush()
    assert checkpoint.read_info(f"{tmp_path}/images-000000000008").seen_sha256 == "ab"
    writer.close()


def test_what_was_waited_for_one_is_not_forgotten_when_the_next_is_given(tmp_path: Path) -> None:
    asked, told = Event(), dict[str, float]()

    class Asked(Writer):
        def flush(self) -> None:
            if self._under_way is not None:
                asked.set()
            super().flush()

    def known() -> CheckpointInfo:
        asked.wait(60)  # for the next to be given
        return info(8)

    writer = Asked(str(tmp_path), keep=2, written=lambda path, seconds, stalled: told.update({path[-2:]: stalled}))
    state = {"weights": {"a": torch.zeros(2)}}
    writer.save(state, known)
    waited = writer._waited
    writer.save(state, info(16))
    writer.flush()
    writer.close()
    assert told["08"] == waited > 0
    assert set(told) == {"08", "16"}


def test_no_checkpoint_is_written_after_one_that_it_goes_with_and_that_failed(tmp_path: Path) -> None:
    (tmp_path / "averages").write_text("a file where the folder should be")
    first = Writer(str(tmp_path / "averages"), keep=1)
    then = Writer(str(tmp_path / "checkpoints"), keep=1, after=first)
    first.save({"ema": {"a": torch.zeros(2)}}, info(8))
    then.save({"weights": {"a": torch.zeros(2)}}, info(8))
    for writer in (then, first):
        with pytest.raises(OSError, match="averages"):
            writer.flush()
    then.close()
    assert not (tmp_path / "checkpoints").exists()
