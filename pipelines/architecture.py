"""docs/architecture.md: the packages and the arrows between them, out of the import contracts and the charters.

`python -m pipelines.architecture` writes it. It goes down to sub-packages and no further: what a module is for, its own
first lines say.
"""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FILE = ROOT / "docs" / "architecture.md"

_HEAD = """# Architecture

Four packages, and who may import whom. An arrow reads "may import", and so does every path of arrows; a dotted line
with a cross reads "never does". This page is written by `python -m pipelines.architecture`, out of the contracts in
`pyproject.toml` that `lint-imports` holds us to, and of the charter in each package's `__init__.py`."""


def page() -> str:
    """The page as Markdown: a diagram, the contracts, and a table of packages and sub-packages."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    lines = [
        _HEAD,
        "",
        "```mermaid",
        *_diagram(contracts),
        "```",
        "",
        "## The contracts",
        "",
        "| contract | holds for | which never imports |",
        "|---|---|---|",
        *(_row(contract) for contract in contracts["contracts"]),
        "",
        "## The packages",
        "",
        "| package | what it is for |",
        "|---|---|",
        *(f"| `{name}` | {_charter(folder)} |" for name, folder in _packages(contracts["root_packages"])),
    ]
    return "\n".join(lines) + "\n"


def _diagram(contracts: Mapping[str, Any]) -> Iterator[str]:
    """A box for each package with its sub-packages in it, the layers' arrows, and the walls before libraries."""
    yield "flowchart LR"
    found = list(_packages(contracts["root_packages"]))
    for root in contracts["root_packages"]:
        inside = [name for name, _ in found if name.startswith(f"{root}.")]
        yield f'  subgraph {root}["{root}/"]'
        yield from (f'    {name.replace(".", "_")}["{name.removeprefix(f"{root}.")}"]' for name in inside)
        if not inside:
            yield f'    {root}_modules["…"]'
        yield "  end"
    for contract in contracts["contracts"]:
        if contract["type"] == "layers":
            layers = contract["layers"]
            yield from (f"  {upper} --> {lower}" for upper, lower in pairwise(layers))
    for wall, (sources, libraries) in enumerate(_walls(contracts)):
        yield f'  wall{wall}["{sources}"]'
        yield from (f"  wall{wall} -. ✕ .-> {library}([{library}])" for library in libraries)


def _walls(contracts: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Of each contract that keeps libraries of others out: its name, and the libraries."""
    roots = contracts["root_packages"]
    for contract in contracts["contracts"]:
        libraries = [name for name in contract.get("forbidden_modules", ()) if name.split(".")[0] not in roots]
        if libraries:
            yield contract["name"], libraries


def _row(contract: Mapping[str, Any]) -> str:
    """A contract's line. Modules are named by their packages, so that a new module does not change the page."""
    if contract["type"] == "layers":
        return f"| {contract['name']} | all four | what stands to the left of it |"
    sources = _of_packages(contract["source_modules"])
    return f"| {contract['name']} | {sources} | {_of_packages(contract['forbidden_modules'])} |"


def _of_packages(modules: list[str]) -> str:
    told = {(name if "." not in name else f"modules of {name.split('.')[0]}"): None for name in modules}
    return ", ".join(
        f"`{name}`" if " " not in name else f"{name.rpartition(' ')[0]} `{name.split()[-1]}`" for name in told
    )


def _packages(roots: list[str]) -> Iterator[tuple[str, Path]]:
    """Every package and sub-package, by its dotted name."""
    for root in roots:
        for file in sorted((ROOT / root).rglob("__init__.py")):
            yield ".".join(file.parent.relative_to(ROOT).parts), file.parent


def _charter(folder: Path) -> str:
    """The first paragraph of a package's charter, in a line."""
    tree = ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))
    first = (ast.get_docstring(tree) or "").split("\n\n")[0]
    return " ".join(first.split()).replace("|", "\\|")


if __name__ == "__main__":
    FILE.write_text(page(), encoding="utf-8")
