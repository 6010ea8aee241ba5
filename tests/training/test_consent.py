"""Before training: the ledger is asked, whatever the manifest says, and old evidence is refused."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from curation import storage
from curation.errors import UserError
from curation.manifest import LedgerInfo, Manifest
from curation.takedowns import Ledger
from tests.training.conftest import many, opt_out, row_id, write_manifest
from training import consent

ROWS = many(6)
IDS = [row_id(picture) for _, picture in ROWS]


@pytest.fixture(autouse=True)
def _no_ledger_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CLEANPLATE_LEDGER", raising=False)


def manifest(folder: Path, ledger: Path | None = None, **said: Any) -> Manifest:
    if ledger is not None:
        said["ledger"] = Ledger.open(str(ledger)).read().info(storage.absolute(str(ledger)))
    return write_manifest(folder / "manifests", ROWS, said=said)


def test_no_ledger_anywhere_is_none_asked(tmp_path: Path) -> None:
    found = consent.ask(manifest(tmp_path), None)
    assert (found.ledger_uri, found.ledger_version, found.revoked, found.by_entry) == ("none", "none", {}, {})
    assert len(found.roster(manifest(tmp_path))) == 6


def test_entries_of_the_jobs_and_of_the_manifests_ledger_apply(tmp_path: Path) -> None:
    own, jobs = tmp_path / "own", tmp_path / "jobs"
    made = manifest(tmp_path, own)
    first, second = opt_out(own, IDS[0], IDS[1]), opt_out(jobs, IDS[1], IDS[2])
    alone = consent.ask(made, None)
    assert set(alone.revoked) == {IDS[0], IDS[1]}
    assert alone.ledger_version == Ledger.open(str(own)).read().version
    both = consent.ask(made, str(jobs))
    assert set(both.revoked) == {IDS[0], IDS[1], IDS[2]}
    assert both.ledger_uri == f"{jobs}, {own}"
    assert both.by_entry == {first[:12]: 1, second[:12]: 2}  # a row counts for the ledger that was asked first
    roster = both.roster(made)
    assert (len(roster), roster.info.excluded_rows, roster.info.ledger_uri) == (3, 3, both.ledger_uri)
    Ledger.open(str(jobs)).withdraw(second, by="Jane", why="changed her mind")
    assert set(consent.ask(made, str(jobs)).revoked) == {IDS[0], IDS[1]}


def test_the_environment_and_what_lies_beside_count_where_nothing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = manifest(tmp_path)
    opt_out(tmp_path / "manifests" / "takedowns", IDS[0])
    assert set(consent.ask(made, None).revoked) == {IDS[0]}
    opt_out(tmp_path / "elsewhere", IDS[1])
    monkeypatch.setenv("CLEANPLATE_LEDGER", str(tmp_path / "elsewhere"))
    assert set(consent.ask(made, None).revoked) == {IDS[1]}


def test_a_ledger_that_cannot_be_read_stops_the_job(tmp_path: Path) -> None:
    made = manifest(tmp_path)
    opt_out(tmp_path / "ledger", IDS[0])
    for file in (tmp_path / "ledger").rglob("*.parquet"):
        file.write_bytes(b"half")
    (tmp_path / "file").write_text("no folder")
    for place in ("ledger", "file"):
        with pytest.raises(UserError) as caught:
            consent.ask(made, str(tmp_path / place))
        assert caught.value.field == "ledger"


def test_a_ledger_that_was_lost_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    opt_out(tmp_path / "ledger", "f" * 64)
    made = manifest(tmp_path, tmp_path / "ledger")
    (tmp_path / "ledger").rename(tmp_path / "moved")
    with pytest.raises(UserError, match="not there any more"):
        consent.ask(made, str(tmp_path / "moved"))
    empty = write_manifest(
        tmp_path / "b", ROWS, said={"ledger": LedgerInfo(uri=str(tmp_path / "new"), version=_EMPTY, entries=0)}
    )
    assert consent.ask(empty, None).revoked == {}


_EMPTY = Ledger.open("/nowhere/at/all").read().version


def test_old_evidence_is_refused(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    fresh = manifest(tmp_path / "a")
    consent.check_age(fresh, 30)
    consent.check_age(fresh, 30, at=now + timedelta(days=29))
    old = manifest(tmp_path / "b", evidence_from=now - timedelta(days=31))  # though the manifest was made just now
    consent.check_age(old, None)
    consent.check_age(old, 32)
    for made, at in ((fresh, now + timedelta(days=31, minutes=1)), (old, None)):
        with pytest.raises(UserError, match=r"31\.0 days old") as caught:
            consent.check_age(made, 30, at=at)
        assert caught.value.field == "consent_max_age_days"
        assert f"cleanplate recheck {made.uri}" in str(caught.value)


def test_a_ledger_that_the_environment_names_is_asked_beside_the_manifests_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    found = manifest(tmp_path, tmp_path / "own")
    opt_out(elsewhere, IDS[2])
    assert not consent.ask(found, None).revoked
    monkeypatch.setenv("CLEANPLATE_LEDGER", str(elsewhere))
    assert set(consent.ask(found, None).revoked) == {IDS[2]}
