"""XMP packets (ISO 16684-1): what of them concerns authorship and rights, read as data from strangers.

One pass of expat with a ceiling on everything: bytes, elements, nesting and the length of every text. A document type
declaration, which is what entity bombs and external entities need, ends the reading. A packet that breaks off or is
not well-formed still yields what stood before the damage, and says that it was damaged: an opt-out may have stood
behind it.
"""

from __future__ import annotations

import re
from typing import NamedTuple
from xml.parsers import expat

MAX_PACKET = 8 << 20  # an extended packet with a depth map takes some megabytes
MAX_TEXT = 2000
_MAX_ELEMENTS = 20_000
_MAX_PIECES = 400_000  # of text, between newlines and references
_MAX_DEPTH = 64
_MAX_ITEMS = 200

_DC, _PHOTOSHOP = "http://purl.org/dc/elements/1.1/", "http://ns.adobe.com/photoshop/1.0/"
_RIGHTS, _NOTE = "http://ns.adobe.com/xap/1.0/rights/", "http://ns.adobe.com/xmp/note/"
_PLUS, _TIFF = "http://ns.useplus.org/ldf/xmp/1.0/", "http://ns.adobe.com/tiff/1.0/"
_IPTC = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_LANG = "http://www.w3.org/XML/1998/namespace lang"
_DATA_MINING = _PLUS + " DataMining"

# Where several properties name the same field, the one listed first is taken.
_PROPERTIES = {
    _DC + " title": "title",
    _PHOTOSHOP + " Headline": "title",
    _DC + " description": "description",
    _DC + " creator": "creator",
    _DC + " rights": "rights",
    _RIGHTS + " WebStatement": "web_statement",
    "http://creativecommons.org/ns# license": "licence",
    "http://web.resource.org/cc/ license": "licence",
    _RIGHTS + " UsageTerms": "licence",
    _PHOTOSHOP + " Credit": "credit",
    _PHOTOSHOP + " Source": "source",
    _DC + " source": "source",
    _DATA_MINING: "data_mining",
    _PLUS + " OtherConstraints": "other_constraints",
    _IPTC + " DigitalSourceType": "digital_source_type",
    _DC + " subject": "keywords",
    _TIFF + " Orientation": "orientation",
    _NOTE + " HasExtendedXMP": "extended",
}
_LISTS = frozenset({"creator", "keywords"})
# A whole packet in which none of this occurs cannot speak of those properties. Character references and UTF-16 can
# hide a name, so a packet with those is parsed.
_SPEAKS = (
    *(b"purl.org/dc/", b"useplus.org", b"ns.adobe.com/photoshop/", b"xap/1.0/rights/", b"ns.adobe.com/tiff/"),
    *(b"ns.adobe.com/xmp/note/", b"creativecommons.org/ns", b"web.resource.org/cc", b"Iptc4xmpExt"),
    *(b"&#", b"\x00", b"<!DOCTYPE", b"encoding="),
)


class Packet(NamedTuple):
    """What a packet says.

    Attributes:
        fields: by `_PROPERTIES`; several values of `data_mining` stand on a line each.
        damaged: it could not be read to its end.
    """

    fields: dict[str, str]
    damaged: bool


def read(packet: bytes) -> Packet:
    """Reads one packet, with or without its `<?xpacket` wrapper. Never raises.

    The texts of `title`, `description`, `creator`, `rights`, … are those of the packet's top-level properties;
    `plus:DataMining` counts wherever it stands.
    """
    if len(packet) > MAX_PACKET:
        return Packet({}, True)
    if b"\x00" not in packet[:4] and packet[:2] not in (b"\xff\xfe", b"\xfe\xff"):  # not UTF-16
        packet = packet.strip(b"\x00 \t\r\n")
    if b"</rdf:RDF>" in packet and not any(word in packet for word in _SPEAKS):
        return Packet({}, False)
    reader = _Reader()
    parser = expat.ParserCreate(namespace_separator=" ")
    parser.StartElementHandler = reader.start
    parser.EndElementHandler = reader.end
    parser.CharacterDataHandler = reader.text
    parser.StartDoctypeDeclHandler = _refuse
    damaged = False
    try:
        parser.Parse(packet, True)
    except (expat.ExpatError, _RefusedError, ValueError, LookupError):  # the latter two for odd encodings
        damaged = True
        reader.close()
    return Packet(reader.fields(), damaged)


def tidy(text: str) -> str:
    """Text without control characters and outer space, at most `MAX_TEXT` characters."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f]", "", text[: 2 * MAX_TEXT]).strip()[:MAX_TEXT].rstrip()


class _RefusedError(Exception):
    """The packet asks for more than a packet may."""


def _refuse(*_: object) -> None:
    raise _RefusedError


class _Reader:
    """Collects properties while expat walks: rdf:RDF > node > property > (container > rdf:li) > text."""

    def __init__(self) -> None:
        self._path: list[str] = []
        self._elements = 0
        self._pieces = 0
        self._top = 0  # depth of the properties of rdf:RDF's nodes; 0 outside of rdf:RDF
        self._open: str | None = None  # the property that is being collected
        self._open_depth = 0
        self._items: list[tuple[str, str]] = []  # (language, text)
        self._length = 0
        self._found: dict[str, list[tuple[str, str]]] = {}

    def start(self, name: str, attributes: dict[str, str]) -> None:
        self._path.append(name)
        self._elements += 1
        depth = len(self._path)
        if depth > _MAX_DEPTH or self._elements > _MAX_ELEMENTS:
            raise _RefusedError
        if not self._top and name == _RDF + " RDF":
            self._top = depth + 2
        if attributes:
            for key, value in attributes.items():
                if key == _DATA_MINING or (depth == self._top - 1 and key in _PROPERTIES):
                    self._add(key, [("", value)])
        if self._open is None:
            if name == _DATA_MINING or (depth == self._top and name in _PROPERTIES):
                self._open, self._open_depth, self._length = name, depth, 0
                self._items = [(attributes.get(_LANG, ""), attributes.get(_RDF + " resource", ""))]
        elif name == _RDF + " li" and len(self._items) <= _MAX_ITEMS:
            self._items.append((attributes.get(_LANG, ""), attributes.get(_RDF + " resource", "")))

    def end(self, _: str) -> None:
        if self._open is not None and len(self._path) == self._open_depth:
            self.close()
        if len(self._path) == self._top - 2:
            self._top = 0
        self._path.pop()

    def text(self, text: str) -> None:
        self._pieces += 1
        if self._pieces > _MAX_PIECES:
            raise _RefusedError
        if self._open is not None and self._length <= 2 * MAX_TEXT:
            self._length += len(text)
            language, before = self._items[-1]
            self._items[-1] = (language, before + text[: 2 * MAX_TEXT])

    def close(self) -> None:
        """Ends the property that is open."""
        if self._open is not None:
            self._add(self._open, self._items)
            self._open = None

    def _add(self, name: str, items: list[tuple[str, str]]) -> None:
        tidied = [(language.lower(), tidy(text)) for language, text in items]
        self._found.setdefault(name, []).extend(item for item in tidied if item[1])

    def fields(self) -> dict[str, str]:
        fields: dict[str, str] = {}
        for name, field in _PROPERTIES.items():
            items = self._found.get(name)
            if not items or field in fields:
                continue
            if field == "data_mining":
                lines = "\n".join(sorted({" ".join(text.split()) for _, text in items}))
                fields[field] = lines if len(lines) <= MAX_TEXT else lines[:MAX_TEXT] + "\n..."  # no known value
            elif field in _LISTS:
                fields[field] = tidy(", ".join(dict.fromkeys(text for _, text in items)))
            else:
                fields[field] = _preferred(items)
        return fields


def _preferred(items: list[tuple[str, str]]) -> str:
    """The text of a language alternative: the default, else English, else the first."""
    for wanted in ("x-default", "en"):
        for language, text in items:
            if language == wanted or language.startswith(wanted + "-"):
                return text
    return items[0][1]
