"""Retraining without some pictures: from the checkpoint that is named, the same bits as from scratch; and no others."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from curation.errors import UserError
from curation.manifest import Manifest
from tests.training.conftest import derive, many, row_id, write_manifest
from training import checkpoint, randomness, retraining
from training.captions import CaptionStates
from training.data import TrainingSet, load
from training.job import TrainJob
from training.learner import Place
from training.loop import Outcome, train
from training.progress import Point
from training.retraining import RetrainingPoint, Seen, earliest
from training.roster import Roster
from training.text import TextEncoder

pytestmark = pytest.mark.slow  # networks are trained, in seconds each

MakeJob = Callable[..., TrainJob]
ROWS = many(56)  # one epoch and a little: 64 samples
BY_ID = {row_id(picture): caption for caption, picture in ROWS}
SETTINGS: dict[str, Any] = {"milestones": 16, "keep_checkpoints": 1, "conditioning_images": 8}
RICH: dict[str, Any] = {"flip": True, "accumulation": 2, "precision": "bf16", "loss": {"min_snr_gamma": 5.0}}


class Killed(BaseException):
    """Stands for a signal: nothing in the loop may handle it."""


def run(
    job: TrainJob, folder: Path, data: TrainingSet, text: TextEncoder, report: Callable[[Point], None] | None = None
) -> Outcome:
    return train(job, folder=str(folder), data=data, text=text, place=Place(), report=report)


def shown_first(job: TrainJob, base: Manifest, low: int, high: int) -> str:
    """The id of the picture that the run shows first at a sample in [low, high), with the longest caption."""
    roster = Roster.of_manifest(base)
    first = randomness.first_seen(job.seed, 64, roster.info.base_rows)
    found = [id_ for id_, at in zip(roster.ids, first.tolist(), strict=True) if low <= at < high]
    return max(found, key=lambda id_: (len(BY_ID[id_]), id_))


@dataclass
class Trained:
    """A run that is over, and the set it was trained on."""

    make: MakeJob
    job: TrainJob
    manifest: Manifest
    roster: Roster
    folder: Path
    outcome: Outcome


@pytest.fixture
def trained(request: pytest.FixtureRequest, make_job: MakeJob, text: TextEncoder, tmp_path: Path) -> Trained:
    """A run of 64 images with a milestone every 16; with other settings where a test is parametrised so."""
    settings = getattr(request, "param", {})

    def make(**changes: Any) -> TrainJob:
        return make_job(**{**SETTINGS, **settings, **changes})

    base = write_manifest(tmp_path / "base", ROWS)
    data = load(base)
    outcome = run(make(), tmp_path / "run", data, text)
    return Trained(make, make(), base, data.roster, tmp_path / "run", outcome)


@pytest.mark.parametrize("trained", [{}, RICH], ids=["plain", "rich"], indirect=True)
def test_a_retraining_from_the_named_checkpoint_ends_in_the_bits_of_one_from_scratch(
    trained: Trained, text: TextEncoder, tmp_path: Path
) -> None:
    gone = shown_first(trained.job, trained.manifest, 40, 48)
    point = earliest(str(trained.folder), trained.roster, {gone}, trained.job)
    assert point is not None
    assert (point.images_seen, point.images) == (32, 64)
    assert 40 <= point.first_seen < 48
    assert point.claim.startswith("bit for bit")
    assert f"1 CPU worker(s) with accumulation {trained.job.accumulation}" in point.claim

    derived = derive(tmp_path / "derived", ROWS, {BY_ID[gone]})
    scratch = run(trained.make(), tmp_path / "scratch", load(derived), text)
    points: list[Point] = []
    job = trained.make(resume_from=point.checkpoint)
    again = run(job, tmp_path / "again", load(derived), text, points.append)
    assert (again.resumed_from, scratch.resumed_from) == (32, 0)
    assert (again.state_sha256, again.metrics) == (scratch.state_sha256, scratch.metrics)
    assert scratch.state_sha256 != trained.outcome.state_sha256  # the picture made a difference
    assert [p.images for p in points if "loss" in p.values] == list(range(8, 65, 8))  # with the curve from before

    # the same by leaving the row of the base manifest out, as a ledger does
    revoked = load(trained.manifest, roster=Roster.of_manifest(trained.manifest, {gone}))
    assert run(job, tmp_path / "revoked", revoked, text).state_sha256 == scratch.state_sha256


def test_captions_that_each_batch_encodes_make_no_difference(
    make_job: MakeJob, text: TextEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As above, with more captions than fit: and a checkpoint of the one way is not taken up by the other."""
    monkeypatch.setattr("training.learner.CaptionStates", partial(CaptionStates, cap=0))
    base = write_manifest(tmp_path / "base", ROWS)
    job = make_job(**SETTINGS)
    run(job, tmp_path / "run", load(base), text)
    gone = shown_first(job, base, 40, 48)
    point = earliest(str(tmp_path / "run"), Roster.of_manifest(base), {gone}, job)
    assert point is not None
    data = load(base, roster=Roster.of_manifest(base, {gone}))
    from_it = job.model_copy(update={"resume_from": point.checkpoint})
    again = run(from_it, tmp_path / "again", data, text)
    assert (again.resumed_from, again.state_sha256) == (32, run(job, tmp_path / "scratch", data, text).state_sha256)
    monkeypatch.setattr("training.learner.CaptionStates", CaptionStates)
    with pytest.raises(UserError, match="encoded in another way"):
        run(from_it, tmp_path / "other", data, text)


def test_a_retraining_that_was_killed_goes_on_from_its_own_checkpoints(
    trained: Trained, text: TextEncoder, tmp_path: Path
) -> None:
    gone = shown_first(trained.job, trained.manifest, 20, 32)
    point = earliest(str(trained.folder), trained.roster, {gone}, trained.job)
    assert point is not None
    data = load(trained.manifest, roster=Roster.of_manifest(trained.manifest, {gone}))
    job = trained.make(resume_from=point.checkpoint)

    def kill(told: Point) -> None:
        if told.images == 56:
            raise Killed

    with pytest.raises(Killed):
        run(job, tmp_path / "killed", data, text, kill)
    shutil.rmtree(trained.folder)
    resumed = run(job, tmp_path / "killed", data, text)
    assert (point.images_seen, resumed.resumed_from) == (16, 48)
    assert resumed.state_sha256 == run(trained.make(), tmp_path / "scratch", data, text).state_sha256


def test_what_was_seen_too_early_names_no_checkpoint(trained: Trained) -> None:
    def named(gone: set[str], **changes: Any) -> RetrainingPoint | None:
        return earliest(str(trained.folder), trained.roster, gone, trained.make(**changes))

    late, early = (shown_first(trained.job, trained.manifest, *where) for where in ((40, 48), (9, 16)))
    assert named({early}) is None  # no checkpoint is older
    assert named({late, early}) is None
    assert named({"f" * 64}) is None  # was never trained on
    assert named({late}, seed=1) is None
    assert named({late}, images=80) is None  # the learning rate follows the budget
    in_window = shown_first(trained.job, trained.manifest, 17, 32)
    assert named({in_window}) is not None


def test_the_statistics_window_counts_as_seen(make_job: MakeJob, text: TextEncoder, tmp_path: Path) -> None:
    base = write_manifest(tmp_path / "base", ROWS)
    job = make_job(**{**SETTINGS, "conditioning_images": 40})
    data = load(base)
    run(job, tmp_path / "run", data, text)
    folder = str(tmp_path / "run")
    inside, outside = (shown_first(job, base, *where) for where in ((33, 40), (40, 48)))
    assert earliest(folder, data.roster, {inside}, job) is None
    point = earliest(folder, data.roster, {outside}, job)
    assert point is not None
    assert point.images_seen == 32
    revoked = load(base, roster=Roster.of_manifest(base, {inside}))
    with pytest.raises(UserError, match="are not the first ones"):
        run(job.model_copy(update={"resume_from": point.checkpoint}), tmp_path / "inside", revoked, text)


def test_a_job_believes_nothing(trained: Trained, text: TextEncoder, tmp_path: Path) -> None:
    path = f"{trained.folder}/checkpoints/images-000000000048"
    gone = shown_first(trained.job, trained.manifest, 40, 48)
    derived = load(derive(tmp_path / "derived", ROWS, {BY_ID[gone]}))
    renamed = write_manifest(tmp_path / "renamed", [(caption.upper(), picture) for caption, picture in ROWS])
    larger = write_manifest(tmp_path / "larger", many(57))
    for data, changes, message, field in (
        (derived, {}, "are not the first ones", "resume_from"),  # it has seen what is gone
        (load(renamed), {}, "are not the first ones", "resume_from"),  # other captions
        (load(larger), {}, "another base set", "resume_from"),
        (load(trained.manifest), {"seed": 1}, "seed = 0", "seed"),
        (load(trained.manifest), {"conditioning_images": 9}, "conditioning_images", "conditioning_images"),
        (load(trained.manifest), {"resume_from": f"{tmp_path}/absent"}, "no checkpoint at", "resume_from"),
    ):
        job = trained.make(**{"resume_from": path, **changes})
        with pytest.raises(UserError, match=message) as caught:
            run(job, tmp_path / "refused", data, text)
        assert caught.value.field == field
    # and the set that it was trained on may take it up
    resumed = run(trained.make(resume_from=path), tmp_path / "same", load(trained.manifest), text)
    assert (resumed.resumed_from, resumed.state_sha256) == (48, trained.outcome.state_sha256)


def test_a_damaged_checkpoint_is_passed_over(trained: Trained) -> None:
    gone = shown_first(trained.job, trained.manifest, 40, 48)
    weights = trained.folder / "checkpoints" / "images-000000000032" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    point = earliest(str(trained.folder), trained.roster, {gone}, trained.job)
    assert point is not None
    assert point.images_seen == 16
    listed = checkpoint.paths(f"{trained.folder}/checkpoints")
    assert [path[-2:] for path in listed] == ["16", "32", "48", "64"]  # milestones are kept for ever
    assert earliest(listed[1:], trained.roster, {gone}, trained.job) is None


def test_another_topology_claims_less(trained: Trained) -> None:
    gone = shown_first(trained.job, trained.manifest, 40, 48)
    for change in ({"workers": 2}, {"accumulation": 2}, {"workers": 1, "gpus_per_worker": 1}):
        point = earliest(str(trained.folder), trained.roster, {gone}, trained.make(**change))
        assert point is not None
        assert "not the same bits" in point.claim
        assert "bit for bit" not in point.claim


def test_what_was_seen_is_hashed_in_one_go_or_bit_by_bit(make_job: MakeJob, tmp_path: Path) -> None:
    data = load(write_manifest(tmp_path, ROWS))
    job = make_job(conditioning_images=8)
    steps, whole = Seen(job, data), Seen(job, data)
    hashes = [steps.upto(images) for images in (4, 8, 16, 17, 64)]
    assert hashes[0] == hashes[1]  # the window, which both lie in
    assert len(set(hashes)) == 4
    assert whole.upto(64) == hashes[-1]
    shown = data.contents[data.shown(job.seed, torch.arange(64))]
    assert shown.shape == (64, 32)
    assert retraining.Seen(make_job(seed=1, conditioning_images=8), data).upto(64) != hashes[-1]
