"""docs/jobs.md says what the models say."""

from __future__ import annotations

from pipelines import reference
from pipelines.config import KINDS, model_of


def test_the_page_is_that_of_the_models_as_they_are() -> None:
    assert reference.FILE.read_text(encoding="utf-8") == reference.page(), "run: python -m pipelines.reference"


def test_every_field_of_every_job_is_on_it_and_says_what_it_is() -> None:
    page = reference.page()
    for kind in KINDS:
        section = page.split(f"## `kind: {kind}`")[1].split("\n## ")[0]
        for name in model_of(kind).model_fields:
            assert f"| `{name}` |" in section, (kind, name)
    bare = [line for line in page.splitlines() if line.startswith("| `") and line.rstrip().endswith("|  |")]
    assert [line for line in bare if not line.startswith("| `kind` ")] == []
