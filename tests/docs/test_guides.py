"""What our pages tell a reader to type works: it is run here, or read by the command line that would run it."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from curation.errors import UserError
from curation.manifest import Decision, Manifest
from pipelines import config
from pipelines.pipeline import PipelineJob, inlined, plan
from tests.curation.pictures import drawing, encoded
from tests.docs.commands import Desk, read
from tests.docs.markdown import GUIDES, ROOT, Block, blocks, links

PAGES = [f"docs/{name}" for name in GUIDES]
ALSO = ["README.md", "CONTRIBUTING.md", "infra/README.md"]
ALSO += sorted(page for file in (ROOT / "docs").glob("*.md") if (page := f"docs/{file.name}") not in PAGES)
"""Pages whose blocks stand without comments: their commands are read, their job files are checked."""
COMMANDS = ("console", "sh", "bash")
REQUIRED: Mapping[str, dict[str, Any]] = {
    "curate": {"source": {"kind": "folder", "path": "pictures"}, "output": "runs"},
    "train": {"manifest": "manifests", "output": "runs"},
    "serve": {"model": "models:/drawings@champion"},
}
"""What a part of a job leaves out and its model asks for."""


def _all(pages: list[str]) -> list[Block]:
    return [block for page in pages for block in blocks(page)]


@pytest.mark.parametrize("page", PAGES)
def test_every_block_says_what_is_done_with_it(page: str) -> None:
    for block in blocks(page):
        if block.language in COMMANDS:
            assert block.runs or block.mark in ("read", "shown") or block.mark.startswith("run by tests/"), (
                f"{block.where}: say in a comment before it whether its commands are run or only read; see "
                "tests/docs/markdown.py"
            )
            if block.mark.startswith("run by "):
                assert (ROOT / block.mark.removeprefix("run by ")).is_file(), block.where
        else:
            assert block.file or block.part_of or block.changes or block.mark in ("shown", "check"), (
                f"{block.where}: say in a comment before it which file it is, or that it is `shown`"
            )


@pytest.mark.parametrize("page", [*PAGES, *ALSO])
def test_every_command_is_one_that_the_command_line_takes(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for block in blocks(page):
        if block.language not in COMMANDS or block.mark == "shown":
            continue
        assert block.commands, block.where
        for command in block.commands:
            for word in re.findall(r"\w+=\S+", command) if command.startswith("export ") else []:
                monkeypatch.setenv(*word.split("=", 1))
            try:
                read(command)
            except Exception as error:
                raise AssertionError(f"{block.where}: {command}: {error}") from error


@pytest.mark.parametrize("page", [*PAGES, *ALSO])
def test_every_job_and_every_part_of_one_is_what_its_model_takes(page: str, tmp_path: Path) -> None:
    for block in blocks(page):
        if block.file and block.language == "yaml":
            (tmp_path / block.file).write_text(block.text)
        if block.language != "yaml" or block.mark == "shown":
            continue
        raw = yaml.safe_load(block.text)
        assert isinstance(raw, dict), block.where
        if block.part_of:
            raw = {**REQUIRED[block.part_of], "kind": block.part_of, **raw}
        elif page in PAGES and "kind" not in raw:
            continue  # a file of another program, which says so by its name
        try:
            if raw["kind"] == "pipeline":
                raw = inlined(raw, tmp_path)
                plan(PipelineJob.model_validate(raw))
            config.check(raw, raw["kind"])
        except UserError as error:
            raise AssertionError(f"{block.where}: {error}") from error


@pytest.mark.parametrize("page", [*PAGES, *ALSO])
def test_every_link_leads_somewhere(page: str) -> None:
    for link in links(page):
        assert ((ROOT / page).parent / link).exists(), f"{page} links to {link}"


def test_the_makefile_has_what_pages_tell_to_make() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for block in _all([*PAGES, *ALSO]):
        for command in block.commands if block.language in COMMANDS else []:
            if command.startswith("make "):
                assert f"\n{command.split()[1]}:" in makefile, block.where


def test_extras_that_pages_name_are_there() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for page in [*PAGES, *ALSO]:
        for named in re.findall(r'pip install[^`]*"\.\[([\w,]+)\]"', (ROOT / page).read_text()):
            assert set(named.split(",")) <= set(extras), page


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Desk:
    """A reader's folder: pictures of two people, one that is nobody's, one that is broken; and more for later."""
    import torch

    torch.set_num_threads(1)
    monkeypatch.delenv("CLEANPLATE_LEDGER", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for folder, shapes in (("pictures", ("circle", "square")), ("more", ("stripes",))):
        (tmp_path / folder).mkdir()
        for shape in shapes:
            for colour in ("red", "green", "blue"):
                (tmp_path / folder / f"{colour}-{shape}.png").write_bytes(encoded(drawing(shape, colour)))
    (tmp_path / "pictures" / "found somewhere.png").write_bytes(encoded(drawing("circle", "yellow")))
    (tmp_path / "pictures" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    return Desk(tmp_path, monkeypatch, capsys)


def _follow(desk: Desk, page: str) -> None:
    """Does what a page says: writes its files and runs its commands, in order."""
    for block in blocks(page):
        if block.file:
            (desk.folder / block.file).write_text(block.text)
        elif block.runs and block.language in COMMANDS:
            desk.run(block)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_reader_who_follows_the_guides_gets_what_they_promise(ray_cluster: None, desk: Desk) -> None:
    _follow(desk, "docs/curating.md")
    assert (desk.folder / "report.html").read_text().startswith("<!doctype html>")
    grown = json.loads((Path(desk.names["MANIFEST"]) / "manifest.json").read_text())
    assert grown["parent_id"], "the set grew"
    _follow(desk, "docs/serving.md")
    with Image.open(desk.folder / "square.png") as picture:
        assert picture.size == (32, 32)
    _follow(desk, "docs/rights.md")
    assert "Jane Doe" in (desk.folder / "plan" / "plan.md").read_text()
    left = Manifest.open(desk.names["CHILD"]).table(["creator"], decision=Decision.KEPT)["creator"].to_pylist()
    assert set(left) == {"John Roe"}
    _follow(desk, "docs/multi-node.md")
