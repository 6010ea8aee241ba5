"""How large a body may be, and what is said when the server itself fails."""

from __future__ import annotations

import logging

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.api import RequestError
from serving.http import errors

_log = logging.getLogger(__name__)


class BodyLimit:
    """Answers 413 to a body over `max_bytes`, and 500 in our shape to what nobody caught.

    Counts what arrives, since Content-Length may be absent or untrue, and reads the body whole before the app sees any
    of it, so that nothing is half answered.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = bytearray()
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self._max_bytes:
                await errors.answer(_too_large(self._max_bytes))(scope, receive, send)
                return
        whole: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]
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


def _too_large(max_bytes: int) -> RequestError:
    return RequestError(
        f"The body is over this server's limit of {max_bytes} bytes.", status=413, code="body_too_large"
    )
