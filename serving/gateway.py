"""The HTTP face: OpenAI's Images API on FastAPI, in front of anything that can generate.

Knows nothing of Ray: `create_app` takes a `Backend`, which in production is `serving.replica.SamplerHandle`. Every
answer of 400 and above has OpenAI's error body.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Sequence
from typing import Any, Protocol

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.admission import Limits, ModelCard, admit
from serving.api import ErrorBody, GenerationRequest, GenerationResponse, Health, ModelEntry, ModelList, RequestError
from serving.generator import Generation
from serving.job import ServeJob

READY_TIMEOUT_S = 5.0
"""How long a replica's event loop may take to describe itself before the server calls itself not ready."""

_log = logging.getLogger(__name__)
_ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorBody, "description": "The request cannot be served as it stands."},
    "5XX": {"model": ErrorBody, "description": "The server failed, or took too long."},
}


class Backend(Protocol):
    """What makes the pictures."""

    async def describe(self) -> ModelCard:
        """The model that answers now. Raises RequestError (503) when there is none."""

    async def generate(self, request: GenerationRequest) -> Generation:
        """The request's pictures. Raises RequestError."""


def create_app(backend: Backend, job: ServeJob) -> FastAPI:
    """The API in front of `backend`, with the limits and the time limit of `job`."""
    # No /docs pages: they load scripts from elsewhere. The schema itself is at /openapi.json.
    app = FastAPI(title="cleanplate", docs_url=None, redoc_url=None, responses=_ERRORS)
    app.add_middleware(_BodyLimit, max_bytes=job.limits.max_body_bytes)
    app.add_exception_handler(RequestError, _on_request_error)
    app.add_exception_handler(RequestValidationError, _on_invalid_body)
    app.add_exception_handler(HTTPException, _on_http_exception)

    entrance = _Entrance(backend, job.limits)

    @app.post("/v1/images/generations", response_model=GenerationResponse)
    async def generate(body: GenerationRequest) -> Response:
        try:
            async with asyncio.timeout(job.request_timeout_s):
                await entrance.check(body)
                generation = await backend.generate(body)
        except TimeoutError:
            raise RequestError(
                f"The pictures were not ready within {job.request_timeout_s:g} s.", status=504, code="timeout"
            ) from None
        # The answer is megabytes of base64: serialised once, and not validated again on its way out.
        return Response(generation.response().model_dump_json(), media_type="application/json")

    @app.get("/v1/models")
    async def models() -> ModelList:
        return ModelList(data=[(await _described(backend)).entry()])

    @app.get("/v1/models/{model:path}")
    async def model(model: str) -> ModelEntry:
        card = await _described(backend)
        if model not in card.names():
            raise RequestError(f"The model {model!r} is not served here.", status=404, code="model_not_found")
        return card.entry()

    @app.get("/v1/health/live")
    async def live() -> Health:
        return Health(status="live")

    @app.get("/v1/health/ready")
    async def ready() -> Health:
        card = await _described(backend)
        return Health(status="ready", model=card.name, version=card.version, backend=card.backend, exact=card.exact)

    return app


class _Entrance:
    """Refuses what cannot be served before it takes a place in the queue."""

    def __init__(self, backend: Backend, limits: Limits) -> None:
        self._backend = backend
        self._limits = limits
        self._card: ModelCard | None = None

    async def check(self, request: GenerationRequest) -> None:
        """Raises RequestError. A good request costs no call to the backend, which checks it again anyway."""
        if self._card is not None:
            try:
                admit(request, self._card, self._limits)
                return
            except RequestError:
                # The model may be another one by now: only its own card may refuse.
                pass
        self._card = await _described(self._backend)
        admit(request, self._card, self._limits)


async def _described(backend: Backend) -> ModelCard:
    try:
        async with asyncio.timeout(READY_TIMEOUT_S):
            return await backend.describe()
    except TimeoutError:
        raise RequestError(
            f"The model's process did not answer within {READY_TIMEOUT_S:g} s.",
            status=503,
            code="not_ready",
            retry_after_s=READY_TIMEOUT_S,
        ) from None


def _answer(error: RequestError) -> JSONResponse:
    headers = {} if error.retry_after_s is None else {"Retry-After": str(math.ceil(error.retry_after_s))}
    return JSONResponse(error.body().model_dump(), status_code=error.status, headers=headers)


async def _on_request_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestError)
    return _answer(error)


async def _on_http_exception(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    message, code = str(error.detail), None
    if error.status_code == 404:
        message, code = f"There is no {request.url.path} here.", "unknown_url"
    elif error.status_code == 405:
        message, code = f"{request.method} is not answered at {request.url.path}.", "method_not_allowed"
    answer = _answer(RequestError(message, status=error.status_code, code=code))
    answer.headers.update(error.headers or {})
    return answer


async def _on_invalid_body(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return _answer(_first_mistake(error.errors()))


def _first_mistake(mistakes: Sequence[Any]) -> RequestError:
    """One of pydantic's complaints in OpenAI's words. Says nothing of the values: they may be anything, of any size."""
    mistake = mistakes[0]
    # A key of the body can be anything too: cut short, and without the lone surrogates that no answer can carry.
    where = ".".join(str(part) for part in mistake["loc"][1:])
    param = where.encode(errors="replace").decode()[:100] or None
    match mistake["type"]:
        case "json_invalid":
            return RequestError("The body is not valid JSON.", code="invalid_json")
        case "missing" if param is None:
            return RequestError("The request needs a JSON body.", code="invalid_json")
        case "missing":
            return RequestError(f"{param} is missing.", param=param, code="missing_required_parameter")
        case "extra_forbidden":
            return RequestError(f"There is no parameter {param}.", param=param, code="unknown_parameter")
    if param is None:
        return RequestError(
            "The body must be a JSON object, sent as Content-Type: application/json.", code="invalid_json"
        )
    return RequestError(f"{param}: {mistake['msg']}.", param=param, code="invalid_value")


class _BodyLimit:
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
                await _answer(_too_large(self._max_bytes))(scope, receive, send)
                return
        whole: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def replay() -> Message:
            return whole.pop() if whole else await receive()

        try:
            await self._app(scope, replay, send)
        except Exception:
            _log.exception("%s %s failed", scope["method"], scope["path"])
            internal = RequestError(
                "The server failed at this request; its log says more.", status=500, code="internal"
            )
            await _answer(internal)(scope, receive, send)


def _too_large(max_bytes: int) -> RequestError:
    return RequestError(
        f"The body is over this server's limit of {max_bytes} bytes.", status=413, code="body_too_large"
    )
