"""The page about sizes holds what the command says today."""

from __future__ import annotations

import pytest

from tests.bench import planning, rates
from tests.docs.markdown import ROOT


def test_the_page_holds_the_commands_output(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["planning"])
    planning.main()
    page = (ROOT / "docs" / "planning.md").read_text()
    assert capsys.readouterr().out.strip() in page, "run python -m tests.bench.planning and put it between the lines"


def test_what_a_manifest_s_parts_take_can_be_measured_again() -> None:
    assert set(rates.manifest(parts=3)) <= planning.rates().keys()
