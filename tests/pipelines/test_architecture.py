"""docs/architecture.md shows the packages and the contracts as they are."""

from __future__ import annotations

import re

from pipelines import architecture


def test_the_page_is_that_of_the_contracts_and_charters_as_they_are() -> None:
    told = architecture.FILE.read_text(encoding="utf-8")
    assert told == architecture.page(), "run: python -m pipelines.architecture"


def test_every_sub_package_has_a_box_and_a_line_that_says_what_it_is_for() -> None:
    page = architecture.page()
    for file in architecture.ROOT.glob("[a-z]*/**/__init__.py"):
        name = ".".join(file.parent.relative_to(architecture.ROOT).parts)
        if name.split(".")[0] in ("pipelines", "serving", "training", "curation"):
            assert re.search(rf"^\| `{re.escape(name)}` \| .{{20,}} \|$", page, re.MULTILINE), name


def test_the_arrows_are_those_of_the_layers_and_lead_from_box_to_box() -> None:
    diagram = architecture.page().split("```mermaid")[1].split("```")[0]
    boxes = set(re.findall(r"subgraph (\w+)", diagram))
    arrows = re.findall(r"(\w+) --> (\w+)", diagram)
    assert arrows == [("pipelines", "serving"), ("serving", "training"), ("training", "curation")]
    assert {end for arrow in arrows for end in arrow} == boxes
