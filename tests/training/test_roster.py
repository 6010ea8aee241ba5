"""The roster: slots of the base set, empty ones, and the file that proofs and traces read."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from curation.errors import UserError
from curation.manifest import Manifest
from tests.training.conftest import derive, many, row_id, shapes, write_manifest
from training import merkle
from training.data import load
from training.roster import Roster

ROWS = many(20)
IDS = sorted(row_id(picture) for _, picture in ROWS)
GONE = {ROWS[3][0], ROWS[11][0]}
GONE_IDS = {row_id(picture) for caption, picture in ROWS if caption in GONE}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return write_manifest(tmp_path_factory.mktemp("base"), ROWS)


@pytest.fixture(scope="module")
def derived(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return derive(tmp_path_factory.mktemp("derived"), ROWS, GONE)


def test_slots_are_the_places_of_the_sorted_ids(base: Manifest) -> None:
    roster = Roster.of_manifest(base)
    assert list(roster.ids) == IDS
    assert roster.slots.tolist() == list(range(20))
    assert not roster.removed.any()
    assert (roster.info.base_rows, roster.info.excluded_rows) == (20, 0)
    assert roster.info.digest == roster.info.base_digest == merkle.digest(IDS)
    assert roster.info.removed_digest == merkle.digest([])


def test_what_is_revoked_leaves_its_slot_empty(base: Manifest) -> None:
    roster = Roster.of_manifest(base, GONE_IDS | {"f" * 64})
    assert set(roster.ids) == set(IDS) - GONE_IDS
    assert [IDS[slot] for slot in roster.slots] == list(roster.ids)
    assert roster.info.excluded_rows == roster.removed.sum() == 2
    assert roster.info.base_digest == merkle.digest(IDS)
    assert roster.info.digest == merkle.digest(roster.ids)
    assert roster.info.removed_digest == merkle.digest(GONE_IDS)
    assert roster.slots_of([roster.ids[5], *GONE_IDS]).tolist() == [roster.slots[5]]


def test_a_derived_manifest_and_its_base_give_the_same_samples(base: Manifest, derived: Manifest) -> None:
    revoked, kept = Roster.of_manifest(base, GONE_IDS), Roster.of_manifest(derived)
    assert (revoked.ids, revoked.slots.tolist()) == (kept.ids, kept.slots.tolist())
    for field in ("digest", "base_digest", "removed_digest", "base_rows"):
        assert getattr(revoked.info, field) == getattr(kept.info, field)
    index = torch.arange(100)
    one, other = load(base, roster=revoked), load(derived)
    assert torch.equal(one.shown(7, index), other.shown(7, index))
    assert torch.equal(one.contents, other.contents)
    whole = load(base)
    before, after = whole.contents[whole.shown(7, index)], other.contents[other.shown(7, index)]
    same = (before == after).all(dim=1)
    showed = torch.tensor([whole.roster.ids[row] in GONE_IDS for row in whole.shown(7, index).tolist()])
    assert torch.equal(~same, showed)
    assert 0 < int(showed.sum()) < 20


def test_an_older_manifest_without_the_column_is_its_own_base(tmp_path: Path) -> None:
    older = write_manifest(tmp_path, shapes(8), without=("was_kept",))
    assert Roster.of_manifest(older).info.base_rows == 8


def test_two_rows_of_the_same_bytes_have_a_slot_each(tmp_path: Path) -> None:
    twice = write_manifest(tmp_path, [*ROWS[:3], ("again", ROWS[1][1])])
    roster = Roster.of_manifest(twice)
    assert (len(roster), roster.info.base_rows) == (4, 4)
    assert len(load(twice)) == 4
    assert Roster.of_manifest(twice, [row_id(ROWS[1][1])]).info.excluded_rows == 2


def test_nothing_left_is_a_users_mistake(base: Manifest) -> None:
    with pytest.raises(UserError, match="revoked since"):
        Roster.of_manifest(base, IDS)


def test_the_file_comes_back_and_is_plain(base: Manifest) -> None:
    roster = Roster.of_manifest(base, GONE_IDS, ledger_uri="l", ledger_version="v")
    data = roster.to_parquet()
    table = pq.read_table(io.BytesIO(data))
    assert table["id"].to_pylist() == list(roster.ids)
    assert table["slot"].to_pylist() == roster.slots.tolist()
    found = Roster.from_parquet(data, "x")
    assert (found.ids, found.info) == (roster.ids, roster.info)
    assert np.array_equal(found.slots, roster.slots)


def test_a_damaged_file_is_refused(base: Manifest) -> None:
    roster = Roster.of_manifest(base)
    table = pq.read_table(io.BytesIO(roster.to_parquet()))
    other = Roster(roster.ids, roster.slots, roster.info.model_copy(update={"digest": "0" * 64})).to_parquet()
    slots = Roster(roster.ids, roster.slots[::-1], roster.info).to_parquet()
    bare = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(None), bare)
    for data in (b"", b"PAR1", other, slots, bare.getvalue()):
        with pytest.raises(UserError, match="is damaged"):
            Roster.from_parquet(data, "x")
