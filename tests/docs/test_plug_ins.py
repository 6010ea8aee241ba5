"""The plug-ins of docs/plug-ins.md, put into a copy of our packages as the page says, and the checks that it shows."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.markdown import ROOT, Block, blocks

PAGE = "docs/plug-ins.md"
PACKAGES = ("curation", "training", "serving", "pipelines")


def changed(text: str, change: Block) -> str:
    """A file's text with a change made: the lines that it keeps and takes away must stand there, and once."""
    lines = [(line[:1] or " ", line[1:] + "\n") for line in change.text.splitlines()]
    before = "".join(line for sign, line in lines if sign in " -")
    after = "".join(line for sign, line in lines if sign in " +")
    assert text.count(before) == 1, f"{change.where}: these lines stand {text.count(before)} times in {change.changes}"
    return text.replace(before, after)


def made(block: Block) -> bool:
    return block.file is not None or block.changes is not None or block.mark == "check"


@pytest.mark.slow
def test_each_example_is_one_that_works_where_the_page_puts_it(tmp_path: Path) -> None:
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    checks = []
    for block in blocks(PAGE):
        if block.file is not None:
            assert not (tmp_path / block.file).exists(), f"{block.where}: there is a {block.file} already"
            (tmp_path / block.file).write_text(block.text)
        elif block.changes is not None:
            path = tmp_path / block.changes
            path.write_text(changed(path.read_text(), block))
        elif block.mark == "check":
            checks.append("\n" * (block.line - "\n".join(checks).count("\n") - 1) + block.text)
    script = tmp_path / "checks.py"
    script.write_text("\n".join(checks))
    path = os.pathsep.join((str(tmp_path), str(ROOT)))
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, f"{PAGE}\n{done.stderr[-4000:]}"


def test_the_changes_fit_our_files_as_they_are() -> None:
    texts: dict[str, str] = {}
    for block in blocks(PAGE):
        if block.changes is not None:
            texts[block.changes] = changed(texts.get(block.changes, (ROOT / block.changes).read_text()), block)
    assert len(texts) > 5
