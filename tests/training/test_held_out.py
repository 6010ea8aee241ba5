"""What is held out: a function of the seed and an input's id, taken out of the training set, whoever else is in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from curation.errors import UserError
from curation.manifest import Manifest
from tests.training.conftest import many, opt_out, row_id, write_manifest
from training import merkle
from training.data import load
from training.evaluation_config import held_out
from training.job import TrainJob
from training.prepare import plan, prepare, run_folder
from training.roster import Roster

MakeJob = Callable[..., TrainJob]
ROWS = many(60)
IDS = {row_id(picture) for _, picture in ROWS}
APART = {id_ for id_ in IDS if held_out(0, id_, 0.3)}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return write_manifest(tmp_path_factory.mktemp("base"), ROWS)


def test_a_share_is_about_as_large_as_asked_for_and_its_own_for_each_seed() -> None:
    ids = [f"{i:064x}" for i in range(20_000)]
    sets = [{id_ for id_ in ids if held_out(seed, id_, 0.05)} for seed in (0, 1)]
    assert all(850 < len(apart) < 1150 for apart in sets), "five standard deviations of a binomial are 154"
    assert len(sets[0] & sets[1]) < 120
    assert sets[0] < {id_ for id_ in ids if held_out(0, id_, 0.1)}, "a larger share holds the smaller one"


def test_held_out_rows_leave_the_training_set_and_its_digest(base: Manifest) -> None:
    whole, rest = Roster.of_manifest(base), Roster.of_manifest(base, held_out_share=0.3, seed=0)
    assert set(rest.ids) == IDS - APART
    assert (rest.info.held_out_rows, rest.info.excluded_rows) == (len(APART), 0)
    assert rest.info.digest == merkle.digest(rest.ids) != whole.info.digest
    assert rest.info.base_digest == whole.info.base_digest
    assert Roster.from_parquet(rest.to_parquet(), "x").info == rest.info


def test_what_is_held_out_is_never_shown(base: Manifest) -> None:
    data = load(base, roster=Roster.of_manifest(base, held_out_share=0.3, seed=0))
    shown = {data.roster.ids[row] for row in data.shown(0, torch.arange(600)).tolist()}
    assert shown == IDS - APART


def test_a_takedown_moves_no_other_row_in_or_out(make_job: MakeJob, base: Manifest, tmp_path: Path) -> None:
    job = make_job(manifest=base.uri, evaluation={"holdout": 0.3}, ledger=str(tmp_path / "ledger"))
    before = prepare(job)
    assert before.held_out is not None
    assert (set(before.roster.ids), set(before.held_out.ids)) == (IDS - APART, APART)
    gone = [min(APART), min(IDS - APART)]
    opt_out(tmp_path / "ledger", *gone)
    after = prepare(job)
    assert after.held_out is not None
    assert (set(after.roster.ids), set(after.held_out.ids)) == (IDS - APART - {gone[1]}, APART - {gone[0]})
    assert (after.roster.info.excluded_rows, after.roster.info.held_out_rows) == (2, len(APART) - 1)


def test_a_share_makes_another_run_and_another_manifest_does_not(make_job: MakeJob, base: Manifest) -> None:
    plain, share = make_job(manifest=base.uri), make_job(manifest=base.uri, evaluation={"holdout": 0.3})
    other = make_job(manifest=base.uri, evaluation={"holdout": "elsewhere", "every": 16})
    assert plain.identity() == other.identity()
    assert share.identity() == {**plain.identity(), "holdout": 0.3}
    assert run_folder(share, "m", "d") != run_folder(plain, "m", "d") == run_folder(other, "m", "d")
    assert "elsewhere" not in str(other.public())
    assert TrainJob.model_validate({**share.public(), "manifest": "m", "output": "o"}).held_out_share == 0.3


def test_another_manifest_is_held_out_without_what_is_trained_on(
    make_job: MakeJob, base: Manifest, tmp_path: Path
) -> None:
    other = write_manifest(tmp_path / "other", many(80))
    found = prepare(make_job(manifest=base.uri, evaluation={"holdout": other.uri}))
    assert found.held_out is not None
    assert set(found.roster.ids) == IDS
    assert len(found.held_out) == 20
    assert not set(found.held_out.ids) & IDS
    assert found.held_out.info.manifest_id == other.id
    assert plan(make_job(manifest=base.uri, evaluation={"holdout": other.uri}))["held_out_rows"] == 20


@pytest.mark.parametrize("holdout", [0.001, "itself"])
def test_too_few_are_refused_before_anything_starts(make_job: MakeJob, base: Manifest, holdout: object) -> None:
    with pytest.raises(UserError, match="too few") as caught:
        prepare(make_job(manifest=base.uri, evaluation={"holdout": base.uri if holdout == "itself" else holdout}))
    assert caught.value.field == "evaluation.holdout"


@pytest.mark.parametrize(
    ("change", "field", "remedy"),
    [
        ({"best_by": "beauty"}, "best_by", "clip_score"),
        ({"best_by": "clip_score"}, "best_by", "set `evaluation`"),
        ({"best_by": "loss_held_out", "evaluation": {}}, "best_by", "evaluation.holdout"),
        ({"bundle": "best"}, "bundle", "keep_best_checkpoints: 1"),
    ],
)
def test_a_best_checkpoint_that_nothing_says_is_refused(
    make_job: MakeJob, change: dict[str, object], field: str, remedy: str
) -> None:
    with pytest.raises(UserError) as caught:
        make_job(**change)
    assert caught.value.field == field
    assert remedy in str(caught.value.remedy)


def test_when_an_evaluation_is_due(make_job: MakeJob) -> None:
    job = make_job(evaluation={"every": 20})
    assert [images for images in range(8, 65, 8) if job.evaluates_at(images)] == [24, 40, 64]
    assert [images for images in range(8, 65, 8) if make_job(evaluation={}).evaluates_at(images)] == [64]
    assert not make_job().evaluates_at(64)
