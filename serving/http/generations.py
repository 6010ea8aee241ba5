"""`POST /v1/images/generations`: pictures for a request, whole or as a stream."""

from __future__ import annotations

import secrets

from fastapi import APIRouter, Request, Response

from serving.api import GenerationRequest, GenerationResponse
from serving.http import jobs
from serving.http.asker import FromAsker
from serving.http.desk import Desk
from serving.http.events import OPENAPI, VERSION_HEADER, EventStream
from serving.http.job_runner import Runner


def routes(desk: Desk, runner: Runner | None) -> APIRouter:
    """The endpoint, in front of `desk`; without a runner nobody gets a job, whatever he prefers."""
    router = APIRouter()

    @router.post("/v1/images/generations", response_model=GenerationResponse, responses=OPENAPI | jobs.TAKEN)
    async def generate(body: GenerationRequest, request: Request, asker: FromAsker) -> Response:
        if runner is not None and jobs.wants_a_job(request):
            job, _ = await jobs.taken(desk, runner, f"job_{secrets.token_hex(16)}", body, asker)
            return jobs.accepted(job, request)
        if body.stream:
            plan, _ = await desk.check(body)
            return EventStream(lambda: desk.stream(body, asker), plan.output_format, plan.size)
        return whole(await desk.draw(body, asker))

    return router


def whole(response: GenerationResponse) -> Response:
    """The answer that is not streamed: megabytes of base64, serialised once, and not validated again on its way out."""
    headers = {VERSION_HEADER: response.model_version}
    return Response(response.model_dump_json(), media_type="application/json", headers=headers)
