"""`cleanplate inspect`: what a manifest's rows, and the log of the attempt that made it, say."""

from __future__ import annotations

from pathlib import Path

import pytest

from curation.events import EventLog, Published, UnitHeld
from curation.manifest import Manifest, WorkInfo
from pipelines import inspect
from tests.curation.test_report import published, row

REFUSED = ("dropped", "licence", "licence_not_allowed")


def test_it_says_which_licences_were_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = "https://creativecommons.org/licenses/by-nc/4.0/"
    rows = [
        row("apple"),
        row("pear", *REFUSED, licence="All rights reserved"),
        row("plum", *REFUSED, licence="All rights reserved"),
        row("fig", *REFUSED, licence=None, licence_url=url),
        row("nut", "dropped", "licence", "licence_unstated", licence=None),
    ]
    found = inspect.run(published(tmp_path, rows).uri)
    assert found.refused_licences == {"All rights reserved": 2, url: 1}
    inspect.show(found)
    shown = " ".join(capsys.readouterr().out.split())
    assert f"licences that were not allowed: All rights reserved 2, {url} 1" in shown
    inspect.show(inspect.run(published(tmp_path / "all kept", [row("apple")]).uri))
    assert "not allowed" not in capsys.readouterr().out


def logged(output: Path, work: Path) -> Manifest:
    """A manifest, and the log of the attempt that says it made it."""
    made = published(output, [row("apple")], work=WorkInfo(folder=str(work / "measure-1"), units=["u"]))
    log = EventLog(str(work))
    log.write(UnitHeld("u", {"timeout": 2}))
    log.write(Published(made.uri, made.id, {}))
    return made


def test_what_happened_is_read_out_of_its_own_folder_and_no_other(tmp_path: Path) -> None:
    own = logged(tmp_path / "out", tmp_path / "out" / ".work")
    assert inspect.run(own.uri).happened == ["1 units have rows that the next run asks again: timeout 2"]
    other = logged(tmp_path / "downloaded", tmp_path / "elsewhere" / ".work")
    assert inspect.run(other.uri).happened == []
    url = published(tmp_path / "odd", [row("apple")], work=WorkInfo(folder="odd://host/.work/x", units=["u"]))
    assert inspect.run(url.uri).happened == []
