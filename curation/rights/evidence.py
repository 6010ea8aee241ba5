"""What was asked about rights and what came back: the raw material that signals are read from."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, ConfigDict

BODY_LIMIT = 500 * 1024
"""Bytes of a site's file that are read; RFC 9309 asks for at least as many of a robots.txt."""


class SiteFile(BaseModel):
    """A file that a site answered with, or did not, when it was asked (`/robots.txt`, `/.well-known/tdmrep.json` …).

    Attributes:
        url: what was asked.
        status: of the last answer, redirects followed; None when no answer came (DNS, connection, timeout).
        body: undone of its content encoding, cut at `BODY_LIMIT` bytes; empty for other statuses than 200.
        truncated: whether there was more.
        content_type: the answer's, where it stated one.
        observed_at: when the answer came, or was given up.
        detail: why there is none, where there is none.
    """

    model_config = ConfigDict(frozen=True, ser_json_bytes="base64", val_json_bytes="base64")

    url: str
    status: int | None
    body: bytes = b""
    truncated: bool = False
    content_type: str | None = None
    observed_at: datetime
    detail: str | None = None

    @property
    def is_absent(self) -> bool:
        """The site has no such file: any 4xx but 429, which says to ask later."""
        return self.status is not None and 400 <= self.status < 500 and self.status != 429
