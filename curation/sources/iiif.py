"""Pictures of libraries and museums: IIIF Presentation manifests and collections, versions 2 and 3."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from curation.containers import broken_member
from curation.errors import UserError
from curation.fetch import FetchConfig, Fetched
from curation.manifest import Reason
from curation.places import is_url
from curation.sources.inputs import INPUTS, rows_table, stated, without_password
from curation.sources.urls import asking, document

_CREATORS = ("creator", "creators", "artist", "artists", "author", "authors", "maker", "painter", "photographer")
_DEEPEST = 16  # collections within collections
_TOGETHER = 64  # manifests of a collection that are in memory at a time

_Json = Mapping[str, Any]
_Row = dict[str, Any]


class IIIFSource(BaseModel):
    """Every picture of a manifest, or of all manifests of a collection, in their order.

    An input is named by the URL that its picture is asked for at. Its title is the manifest's label, with the canvas's
    where a manifest has several; licence and creator are taken from where IIIF states them, label/value pairs and the
    attribution go to the metadata. A manifest that does not come or cannot be read is one input that fails, and so is a
    canvas without a picture.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["iiif"] = "iiif"
    path: str = Field(description="the manifest or collection: a local file, s3://, gs:// or http(s)://")
    size: str = Field(
        "max",
        pattern=r"^(max|\^?(\d+,|,\d+|pct:\d+(\.\d+)?|!?\d+,\d+))$",
        description="size asked of image services, in their own words: max, or `!512,512` for at most 512 pixels",
    )
    fetch: FetchConfig = Field(FetchConfig(), description="how listings on the web are fetched")
    dataset: str = Field("iiif", description="name of the collection, for the manifest's `dataset` column")

    def inputs(self) -> pa.Table:
        found = _parsed(document(self.path, self.fetch))
        if isinstance(found, str) or _kind(found) is None:
            raise UserError(
                f"{self.path} is no IIIF manifest or collection" + (f": {found}" if isinstance(found, str) else ""),
                field="source.path",
                remedy="give the JSON of a manifest or collection, Presentation API 2 or 3",
            )
        walk = _Walk(self.fetch, self.size)
        tables, rows = [INPUTS.empty_table()], []
        for row in walk.rows(found, 0):
            rows.append({**row, "dataset": self.dataset})
            if len(rows) == 10_000:
                tables.append(rows_table(rows))
                rows = []
        table = pa.concat_tables([*tables, rows_table(rows)])
        if table.num_rows == 0:
            raise UserError(f"{self.path} lists nothing", field="source.path", remedy="give a listing with pictures")
        return table


class _Walk:
    """One way through a tree of collections, which enters each of them once."""

    def __init__(self, fetch: FetchConfig, size: str) -> None:
        self._fetch = fetch
        self._size = size
        self._seen: set[str] = set()

    def rows(self, found: _Json, depth: int) -> Iterator[_Row]:
        if _kind(found) == "manifest":
            yield from self._pictures(found)
            return
        children = _collected(found)
        for start in range(0, len(children), _TOGETHER):
            part = [child for child in children[start : start + _TOGETHER] if self._is_new(_id(child))]
            missing = [_id(child) for child in part if _is_reference(child) and is_url(_id(child))]
            came = dict(zip(missing, self._fetched(missing), strict=True))
            for child in part:
                url = _id(child)
                if not _is_reference(child):
                    yield from self._inner(child, url, depth)
                elif url not in came:
                    yield _broken(url, Reason.BAD_URL, "a listing that is not at an http(s) URL")
                elif (data := came[url].data) is None:
                    yield _broken(url, came[url].reason or Reason.UNREADABLE, came[url].detail or "")
                else:
                    yield from self._inner(_parsed(data), url, depth)

    def _fetched(self, urls: Sequence[str]) -> list[Fetched]:
        if not urls:
            return []
        with asking(self._fetch) as fetcher:
            return list(fetcher(urls))

    def _inner(self, found: _Json | str, url: str, depth: int) -> Iterator[_Row]:
        if isinstance(found, str) or _kind(found) is None:
            yield _broken(url, Reason.CORRUPT, found if isinstance(found, str) else "no IIIF manifest or collection")
        elif depth == _DEEPEST:
            yield _broken(url, Reason.CORRUPT, f"more than {_DEEPEST} collections within one another")
        else:
            yield from self.rows(found, depth + 1)

    def _is_new(self, url: str) -> bool:
        is_new = url not in self._seen
        self._seen.add(url)
        return is_new or not url

    def _pictures(self, manifest: _Json) -> Iterator[_Row]:
        sequences = _list(manifest.get("sequences"))
        canvases = (
            [c for s in sequences for c in _list(s.get("canvases"))] if sequences else _list(manifest.get("items"))
        )
        if not canvases:
            yield _broken(_id(manifest), Reason.NO_IMAGE, "a manifest without canvases")
        for canvas in canvases:
            said = _said(manifest, canvas, several=len(canvases) > 1)
            bodies = list(_bodies(canvas))
            for body in bodies:
                url = _picture(body, self._size)
                if is_url(url):
                    yield {"uri": without_password(url), "location": url, **said}
                else:
                    yield {
                        **_broken(url or _id(canvas), Reason.BAD_URL, "a picture that is not at an http(s) URL"),
                        **said,
                    }
            if not bodies:
                yield {**_broken(_id(canvas), Reason.NO_IMAGE, "a canvas without a picture"), **said}


def _broken(uri: str, reason: str, detail: str) -> _Row:
    return {"uri": without_password(uri), "location": broken_member(reason, detail)}


def _parsed(data: bytes) -> _Json | str:
    """The document, or what is wrong with it."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        return f"no JSON ({error})"
    return found if isinstance(found, dict) else "no JSON object"


def _id(found: _Json) -> str:
    return str(found.get("id") or found.get("@id") or "")


def _kind(found: _Json) -> Literal["manifest", "collection"] | None:
    kind = str(found.get("type") or found.get("@type") or "").lower().removeprefix("sc:")
    return "manifest" if kind == "manifest" else "collection" if kind == "collection" else None


def _list(value: Any) -> list[_Json]:
    return [entry for entry in (value if isinstance(value, list) else [value]) if isinstance(entry, dict)]


def _collected(collection: _Json) -> list[_Json]:
    """What is in a collection, collections before manifests where version 2 keeps them apart."""
    found = [
        child for name in ("items", "members", "collections", "manifests") for child in _list(collection.get(name))
    ]
    return [child for child in found if _kind(child) is not None or _id(child)]


def _is_reference(child: _Json) -> bool:
    inside = ("items", "sequences", "members", "collections", "manifests")
    return not any(child.get(name) for name in inside)


def _bodies(canvas: _Json) -> Iterator[_Json]:
    """The pictures painted on a canvas; of a choice between several, the first, which is the default."""
    for image in _list(canvas.get("images")):
        yield from _images(_list(image.get("resource")))
    for page in _list(canvas.get("items")):
        for annotation in _list(page.get("items")):
            if "painting" in str(annotation.get("motivation") or ""):
                yield from _images(_list(annotation.get("body")))


def _images(bodies: Sequence[_Json]) -> Iterator[_Json]:
    for body in bodies:
        kind = str(body.get("type") or body.get("@type") or "").lower()
        if kind in ("choice", "oa:choice"):
            yield from _images((_list(body.get("items")) or _list(body.get("default")))[:1])
        elif kind in ("specificresource", "oa:specificresource"):
            yield from _images(_list(body.get("source")) or _list(body.get("full")))
        elif kind in ("image", "dctypes:image", "dcterms:image") or (not kind and _id(body)):
            yield body


def _picture(body: _Json, size: str) -> str:
    """The URL of a picture: of its image service at `size`, else its own."""
    for service in _list(body.get("service")):
        words = json.dumps([service.get(name) for name in ("profile", "@context", "type", "@type")])
        image_api = "image-api" in words or "image/" in words or "ImageService" in words or "level" in words
        if not image_api or not _id(service) or "level0" in words:
            continue  # a service of level 0 has stored sizes only
        third = "ImageService3" in words or "image/3" in words
        first = "image-api/1" in words or "ImageService1" in words
        asked = "full" if size == "max" and not third else size  # `max` came with version 2.1
        return f"{_id(service).rstrip('/')}/full/{asked}/0/{'native' if first else 'default'}.jpg"
    return _id(body)


def _said(manifest: _Json, canvas: _Json, *, several: bool) -> _Row:
    title, part = _text(manifest.get("label")), _text(canvas.get("label"))
    pairs: dict[str, str] = {}
    for found in (canvas, manifest):
        for pair in _list(found.get("metadata")):
            label, value = _text(pair.get("label")).rstrip(":").lower(), _text(pair.get("value"))
            if label and value:
                pairs.setdefault(label, value)
    creators = [value for label, value in pairs.items() if label in _CREATORS]
    required = manifest.get("requiredStatement")
    attribution = required.get("value") if isinstance(required, dict) else manifest.get("attribution")
    rights = next((t for f in (canvas, manifest) for n in ("rights", "license") if (t := _text(f.get(n)))), "")
    own = {
        "title": f"{title}, {part}" if several and part and part != title else title or part,
        "creator": creators[0] if creators else None,
        "licence_url" if is_url(rights) else "licence": rights,
    }
    rest = {
        **pairs,
        "attribution": _text(attribution),
        "summary": _text(manifest.get("summary") or manifest.get("description")),
    }
    rest |= {"manifest": _id(manifest), "canvas": _id(canvas)}
    said = stated({name: value for name, value in rest.items() if name not in _OURS})
    return {**said, **{name: value for name, value in own.items() if value}}


_OURS = frozenset(("title", "creator", "author", "licence", "license", "licence_url", "license_url"))


def _text(value: Any) -> str:
    """Text as IIIF writes it: plain, with marks of HTML, in a map of languages, or in a list of any of these."""
    if isinstance(value, str):
        plain = re.sub(r"<[^>]*>", "", value) if value.lstrip().startswith("<") else value
        return html.unescape(plain).strip()
    if isinstance(value, list):
        tagged = {str(v.get("@language")): v for v in value if isinstance(v, dict) and "@language" in v}
        return _text(_preferred(tagged)) if tagged else "; ".join(filter(None, map(_text, value)))
    if isinstance(value, dict):
        if "@value" in value:
            return _text(value["@value"])
        return _text(value.get("@id") or value.get("id") or _preferred(value))
    return "" if value is None or isinstance(value, bool) else str(value)


def _preferred(languages: Mapping[str, Any]) -> Any:
    for name in ("en", "none", "@none"):
        if name in languages:
            return languages[name]
    return next(iter(languages.values()), None)
