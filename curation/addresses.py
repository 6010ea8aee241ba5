"""Where a URL leads: how it is spelled, and whether its addresses may be asked.

A name or an address that leads into the own network is refused where the connection is made, so that no answer of a
name service, no spelling of an address and no redirect gets round it.
"""

from __future__ import annotations

import base64
import ipaddress
import re
import socket
from collections.abc import Callable
from typing import Any
from urllib.parse import quote_from_bytes

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from curation.fetch import FetchError
from curation.manifest import Reason

_CLEAN = re.compile(r"[A-Za-z0-9\-._~:/?#\[\]@!$&'()*+,;=%]+")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def public_address(address: str) -> bool:
    """Whether an address is one of the public internet, also where it is wrapped in an IPv6 one."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour or (found.teredo and found.teredo[1])
        if found in _NAT64:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if inner:
            return public_address(str(inner))
    return found.is_global and not found.is_multicast and not found.is_reserved


def parse(text: str, base: URL | None = None) -> URL:
    """An http(s) URL, relative to `base`, as it is spelled where that is lawful; quoted where it is not."""
    try:
        if "\udc80" <= max(text, default="") <= "\udcff":  # bytes of a header that are not UTF-8
            text = quote_from_bytes(text.encode("utf-8", "surrogateescape"), safe="%/:?#[]@!$&'()*+,;=~")
        url = URL(text, encoded=_CLEAN.fullmatch(text) is not None)
        url = base.join(url) if base is not None else url
        if url.scheme not in ("http", "https") or not url.host or not url.port:
            raise ValueError
    except (ValueError, UnicodeError):
        raise FetchError(
            Reason.BAD_URL, "not an http(s) URL" if base is None else "redirected to no http(s) URL"
        ) from None
    return url


def shown(url: URL) -> URL:
    """The URL as it may be written down: without user, password and fragment."""
    return url.with_user(None).with_fragment(None)


def basic_authorization(url: URL) -> str | None:
    """The Authorization header for the user and password that a URL carries."""
    if url.user is None:
        return None
    return "Basic " + base64.b64encode(f"{url.user}:{url.password or ''}".encode()).decode()


def guarded_connector(
    admitted: Callable[[str], bool], resolver: AbstractResolver | None = None, **options: Any
) -> aiohttp.TCPConnector:
    """Connections to addresses that may be asked; to others, whatever name they were found for, a FetchError.

    Args:
        admitted: whether an address may be.
        resolver: who knows the addresses of names; the system's own unless given.
        options: more of `aiohttp.TCPConnector`.
    """

    def admit(address: str, host: str) -> None:
        if not admitted(address):
            raise FetchError(Reason.REFUSED_ADDRESS, f"{host} is {address}" if host != address else host)

    def connect(info: Any) -> socket.socket:
        # aiohttp asks no resolver about what looks like an address, `http://2130706433/` included.
        family, kind, protocol, _, address = info
        admit(str(address[0]), str(address[0]))
        return socket.socket(family, kind, protocol)

    checked = _Resolver(resolver or aiohttp.ThreadedResolver(), admit)
    return aiohttp.TCPConnector(resolver=checked, socket_factory=connect, **options)


class _Resolver(AbstractResolver):
    """Names to addresses, none of them private."""

    def __init__(self, resolver: AbstractResolver, admit: Callable[[str, str], None]) -> None:
        self._resolver, self._admit = resolver, admit

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        try:
            found = await self._resolver.resolve(host, port, family)
        except UnicodeError as error:  # a label of more than 63 characters
            raise OSError(str(error)) from None
        for address in found:
            self._admit(address["host"], host)
        return found

    async def close(self) -> None:
        await self._resolver.close()
