"""A document as one self-contained HTML page, for the screen and for paper.

The page names no other resource and runs no script. Every text is escaped; what strangers wrote was cut and stripped of
control characters where it came into the document.
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import jinja2

from curation.cards.document import ORIGINS, Answer, Document, cell

HERE = Path(__file__).parent


def render(document: Document) -> str:
    """The same document gives the same page."""
    css = (HERE / "page.css").read_text()
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["cell"] = cell
    environment.tests["answer"] = lambda item: isinstance(item, Answer)
    environment.tests["number"] = lambda value: isinstance(value, int)
    return environment.get_template("page.html.j2").render(
        document=document,
        origins=ORIGINS,
        css=css,
        css_hash=base64.b64encode(hashlib.sha256(css.encode()).digest()).decode(),
    )
