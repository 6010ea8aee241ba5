"""The page in headless Chromium, in front of a real generator on loopback.

As a command it takes a picture of the page with a model of your own, to look at:
`python -m tests.serving.test_page_browser BUNDLE SHOT.png WIDTH light|dark PROMPT…`
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from curation.clip import ClipConfig
from serving.gateway import create_app
from serving.generator import Generator, load
from serving.job import ServeJob
from tests.curation.test_report_browser import CHROMIUM, Browser, complaints
from tests.ports import free_port
from tests.serving.local import LocalBackend


@contextmanager
def served(job: ServeJob, generator: Generator) -> Iterator[str]:
    """The API and the page, on a port of this machine."""
    server = uvicorn.Server(
        uvicorn.Config(create_app(LocalBackend(generator), job), port=free_port(), log_level="error", lifespan="on")
    )
    started = threading.Event()
    startup = server.startup

    async def told(*args: Any, **named: Any) -> None:
        await startup(*args, **named)
        started.set()

    server.startup = told  # type: ignore[method-assign]
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert started.wait(60)
    try:
        yield f"http://127.0.0.1:{server.config.port}/"
    finally:
        server.should_exit = True
        thread.join(60)


def visit(browser: Browser, url: str, width: int = 1280, scheme: str = "light") -> None:
    """Opens the page and waits until it knows what the server draws."""
    browser.events = []
    browser.ask("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
    browser.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    browser.ask("Page.navigate", url="about:blank")
    browser.ask("Page.navigate", url=url)
    until(browser, "document.readyState == 'complete' && typeof guide == 'object' && guide !== null")


def until(browser: Browser, condition: str) -> None:
    """Waits, in the page, until something is so."""
    wait = f"new Promise(done => {{ const look = () => ({condition}) ? done(true) : setTimeout(look, 20); look(); }})"
    browser.ask("Runtime.evaluate", expression=wait, awaitPromise=True)


def draw(browser: Browser, prompt: str, **fields: Any) -> None:
    """Fills the form in as a person would, sends it, and waits until everything is drawn or refused."""
    for name, value in {"prompt": prompt, **fields}.items():
        browser.evaluate(
            f"{{ const field = document.getElementById({json.dumps(name)}); field.value = {json.dumps(value)};"
            " field.dispatchEvent(new Event('input', { bubbles: true })); }"
        )
    browser.evaluate("document.getElementById('draw').click()")
    until(browser, "!stopping")


def text_of(browser: Browser, selector: str) -> str:
    found: str = browser.evaluate(
        f"[...document.querySelectorAll({json.dumps(selector)})].map(e => e.innerText).join('|')"
    )
    return found


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("there is no chromium here: apt-get install chromium")
    found = Browser(tmp_path_factory.mktemp("profile"))
    yield found
    found.close()


@pytest.fixture(scope="module")
def job(bundle: Path, tiny_clip: ClipConfig, tmp_path_factory: pytest.TempPathFactory) -> ServeJob:
    told = {"records": {"folder": str(tmp_path_factory.mktemp("records"))}, "takedowns": "ignore", "clip": tiny_clip}
    return ServeJob.model_validate({"model": str(bundle), "credentials": {"enabled": False}, **told})


@pytest.fixture(scope="module")
def generator(job: ServeJob) -> Generator:
    return load(job)


@pytest.mark.slow
def test_a_person_draws_pictures(browser: Browser, job: ServeJob, generator: Generator) -> None:
    with served(job, generator) as url:
        visit(browser, url)
        assert "version 0: 16 × 16 pixels, from 3 words" in text_of(browser, "#model")
        assert text_of(browser, "#examples button") == "a red apple"

        draw(browser, "a red appel", n="2", steps="4", seed="7")
        assert "appel" in text_of(browser, "#known")
        assert "apple?" in text_of(browser, "#known button")
        assert browser.evaluate("document.querySelectorAll('figure .frame img').length") == 2
        assert browser.evaluate("[...document.images].filter(i => !i.naturalWidth).length") == 0
        assert "seed 7" in text_of(browser, "figcaption a")
        assert "seed 8" in text_of(browser, "figcaption a")

        browser.evaluate("[...document.querySelectorAll('figcaption button')][0].click()")
        until(browser, "document.querySelector('figcaption p').innerText.includes('pixel')")

        draw(browser, "a beheading")
        assert "violence, graphic" in text_of(browser, ".round:first-child .why")

        browser.evaluate(
            "document.getElementById('add').click(); document.querySelector('#variants input').value = 'a boat'"
        )
        draw(browser, "<img src=x onerror=alert(1)>", n="1")
        assert text_of(browser, ".round:first-child h3") == "<img src=x onerror=alert(1)>|a boat"
        asked = {e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"}
        assert {address for address in asked if not address.startswith((url, "data:", "about:"))} == set()
        refused = [event for event in complaints(browser) if "400" not in json.dumps(event)]
        assert refused == []

        visit(browser, f"{url}#prompt=a+blue+boat&seed=12&steps=3")
        assert browser.evaluate(
            "[prompt_.value, seed.value, steps.value].join()".replace("prompt_", "$('prompt')")
        ) == ("a blue boat,12,3")


@pytest.mark.slow
def test_it_fits_and_can_be_used_by_everybody(browser: Browser, job: ServeJob, generator: Generator) -> None:
    nameless = (
        "[...document.querySelectorAll('input:not([type=hidden]), select, textarea, button')].filter(e =>"
        " !(e.labels && e.labels.length) && !e.ariaLabel && !e.textContent.trim()).map(e => e.outerHTML)"
    )
    with served(job, generator) as url:
        for scheme in ("light", "dark"):
            for width in (360, 1280):
                visit(browser, url, width, scheme)
                draw(browser, "a red apple", n="2", steps="2")
                assert browser.evaluate("document.documentElement.scrollWidth") <= width
                assert browser.evaluate(nameless) == []
                assert browser.evaluate(f"({CONTRAST})()") == []
        assert browser.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")


CONTRAST = """() => {
  const light = (colour) => { const [r, g, b] = colour.match(/[\\d.]+/g).map(Number).map(c => c / 255)
    .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const behind = (e) => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
    if (c !== 'rgba(0, 0, 0, 0)' && c !== 'transparent') return c; } return 'rgb(255, 255, 255)'; };
  const poor = [];
  for (const e of document.querySelectorAll('body *')) {
    const said = [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim());
    if (!said || !e.getClientRects().length || e.disabled) continue;
    const [a, b] = [light(getComputedStyle(e).color), light(behind(e))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) poor.push([e.tagName, e.className, e.innerText.slice(0, 40)].join());
  }
  return poor;
}"""
"""Texts whose contrast with what is behind them is below WCAG's AA."""


if __name__ == "__main__":
    source, target, across, colours, *prompts = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        told = {"model": source, "takedowns": "ignore", "records": {"folder": f"{folder}/records"}}
        own = ServeJob.model_validate(told)
        tab = Browser(Path(folder) / "profile")
        with served(own, load(own)) as address:
            visit(tab, address, int(across), colours)
            for wording in prompts:
                draw(tab, wording, n="4", seed="3")
            Path(target).write_bytes(tab.picture())
        tab.close()
