"""How large a body may be, how deep its JSON, and what is said when the server itself fails."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.api import RequestError
from serving.http import errors

_STRING = re.compile(r'"(?:[^"\\]|\\.)*+"', re.DOTALL)
_BRACKET = re.compile(r"[\[\]{}]")
_log = logging.getLogger(__name__)


class BodyLimit:
    """Answers 413 to a body over `max_bytes`, 400 to JSON deeper than `max_depth`, and 500 to what nobody caught.

    Counts what arrives, since Content-Length may be absent or untrue, and reads the body whole before the app sees any
    of it, so that nothing is half answered.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, max_depth: int, files: Mapping[str, int] | None = None) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._max_depth = max_depth
        self._files = files or {}  # paths that take files, and how many bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        max_bytes = self._files.get(path, self._max_bytes)
        body = bytearray()
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > max_bytes:
                await errors.answer(_too_large(max_bytes))(scope, receive, send)
                return
        data = bytes(body)
        if path not in self._files and deeper(data, self._max_depth):
            await errors.answer(_too_deep(self._max_depth))(scope, receive, send)
            return
        whole: list[Message] = [{"type": "http.request", "body": data, "more_body": False}]
        begun = False

        async def replay() -> Message:
            return whole.pop() if whole else await receive()

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, replay, watched)
        except Exception:
            _log.exception("%s %s failed", scope["method"], scope["path"])
            if begun:
                raise  # there is half an answer: breaking it off is all that is left to do
            await errors.answer(errors.internal())(scope, receive, send)


def deeper(body: bytes, depth: int) -> bool:
    """Whether brackets open more than `depth` levels, as in JSON; what is no JSON is somebody else's to refuse."""
    text = body.decode(json.detect_encoding(body), "replace")  # as `json.loads` does
    if text.lstrip()[:1] not in ("{", "["):
        return False
    level = 0
    for token in _BRACKET.findall(_STRING.sub("", text)):
        level += 1 if token in "[{" else -1
        if level > depth:
            return True
    return False


def _too_deep(depth: int) -> RequestError:
    return RequestError(f"The body is nested over this server's limit of {depth} levels.", code="body_too_deep")


def _too_large(max_bytes: int) -> RequestError:
    return RequestError(
        f"The body is over this server's limit of {max_bytes} bytes.", status=413, code="body_too_large"
    )
