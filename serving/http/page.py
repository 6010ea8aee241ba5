"""The page for people at `/`, and `/v1/guide`, which tells it what may be asked for.

The files of this package's folder `page`, which load nothing from elsewhere and write no HTML: the page is allowed
nothing else. Keys are not asked for it; it asks with the key that a person gives it, and what it says is what `/v1/`
tells that key.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from html import escape
from pathlib import Path

from fastapi import APIRouter, Request, Response

from serving.http.desk import Desk
from serving.standing import Guide

_FOLDER = Path(__file__).parent.parent / "page"
_TYPES = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8"}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


def routes(desk: Desk, *, shown: bool) -> APIRouter:
    """The guide and, if it is to be shown, the page."""
    router = APIRouter()

    @router.get("/v1/guide")
    async def guide() -> Guide:
        return await desk.guide()

    if not shown:
        return router
    html = (_FOLDER / "page.html").read_text(encoding="utf-8")

    @router.get("/", include_in_schema=False)
    async def page(request: Request) -> Response:
        # Below another path (`route_prefix`) the browser has to be told where everything else is.
        root = escape(request.scope.get("root_path", "").rstrip("/") + "/")
        return Response(html.replace("{{root}}", root), media_type="text/html; charset=utf-8", headers=_HEADERS)

    for file in sorted(_FOLDER.iterdir()):
        if file.suffix in _TYPES:
            router.add_api_route(f"/page/{file.name}", _file(file), include_in_schema=False)
    return router


def _file(path: Path) -> Callable[[], Awaitable[Response]]:
    data = path.read_bytes()

    async def file() -> Response:
        return Response(data, media_type=_TYPES[path.suffix], headers=_HEADERS)

    return file
