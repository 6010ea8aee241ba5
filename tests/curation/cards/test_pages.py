"""Documents as HTML and Markdown: what strangers wrote stays text, nothing is loaded, and the same gives the same."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from curation.cards import ab2013, datasheet, eu, html, markdown, model_card
from curation.cards.disclosed import Disclosed
from curation.manifest import Manifest
from tests.curation.cards.samples import disclosed, manifest, model, shuffled, web
from tests.curation.test_report import AT, row

EVIL = "<script>alert('x')</script>|`**[a](javascript:b)**\u202e\x00\"'>\n# heading"


class Tags(HTMLParser):
    """The tags of a page and the text between them."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Disclosed:
    """Every text that comes from rows, the job or the bundle is a stranger's attempt at more than text."""
    evil = dict.fromkeys(
        ("domain", "dataset", "creator", "licence", "format", "caption_source", "rights_verdict"), EVIL
    )
    rights = [{"signal": EVIL, "value": EVIL, "where": EVIL, "observed_at": AT, "verdict": EVIL}]
    rows = [
        *(web(i, **evil, rights=rights) for i in range(3)),
        row("b", "dropped", "rights", EVIL, rule=EVIL, rights=rights),
        row("c", "held", EVIL, EVIL, rule=EVIL),
    ]
    job = {
        "fetch": {"user_agent": EVIL, "contact": EVIL},
        "rights": {"signals": [EVIL], "advisory": [EVIL]},
        "licences": {"allow": [EVIL]},
        "safety": {"concepts": {EVIL: 0.1}},
        "filters": {EVIL: {"min": 1}},
    }
    found = manifest(tmp_path_factory.mktemp("hostile"), rows, job=job, name=EVIL, code_version=EVIL)
    return disclosed(found, model=model(found, name=EVIL, licences={EVIL: 1}, metrics={EVIL: 1.0}))


def test_html_has_no_tag_of_a_stranger(hostile: Disclosed) -> None:
    page = html.render(eu.summary(hostile))
    tags = Tags()
    tags.feed(page)
    assert not {"script", "img", "a", "iframe", "object", "form"} & set(tags.tags)
    assert not [name for name in tags.attributes if name.startswith("on") or name in ("src", "style")]
    assert "alert('x')" in tags.text
    assert "\u202e" not in page
    assert "\x00" not in page


def test_the_page_loads_nothing(hostile: Disclosed) -> None:
    page = html.render(eu.summary(hostile))
    assert "default-src 'none'" in page
    assert re.findall(r'\b(?:href|src)="([^"]*)"', page) == ["data:,"]
    assert "url(" not in page
    assert "@import" not in page


def test_markdown_has_no_markup_of_a_stranger(hostile: Disclosed) -> None:
    assert hostile.model is not None
    for document in (ab2013.statement(hostile), datasheet.sheet(hostile), model_card.card(hostile, hostile.model)):
        text = markdown.render(document)
        assert "alert(" in text
        assert "<" not in text
        assert "\u202e" not in text
        assert "\x00" not in text
        assert not re.search(r"(?<!\\)`|(?<!\\)\[|(?<!\\)_", text)
        widths = [len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines() if line.startswith("|")]
        assert widths
        headings = [line for line in text.splitlines() if line.startswith("#")]
        assert not [line for line in headings if line == "# heading"]


def test_tables_of_markdown_have_as_many_cells_as_columns(hostile: Disclosed) -> None:
    columns = 0
    for line in markdown.render(datasheet.sheet(hostile)).splitlines():
        found = len(re.findall(r"(?<!\\)\|", line)) if line.startswith("|") else 0
        assert columns in (0, found) or found == 0, line
        columns = found


@pytest.mark.parametrize(
    ("text", "escaped"),
    [("a|b", r"a\|b"), ("# no", r"\# no"), ("- no", r"\- no"), ("1. no", r"1\. no"), ("<b>", "&lt;b&gt;"),
     ("a\nb", "a b"),
     ("2026-01-01", "2026-01-01"), ("1,234", "1,234"), ("*x*_y_", r"\*x\*\_y\_")],
)  # fmt: skip
def test_plain_text_is_escaped(text: str, escaped: str) -> None:
    assert markdown.line(text) == escaped


def test_numbers_in_cells_stay_numbers() -> None:
    assert markdown.escape("2.5 GB") == "2.5 GB"
    assert markdown.escape("-1") == "-1"


def test_numbers_before_titles(hostile: Disclosed) -> None:
    assert "\n## (1) Sources or owners" in markdown.render(ab2013.statement(hostile))
    assert "\n## 1. Motivation" in markdown.render(datasheet.sheet(hostile))


def test_the_same_manifest_gives_the_same_documents(tmp_path: Path) -> None:
    found = manifest(tmp_path)
    once, again = disclosed(found), disclosed(Manifest.open(found.uri))
    assert html.render(eu.summary(once)) == html.render(eu.summary(again))
    assert markdown.render(datasheet.sheet(once)) == markdown.render(datasheet.sheet(again))


def test_figures_do_not_depend_on_the_order_of_rows_or_their_parts(tmp_path: Path) -> None:
    rows = [web(i) for i in range(50)]
    one = eu.summary(disclosed(manifest(tmp_path / "a", rows)))
    other = eu.summary(disclosed(manifest(tmp_path / "b", shuffled(rows, 1)[:7], shuffled(rows, 1)[7:])))
    assert json.dumps(one.as_json()["sections"][1:]) == json.dumps(other.as_json()["sections"][1:])
