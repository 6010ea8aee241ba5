"""`/v1/images/{id}`, its reproduction, and the pictures that lie at URLs for a while."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from fastapi import APIRouter, Response
from starlette.convertors import Convertor, register_url_convertor

from serving.api import GenerationRequest, Reproduction, ReproductionRequest, ReproductionResponse, RequestError
from serving.http.asker import Asker, FromAsker
from serving.http.desk import Desk
from serving.http.generations import whole
from serving.records import Archive, Record, sha256

T = TypeVar("T")


class _ImageId(Convertor[str]):
    """Names of pictures in paths: nothing else is one, so that `/v1/images/` has room for others."""

    regex = "img_[0-9a-f]{32}"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("image", _ImageId())


def routes(desk: Desk, archive: Archive | None) -> APIRouter:
    """The endpoints; without an archive nothing was ever kept."""
    router = APIRouter()

    @router.get("/v1/images/{image_id:image}")
    async def record(image_id: str, asker: FromAsker) -> Record:
        return await _record(archive, image_id, asker)

    @router.post("/v1/images/{image_id:image}/reproduce", response_model=ReproductionResponse)
    async def reproduce(image_id: str, asker: FromAsker, body: ReproductionRequest | None = None) -> Response:
        record = await _record(archive, image_id, asker)
        response = await desk.draw_again(_request(record, body or ReproductionRequest()), record, asker)
        (datum,) = response.data
        both = datum.pixels_sha256 is not None and record.pixels_sha256 is not None
        reproduction = Reproduction(
            of=record.id,
            pixels_equal=datum.pixels_sha256 == record.pixels_sha256 if both else None,
            recorded_sha256=record.pixels_sha256,
            same_backend=response.backend == record.backend,
        )
        return whole(ReproductionResponse(**response.model_dump(), reproduction=reproduction))

    @router.get("/v1/pictures/{name}", response_class=Response, responses={200: {"content": {"image/*": {}}}})
    async def picture(name: str) -> Response:
        if archive is not None and archive.expired(name):
            raise RequestError("This picture is not kept any more.", status=410, code="picture_expired")
        data = None if archive is None else await _read(archive.picture, name)
        if data is None:
            raise RequestError("There is no such picture.", status=404, code="picture_not_found")
        headers = {"Cache-Control": "private, no-store", "X-Content-Type-Options": "nosniff"}
        return Response(data, media_type=f"image/{name.rpartition('.')[2]}", headers=headers)

    return router


async def _record(archive: Archive | None, name: str, asker: Asker) -> Record:
    """Raises RequestError; somebody else's picture is as one that is not there."""
    record = None if archive is None else await _read(archive.record, name)
    if record is None or not asker.sees(record.key):
        raise RequestError(
            f"There is no record of {name}: nothing was drawn under that id, or it was too long ago.",
            status=404,
            code="image_not_found",
        )
    return record


async def _read(read: Callable[[str], T], name: str) -> T:
    try:
        return await asyncio.to_thread(read, name)
    except (OSError, ValueError) as error:
        raise RequestError(
            "What is kept cannot be read now.", status=503, code="storage_unavailable", retry_after_s=30.0
        ) from error


def _request(record: Record, given: ReproductionRequest) -> GenerationRequest:
    """What was asked for then, with the prompts that were not kept."""
    prompt = _text("prompt", given.prompt, record.prompt, record.prompt_sha256)
    negative = _text(
        "negative_prompt", given.negative_prompt or None, record.negative_prompt, record.negative_prompt_sha256
    )
    if prompt is None:
        raise AssertionError("every picture has a prompt")
    return GenerationRequest(
        prompt=prompt,
        negative_prompt=negative,
        size=record.size,
        num_inference_steps=record.steps,
        guidance_scale=record.guidance_scale,
        sampler=record.sampler,
        output_format=record.output_format,
        output_compression=record.output_compression,
    ).model_copy(update={"seed": record.seed})  # a later image's may lie above the largest that a request may name


def _text(field: str, given: str | None, kept: str | None, digest: str | None) -> str | None:
    text = kept if given is None else given
    if text is None and digest is not None:
        raise RequestError(
            f"This server keeps no prompts: send the {field} of then.",
            param=field,
            code="missing_required_parameter",
        )
    if text is not None and sha256(text) != digest:
        raise RequestError(f"This is not the {field} of then.", status=409, param=field, code="prompt_differs")
    return text
