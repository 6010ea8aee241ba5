"""The report page in headless Chromium: it fits, loads nothing, complains of nothing, light or dark, wide or narrow.

As a command it takes a picture to look at: `python -m tests.curation.test_report_browser PAGE.html SHOT.png 1280 dark`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from curation.manifest import Manifest
from curation.report.page import render
from tests.browser import Browser, complaints
from tests.curation.test_report import heap, with_work
from tests.curation.test_report_page import hostile


def page_of(manifest: Manifest, folder: Path) -> Path:
    page = folder / "report.html"
    page.write_text(render(manifest).html)
    return page


def requests(browser: Browser) -> list[str]:
    """What was asked for beside the page itself."""
    asked = [e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"]
    return [url for url in asked if not url.startswith(("data:", "file:"))]


@pytest.mark.slow
@pytest.mark.parametrize("made", [lambda folder: with_work(folder, heap()), hostile], ids=["plain", "hostile"])
def test_the_page_in_a_browser(made: Callable[[Path], Manifest], browser: Browser, tmp_path: Path) -> None:
    page = page_of(made(tmp_path / "m"), tmp_path)
    colours = set()
    for width in (360, 768, 1280):
        for scheme in ("light", "dark"):
            browser.open(page, width, scheme)
            assert browser.evaluate("document.querySelectorAll('section').length") == 10
            assert browser.evaluate("document.documentElement.scrollWidth") <= width
            assert browser.evaluate("[...document.images].filter(i => !i.naturalWidth).length") == 0
            assert browser.evaluate("document.scripts.length") == 0
            colours.add((scheme, browser.evaluate("getComputedStyle(document.body).backgroundColor")))
            assert (complaints(browser), requests(browser)) == ([], [])
    # The style is let through by its hash, and knows two colour schemes.
    assert colours == {("light", "rgb(251, 250, 247)"), ("dark", "rgb(22, 22, 20)")}


@pytest.mark.slow
def test_the_checks_of_the_page_can_fail(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text(
        "<meta http-equiv=Content-Security-Policy content=\"default-src 'none'\"><script>alert(1)</script>"
        "<img src='http://127.0.0.1:9/a.png'><pre>" + "wide " * 500
    )
    browser.open(page, 360)
    assert complaints(browser)
    assert browser.evaluate("document.documentElement.scrollWidth") > 360
    page.write_text("<img src='http://127.0.0.1:9/a.png'>")
    browser.open(page, 360)
    assert requests(browser) == ["http://127.0.0.1:9/a.png"]


@pytest.mark.slow
def test_what_is_folded_is_printed(browser: Browser, tmp_path: Path) -> None:
    browser.open(page_of(with_work(tmp_path / "m", heap()), tmp_path), 800, media="print")
    assert browser.evaluate("document.querySelector('details pre').getBoundingClientRect().height") > 100
    assert browser.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"


if __name__ == "__main__":
    import tempfile

    source, target, across = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    with tempfile.TemporaryDirectory() as folder:
        browser = Browser(Path(folder))
        browser.open(source, across, *(sys.argv[4:5] or ["light"]))
        part = [int(a) for a in sys.argv[5:7]]
        target.write_bytes(browser.picture(*part))
        browser.close()
