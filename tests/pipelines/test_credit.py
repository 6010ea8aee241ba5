"""`cleanplate report --attribution`: sums of logs that servers wrote, with what was taken down since named."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import pytest

from curation.errors import UserError
from curation.manifest import LedgerInfo
from curation.takedowns import Ledger, Selector
from pipelines import credit
from serving.credit import CreditLog, Named
from tests.pipelines.test_cli import Cleanplate, cleanplate
from tests.pipelines.world import AGAIN, World
from tests.training.conftest import shapes, write_manifest

__all__ = ["cleanplate"]  # a fixture

ANN = Named("a" * 64, "Ann", "CC-BY-4.0", "https://ann.example/1.png", 0.75)
TWO = Named("b" * 64, "Ann", "CC0-1.0", "https://ann.example/2.png", 0.25)
BEN = Named("c" * 64, None, None, "https://ben.example/1.png", 0.25)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger.open(str(tmp_path / "takedowns"))


@pytest.fixture
def log(tmp_path: Path, ledger: Ledger) -> str:
    """Of two replicas and two versions: three pictures, one of them flagged as a copy."""
    folder = str(tmp_path / "log")
    for version, day, served in (("1", date(2026, 11, 24), [[ANN, BEN]]), ("2", date(2026, 11, 25), [[ANN, TWO], []])):
        writer = CreditLog(
            folder, model="m", version=version, index="i", ledgers=[ledger.uri], every_s=3600, day=lambda day=day: day
        )
        for named in served:
            writer.add(named, ANN.sha256 if version == "2" else None)
        writer.flush()
    return folder


def test_creators_and_licences_get_their_shares(log: str) -> None:
    found = credit.run(log)
    assert (found.first, found.last) == ("2026-11-24", "2026-11-25")
    assert found.served == {"m version 1": 1, "m version 2": 2}
    assert found.weight == pytest.approx(2)
    creators = {s.name: (s.pictures, s.named, round(s.weight, 6), s.near_copies) for s in found.creators}
    assert creators == {"Ann": (2, 3, 1.75, 1), "unstated": (1, 1, 0.25, 0)}
    licences = {s.name: round(s.share, 6) for s in found.licences}
    assert licences == {"CC-BY-4.0": 0.75, "CC0-1.0": 0.125, "unstated": 0.125}
    assert sum(s.revoked for s in found.creators) == 0


@pytest.mark.parametrize(
    ("selector", "revoked"),
    [
        (Selector.of("sha256", BEN.sha256), {BEN.sha256}),
        (Selector.of("creator", "Ann"), {ANN.sha256, TWO.sha256}),
        (Selector.of("domain", "ann.example"), {ANN.sha256, TWO.sha256}),
        (Selector.of("uri", "https://ann.example/2.png"), {TWO.sha256}),
    ],
)
def test_what_was_taken_down_since_is_named_as_revoked(
    log: str, ledger: Ledger, selector: Selector, revoked: set[str]
) -> None:
    entry = ledger.append_entry(requester="Jane", ground="no", selectors=[selector]).id
    found = credit.run(log)
    assert {p.sha256: p.revoked for p in found.pictures if p.revoked} == dict.fromkeys(revoked, entry[:12])
    assert found.ledgers == [ledger.uri]
    lost = sum(p.weight for p in found.pictures if p.sha256 in revoked)
    assert sum(s.revoked for s in found.creators) == pytest.approx(lost)
    assert sum(s.revoked for s in found.licences) == pytest.approx(lost)


def test_with_the_manifest_near_copies_are_revoked_too(tmp_path: Path, ledger: Ledger) -> None:
    manifest = World.publish(tmp_path / "manifests")
    rows = {row["caption"]: row["id"] for row in manifest.table(["caption", "id"]).to_pylist()}
    writer = CreditLog(str(tmp_path / "log"), model="m", version="1", index="i", ledgers=[ledger.uri])
    writer.add([Named(rows[AGAIN], "Painter M", None, "https://mirror.example/picture-0-again.png", 1.0)])
    writer.flush()
    ledger.append_entry(requester="J", ground="g", selectors=[Selector.of("sha256", rows["picture 0"])])
    assert credit.run(str(tmp_path / "log")).pictures[0].revoked is None
    assert credit.run(str(tmp_path / "log"), manifest=manifest.uri).pictures[0].revoked


def test_a_manifest_whose_ledger_is_gone_says_nothing_of_what_is_revoked(log: str, tmp_path: Path) -> None:
    heeded = LedgerInfo(uri=str(tmp_path / "gone"), version="0" * 64, entries=1)
    manifest = write_manifest(tmp_path / "manifests", shapes(1), said={"ledger": heeded})
    with pytest.raises(UserError, match="has no entries"):
        credit.run(log, manifest=manifest.uri)
    with pytest.raises(UserError, match="has no entries"):
        credit.run(log, manifest=manifest.uri, ledger=str(tmp_path / "typo"))


def test_by_the_command_line(log: str, tmp_path: Path, cleanplate: Cleanplate) -> None:
    page = tmp_path / "credit.html"
    ended = cleanplate("report", "--attribution", log, "--out", str(page), "--json")
    assert ended.returncode == 0
    assert json.loads(ended.stdout)["creators"][0]["name"] == "Ann"
    html = page.read_text()
    assert "Ann" in html
    assert "<script" not in html
    said = cleanplate("report", "--attribution", log).stdout
    assert "3 pictures served, 2.00 of them shared among 3 training pictures of 2 creators" in said


def test_mistakes(tmp_path: Path, cleanplate: Cleanplate) -> None:
    with pytest.raises(UserError, match="no folder"):
        credit.run(str(tmp_path / "nothing"))
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "2026-11-25-0.parquet").write_bytes(b"half")
    with pytest.raises(UserError, match="cannot be read"):
        credit.run(str(tmp_path / "torn"))
    (tmp_path / "empty").mkdir()
    assert credit.run(str(tmp_path / "empty")).weight == 0
    assert cleanplate("report").returncode == 2
