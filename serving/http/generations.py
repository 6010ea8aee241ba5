"""`POST /v1/images/generations`: pictures for a request, whole or as a stream."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from serving.api import GenerationRequest, GenerationResponse
from serving.call import Call
from serving.http.desk import Desk
from serving.http.events import OPENAPI, EventStream
from serving.http.request_id import request_id

VERSION_HEADER = "X-Model-Version"


def routes(desk: Desk) -> APIRouter:
    """The endpoint, in front of `desk`."""
    router = APIRouter()

    @router.post("/v1/images/generations", response_model=GenerationResponse, responses={200: OPENAPI})
    async def generate(body: GenerationRequest, request: Request) -> Response:
        call = Call(request_id=request_id(request), previews=body.partial_images or 0)
        if body.stream:
            plan, card = await desk.check(body)
            return EventStream(lambda: desk.stream(body, call), plan.output_format, card.size)
        generation = await desk.draw(body, call)
        # The answer is megabytes of base64: serialised once, and not validated again on its way out.
        return Response(
            generation.response().model_dump_json(),
            media_type="application/json",
            headers={VERSION_HEADER: generation.card.version},
        )

    return router
