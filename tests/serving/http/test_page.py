"""The page's files and the guide: nothing from elsewhere, nothing without the key where there are keys."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import httpx
import pytest

import serving
from serving.admission import Limits
from serving.gateway import create_app
from serving.generator import Generator
from tests.serving.local import JOB, LocalBackend, send
from training.bundle import WORD_CAP, DiffusionModel, words_of
from training.tracking import ModelVersion

FOLDER = Path(serving.__file__).parent / "page"


@pytest.fixture(scope="module")
def backend(version: ModelVersion, model: DiffusionModel) -> LocalBackend:
    return LocalBackend(Generator(version, model, None, Limits()))


def test_the_page_may_load_from_this_server_alone(backend: LocalBackend) -> None:
    answer = send(backend, "GET", "/")
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["form-action"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert "{{" not in answer.text
    for name in re.findall(r'(?:src|href)="/([^"]+)"', answer.text):
        asked = send(backend, "GET", f"/{name}")
        assert (asked.status_code, asked.headers["X-Content-Type-Options"]) == (200, "nosniff")


def test_nothing_is_written_into_the_page_as_html_or_style() -> None:
    """The policy forbids it; this finds it before a browser does."""
    script = "".join(path.read_text() for path in FOLDER.glob("*.js"))
    page = (FOLDER / "page.html").read_text()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", script)
    assert not re.search(r"localStorage|document\.cookie", script)
    assert not re.search(r"\son\w+=|\sstyle=|<style|https?://", page)
    assert not re.search(r"https?://(?!\?|\\)", re.sub(r"/\^https\?.*", "", script))


def test_its_scripts_are_there_as_scripts(backend: LocalBackend) -> None:
    names = {path.name for path in FOLDER.glob("*.js")}
    for name in names:
        answer = send(backend, "GET", f"/page/{name}")
        assert answer.headers["Content-Type"] == "text/javascript; charset=utf-8"
        assert answer.headers["Content-Security-Policy"]
        assert set(re.findall(r'from "\./([^"]+)"', answer.text)) <= names
    assert send(backend, "GET", "/page/page.html").status_code == 404


async def _below(backend: LocalBackend, root: str) -> str:
    transport = httpx.ASGITransport(create_app(backend, JOB), root_path=root)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return (await client.get(f"{root}/")).text


def test_below_another_path_it_asks_there(backend: LocalBackend) -> None:
    assert 'href="/studio/page/page.css"' in asyncio.run(_below(backend, "/studio"))


def test_it_can_be_left_out(backend: LocalBackend) -> None:
    hidden = JOB.model_copy(update={"page": False})
    assert send(backend, "GET", "/", hidden).status_code == 404
    assert send(backend, "GET", "/page/page.js", hidden).status_code == 404
    assert send(backend, "GET", "/v1/guide", hidden).status_code == 200


def test_the_guide_says_what_may_be_asked_for(backend: LocalBackend) -> None:
    told = send(backend, "GET", "/v1/guide").json()
    assert told["vocabulary"] == {"captions": ["a red apple"], "words": ["a", "apple", "red"]}
    assert (told["max_steps"], told["max_images"], told["records"], told["attribution"]) == (8, 10, False, False)
    assert told["model"]["id"] == "tiny"
    assert "ddim" in told["samplers"]


def test_words_of_captions() -> None:
    assert words_of(["A red-brown Fox", "", "fox_hole 2", "Füchse"]) == [
        "2",
        "a",
        "brown",
        "fox",
        "füchse",
        "hole",
        "red",
    ]
    assert words_of(str(number) for number in range(WORD_CAP + 1)) is None
