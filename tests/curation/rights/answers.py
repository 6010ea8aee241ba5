"""What a site answers with when it is asked for one of its files."""

from __future__ import annotations

from datetime import UTC, datetime

from curation.rights.evidence import SiteFile

AT = datetime(2026, 11, 25, 1, 0, tzinfo=UTC)


def answer(body: str | bytes = b"", status: int | None = 200, name: str = "robots.txt", **more: object) -> SiteFile:
    """The file `name` of https://a.example."""
    data = body.encode() if isinstance(body, str) else body
    more = {"observed_at": AT, **more}
    return SiteFile.model_validate({"url": f"https://a.example/{name}", "status": status, "body": data, **more})
