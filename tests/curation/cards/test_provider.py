"""The provider's file: what is wrong in it is named, with what to do."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
import yaml

from curation.cards import provider
from curation.cards.provider import load
from curation.errors import UserError
from tests.curation.cards.samples import disclosed, manifest, model


def written(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_an_empty_file_states_nothing(tmp_path: Path) -> None:
    assert load(written(tmp_path / "p.yaml", "")).provider.name is None


def test_the_example_of_the_documentation_is_one(tmp_path: Path) -> None:
    found = load(written(tmp_path / "p.yaml", textwrap.dedent(str(provider.__doc__).partition("documents.\n")[2])))
    assert found.provider.sme
    assert set(found.sources) == {"museums", "stamps"}


def test_what_is_stated_is_read(tmp_path: Path) -> None:
    raw = {
        "provider": {"name": "Klar", "sme": True},
        "model": {"names": ["klar-1"], "placed_on_market": "2026-03-01"},
        "sources": {"stamps": {"kind": "licensed", "agreement": "of 2025"}},
    }
    found = load(written(tmp_path / "p.yaml", yaml.safe_dump(raw)))
    assert found.provider.sme
    assert str(found.model.placed_on_market) == "2026-03-01"
    assert found.sources["stamps"].kind == "licensed"


@pytest.mark.parametrize(
    ("text", "field", "message", "remedy"),
    [
        ("provider: {nmae: Klar}", "--provider provider.nmae", "no such field", "did you mean name?"),
        ("providers: {}", "--provider providers", "no such field", "did you mean provider?"),
        ("sources: {a: {url: x}}", "--provider sources.a.kind", "required", "add it"),
        ("sources: {a: {kind: bought}}", "--provider sources.a.kind", "public-dataset", "correct the value"),
        ("provider: {sme: perhaps}\nmodel: {x: 1}", "--provider provider.sme", r"\(1 more\)", "correct the value"),
        ("[1]", "--provider", "no fields", "its fields are provider, model"),
        ("a: [", "--provider", "no YAML", "mend the file"),
    ],
)
def test_mistakes_name_the_field_and_the_remedy(
    tmp_path: Path, text: str, field: str, message: str, remedy: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load(written(tmp_path / "p.yaml", text))
    assert caught.value.field == field
    assert remedy in str(caught.value.remedy)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file at"):
        load(str(tmp_path / "none.yaml"))


def test_a_dataset_that_the_manifest_has_not(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no kept row of the dataset 'museum'") as caught:
        disclosed(manifest(tmp_path), {"sources": {"museum": {"kind": "crawl"}}})
    assert caught.value.field == "--provider sources.museum"
    assert "'museums', 'open-web', 'stamps', 'unnamed'" in str(caught.value.remedy)


def test_a_model_of_another_manifest(tmp_path: Path) -> None:
    found = manifest(tmp_path)
    with pytest.raises(UserError, match="trained on the manifest ffffffffffff, not on"):
        disclosed(found, model=model(found, manifest_id="f" * 64))
