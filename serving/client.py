"""A small client of the endpoint, for `cleanplate generate --server` and the demo. Any OpenAI client does as well."""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import urlsplit

import httpx
from pydantic import ValidationError

from curation.errors import UserError
from serving.api import ErrorBody, GenerationResponse
from serving.standing import ModelEntry, ModelList

KEY_VARIABLE = "CLEANPLATE_API_KEY"


def generate(url: str, prompt: str, *, timeout_s: float = 300.0, **fields: Any) -> GenerationResponse:
    """Asks a server for pictures; `response.data[k].picture()` is the k-th one's bytes.

    A key stands in the environment, as $CLEANPLATE_API_KEY.

    Args:
        url: the server, with or without `/v1`: `http://127.0.0.1:8000`.
        prompt: what to draw.
        timeout_s: seconds to wait for the answer.
        fields: more fields of `serving.api.GenerationRequest`, by name; None leaves one to the server.

    Raises:
        UserError: nothing listens there, what listens is no cleanplate server, or it refused or failed.
    """
    body = {"prompt": prompt, **{name: value for name, value in fields.items() if value is not None}}
    base = url.rstrip("/").removesuffix("/v1")
    if urlsplit(base).scheme not in ("http", "https"):
        raise UserError(f"{url} is not a URL", field="server", remedy="write it as http://HOST:PORT")
    # A proxy named in the environment has no business with a server on this machine.
    remote = urlsplit(base).hostname not in ("127.0.0.1", "localhost", "::1")
    key = os.environ.get(KEY_VARIABLE)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        answer = httpx.post(
            f"{base}/v1/images/generations", json=body, headers=headers, timeout=timeout_s, trust_env=remote
        )
    except httpx.TimeoutException:
        raise UserError(
            f"{base} did not answer within {timeout_s:g} s", field="server", remedy="ask for fewer images or steps"
        ) from None
    except httpx.TransportError as error:
        raise UserError(
            f"cannot reach {base} ({error})",
            field="server",
            remedy="start one with `cleanplate serve JOB.yaml`, or leave the server out to generate from the registry",
        ) from None
    return _read(base, answer)


def models(url: str, *, timeout_s: float = 10.0) -> list[ModelEntry]:
    """What a server serves: the body of its `/v1/models`.

    Raises:
        UserError: nothing listens there, what listens is no cleanplate server, or it refused.
    """
    base = url.rstrip("/").removesuffix("/v1")
    key = os.environ.get(KEY_VARIABLE)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    remote = urlsplit(base).hostname not in ("127.0.0.1", "localhost", "::1")
    try:
        answer = httpx.get(f"{base}/v1/models", headers=headers, timeout=timeout_s, trust_env=remote)
        answer.raise_for_status()
        return ModelList.model_validate_json(answer.content).data
    except (httpx.HTTPError, ValidationError) as error:
        told = f"{answer.status_code}" if isinstance(error, httpx.HTTPStatusError) else type(error).__name__
        raise UserError(
            f"{base} does not say what it serves ({told})",
            field="server",
            remedy=f"check the address, and the key in ${KEY_VARIABLE}",
        ) from None


def _read(base: str, answer: httpx.Response) -> GenerationResponse:
    try:
        if answer.status_code == 200:
            return GenerationResponse.model_validate_json(answer.content)
        error = ErrorBody.model_validate_json(answer.content).error
    except ValidationError:
        raise UserError(
            f"{base} answered {answer.status_code}, but not as a cleanplate server does",
            field="server",
            remedy="check the address",
        ) from None
    wait = answer.headers.get("retry-after")
    raise UserError(error.message, field=error.param, remedy=f"try again in {wait} s" if wait else None)
