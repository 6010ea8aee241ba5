"""`GET /metrics`: what the whole server has counted, where somebody counts (`serving.access`)."""

from __future__ import annotations

from fastapi import APIRouter, HTTPException, Request, Response

from serving.metrics import CONTENT_TYPE


def routes() -> APIRouter:
    """The endpoint. Not part of the API's schema: it is for whoever runs the server."""
    router = APIRouter()

    @router.get("/metrics", include_in_schema=False)
    async def metrics(request: Request) -> Response:
        exposition = getattr(request.state, "exposition", None)
        if exposition is None:
            raise HTTPException(404)
        return Response(await exposition(), media_type=CONTENT_TYPE)

    return router
