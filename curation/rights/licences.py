"""Stated licences against the job's allow-list.

Licences are compared by SPDX identifier. The URLs and names of Creative Commons, of rightsstatements.org and of the GNU
FDL are read as what they stand for, where they are all that is said: words around them may be conditions, and a text
with words around them stays as it was written. So does what is not recognised, and an allow-list can name any string a
source uses.

A licence that was ported to a jurisdiction is another one: `CC-BY-3.0` does not stand for `CC-BY-3.0-DE`. All ports
of a licence are listed as `CC-BY-3.0-*`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression
from pydantic import BaseModel, ConfigDict, Field, field_validator

from curation.manifest import Verdict, texts
from curation.rights.verdict import Observation

_MAX_LENGTH = 300
_MAX_VALUE = 500
_FLAGS = re.IGNORECASE | re.ASCII  # without ASCII, letters that look like none of ours would match
_DASHES = str.maketrans("\u2010\u2011\u2012\u2013", "----")
_CODE = r"(?P<code>by(?:[ -]nc)?(?:[ -]sa|[ -]nd)?|by-nd-nc|sa)"
_VERSION = r"(?P<version>[1-4]\.[0-9])"
# Every port is of a country (two letters), of `igo` or of `scotland`. No country's letters are those of a condition.
_PORT = r"(?P<port>(?!by|nc|nd|sa)[a-z]{2}|igo|scotland)"
_TAIL = r"(?:/(?:deed|legalcode)(?:[._-][a-z_-]+)?(?:\.html|\.txt)?)?/?(?:[?#][^\s<>]*)?>?[.,;]?"
_SITE = r"<?(?:(?:https?:)?//)?(?:www\.)?creativecommons\.org"
_CC_LICENCE = re.compile(rf"{_SITE}/licenses/{_CODE}/{_VERSION}(?:/{_PORT})?{_TAIL}", _FLAGS)
_CC_PUBLIC = re.compile(
    rf"{_SITE}/(?P<which>publicdomain/zero/1\.0|publicdomain/mark/1\.0|licenses/publicdomain){_TAIL}", _FLAGS
)
_PUBLIC = {
    "publicdomain/zero/1.0": "CC0-1.0",
    "publicdomain/mark/1.0": "CC-PDM-1.0",
    "licenses/publicdomain": "CC-PDDC",
}
_SUFFIX = r"(?:[ -](?:international|unported|generic))?(?: (?:public )?licen[sc]e)?"
_CC_NAME = re.compile(rf"(?:cc|creative commons)[ -]{_CODE}[ -]v?{_VERSION}(?:[ -]{_PORT})?{_SUFFIX}", _FLAGS)
_CC_WORDS = re.compile(
    r"(?:(?:cc|creative commons) )?attribution(?P<nc>[ -]{1,3}non-?commercial)?"
    r"(?:[ -]{1,3}(?P<sa>share-?alike)|[ -]{1,3}(?P<nd>no-?deriv(?:ative)?s?(?: works)?))?"
    rf" v?{_VERSION}(?: {_PORT})?{_SUFFIX}",
    _FLAGS,
)
_CC_ZERO = re.compile(
    r"(?:cc[ -]?(?:0|zero)|creative commons (?:cc0|zero))(?:[ -]v?1\.0)?(?: universal)?"
    r"(?: public domain dedication| licen[sc]e)?",
    _FLAGS,
)
_CC_MARK = re.compile(r"(?:cc[ -])?(?:pdm|public domain mark)(?:[ -]v?1\.0)?(?: universal)?", _FLAGS)
_STATEMENT = re.compile(
    r"<?(?:(?:https?:)?//)?(?:www\.)?rightsstatements\.org/(?:vocab|page|data)/(?P<code>[a-z-]+)/1\.0/?(?:\?[^\s<>]*)?>?",
    _FLAGS,
)
# https://rightsstatements.org/page/1.0/
_IN_COPYRIGHT = ("InC", "InC-OW-EU", "InC-EDU", "InC-NC", "InC-RUU")
_STATEMENTS = {
    name.lower(): name for name in (*_IN_COPYRIGHT, "NoC-CR", "NoC-NC", "NoC-OKLR", "NoC-US", "CNE", "UND", "NKC")
}
_FDL_URL = re.compile(
    r"(?:https?://)?(?:www\.)?gnu\.org/(?:copyleft|licenses(?:/old-licenses)?)/fdl(?:-(?P<version>1\.[123]))?(?:\.html|\.txt)?",
    _FLAGS,
)
_FDL_NAME = re.compile(
    r"(?:gfdl|gnu (?:fdl|free documentation licen[sc]e))(?:[ ,-]{1,2}(?:version )?v?(?P<version>1\.[123])"
    r"(?P<more>\+|[ -]or[ -]later|[ -]only)?)?",
    _FLAGS,
)
_SPDX = re.compile(r"[a-z0-9][a-z0-9.+-]*", _FLAGS)
_SPDX_URL = re.compile(r"https?://spdx\.org/licenses/(?P<name>[a-z0-9][a-z0-9.+-]*?)(?:\.html)?", _FLAGS)
_SAID_TWICE = re.compile(r"(?P<one>.+?) ?\((?P<other>[^()]+)\)")
_A_PORT = re.compile(_PORT, _FLAGS)
_PORTS = re.compile(rf"cc-{_CODE}-{_VERSION}-\*", _FLAGS)


class LicencesConfig(BaseModel):
    """Which stated licences are kept, and what becomes of pictures that state none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    allow: tuple[str, ...] | None = Field(
        None,
        description="SPDX identifiers, licence URLs or the source's own words; null takes no licence for a permission",
    )
    unstated: Literal["keep", "hold", "drop"] = Field(
        "hold", description="what to do where no licence is stated, or where none is listed to compare it with"
    )

    @field_validator("allow")
    @classmethod
    def _can_permit(cls, allow: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for name in allow or ():
            if normalise(name) in _IN_COPYRIGHT:
                raise ValueError(f"{name!r} says that a picture is in copyright, which permits nothing")
            if "*" in name and not _PORTS.fullmatch(normalise(name)):
                raise ValueError(
                    f"{name!r}: an asterisk stands for the ports of a Creative Commons licence, CC-BY-3.0-*"
                )
        return allow


def normalise(licence: str) -> str:
    """`https://creativecommons.org/licenses/by-sa/4.0/` and `CC BY-SA 4.0` become `CC-BY-SA-4.0`.

    What is not recognised as a whole stays as it is; so `normalise(normalise(x)) == normalise(x)`.
    """
    text = licence.strip()
    plain = " ".join(text.split()).translate(_DASHES)
    if len(plain) > _MAX_LENGTH:
        return text
    if match := _SAID_TWICE.fullmatch(plain):  # `Attribution 4.0 International (CC BY 4.0)`
        one = _identifier(match["one"])
        return one if one is not None and one == _identifier(match["other"]) else text
    return _identifier(plain) or text


def _identifier(text: str) -> str | None:
    return _creative_commons(text) or _other(text)


def _creative_commons(text: str) -> str | None:
    if match := _CC_LICENCE.fullmatch(text) or _CC_NAME.fullmatch(text):
        code = match["code"].upper().replace(" ", "-").replace("ND-NC", "NC-ND")  # as version 1.0 was called
        return f"CC-{code}-{match['version']}" + (f"-{match['port'].upper()}" if match["port"] else "")
    if match := _CC_WORDS.fullmatch(text):
        conditions = "".join(f"-{name.upper()}" for name in ("nc", "sa", "nd") if match[name])
        return f"CC-BY{conditions}-{match['version']}" + (f"-{match['port'].upper()}" if match["port"] else "")
    if match := _CC_PUBLIC.fullmatch(text):
        return _PUBLIC[match["which"].lower()]
    if _CC_ZERO.fullmatch(text):
        return "CC0-1.0"
    return "CC-PDM-1.0" if _CC_MARK.fullmatch(text) else None


def _other(text: str) -> str | None:
    if match := _STATEMENT.fullmatch(text):
        return _STATEMENTS.get(match["code"].lower())
    if text.isascii() and text.lower() in _STATEMENTS:
        return _STATEMENTS[text.lower()]
    if match := _FDL_URL.fullmatch(text):
        return f"GFDL-{match['version']}" if match["version"] else "GFDL"
    if match := _FDL_NAME.fullmatch(text):
        said = (match["more"] or "").lower()
        more = "-only" if "only" in said else "-or-later" if said else ""
        return f"GFDL-{match['version']}{more}" if match["version"] else "GFDL"
    match = _SPDX_URL.fullmatch(text)
    name = match["name"] if match else text
    if _SPDX.fullmatch(name):
        try:
            return str(canonicalize_license_expression(name))
        except InvalidLicenseExpression:
            return None
    return None


def _comparable(name: str) -> str:
    """Without case, but never so that what is not ASCII becomes it: `\u212a` is no K here."""
    folded = name.casefold()
    return folded if folded.isascii() == name.isascii() else name


class Licences:
    """The allow-list, ready to be asked about a row."""

    def __init__(self, config: LicencesConfig) -> None:
        # In the job's order, without repetitions.
        names = [_comparable(normalise(name)) for name in config.allow or ()]
        self._allowed = None if config.allow is None else list(dict.fromkeys(names))

    def rank(self, stated: str | None) -> int:
        """The place of a licence in the job's list, the most wanted first; behind all of them when it is not there."""
        place = self._place(stated) if stated else None
        return len(self._allowed or ()) if place is None else place

    def _place(self, stated: str) -> int | None:
        allowed, name = self._allowed or [], _comparable(normalise(stated))
        if name in allowed:
            return allowed.index(name)
        licence, _, port = name.rpartition("-")
        if _A_PORT.fullmatch(port) and f"{licence}-*" in allowed:
            return allowed.index(f"{licence}-*")
        return None

    def observe(self, row: Mapping[str, Any]) -> Observation:
        """What the row's `licence` (or, in its absence, `licence_url`) amounts to."""
        stated = row["licence"] or row["licence_url"]
        if not stated:
            return Observation("licence", None, "metadata", Verdict.UNKNOWN)
        if self._allowed is None:
            return Observation("licence", normalise(stated)[:_MAX_VALUE], "metadata", Verdict.UNKNOWN)
        inside = texts(row.get("embedded")).get("licence")
        statements = [s for s in (row["licence"], row["licence_url"], inside) if s]
        # Every statement must be allowed: a CC-BY name beside a by-nc URL, here or in the file, is no permission.
        verdict = Verdict.ALLOW if all(self._place(s) is not None for s in statements) else Verdict.DENY
        return Observation("licence", normalise(stated)[:_MAX_VALUE], "metadata", verdict)
