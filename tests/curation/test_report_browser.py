"""The report page in headless Chromium: it fits, loads nothing, complains of nothing, light or dark, wide or narrow.

As a command it takes a picture to look at: `python -m tests.curation.test_report_browser PAGE.html SHOT.png 1280 dark`.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from curation.manifest import Manifest
from curation.report.page import render
from tests.curation.test_report import heap, with_work
from tests.curation.test_report_page import hostile

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# Everything it would do by itself on a network is off: only what the page asks for is to be seen.
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--mute-audio"),
    *("--disable-background-networking", "--disable-component-update", "--disable-extensions", "--disable-sync"),
    *("--remote-debugging-pipe",),
)


class Browser:
    """One tab of a headless Chromium, spoken to over the pipe of the DevTools protocol."""

    def __init__(self, profile: Path) -> None:
        assert CHROMIUM is not None
        to_child, self._out = os.pipe()
        self._in, from_child = os.pipe()

        def place() -> None:  # the protocol's pipe is descriptors 3 and 4
            os.dup2(to_child, 100)
            os.dup2(from_child, 101)
            os.dup2(100, 3)
            os.dup2(101, 4)

        self._process = subprocess.Popen(
            [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            preexec_fn=place,
            close_fds=False,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_child)
        os.close(from_child)
        self._buffer, self._number = b"", 0
        self.events: list[dict[str, Any]] = []
        self._session: str | None = None
        target = next(t for t in self.ask("Target.getTargets")["targetInfos"] if t["type"] == "page")
        self._session = self.ask("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                found: dict[str, Any] = answer["result"]
                return found
            self.events.append(answer)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            data = os.read(self._in, 1 << 20)
            if not data:
                raise RuntimeError("chromium has gone away")
            self._buffer += data
        message, self._buffer = self._buffer.split(b"\0", 1)
        found: dict[str, Any] = json.loads(message)
        return found

    def open(self, page: Path, width: int, scheme: str = "light", media: str = "screen") -> None:
        """Loads the page at a width, waiting for its load event; `events` holds what happened since."""
        self.events = []
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.ask("Emulation.setEmulatedMedia", media=media, features=features)
        self.ask("Page.navigate", url=page.resolve().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._receive())

    def evaluate(self, expression: str) -> Any:
        answer = self.ask("Runtime.evaluate", expression=expression, returnByValue=True)
        return answer["result"].get("value")

    def picture(self, top: int = 0, height: int | None = None) -> bytes:
        size = self.ask("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": top, "width": size["width"], "height": height or size["height"] - top, "scale": 1}
        shot = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        return base64.b64decode(shot["data"])

    def close(self) -> None:
        os.close(self._out)
        os.close(self._in)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("there is no chromium here: apt-get install chromium")
    found = Browser(tmp_path_factory.mktemp("profile"))
    yield found
    found.close()


def page_of(manifest: Manifest, folder: Path) -> Path:
    page = folder / "report.html"
    page.write_text(render(manifest).html)
    return page


def complaints(browser: Browser) -> list[Any]:
    """What the console, the log and the page said since it was opened."""
    loud = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded", "Page.javascriptDialogOpening")
    return [event["params"] for event in browser.events if event["method"] in loud]


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
