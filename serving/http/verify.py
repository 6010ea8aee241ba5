"""`POST /v1/images/verify`: whether a file is from here.

The file is the body, or a part of a form. It is looked at in a thread of its own, one at a time.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fastapi import APIRouter, Request

from curation.errors import UserError
from serving.api import RequestError
from serving.http.asker import Asker, FromAsker
from serving.identity import ensure
from serving.job import ServeJob
from serving.records import Archive
from serving.verification import NoPictureError, Verification, Verifier, build

PATH = "/v1/images/verify"
_MOST_WAITING = 8
_MOST_CANDIDATES = 20
_BINARY: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
_FORM: dict[str, Any] = {
    "schema": {
        "type": "object",
        "properties": {"image": {"type": "string", "format": "binary"}},
        "required": ["image"],
    }
}
_BODY = {"requestBody": {"required": True, "content": {"image/*": _BINARY, "multipart/form-data": _FORM}}}
_BOUNDARY = re.compile(r'multipart/form-data\s*;.*?boundary=(?:"([^"\r\n]{1,70})"|([^\s;"]{1,70}))', re.IGNORECASE)
_log = logging.getLogger(__name__)


def routes(job: ServeJob, archive: Archive | None) -> APIRouter:
    """The endpoint, with a job's certificate and keys, which are read when they are first wanted."""
    router = APIRouter()
    desk = _Desk(lambda: _verifier(job))

    @router.post(PATH, openapi_extra=_BODY)
    async def verify(request: Request, asker: FromAsker) -> Verification:
        data = uploaded(request.headers.get("Content-Type", ""), await request.body())
        found = await desk.look(data)
        if archive is None:
            return found
        if found.image_id is not None:
            records = await asyncio.to_thread(_recorded, archive, [found.image_id], asker)
            return found.model_copy(update={"record": next(iter(records), None)})
        records = await asyncio.to_thread(_marked, archive, found.watermark.payload or "", asker)
        return found.model_copy(update={"candidates": tuple(records)})

    return router


class _Desk:
    """Looks at one file at a time."""

    def __init__(self, verifier: Callable[[], Verifier]) -> None:
        self._build = verifier
        self._verifier: Verifier | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="verify")
        self._waiting = 0

    async def look(self, data: bytes) -> Verification:
        """What a file's marks say. Raises RequestError."""
        if self._waiting >= _MOST_WAITING:
            raise RequestError(
                "As many files wait to be verified as this server takes.",
                status=429,
                code="overloaded",
                retry_after_s=2.0,
            )
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._verify, data)
        except NoPictureError as error:
            raise RequestError(
                f"This is no picture that can be verified: {error}.", param="image", code="invalid_image"
            ) from error
        except UserError as error:
            _log.error("files cannot be verified: %s", error)
            raise RequestError(
                "This server's certificate cannot be read; its log says more.",
                status=503,
                code="verification_unavailable",
                retry_after_s=60.0,
            ) from error
        finally:
            self._waiting -= 1

    def _verify(self, data: bytes) -> Verification:
        if self._verifier is None:
            self._verifier = self._build()
        return self._verifier.verify(data)


def _verifier(job: ServeJob) -> Verifier:
    if job.credentials.enabled or job.watermark.enabled:
        ensure(job.credentials, job.watermark)
    return build(job.credentials, job.watermark)


def _marked(archive: Archive, payload: str, asker: Asker) -> list[str]:
    try:
        return _recorded(archive, archive.marked(payload)[:_MOST_CANDIDATES], asker)
    except OSError:
        _log.exception("records could not be looked through for a watermark's payload")
        return []


def _recorded(archive: Archive, names: list[str], asker: Asker) -> list[str]:
    """URLs of the records that there are and that are to be shown to who asks."""
    urls = []
    for name in names:
        try:
            record = archive.record(name)
        except (OSError, ValueError):
            _log.exception("the record of %s cannot be read", name)
            continue
        if record is not None and asker.sees(record.key):
            urls.append(f"{asker.base_url}/v1/images/{name}")
    return urls


def uploaded(content_type: str, body: bytes) -> bytes:
    """The file in a body: of a form (RFC 7578) its first file, else all of it.

    Raises:
        RequestError: a form without a file, or an empty body.
    """
    data = body
    if content_type.lower().lstrip().startswith("multipart/"):
        found = _BOUNDARY.match(content_type.strip())
        part = None if found is None else _file_of(body, (found[1] or found[2]).encode("latin-1", "replace"))
        if part is None:
            raise RequestError(
                "The form has no file: send it as the part `image`.", param="image", code="missing_required_parameter"
            )
        data = part
    if not data:
        raise RequestError("The body is empty: send a picture's file.", param="image", code="invalid_image")
    return data


def _file_of(body: bytes, boundary: bytes) -> bytes | None:
    for piece in (b"\r\n" + body).split(b"\r\n--" + boundary)[1:]:
        if piece.startswith(b"--"):
            break
        head, between, content = piece.partition(b"\r\n\r\n")
        if between and (b"filename" in head.lower() or b'name="image"' in head.lower()):
            return content
    return None
