"""`/v1/images/jobs`: pictures that are asked for now and fetched later."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response
from fastapi.responses import JSONResponse

from serving.admission import unsupported
from serving.api import ErrorBody, GenerationRequest, GenerationResponse, RequestError
from serving.http.asker import Asker, FromAsker
from serving.http.desk import Desk
from serving.http.job_runner import Runner
from serving.jobs import ID, OPEN, Job, Stored
from serving.webhooks import VARIABLE, secret_of

JobId = Annotated[str, Path(pattern=f"^{ID}$", description="the client's own, or the one that the server gave")]
TAKEN: dict[int | str, dict[str, Any]] = {202: {"model": Job, "description": "With `Prefer: respond-async`: the job."}}
_WAIT = {"Retry-After": "1"}


def routes(desk: Desk, runner: Runner | None) -> APIRouter:
    """The endpoints; without a runner there are no jobs."""
    router = APIRouter()

    @router.put("/v1/images/jobs/{job_id}", response_model=Job, responses={201: {"model": Job}})
    async def put(job_id: JobId, body: GenerationRequest, request: Request, asker: FromAsker) -> Response:
        job, new = await taken(desk, _there(runner), job_id, body, asker)
        return _told(job, request, 201 if new else 200)

    @router.get("/v1/images/jobs/{job_id}", response_model=Job)
    async def status(job_id: JobId, request: Request, asker: FromAsker) -> Response:
        return _told((await _found(_there(runner), job_id, asker)).job, request, 200)

    @router.get("/v1/images/jobs/{job_id}/result", response_model=GenerationResponse)
    async def result(job_id: JobId, asker: FromAsker) -> Response:
        stored = await _found(_there(runner), job_id, asker)
        job = stored.job
        if job.status in OPEN:
            raise RequestError(f"The job is {job.status}.", status=409, code="job_not_ended", retry_after_s=1.0)
        if job.status == "cancelled":
            raise RequestError("The job was cancelled.", status=410, code="job_cancelled")
        if job.error is not None:
            return JSONResponse(ErrorBody(error=job.error).model_dump(), status_code=job.error_status or 500)
        return Response(await _there(runner).result(stored), media_type="application/json")

    @router.delete("/v1/images/jobs/{job_id}")
    async def cancel(job_id: JobId, asker: FromAsker) -> Job:
        return await _there(runner).cancel(await _found(_there(runner), job_id, asker))

    @router.get("/v1/images/webhook_secret")
    async def webhook_secret(asker: FromAsker) -> dict[str, str]:
        """With what this key's webhooks are signed."""
        secret = secret_of(asker.key_id)
        if secret is None:
            raise RequestError(
                f"This server signs no webhooks: its operator gave it no ${VARIABLE}.", status=404, code="no_webhooks"
            )
        return {"secret": secret}

    return router


def wants_a_job(request: Request) -> bool:
    """Whether the client prefers a job to waiting (RFC 7240)."""
    preferences = ",".join(request.headers.getlist("Prefer")).split(",")
    return any(preference.partition(";")[0].strip().lower() == "respond-async" for preference in preferences)


async def taken(desk: Desk, runner: Runner, name: str, body: GenerationRequest, asker: Asker) -> tuple[Job, bool]:
    """A job for a request that could be drawn. Raises RequestError."""
    if body.stream:
        raise unsupported("stream", "a job's pictures are fetched when it has ended")
    await desk.check(body.model_copy(update={"webhook": None}))
    return await runner.take(name, body, asker)


def accepted(job: Job, request: Request) -> Response:
    """The answer to a client that prefers a job."""
    answer = _told(job, request, 202)
    answer.headers["Preference-Applied"] = "respond-async"
    return answer


def _told(job: Job, request: Request, status: int) -> Response:
    where = str(request.base_url).rstrip("/") + f"/v1/images/jobs/{job.id}"
    headers = {"Location": where} | (_WAIT if job.status in OPEN else {})
    return JSONResponse(job.model_dump(), status_code=status, headers=headers)


def _there(runner: Runner | None) -> Runner:
    if runner is None:
        raise RequestError("This server keeps no jobs.", status=404, code="no_jobs")
    return runner


async def _found(runner: Runner, name: str, asker: Asker) -> Stored:
    stored = await runner.find(name, asker)
    if stored is None:
        raise RequestError(
            f"There is no job {name}: it was never asked for, or ended long ago.", status=404, code="job_not_found"
        )
    return stored
