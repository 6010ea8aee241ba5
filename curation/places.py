"""Where things are on the web: URLs compared, and the hosts and registrable domains they name."""

from __future__ import annotations

import contextlib
import re
from functools import cache
from typing import Any
from urllib.parse import urlsplit, urlunsplit


def is_url(location: str) -> bool:
    """Whether it is for the web fetcher, in whatever case its scheme is written."""
    return location[:8].lower().startswith(("http://", "https://"))


def same_url(uri: str) -> str:
    """A URL without what makes no other of it: case of scheme and host, a port that goes without saying, a fragment."""
    if not re.match(r"https?://", uri, re.IGNORECASE):
        return uri
    try:
        parts = urlsplit(uri)
        port = parts.port
    except ValueError:
        return uri
    usual = {"http": 80, "https": 443}[parts.scheme]
    name = parts.hostname or ""
    host = (f"[{name}]" if ":" in name else name) + (f":{port}" if port not in (None, usual) else "")
    return urlunsplit((parts.scheme, host, parts.path or "/", parts.query, ""))


def host_and_domain(uri: str) -> tuple[str | None, str | None]:
    """A URL's host and its registrable domain by the Public Suffix List; both None for a file."""
    if not is_url(uri):
        return None, None
    try:
        host = urlsplit(uri).hostname
    except ValueError:
        return None, None
    if not host:
        return None, None
    host = host.rstrip(".")
    with contextlib.suppress(UnicodeError):
        host = host.encode("idna").decode()
    return host, _suffixes()(host).top_domain_under_public_suffix or host


@cache
def _suffixes() -> Any:
    import tldextract

    # The list that the package ships: curation must not depend on what a download says today.
    return tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)


def origin(url: str) -> str | None:
    """`scheme://host[:port]` as a site's own files belong to it; None for what is no web URL."""
    if not is_url(url):
        return None
    try:
        parts = urlsplit(same_url(url))
        return urlunsplit((parts.scheme, parts.netloc, "", "", "")) if parts.hostname else None
    except ValueError:
        return None
