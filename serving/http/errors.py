"""Every answer of 400 and above in OpenAI's shape, whoever refuses: the API, FastAPI, or nobody at all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from serving.api import ErrorBody, RequestError
from serving.context import note

RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorBody, "description": "The request cannot be served as it stands."},
    "5XX": {"model": ErrorBody, "description": "The server failed, or took too long."},
}


def install(app: FastAPI) -> None:
    """Makes the app answer in our shape."""
    app.add_exception_handler(RequestError, _on_request_error)
    app.add_exception_handler(RequestValidationError, _on_invalid_body)
    app.add_exception_handler(HTTPException, _on_http_exception)


def answer(error: RequestError) -> JSONResponse:
    """The refusal as it goes over the wire."""
    headers = {}
    if error.retry_after_s is not None or error.status in (429, 503):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s or 0)))
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(error.body().model_dump(), status_code=error.status, headers=headers)


def internal() -> RequestError:
    """What is said of a defect: nothing of the inside."""
    return RequestError("The server failed at this request; its log says more.", status=500, code="internal")


async def _on_request_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestError)
    if error.moderation is not None:
        note(moderation=[f"prompt:{category}:block" for category in error.moderation.categories])
    return answer(error)


async def _on_http_exception(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    message, code = str(error.detail), None
    if error.status_code == 404:
        message, code = f"There is no {request.url.path} here.", "unknown_url"
    elif error.status_code == 405:
        message, code = f"{request.method} is not answered at {request.url.path}.", "method_not_allowed"
    refusal = answer(RequestError(message, status=error.status_code, code=code))
    refusal.headers.update(error.headers or {})
    return refusal


async def _on_invalid_body(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return answer(first_mistake(error.errors()))


def first_mistake(mistakes: Sequence[Any]) -> RequestError:
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
