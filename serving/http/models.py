"""`/v1/models` and `/v1/health`: what answers here, and whether it does."""

from __future__ import annotations

from fastapi import APIRouter

from serving.api import RequestError
from serving.http.desk import Desk
from serving.standing import Health, ModelEntry, ModelList


def routes(desk: Desk) -> APIRouter:
    """The endpoints, of what is behind `desk`."""
    router = APIRouter()

    @router.get("/v1/models")
    async def models() -> ModelList:
        return ModelList(data=(await desk.describe()).entries())

    @router.get("/v1/models/{model:path}")
    async def model(model: str) -> ModelEntry:
        card = (await desk.describe()).named(model)
        if card is None:
            raise RequestError(f"The model {model!r} is not served here.", status=404, code="model_not_found")
        return card.entry()

    @router.get("/v1/health/live")
    async def live() -> Health:
        return Health(status="live")

    @router.get("/v1/health/ready")
    async def ready() -> Health:
        card = await desk.describe()
        return Health(
            status="ready",
            model=card.name,
            version=card.version,
            backend=card.backend,
            exact=card.exact,
            rollout=card.rollout,
        )

    return router
