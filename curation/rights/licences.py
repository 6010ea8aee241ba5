"""Stated licences against the job's allow-list.

Licences are compared by SPDX identifier; the URLs of Creative Commons are read as the identifiers they stand for. What
is not recognised is compared as it was written, so an allow-list can name any string a source uses.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from curation.manifest import Verdict, texts
from curation.rights.verdict import Observation

_CC_LICENCE = re.compile(r"creativecommons\.org/licenses/([a-z-]+)/(\d\.\d)", re.IGNORECASE)
_CC_ZERO = re.compile(r"creativecommons\.org/publicdomain/zero/(\d\.\d)", re.IGNORECASE)
_CC_MARK = re.compile(r"creativecommons\.org/publicdomain/mark/1\.0", re.IGNORECASE)
_CC_NAME = re.compile(r"cc[ -](by(?:-nc)?(?:-sa|-nd)?)[ -](\d\.\d)(?:[ -](?:international|unported))?", re.IGNORECASE)


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


def normalise(licence: str) -> str:
    """`https://creativecommons.org/licenses/by-sa/4.0/` and `CC BY-SA 4.0` become `CC-BY-SA-4.0`."""
    text = licence.strip()
    if match := _CC_LICENCE.search(text):
        return f"CC-{match[1].upper()}-{match[2]}"
    if match := _CC_ZERO.search(text):
        return f"CC0-{match[1]}"
    if _CC_MARK.search(text):
        return "PDM-1.0"
    if match := _CC_NAME.fullmatch(text):
        return f"CC-{match[1].upper()}-{match[2]}"
    if re.fullmatch(r"cc0(?:[ -]1\.0)?", text, re.IGNORECASE):
        return "CC0-1.0"
    return text


class Licences:
    """The allow-list, ready to be asked about a row."""

    def __init__(self, config: LicencesConfig) -> None:
        # In the job's order, without repetitions.
        names = [normalise(name).casefold() for name in config.allow or ()]
        self._allowed = None if config.allow is None else list(dict.fromkeys(names))

    def rank(self, stated: str | None) -> int:
        """The place of a licence in the job's list, the most wanted first; behind all of them when it is not there."""
        allowed = self._allowed or []
        name = normalise(stated).casefold() if stated else None
        return allowed.index(name) if name in allowed else len(allowed)

    def observe(self, row: Mapping[str, Any]) -> Observation:
        """What the row's `licence` (or, in its absence, `licence_url`) amounts to."""
        stated = row["licence"] or row["licence_url"]
        if not stated:
            return Observation("licence", None, "metadata", Verdict.UNKNOWN)
        if self._allowed is None:
            return Observation("licence", normalise(stated), "metadata", Verdict.UNKNOWN)
        inside = texts(row.get("embedded")).get("licence")
        names = {normalise(s).casefold() for s in (row["licence"], row["licence_url"], inside) if s}
        # Every statement must be allowed: a CC-BY name beside a by-nc URL, here or in the file, is no permission.
        verdict = Verdict.ALLOW if names <= set(self._allowed) else Verdict.DENY
        return Observation("licence", normalise(stated), "metadata", verdict)
