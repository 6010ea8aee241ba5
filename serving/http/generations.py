"""`POST /v1/images/generations`: pictures for a request, whole or as a stream."""

from __future__ import annotations

from fastapi import APIRouter, Response

from serving.api import GenerationRequest, GenerationResponse
from serving.http.asker import FromAsker
from serving.http.desk import Desk
from serving.http.events import OPENAPI, EventStream

VERSION_HEADER = "X-Model-Version"


def routes(desk: Desk) -> APIRouter:
    """The endpoint, in front of `desk`."""
    router = APIRouter()

    @router.post("/v1/images/generations", response_model=GenerationResponse, responses={200: OPENAPI})
    async def generate(body: GenerationRequest, asker: FromAsker) -> Response:
        if body.stream:
            plan, card = await desk.check(body)
            return EventStream(lambda: desk.stream(body, asker), plan.output_format, card.size)
        return whole(await desk.draw(body, asker))

    return router


def whole(response: GenerationResponse) -> Response:
    """The answer that is not streamed: megabytes of base64, serialised once, and not validated again on its way out."""
    headers = {VERSION_HEADER: response.model_version}
    return Response(response.model_dump_json(), media_type="application/json", headers=headers)
