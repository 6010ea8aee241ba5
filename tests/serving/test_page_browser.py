"""The page in headless Chromium, in front of a real generator on loopback.

As a command it takes a picture of the page with a model of your own, to look at:
`python -m tests.serving.test_page_browser BUNDLE SHOT.png WIDTH light|dark PROMPT…`
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import uvicorn

from curation.clip import ClipConfig
from serving import keys
from serving.api import Attributed, GenerationRequest
from serving.call import Call
from serving.gateway import create_app
from serving.generator import Generation, Generator, load
from serving.job import ServeJob
from serving.keys import KeysConfig
from serving.service import Preview
from serving.standing import Vocabulary
from tests.browser import Browser, complaints
from tests.ports import free_port
from tests.serving.local import LocalBackend


@contextmanager
def served(job: ServeJob, backend: LocalBackend) -> Iterator[str]:
    """The API and the page, on a port of this machine."""
    server = uvicorn.Server(
        uvicorn.Config(create_app(backend, job), port=free_port(), log_level="error", lifespan="on")
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


READY = "document.getElementById('form')?.getAttribute('aria-busy') === 'false'"
"""The page knows what the server draws, and draws nothing."""


def visit(browser: Browser, url: str, width: int = 1280, scheme: str = "light", ready: str = READY) -> None:
    """Opens the page and waits until it knows what the server draws, or until something else is so."""
    browser.events = []
    browser.ask("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
    browser.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    browser.ask("Page.navigate", url="about:blank")
    browser.ask("Page.navigate", url=url)
    until(browser, ready)


def until(browser: Browser, condition: str) -> None:
    """Waits, in the page, until something is so."""
    wait = (
        "new Promise((done, fail) => { setTimeout(fail, 60000);"
        f" const look = () => ({condition}) ? done(true) : setTimeout(look, 20); look(); }})"
    )
    answer = browser.ask("Runtime.evaluate", expression=wait, awaitPromise=True)
    assert "exceptionDetails" not in answer, (condition, text_of(browser, "body"))


def draw(browser: Browser, prompt: str, **fields: Any) -> None:
    """Fills the form in as a person would, sends it, and waits until everything is drawn or refused."""
    for name, value in {"prompt": prompt, **fields}.items():
        browser.evaluate(
            f"{{ const field = document.getElementById({json.dumps(name)}); field.value = {json.dumps(value)};"
            " field.dispatchEvent(new Event('input', { bubbles: true })); }"
        )
    browser.evaluate("document.getElementById('draw').click()")
    until(browser, READY)


def press(browser: Browser, selector: str) -> None:
    """Clicks as a mouse does: what has the focus loses it before the button is let go."""
    place = f"document.querySelector({json.dumps(selector)})"
    x, y = browser.evaluate(
        f"{{ const e = {place}; e.scrollIntoView({{ block: 'center' }}); const b = e.getBoundingClientRect();"
        " [b.x + b.width / 2, b.y + b.height / 2] }"
    )
    for kind in ("mousePressed", "mouseReleased"):
        browser.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)


def key(browser: Browser, name: str, code: int, text: str = "") -> None:
    for kind in ("keyDown", "keyUp"):
        browser.ask(
            "Input.dispatchKeyEvent",
            type=kind,
            key=name,
            code=name,
            windowsVirtualKeyCode=code,
            **{"text": text} if text else {},
        )


def text_of(browser: Browser, selector: str) -> str:
    found: str = browser.evaluate(
        f"[...document.querySelectorAll({json.dumps(selector)})].map(e => e.innerText).join('|')"
    )
    return found


@pytest.fixture(scope="module")
def job(bundle: Path, tiny_clip: ClipConfig, tmp_path_factory: pytest.TempPathFactory) -> ServeJob:
    told = {"records": {"folder": str(tmp_path_factory.mktemp("records"))}, "takedowns": "ignore", "clip": tiny_clip}
    return ServeJob.model_validate({"model": str(bundle), "credentials": {"enabled": False}, **told})


@pytest.fixture(scope="module")
def generator(job: ServeJob) -> Generator:
    return load(job)


class Hostile(LocalBackend):
    """What strangers wrote about their pictures is more than text, as far as it can be."""

    async def vocabulary(self) -> Vocabulary:
        return Vocabulary(captions=(EVIL,), words=("apple", EVIL))

    async def stream(self, request: GenerationRequest, call: Call) -> AsyncGenerator[Preview | Generation, None]:
        near = {"sha256": "0" * 64, "similarity": 0.5, "creator": EVIL, "licence": EVIL}
        uris = (f"javascript:alert(1)//{EVIL}", "https://example.org/a.png", f"data:text/html,{EVIL}")
        who = tuple(Attributed(**near, uri=uri, thumbnail=uri) for uri in uris)
        async for event in super().stream(request, call):
            if isinstance(event, Generation):
                later = event.card.model_copy(update={"version": "7"})  # the alias moved since the page was opened
                pictures = tuple(replace(one, attribution=who) for one in event.pictures)
                event = replace(event, pictures=pictures, card=later)
            yield event


@pytest.mark.slow
def test_a_person_draws_pictures(browser: Browser, job: ServeJob, generator: Generator) -> None:
    with served(job, LocalBackend(generator)) as url:
        visit(browser, url)
        assert "version 0: 16 × 16 pixels, knows 3 words" in text_of(browser, "#model")
        assert text_of(browser, "#examples button") == "a red apple"

        draw(browser, "red apples")
        assert text_of(browser, "#known") == ""
        draw(browser, "a red appel", n="2", steps="4", seed="7")
        assert "appel" in text_of(browser, "#known")
        assert "apple?" in text_of(browser, "#known button")
        assert browser.evaluate("document.querySelectorAll('.round:first-child .frame img').length") == 2
        assert browser.evaluate("[...document.images].filter(i => !i.naturalWidth).length") == 0
        assert "seed 7" in text_of(browser, "figcaption a")
        assert "seed 8" in text_of(browser, "figcaption a")

        press(browser, "figcaption button")
        until(browser, "document.querySelector('figcaption p').innerText.includes('pixel')")

        draw(browser, "a beheading")
        assert "violence, graphic" in text_of(browser, ".round:first-child .why")

        link = browser.evaluate("[...document.querySelectorAll('figcaption a')].map(a => a.hash).find(h => h)")
        visit(browser, f"{url}{link}")
        again = "['prompt', 'seed', 'steps'].map(id => document.getElementById(id).value).join()"
        assert browser.evaluate(again) == "a red appel,7,4"


@pytest.mark.slow
def test_what_is_offered_can_be_taken(browser: Browser, job: ServeJob, generator: Generator) -> None:
    with served(job, LocalBackend(generator)) as url:
        visit(browser, url)
        for take in ("mouse", "keyboard"):
            browser.evaluate("document.getElementById('prompt').value = ''; document.getElementById('prompt').focus()")
            browser.ask("Input.insertText", text="a red app")
            assert text_of(browser, "#suggestions button") == "apple"
            if take == "mouse":
                press(browser, "#suggestions button")
            else:
                key(browser, "Tab", 9)
                key(browser, "Enter", 13, "\r")
            assert browser.evaluate("document.getElementById('prompt').value") == "a red apple "
            assert browser.evaluate("document.activeElement.id") == "prompt"
        browser.ask("Input.insertText", text="bluue")
        until(browser, "document.getElementById('known').innerText.includes('bluue')")
        browser.evaluate(SEEN)
        key(browser, "Enter", 13, "\r")
        until(browser, f"document.querySelectorAll('figcaption').length == 2 && {READY}")
        assert browser.evaluate("window.seen.size") > 1  # pictures while they were drawn

        draw(browser, "a boat")
        press(browser, "#add")
        browser.evaluate("document.querySelector('#variants input').value = 'a red boat'")
        draw(browser, "a boat", n="1")
        assert text_of(browser, ".round:first-child h3") == "a boat|a red boat"
        assert text_of(browser, ".round:first-child figcaption > a").split("|")[0] in text_of(browser, ".about")

        browser.evaluate(
            "{ const [, data] = document.querySelector('figcaption a[download]').href.split(',');"
            " const dropped = new DataTransfer(), bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0));"
            " dropped.items.add(new File([bytes], 'mine.png', { type: 'image/png' }));"
            " dispatchEvent(new DragEvent('drop', { dataTransfer: dropped, cancelable: true })); }"
        )
        until(browser, "document.querySelector('.verdict dl')")
        assert "mine.png, 16 × 16" in text_of(browser, "#verdict")


@pytest.mark.slow
def test_what_strangers_wrote_stays_text(browser: Browser, job: ServeJob, generator: Generator) -> None:
    with served(job, Hostile(generator)) as url:
        visit(browser, url)
        assert text_of(browser, "#examples button") == EVIL
        draw(browser, EVIL, n="1")
        assert text_of(browser, ".round h3") == EVIL
        assert "version 7" in text_of(browser, ".about")
        press(browser, "figcaption summary")
        assert text_of(browser, ".near b") == "|".join([EVIL] * 3)
        assert browser.evaluate("[...document.querySelectorAll('.near a')].map(a => a.href)") == [
            "https://example.org/a.png"
        ]
        assert browser.evaluate("document.querySelectorAll('.near img, h3 *, .near script, .near b *').length") == 0
        assert browser.evaluate("window.evil === undefined")
        visit(browser, f"{url}#{urlencode({'prompt': EVIL, 'sampler': EVIL, 'seed': EVIL})}")
        assert browser.evaluate("document.getElementById('prompt').value") == EVIL
        assert browser.evaluate("document.getElementById('sampler').value") == "ddim"
        asked = {e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"}
        assert {address for address in asked if not address.startswith((url, "data:", "about:"))} == set()
        assert complaints(browser) == []


@pytest.mark.slow
def test_with_keys_it_asks_with_the_one_that_is_typed_in(
    browser: Browser, job: ServeJob, generator: Generator, tmp_path: Path
) -> None:
    file = str(tmp_path / "keys.json")
    _, secret = keys.create(file, "somebody", ["generate"])
    with served(job.model_copy(update={"keys": KeysConfig(file=file)}), LocalBackend(generator)) as url:
        visit(browser, url, ready="document.activeElement?.id === 'key-field'")
        assert text_of(browser, "#notice") == "This server wants an API key."
        assert browser.evaluate("document.getElementById('draw').disabled")
        browser.ask("Input.insertText", text="cp_00000000_" + "A" * 43)
        press(browser, "#key button")
        until(browser, "document.getElementById('notice').innerText.includes('not in force')")
        browser.ask("Input.insertText", text=secret)
        key(browser, "Enter", 13, "\r")
        until(browser, READY)
        draw(browser, "a red apple", n="1")
        assert browser.evaluate("document.querySelectorAll('.frame img').length") == 1
        asked = [e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"]
        assert not [address for address in asked if secret in address]
        assert browser.evaluate("localStorage.length + document.cookie.length") == 0
        assert secret not in browser.evaluate(
            "document.documentElement.outerHTML + document.getElementById('key-field').value"
        )
        browser.evaluate("sessionStorage.clear()")


@pytest.mark.slow
def test_it_fits_and_can_be_used_by_everybody(browser: Browser, job: ServeJob, generator: Generator) -> None:
    nameless = (
        "[...document.querySelectorAll('input:not([type=hidden]), select, textarea, button')].filter(e =>"
        " !(e.labels && e.labels.length) && !e.ariaLabel && !e.textContent.trim()).map(e => e.outerHTML)"
    )
    with served(job, LocalBackend(generator)) as url:
        for scheme in ("light", "dark"):
            for width in (360, 1280):
                visit(browser, url, width, scheme)
                draw(browser, "a red apple", n="2", steps="2")
                assert browser.evaluate("document.documentElement.scrollWidth") <= width
                assert browser.evaluate(nameless) == []
                assert browser.evaluate(f"({CONTRAST})()") == []
        assert browser.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")


EVIL = "<img src=x onerror='window.evil=1'></script><script>window.evil=1</script>"
SEEN = """window.seen = new Set(); new MutationObserver(() => {
  for (const image of document.querySelectorAll('img[alt$=", unfinished"]')) window.seen.add(image.src);
}).observe(document.getElementById('gallery'), { subtree: true, childList: true })"""

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
        with served(own, LocalBackend(load(own))) as address:
            visit(tab, address, int(across), colours)
            for wording in prompts:
                first, *others = wording.split("|")
                for other in others:
                    tab.evaluate(
                        f"document.getElementById('add').click(); document.activeElement.value = {json.dumps(other)}"
                    )
                draw(tab, first, n="2", seed="3")
            tab.evaluate("document.querySelector('figcaption summary')?.click()")
            tab.evaluate("document.querySelector('figcaption button')?.click()")
            until(
                tab,
                "document.querySelector('figcaption p').innerText.match(/pixel|differ/)",
            )
            Path(target).write_bytes(tab.picture())
        tab.close()
