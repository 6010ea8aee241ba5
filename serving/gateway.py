"""The HTTP face: OpenAI's Images API on FastAPI, in front of anything that can generate.

Knows nothing of Ray: `create_app` takes a `Backend`, which in production is `serving.handle.SamplerHandle`. Its rooms
are in `serving.http`. Every answer of 400 and above has OpenAI's error body.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI
from fastapi.security import HTTPBearer
from starlette.middleware.cors import CORSMiddleware

from serving.doorway import Doorway
from serving.http import errors, generations, jobs, metrics, models, page, pictures, verify
from serving.http.asker import TIMEOUT_HEADER as TIMEOUT
from serving.http.authentication import Authentication, OnlyHere
from serving.http.body_limit import BodyLimit
from serving.http.desk import Backend, Desk
from serving.http.events import VERSION_HEADER as VERSION
from serving.http.job_runner import Runner
from serving.http.request_id import HEADER as REQUEST_ID
from serving.http.request_id import RequestId
from serving.job import ServeJob
from serving.keys import KeyRing, KeysConfig
from serving.quotas import Quotas
from serving.records import Archive


def create_app(backend: Backend, job: ServeJob, doorway: Doorway | None = None) -> FastAPI:
    """The API in front of `backend`, with the limits and the time limit of `job`; jobs go in by `doorway`."""
    keys = job.keys if isinstance(job.keys, KeysConfig) else None
    quotas = None if keys is None else Quotas(keys.usage or f"{keys.file}.usage")
    archive = None if job.records is None else Archive(job.records)
    desk = Desk(backend, job, archive, quotas)
    runner = None if job.jobs is None else Runner(job.jobs, desk.draw, doorway=doorway)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if runner is not None:
            runner.begin()
        yield
        if runner is not None:
            await runner.close()

    # No /docs pages: they load scripts from elsewhere. The schema itself is at /openapi.json.
    app = FastAPI(
        title="cleanplate",
        docs_url=None,
        redoc_url=None,
        responses=errors.RESPONSES,
        lifespan=lifespan,
        dependencies=[] if keys is None else [Depends(HTTPBearer(auto_error=False))],  # for the schema
    )
    errors.install(app)
    # The last one added is the first to see a request.
    app.add_middleware(
        BodyLimit,
        max_bytes=job.limits.max_body_bytes,
        max_depth=job.limits.max_json_depth,
        files={verify.PATH: job.limits.max_upload_bytes},
    )
    if keys is not None:
        app.add_middleware(Authentication, ring=KeyRing(keys))
    elif job.keys is None:
        app.add_middleware(OnlyHere)
    app.add_middleware(RequestId)
    if job.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=job.cors_origins,
            allow_methods=["GET", "POST", "PUT", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "Prefer", REQUEST_ID, TIMEOUT],
            expose_headers=["Location", "Retry-After", REQUEST_ID, VERSION],
        )
    app.include_router(generations.routes(desk, runner))
    app.include_router(jobs.routes(desk, runner))
    app.include_router(pictures.routes(desk, archive))
    app.include_router(verify.routes(job, archive))
    app.include_router(models.routes(desk))
    app.include_router(metrics.routes())
    app.include_router(page.routes(desk, shown=job.page))
    return app
