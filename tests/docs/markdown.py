"""The fenced blocks of our Markdown, and what the comment before each says is to be done with it.

In `docs/` every block of commands, job files or code stands below a comment that is not shown, one of

    <!-- run -->                        its commands are run, in order, in the folder of all guides
    <!-- run ENTRY=entry.id -->         and the last one's result names what later commands call ENTRY
    <!-- run by tests/… -->             that test runs them; here they are read as the command line reads them
    <!-- read -->                       they want a cluster or a GPU: they are only read so
    <!-- file NAME -->                  what a reader writes to that file; job files are checked by their models
    <!-- part of KIND -->               some fields of a job of that kind
    <!-- change FILE -->                a change of one of our files, its first and last lines as they are there
    <!-- check -->                      Python that is run where files and changes were made
    <!-- shown -->                      what something prints, or another program's file: nothing is done with it
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
GUIDES = ("curating.md", "serving.md", "rights.md", "multi-node.md", "plug-ins.md")
"""In the order in which a reader goes through them: each begins where the one before it ended."""

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_MARK = re.compile(r"<!-- (.+?) -->\n+\Z")
_PROMPT = "$ "


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: the file, relative to the checkout.
        line: of the fence.
        language: behind the fence.
        mark: what the comment before it says; "" where there is none.
        text: what stands in it.
    """

    page: str
    line: int
    language: str
    mark: str
    text: str

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def commands(self) -> list[str]:
        """Its commands: continued lines joined, no comments; in a block with prompts only what stands behind one."""
        lines = re.sub(r"\\\n\s*", " ", self.text).splitlines()
        if any(line.startswith(_PROMPT) for line in lines):
            lines = [line.removeprefix(_PROMPT) for line in lines if line.startswith(_PROMPT)]
        return [found for line in lines if (found := re.sub(r"(^|\s+)#( .*|)$", "", line).strip())]

    @property
    def file(self) -> str | None:
        """The file that it is to be written to."""
        return self.mark.removeprefix("file ") if self.mark.startswith("file ") else None

    @property
    def changes(self) -> str | None:
        """The file of ours that it is a change of."""
        return self.mark.removeprefix("change ") if self.mark.startswith("change ") else None

    @property
    def part_of(self) -> str | None:
        """The kind of job that its fields are of."""
        return self.mark.removeprefix("part of ") if self.mark.startswith("part of ") else None

    @property
    def runs(self) -> bool:
        return re.fullmatch(r"run( [A-Z0-9_]+=[\w.]+)?", self.mark) is not None


def blocks(page: str) -> list[Block]:
    """The blocks of a page of the checkout, in order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = []
    for fence in _FENCE.finditer(text):
        mark = _MARK.search(text, 0, fence.start())
        line = text.count("\n", 0, fence.start()) + 1
        found.append(Block(page, line, fence[1], mark[1] if mark else "", fence[2]))
    return found


def links(page: str) -> list[str]:
    """Where a page links to inside the checkout, relative to its folder."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.findall(r"\]\(([^)\s#]+)[^)]*\)", _FENCE.sub("", text))
    return [link for link in found if "://" not in link and not link.startswith("mailto:")]
