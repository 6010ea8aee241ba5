"""Around every request at a gateway: its id, its line in the log, its count and its span, and the closed door.

An ASGI application around the API's, so that what nobody caught is seen too. It looks at a request's head and at its
answer's, never at a body, but for refusals, whose code it counts.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.api import RequestError
from serving.context import Origin, request_id_of, track
from serving.doorway import Doorway
from serving.http import errors
from serving.metrics import GatewayMetrics, Snapshot, exposition
from serving.observability import ObservabilityConfig
from serving.traces import Traces

RETRY_AFTER_S = 5.0
"""When another process should answer what this one refuses because it is being shut down."""

Others = Callable[[], Awaitable[tuple[Sequence[Snapshot], bool]]]
"""What the server's other processes have counted, and whether all of them answered."""

_log = logging.getLogger(__name__)
_DRAWING = "/v1/images/generations"
_CODE = re.compile(rb'"code":\s*"([A-Za-z0-9_.-]{1,64})"')
_ASKED_WHILE_CLOSED = ("GET", "HEAD", "OPTIONS", "DELETE")


async def alone() -> tuple[Sequence[Snapshot], bool]:
    """A gateway that is the whole server."""
    return (), True


class Access:
    """The API's application, watched.

    Args:
        app: the API.
        config: what may be told.
        metrics, spans: what is told.
        others: asks the server's other processes.
        named_outside: whether who stands before this puts `X-Request-Id` into the answers, as Ray Serve's proxy does.
        doorway: the API's own, for what it does when no request waits for it.
    """

    def __init__(
        self,
        app: ASGIApp,
        config: ObservabilityConfig,
        *,
        metrics: GatewayMetrics | None = None,
        spans: Traces | None = None,
        others: Others = alone,
        named_outside: bool = False,
        doorway: Doorway | None = None,
    ) -> None:
        self.doorway = doorway or Doorway()
        self.metrics = metrics or GatewayMetrics()
        self._app = app
        self._config = config
        self._spans = spans or Traces()
        self._others = others
        self._named_outside = named_outside

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = MutableHeaders(scope=scope)
        request_id = request_id_of(headers.get("X-Request-Id", ""))
        headers["X-Request-Id"] = request_id  # so that all behind this agree on it
        answer = _Answer(send, drop="X-Request-Id" if self._named_outside else None)
        begun = time.perf_counter()
        with (
            self.doorway.enter(),
            self.metrics.in_flight.track_inprogress(),
            self._spans.serving(scope["method"], headers) as carrier,
            track(Origin(request_id, carrier)) as tracked,
        ):
            try:
                await self._answered(scope, receive, answer)
            except asyncio.CancelledError:
                answer.left = True
                raise
            finally:
                self._tell(scope, answer, time.perf_counter() - begun, tracked.facts)

    async def _answered(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        if self._config.metrics:
            scope.setdefault("state", {})["exposition"] = self.exposition  # for `serving.http.metrics`
        path = scope["path"].removeprefix(scope.get("root_path", "").rstrip("/"))
        if not self.doorway.open and (scope["method"] not in _ASKED_WHILE_CLOSED or path == "/v1/health/ready"):
            await errors.answer(_closed())(scope, receive, answer)
        else:
            await self._app(scope, receive, answer)

    async def exposition(self) -> bytes:
        """The whole server's metrics in Prometheus' text format."""
        self.metrics.accepting.set(self.doorway.open)
        others, complete = await self._others()
        self.metrics.complete.set(complete)
        return exposition([self.metrics.snapshot(), *others])

    def _tell(self, scope: Scope, answer: _Answer, seconds: float, facts: dict[str, Any]) -> None:
        # Who stands before a closed door is not routed any more. A browser's OPTIONS, before it posts, draws nothing.
        drawing = scope["method"] == "POST" and scope["path"].endswith(_DRAWING)
        unrouted = _DRAWING if drawing else "unmatched"
        route = getattr(scope.get("route"), "path", unrouted)
        outcome = answer.outcome()
        self.metrics.answered(route, outcome, seconds)
        if answer.code is not None and answer.status >= 400:
            self.metrics.refused(answer.status, answer.code)
        self._spans.served(f"{scope['method']} {route}", answer.status, outcome)
        if self._config.access_log:
            told = {
                "method": scope["method"],
                "route": route,
                "status": answer.status,
                "outcome": outcome,
                "code": answer.code,
                "ms": round(seconds * 1e3, 1),
                "key": getattr(scope.get("state", {}).get("key"), "id", None),
                **facts,
            }
            _log.info("request", extra={"facts": {name: value for name, value in told.items() if value is not None}})


class _Answer:
    """Passes an answer on, without the header `drop`, and sees what it comes to.

    Attributes:
        status: 0 before it begins.
        code: of a refusal, in our shape.
        left: whether the client had gone before its end.
    """

    def __init__(self, send: Send, drop: str | None = None) -> None:
        self._send = send
        self._drop = drop
        self._stream = False
        self._ended = False
        self.status = 0
        self.code: str | None = None
        self.left = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            self._stream = headers.get("content-type", "").startswith("text/event-stream")
            if self._drop is not None:
                del headers[self._drop]
        elif message["type"] == "http.response.body":
            body = message.get("body", b"")
            broken = self._stream and body.startswith(b"event: error")
            if (self.status >= 400 or broken) and self.code is None:
                found = _CODE.search(body, 0, 65_536)
                self.code = found[1].decode() if found else "failed" if broken else None
            self._ended = not message.get("more_body", False)
        await self._send(message)

    def outcome(self) -> str:
        """In a word. A stream that breaks off with an error event has failed, whatever its status was."""
        if self.left or not self._ended:
            return "left"
        match self.status:
            case 429 | 503:
                return "refused"
            case 504:
                return "timeout"
            case status if status >= 500:
                return "failed"
            case status if status >= 400:
                return "invalid"
        return "ok" if self.code is None else "failed"


def _closed() -> RequestError:
    return RequestError(
        "This server is being shut down.", status=503, code="shutting_down", retry_after_s=RETRY_AFTER_S
    )
