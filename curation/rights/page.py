"""What an HTML page says about itself, read once for all signals: its metas, links and data scripts.

The tokeniser is that of the HTML standard (section 13.2.5), without the tree: nothing that signals want depends on
where in the page it stands. The standard library's `html.parser` takes time quadratic in the page before Python 3.11.14
(22 s for 64 KiB of `<a `) and gives up at `<![`.
"""

from __future__ import annotations

import codecs
import html
import re
from collections.abc import Iterator

LIMIT = 2**20
"""Bytes of a page that are read; what it says about itself stands in its head."""

_TAG_NAME = re.compile(r"[A-Za-z][^\t\n\f\r />]*")
_BEFORE_ATTRIBUTE = re.compile(r"[\t\n\f\r /]*")
_ATTRIBUTE_NAME = re.compile(r"[^\t\n\f\r />][^\t\n\f\r />=]*")
_BEFORE_VALUE = re.compile(r"[\t\n\f\r ]*=[\t\n\f\r ]*")
_UNQUOTED = re.compile(r"[^\t\n\f\r >]*")
_COMMENT_END = re.compile(r"--!?>")
# What is in these is text, whatever it looks like.
_RAW = frozenset({"script", "style", "textarea", "title", "xmp", "iframe", "noembed", "noframes"})
_RAW_END = {name: re.compile(rf"</{name}(?=[\t\n\f\r />])", re.IGNORECASE) for name in _RAW}

_CHARSET = re.compile(r"charset\s*=\s*[\"']?\s*([A-Za-z0-9_:.-]{1,40})", re.IGNORECASE)
_META_CHARSET = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([A-Za-z0-9_:.-]{1,40})", re.IGNORECASE)
# Decoders of pages; Python knows others that are no encodings of text, or slow ones.
_CHARSETS = frozenset(
    {
        *("utf-8", "ascii", "iso8859-1", "gb2312", "gbk", "gb18030", "big5", "big5hkscs", "shift_jis", "cp932"),
        *("euc_jp", "iso2022_jp", "euc_kr", "cp949", "koi8-r", "koi8-u", "mac-roman", "cp866", "cp874"),
        *(f"iso8859-{n}" for n in range(2, 17)),
        *(f"cp125{n}" for n in range(9)),
        *("utf-16", "utf-16-le", "utf-16-be"),
    }
)


class Page:
    """An HTML page, parsed; bytes that are none are a page that says nothing.

    Args:
        data: the page, of which `LIMIT` bytes are read.
        content_type: the answer's, where it stated one.

    Attributes:
        metas: (name in lower case, content) of every meta, by its `name` and by its `property`, in order.
        links: (rel in lower case, href, type) of every link, as written otherwise.
        scripts: (type in lower case, text) of every script that states a type.
        base: the first base's href.
    """

    def __init__(self, data: bytes, content_type: str | None) -> None:
        self.metas: list[tuple[str, str]] = []
        self.links: list[tuple[str, str, str]] = []
        self.scripts: list[tuple[str, str]] = []
        self.base: str | None = None
        for name, attributes, text in _elements(_decoded(data[:LIMIT], content_type)):
            if name == "meta":
                for key in ("name", "property"):
                    if key in attributes:
                        self.metas.append((attributes[key].strip().lower(), attributes.get("content", "")))
            elif name == "link":
                rel = attributes.get("rel", "").strip().lower()
                self.links.append((rel, attributes.get("href", "").strip(), attributes.get("type", "").strip()))
            elif name == "script" and "type" in attributes:
                self.scripts.append((attributes["type"].strip().lower(), text))
            elif name == "base" and self.base is None:
                self.base = attributes.get("href", "").strip() or None


def _decoded(data: bytes, content_type: str | None) -> str:
    """By its byte order mark, else by what the answer or the page says, else as UTF-8."""
    for mark, charset in ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16")):
        if data.startswith(mark):
            return data[len(mark) if charset == "utf-8" else 0 :].decode(charset, "replace")
    if (stated := _CHARSET.search((content_type or "")[:1000])) and (charset := _known(stated[1])):
        return data.decode(charset, "replace")
    charset = ""
    if inside := _META_CHARSET.search(data[:1024]):
        charset = _known(inside[1].decode("ascii"))
    # A page in UTF-16 could not have been read as far as that.
    return data.decode("utf-8" if charset.startswith("utf-16") else charset or "utf-8", "replace")


def _known(label: str) -> str:
    try:
        name = codecs.lookup(label).name
    except (LookupError, ValueError):
        return ""
    return name if name in _CHARSETS else ""


def _elements(text: str) -> Iterator[tuple[str, dict[str, str], str]]:
    """Name, attributes and raw text of every start tag. Every character is looked at a bounded number of times."""
    at = 0
    while (at := text.find("<", at)) >= 0:
        if text.startswith("<!--", at):
            # `<!-->` and `<!--->` are whole comments.
            end = _COMMENT_END.search(text, at + 2)
            if end is None:
                return
            at = end.end()
        elif text.startswith(("<!", "<?", "</"), at):
            closing = _TAG_NAME.match(text, at + 2) if text[at + 1] == "/" else None
            if closing:
                found = _attributes(text, closing.end())
                if found is None:
                    return
                at = found[1]
            elif (at := text.find(">", at) + 1) == 0:
                return
        elif tag := _TAG_NAME.match(text, at + 1):
            found = _attributes(text, tag.end())
            if found is None:
                return
            attributes, at = found
            name, raw = tag[0].lower(), ""
            if name == "plaintext":
                return
            if name in _RAW:
                stop = _RAW_END[name].search(text, at)
                end_of_raw = stop.start() if stop else len(text)
                raw, at = text[at:end_of_raw], end_of_raw
            yield name, attributes, raw
        else:
            at += 1


def _attributes(text: str, at: int) -> tuple[dict[str, str], int] | None:
    """The attributes from here to the tag's end, the first of a name counts; None when the page ends before the tag."""
    found: dict[str, str] = {}
    while True:
        at = _end(_BEFORE_ATTRIBUTE, text, at)
        if at >= len(text):
            return None
        if text[at] == ">":
            return found, at + 1
        name_end = _end(_ATTRIBUTE_NAME, text, at)
        name, value, at = text[at:name_end].lower(), "", name_end
        if equals := _BEFORE_VALUE.match(text, at):
            at = equals.end()
            quoted = text[at : at + 1]
            if quoted in ('"', "'"):
                end = text.find(quoted, at + 1)
                if end < 0:
                    return None
                value, at = text[at + 1 : end], end + 1
            else:
                end = _end(_UNQUOTED, text, at)
                value, at = text[at:end], end
        found.setdefault(name, _unescaped(value))


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    found = pattern.match(text, at)
    return found.end() if found else at


def _unescaped(value: str) -> str:
    try:
        return html.unescape(value)
    except ValueError:  # a number of thousands of digits
        return value
