"""IIIF: every canvas of every manifest has its row, and what the institution states about it is kept."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from curation.containers import MemberError, is_member, read_members
from curation.errors import UserError
from curation.fetch import FetchConfig
from curation.sources import IIIFSource, UrlListSource

LOCAL = FetchConfig(allow_private=True, retries=0)


@pytest.fixture
def site() -> Iterator[tuple[str, dict[str, bytes]]]:
    """A web site on loopback: its address, and its pages by path."""
    pages: dict[str, bytes] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            data = pages.get(self.path)
            self.send_response(404 if data is None else 200)
            self.send_header("Content-Length", str(len(data or b"")))
            self.end_headers()
            self.wfile.write(data or b"")

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", pages
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _service(kind: str) -> dict[str, Any]:
    of = {
        "3": {"id": "https://img.example/3/a", "type": "ImageService3", "profile": "level2"},
        "2": {"@id": "https://img.example/2/a", "profile": "http://iiif.io/api/image/2/level2.json"},
        "1": {
            "@id": "https://img.example/1/a",
            "profile": "http://library.stanford.edu/iiif/image-api/1.1/conformance.html#level1",
        },
        "0": {"id": "https://img.example/0/a", "type": "ImageService3", "profile": "level0"},
        "other": {"id": "https://auth.example/login", "type": "AuthCookieService1"},
    }
    return of[kind]


def _v3(url: str, *bodies: dict[str, Any], **stated: Any) -> dict[str, Any]:
    canvases = [
        {
            "id": f"{url}/canvas/{i}",
            "type": "Canvas",
            "label": {"none": [f"{i}r"]},
            "items": [{"type": "AnnotationPage", "items": [{"motivation": "painting", "body": body}]}] if body else [],
        }
        for i, body in enumerate(bodies)
    ]
    return {"id": url, "type": "Manifest", "label": {"de": ["Karte"], "en": ["A map"]}, "items": canvases, **stated}


def _body(*services: str, url: str = "https://img.example/full.jpg") -> dict[str, Any]:
    return {"id": url, "type": "Image", "service": [_service(s) for s in services]}


def _rows(tmp_path: Path, document: Any, **options: Any) -> list[dict[str, Any]]:
    (tmp_path / "doc.json").write_text(json.dumps(document))
    found: list[dict[str, Any]] = IIIFSource(path=str(tmp_path / "doc.json"), **options).inputs().to_pylist()
    return found


def _reasons(rows: list[dict[str, Any]]) -> list[str | None]:
    def reason(location: str) -> str | None:
        if not is_member(location):
            return None
        (found,) = read_members([location], 1)
        return str(found.reason) if isinstance(found, MemberError) else None

    return [reason(row["location"]) for row in rows]


def test_a_version_3_manifest_says_all_it_knows(tmp_path: Path) -> None:
    stated = {
        "rights": "http://creativecommons.org/licenses/by/4.0/",
        "requiredStatement": {
            "label": {"en": ["Attribution"]},
            "value": {"en": ["<span>Library of <b>X</b> &amp; Y</span>"]},
        },
        "metadata": [
            {"label": {"en": ["Artist"]}, "value": {"none": ["Ann", "Bob"]}},
            {"label": {"en": ["Title"]}, "value": {"none": ["not the label"]}},
            {"label": {"en": ["Date"]}, "value": {"none": ["< 1700"]}},
        ],
    }
    (row,) = _rows(tmp_path, _v3("https://x.example/m", _body("other", "3"), **stated))
    assert row["uri"] == row["location"] == "https://img.example/3/a/full/max/0/default.jpg"
    assert (row["title"], row["creator"], row["licence"]) == ("A map", "Ann; Bob", None)
    assert row["licence_url"] == "http://creativecommons.org/licenses/by/4.0/"
    metadata = dict(row["metadata"])
    assert metadata.pop("attribution") == "Library of X & Y"
    assert metadata == {
        "artist": "Ann; Bob",
        "date": "< 1700",
        "manifest": "https://x.example/m",
        "canvas": "https://x.example/m/canvas/0",
    }


@pytest.mark.parametrize(
    ("service", "size", "url"),
    [
        ("3", "!512,512", "https://img.example/3/a/full/!512,512/0/default.jpg"),
        ("2", "max", "https://img.example/2/a/full/full/0/default.jpg"),
        ("2", "!512,512", "https://img.example/2/a/full/!512,512/0/default.jpg"),
        ("1", "max", "https://img.example/1/a/full/full/0/native.jpg"),
        ("0", "!512,512", "https://img.example/full.jpg"),
        ("other", "max", "https://img.example/full.jpg"),
    ],
)
def test_pictures_are_asked_for_in_each_service_s_own_way(tmp_path: Path, service: str, size: str, url: str) -> None:
    (row,) = _rows(tmp_path, _v3("https://x.example/m", _body(service)), size=size)
    assert row["location"] == url


def test_a_version_2_manifest(tmp_path: Path) -> None:
    image = {"@id": "https://img.example/raw.jpg", "@type": "dctypes:Image", "service": _service("2")}
    choice = {"@type": "oa:Choice", "default": {"@id": "https://img.example/day.jpg", "@type": "dctypes:Image"}}
    document = {
        "@context": "http://iiif.io/api/presentation/2/context.json",
        "@id": "https://x.example/m",
        "@type": "sc:Manifest",
        "label": [{"@value": "Livre", "@language": "fr"}, {"@value": "Book", "@language": "en"}],
        "license": "All rights reserved",
        "attribution": "X",
        "metadata": [{"label": "Author:", "value": [{"@value": "Ann", "@language": "en"}]}],
        "sequences": [
            {
                "canvases": [
                    {"@id": "c1", "label": "1r", "images": [{"resource": image}]},
                    {"@id": "c2", "label": "1v", "images": [{"resource": choice}]},
                    {"@id": "c3", "label": "blank", "images": []},
                ]
            }
        ],
    }
    rows = _rows(tmp_path, document)
    assert [row["uri"] for row in rows] == [
        "https://img.example/2/a/full/full/0/default.jpg",
        "https://img.example/day.jpg",
        "c3",
    ]
    assert [row["title"] for row in rows] == ["Book, 1r", "Book, 1v", "Book, blank"]
    assert {(row["creator"], row["licence"], row["licence_url"]) for row in rows} == {
        ("Ann", "All rights reserved", None)
    }
    assert _reasons(rows) == [None, None, "no_image"]


def test_pictures_that_lead_to_files_of_this_machine_are_refused(tmp_path: Path) -> None:
    bodies = [_body(url=url) for url in ("file:///etc/passwd", "/etc/passwd", "s3://private/x.jpg", "")]
    rows = _rows(tmp_path, _v3("https://x.example/m", *bodies, None))
    assert _reasons(rows) == ["bad_url", "bad_url", "bad_url", "bad_url", "no_image"]


def test_a_collection_is_walked_in_order_and_what_fails_is_a_row(
    tmp_path: Path, site: tuple[str, dict[str, bytes]]
) -> None:
    address, pages = site
    ring = {"id": f"{address}/ring", "type": "Collection"}
    pages["/m1"] = json.dumps(_v3(f"{address}/m1", _body("3"))).encode()
    pages["/broken"] = b"{"
    pages["/ring"] = json.dumps({**ring, "items": [ring, {"id": f"{address}/m2", "type": "Manifest"}]}).encode()
    pages["/m2"] = json.dumps({"@id": f"{address}/m2", "@type": "sc:Manifest", "sequences": []}).encode()
    document = {
        "id": "https://x.example/c",
        "type": "Collection",
        "items": [
            {"id": f"{address}/ring", "type": "Collection"},
            {"id": f"{address}/gone", "type": "Manifest"},
            {"id": f"{address}/broken", "type": "Manifest"},
            {"id": "/etc/passwd", "type": "Manifest"},
            _v3("https://x.example/embedded", _body("2")),
            {"id": f"{address}/m1", "type": "Manifest"},
            {"id": f"{address}/m1", "type": "Manifest"},
        ],
    }
    rows = _rows(tmp_path, document, fetch=LOCAL)
    assert [row["uri"].removeprefix(address) for row in rows] == [
        "/m2",
        "/gone",
        "/broken",
        "/etc/passwd",
        "https://img.example/2/a/full/full/0/default.jpg",
        "https://img.example/3/a/full/max/0/default.jpg",
    ]
    assert _reasons(rows) == ["no_image", "http_404", "corrupt", "bad_url", None, None]


def test_listings_come_from_the_web_by_the_rules_of_fetching(site: tuple[str, dict[str, bytes]]) -> None:
    address, pages = site
    pages["/urls.txt"] = b"https://a.example/1\n"
    pages["/m"] = json.dumps(_v3(f"{address}/m", _body("3"))).encode()
    pages["/page"] = b"<!DOCTYPE html><html></html>"
    inputs = UrlListSource(path=f"{address}/urls.txt", fetch=LOCAL).inputs()
    assert inputs["uri"].to_pylist() == ["https://a.example/1"]
    assert IIIFSource(path=f"{address}/m", fetch=LOCAL).inputs().num_rows == 1
    strict = FetchConfig(contact="mailto:me@a.example", retries=0)
    for path, fetch, complaint, field in (
        ("/urls.txt", strict, "refused_address", "source.path"),
        ("/urls.txt", FetchConfig(), "who is asking", "source.fetch.contact"),
        ("/gone", LOCAL, "http_404", "source.path"),
        ("/page", LOCAL, "is a web page", "source.path"),
    ):
        with pytest.raises(UserError, match=complaint) as error:
            UrlListSource(path=address + path, fetch=fetch).inputs()
        assert error.value.field == field
    with pytest.raises(UserError, match="no IIIF manifest") as error:
        IIIFSource(path=f"{address}/page", fetch=LOCAL).inputs()
    with pytest.raises(UserError) as error:
        UrlListSource(path=address.replace("//", "//me:secret@"), fetch=LOCAL).inputs()
    assert "secret" not in str(error.value)


def test_listings_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read"):
        IIIFSource(path=str(tmp_path / "absent.json")).inputs()
    for document in ([], {}, {"type": "Canvas"}, "x"):
        with pytest.raises(UserError, match="no IIIF manifest"):
            _rows(tmp_path, document)
    with pytest.raises(UserError, match="lists nothing"):
        _rows(tmp_path, {"type": "Collection", "items": []})
    (tmp_path / "empty.txt").write_text("# nothing\n")
    with pytest.raises(UserError, match="lists nothing"):
        UrlListSource(path=str(tmp_path / "empty.txt")).inputs()
    for junk in (
        {"items": ["x", 3, None]},
        {"items": [{"items": "x", "label": 3}]},
        {"sequences": [[]]},
        {"label": [[1]]},
    ):
        rows = _rows(tmp_path, {"type": "Manifest", "id": "https://x.example/m", **junk})
        assert _reasons(rows) == ["no_image"]
