"""Promises about the shape of the repository that no linter makes."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("pipelines", "serving", "training", "curation")


def test_the_root_holds_no_python_file() -> None:
    assert not list(ROOT.glob("*.py")), "a root file would shadow a module of that name on Ray's workers"


def test_every_package_opens_with_its_charter_and_nothing_else() -> None:
    for package in PACKAGES:
        text = (ROOT / package / "__init__.py").read_text()
        assert text.startswith('"""')
        assert text.rstrip().endswith('"""')
        assert text.count('"""') == 2


def test_there_is_no_drawer_for_odds_and_ends() -> None:
    names = {p.stem for package in PACKAGES for p in (ROOT / package).rglob("*.py")}
    assert not names & {"utils", "util", "common", "helpers", "helper", "base", "misc"}


def test_ray_starts_in_one_file_and_mlflow_speaks_in_one_folder() -> None:
    sources = {p: p.read_text() for package in PACKAGES for p in (ROOT / package).rglob("*.py")}
    assert [p.name for p, text in sources.items() if "ray.init(" in text] == ["cluster.py"]
    assert {p.parent.name for p, text in sources.items() if "import mlflow" in text} == {"tracking"}
