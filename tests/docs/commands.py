"""Commands as our pages show them: read as the command line reads them, and run as somebody would who types them."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import typer

from pipelines.cli import app, main
from tests.docs.markdown import ROOT, Block

OTHERS = {
    *("cd", "cat", "cp", "curl", "docker", "export", "head", "ls", "mkdir", "pip", "python", "sh", "sudo"),
    *("git", "kill", "kubectl", "make", "openssl", "ray", "sha256sum", "unzip"),
}
"""Programs of others that a page may name."""

_SHELL = re.compile(r"[|&;<>$`*]")
_ASSIGNMENT = re.compile(r"[A-Z_][A-Z0-9_]*=")


def read(command: str) -> None:
    """Has the command line's own parser read a command, and looks for what others' commands name in the checkout.

    Raises:
        Exception: no such verb or option, a value of the wrong type, too many words or too few.
    """
    for part in re.split(r"\s(?:&&|\|\||\||;)\s", command):
        words = shlex.split(re.sub(r"\$\(([^)]*)\)", lambda inner: _inner(inner[1]), part), comments=True)
        words = [word for word in words[: _redirected(words)] if word != "&"]
        while words and _ASSIGNMENT.match(words[0]):
            words = words[1:]
        if not words:
            continue
        if words[0] == "cleanplate":
            _parse(words[1:])
            continue
        assert words[0] in OTHERS, f"{words[0]} is no program that our pages may name"
        for word in words[1:]:
            if re.match(r"(infra|docs|pipelines|tests)/", word) and "secrets/" not in word:
                assert (ROOT / word).exists(), f"there is no {word}"


def _inner(command: str) -> str:
    read(command)
    return "INNER"


def _redirected(words: list[str]) -> int:
    """Where words end and redirections begin."""
    return next((place for place, word in enumerate(words) if re.match(r"[0-9]?>", word)), len(words))


def _parse(words: list[str]) -> None:
    """`a|b …` stands for several verbs whose words a page does not give."""
    command: Any = typer.main.get_command(app)
    path = "cleanplate"
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        verbs = words[0].split("|")
        unknown = [verb for verb in verbs if verb not in command.commands]
        assert not unknown, f"{path} has no {unknown[0]}"
        path, command, words = f"{path} {verbs[0]}", command.commands[verbs[0]], words[1:]
    if "--help" not in words and words[-1:] != ["…"]:
        command.make_context(path, list(words))


class Desk:
    """A folder and an environment, and the commands that are typed there.

    Args:
        names: what blocks have named so far, by the word that commands call it.
    """

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, capture: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.names: dict[str, str] = {}
        self._patch = patch
        self._capture = capture
        patch.chdir(folder)
        patch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("XDG_CACHE_HOME", str(folder / ".cache"))

    def run(self, block: Block) -> None:
        """Runs a block's commands; each must end well."""
        name, _, field = block.mark.removeprefix("run").strip().partition("=")
        for number, command in enumerate(block.commands):
            filled = self._filled(command)
            if name and number + 1 == len(block.commands):
                told = self._cleanplate([*shlex.split(filled)[1:], "--json"], block)
                self.names[name] = str(_field(json.loads(told.splitlines()[-1]), field))
            elif filled.startswith("cleanplate ") and not _SHELL.search(filled):
                self._cleanplate(shlex.split(filled)[1:], block)
            elif filled.startswith("export "):
                variable, _, value = shlex.split(filled)[1].partition("=")
                self._patch.setenv(variable, value)
            else:
                self._shell(filled, block)

    def _filled(self, command: str) -> str:
        return re.sub(r"\b[A-Z][A-Z0-9_]+\b", lambda word: self.names.get(word[0], word[0]), command)

    def _cleanplate(self, words: list[str], block: Block) -> str:
        """Calls the command's own entry point, in this process: a new one would import torch each time."""
        self._patch.setattr("sys.argv", ["cleanplate", *words])
        self._capture.readouterr()
        code: object = 0
        try:
            main()
        except SystemExit as exit_:
            code = exit_.code or 0
        told = self._capture.readouterr()
        assert code == 0, f"{block.where}: cleanplate {shlex.join(words)}\n{told.out[-2000:]}\n{told.err[-4000:]}"
        return str(told.out)

    def _shell(self, command: str, block: Block) -> None:
        done = subprocess.run(["bash", "-ec", command], cwd=self.folder, capture_output=True, text=True)
        assert done.returncode == 0, f"{block.where}: {command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


def _field(found: Mapping[str, Any], path: str) -> Any:
    node: Any = found
    for part in path.split("."):
        node = node[int(part)] if isinstance(node, list) else node[part]
    return node
