"""Who has no key, or not the right one, gets no further: asked before any of the body is read.

Keys are for what lies below `/v1/` and for `/metrics`, but not for the health of the server and for pictures at URLs,
which nobody can guess.
"""

from __future__ import annotations

import asyncio
import re

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.api import RequestError
from serving.http import errors
from serving.job import loopback
from serving.keys import Key, KeyRing
from serving.keys import Scope as KeyScope

_PORT = re.compile(r":\d*$")
_OPEN = re.compile(r"/v1/(health/|pictures/)|(?!/v1/|/metrics$)")
_SCOPES: tuple[tuple[re.Pattern[str], KeyScope], ...] = (
    (re.compile(r"/v1/images/verify$"), "verify"),
    (re.compile(r"/v1/images/img_[^/]*$"), "read"),
    (re.compile(r"/v1/images/"), "generate"),
    (re.compile(r"/metrics$"), "metrics"),
)
"""What a path takes, the first that fits; any key will do for the others."""


class OnlyHere:
    """Without keys, whoever does not call this machine by a name of its own gets no further.

    A page in somebody's browser may have its own name point to 127.0.0.1, and then ask as if it came from here; and
    where Serve's own tools listen on every interface, this is what keeps a server without keys to this machine.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not _OPEN.match(_path(scope)):
            host = _PORT.sub("", Headers(scope=scope).get("Host", "")).strip("[]")
            if not loopback(host):
                refused = RequestError(
                    "This server has no keys and answers on its own machine only, as 127.0.0.1 or localhost.",
                    status=403,
                    code="host_not_allowed",
                )
                await errors.answer(refused)(scope, receive, send)
                return
        await self._app(scope, receive, send)


class Authentication:
    """Puts the key into the scope's state, or answers 401 or 403."""

    def __init__(self, app: ASGIApp, ring: KeyRing) -> None:
        self._app = app
        self._ring = ring

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = _path(scope)
        if scope["type"] != "http" or _OPEN.match(path):
            await self._app(scope, receive, send)
            return
        if self._ring.stale:
            await asyncio.to_thread(self._ring.reload)
        try:
            key = self._admitted(Headers(scope=scope).get("Authorization", ""), path)
        except RequestError as refused:
            await errors.answer(refused)(scope, receive, send)
            return
        scope.setdefault("state", {})["key"] = key
        await self._app(scope, receive, send)

    def _admitted(self, header: str, path: str) -> Key:
        scheme, _, secret = header.partition(" ")
        if scheme.lower() != "bearer":
            raise RequestError(
                "This server wants a key: Authorization: Bearer cp_….", status=401, code="missing_api_key"
            )
        key = self._ring.find(secret.strip())
        if key is None:
            raise RequestError("This key is not in force here.", status=401, code="invalid_api_key")
        scope = next((scope for pattern, scope in _SCOPES if pattern.match(path)), None)
        if scope is not None and not key.may(scope):
            raise RequestError(f"This key may not {scope}.", status=403, code="insufficient_scope")
        return key


def _path(scope: Scope) -> str:
    path: str = scope["path"].removeprefix(scope.get("root_path", "")) if scope["type"] == "http" else ""
    return path
