"""`cleanplate keys`, from the key that is made to the one that has ended."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.cli import main
from serving.keys import KeyRing, KeysConfig


def cleanplate(*arguments: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["cleanplate", *arguments])
        try:
            main()
        except SystemExit as end:
            return int(str(end.code or 0))
    return 0


def test_a_key_from_its_making_to_its_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(tmp_path / "keys.json")
    assert cleanplate("keys", "create", "studio", "--file", file, "--row-steps-per-day", "1000", "--json") == 0
    made = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert KeyRing(KeysConfig(file=file)).find(made["secret"]) is not None
    assert made["key"]["scopes"] == ["generate", "read", "verify"]

    assert cleanplate("keys", "list", "--file", file) == 0
    shown = capsys.readouterr().out
    assert "studio" in shown
    assert "1,000 row-steps a day" in shown
    assert made["secret"] not in shown

    assert cleanplate("keys", "revoke", "studio", "--file", file) == 0
    assert "has ended" in capsys.readouterr().out
    assert KeyRing(KeysConfig(file=file)).find(made["secret"]) is None


def test_a_scope_that_is_none_makes_no_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "keys.json"
    assert cleanplate("keys", "create", "studio", "--file", str(file), "--scope", "paint") == 2
    assert "no scope 'paint'" in capsys.readouterr().err
    assert not file.exists()
