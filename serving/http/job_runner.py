"""Has jobs drawn, in the gateway: so many at a time, patiently, and tells whoever wants to know.

What refuses a request for a moment (429, 503) only delays a job. The process gives signs of life while it has jobs; the
open jobs of one that gives none any more have failed and say so, and their webhooks are sent by whoever notices.

A process that is to end lets the jobs that are being drawn finish, as it does with requests (`serving.doorway`), and
begins no others. Those, and what is not done in time, have failed with the code `interrupted`, and asking again begins
them anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Any

from serving.api import GenerationRequest, GenerationResponse, RequestError
from serving.doorway import Doorway
from serving.http import errors
from serving.http.asker import Asker
from serving.jobs import OPEN, Job, JobsConfig, JobStore, Stored, WebhookStanding, body_sha256
from serving.webhooks import Sender, check, message, secret_of

BEAT_S = 5.0
"""Seconds between two signs of life; after six without one a process is gone."""
_PATIENCE_S = 30.0
_LOOK_ROUND = 12  # beats between two looks at what became of other processes' jobs

Draw = Callable[[GenerationRequest, Asker], Awaitable[GenerationResponse]]
_log = logging.getLogger(__name__)


class Runner:
    """Belongs to one event loop.

    Args:
        draw: has a request drawn; raises RequestError.
        doorway: where jobs that are being drawn are inside; while it is closed none is begun.
        sender: of webhooks.
        sleep: waits so many seconds.
        clock: Unix time, seconds.
    """

    def __init__(
        self,
        config: JobsConfig,
        draw: Draw,
        *,
        doorway: Doorway | None = None,
        sender: Sender | None = None,
        sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._config = config
        self._draw = draw
        self._doorway = doorway or Doorway()
        self._sender = sender or Sender(config.webhooks)
        self._sleep = sleep
        self._clock = clock
        self._store = JobStore(config, clock)
        self._gateway = secrets.token_hex(8)
        self._tasks: dict[tuple[str | None, str], asyncio.Task[None]] = {}
        self._others: set[asyncio.Task[None]] = set()
        self._turn = asyncio.Semaphore(config.concurrent)
        self._taking = asyncio.Lock()
        self._beating: asyncio.Task[None] | None = None

    async def take(self, name: str, request: GenerationRequest, asker: Asker) -> tuple[Job, bool]:
        """The job of that id, and whether it is new. A job that failed for no fault of its own begins anew.

        Raises:
            RequestError: 409 where the id is that of another request's job, 429 where too many wait.
        """
        self.begin()
        if request.webhook is not None:
            check(request.webhook.url, self._config.webhooks, secret_of(asker.key_id))
        digest = body_sha256(request)
        async with self._taking:
            known = await self.find(name, asker)
            if known is not None and known.body_sha256 != digest:
                raise RequestError(
                    f"The job {name} was asked for with another body; take another id.",
                    status=409,
                    code="job_differs",
                )
            if known is not None and not (known.job.status == "failed" and known.job.retryable):
                return known.job, False
            if len(self._tasks) >= self._config.max_waiting:
                raise RequestError(
                    "As many jobs wait here as are taken.", status=429, code="too_many_jobs", retry_after_s=30.0
                )
            webhook = None if request.webhook is None else WebhookStanding(url=request.webhook.url)
            job = Job(id=name, status="queued", created=int(self._clock()), webhook=webhook)
            stored = Stored(job=job, owner=asker.key_id, body_sha256=digest, gateway=self._gateway)
            await _aside(self._store.beat, self._gateway)
            await _aside(self._store.write, stored)
            patient = dataclasses.replace(asker, seconds=None)  # its deadline was that of this answer
            task = asyncio.create_task(self._run(stored, request, patient), name=f"job {name}")
            self._tasks[stored.owner, name] = task
            task.add_done_callback(self._ended)
            return job, True

    async def find(self, name: str, asker: Asker) -> Stored | None:
        """A job of whoever asks; None where there is none. Raises RequestError (503)."""
        stored = await _aside(self._store.read, asker.key_id, name)
        return None if stored is None else await self._looked_after(stored)

    async def result(self, stored: Stored) -> bytes:
        """The answer of a job that succeeded, as JSON. Raises RequestError (503)."""
        data: bytes = await _aside(self._store.read_result, stored)
        return data

    async def cancel(self, stored: Stored) -> Job:
        """Ends a job; one that has ended is forgotten, with its result. Raises RequestError (503)."""
        if stored.job.status not in OPEN:
            await _aside(self._store.remove, stored)
            return stored.job
        task = self._tasks.get((stored.owner, stored.job.id))
        ended = stored.changed(status="cancelled", ended=int(self._clock()))
        await _aside(self._store.write, ended)
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        self._tell(ended)
        return ended.job

    async def close(self) -> None:
        """Ends what is under way; its jobs have failed and may be asked for again."""
        tasks = [*self._tasks.values(), *self._others, *([self._beating] if self._beating else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def begin(self) -> None:
        """Gives signs of life from now on, and looks after the jobs of processes that give none."""
        if self._beating is None or self._beating.done():
            self._beating = asyncio.create_task(self._beat(), name="signs of life")

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks = {key: other for key, other in self._tasks.items() if other is not task}
        if not task.cancelled() and task.exception() is not None:
            _log.error("what became of a job could not be written", exc_info=task.exception())

    async def _run(self, stored: Stored, request: GenerationRequest, asker: Asker) -> None:
        with contextlib.ExitStack() as inside:  # until what became of it is written, too
            if (last := await self._ran(stored, request, asker, inside)) is None:
                return
            last = last.changed(ended=int(self._clock()))
            if await self._write(last):
                self._tell(last)

    async def _ran(
        self, stored: Stored, request: GenerationRequest, asker: Asker, inside: contextlib.ExitStack
    ) -> Stored | None:
        """What became of a job; None where somebody ended it before it began."""
        try:
            async with asyncio.timeout(self._config.timeout_s), self._turn:
                if not self._doorway.open:
                    return self._interrupted(stored)
                inside.enter_context(self._doorway.enter())
                stored = stored.changed(status="running", started=int(self._clock()))
                if not await self._write(stored):
                    return None
                response = await self._drawn(request.model_copy(update={"webhook": None}), asker)
                await _aside(self._store.write_result, stored, response)
            return stored.changed(status="succeeded")
        except RequestError as error:
            return _failed(stored, error)
        except TimeoutError:
            late = RequestError(
                f"The job was not done within {self._config.timeout_s:g} s.", status=504, code="timeout"
            )
            return _failed(stored, late)
        except asyncio.CancelledError:
            # Either the job was cancelled, and its file says so, or this process ends.
            current = await asyncio.shield(_aside(self._store.read, stored.owner, stored.job.id))
            if current is not None and current.job.status in OPEN:
                await asyncio.shield(self._write(self._interrupted(stored)))
            raise
        except Exception:
            _log.exception("the job %s failed", stored.job.id)
            return _failed(stored, errors.internal())

    async def _drawn(self, request: GenerationRequest, asker: Asker) -> GenerationResponse:
        """The request's pictures, asked for until they are not refused for a moment only."""
        while True:
            try:
                return await self._draw(request, asker)
            except RequestError as error:
                if error.status not in (429, 503) or error.code == "quota_exceeded":
                    raise
                await self._sleep(min(_PATIENCE_S, error.retry_after_s or 1.0))

    async def _write(self, stored: Stored) -> bool:
        """Writes what became of a job, unless somebody ended it meanwhile."""
        current = await _aside(self._store.read, stored.owner, stored.job.id)
        if current is None or current.job.status not in OPEN:
            return False
        await _aside(self._store.write, stored)
        return True

    def _tell(self, stored: Stored) -> None:
        """Sends a job's webhook, in the background."""
        webhook, secret = stored.job.webhook, secret_of(stored.owner)
        if webhook is None or secret is None or webhook.state != "waiting":
            return

        async def tell() -> None:
            name, body = message(stored)
            attempts, problem = await self._sender.send(webhook.url, name, body, secret)
            state = "delivered" if problem is None else "failed"
            standing = webhook.model_copy(update={"state": state, "attempts": attempts, "problem": problem})
            current = await _aside(self._store.read, stored.owner, stored.job.id)
            if current is not None and current.job.created == stored.job.created:
                await _aside(self._store.write, current.changed(webhook=standing))

        task = asyncio.create_task(tell(), name=f"webhook of {stored.job.id}")
        self._others.add(task)
        task.add_done_callback(self._others.discard)

    async def _beat(self) -> None:
        for number in itertools.count(1):
            try:
                if self._tasks or self._others:
                    await _aside(self._store.beat, self._gateway)
                for owner, name in list(self._tasks):
                    current = await _aside(self._store.read, owner, name)
                    # What this process wrote itself is an end that its task is about to tell of.
                    ended = current is None or current.job.status == "cancelled" or current.gateway != self._gateway
                    if ended and (owner, name) in self._tasks:
                        self._tasks[owner, name].cancel()  # by another gateway
                if number % _LOOK_ROUND == 1:
                    for stored in await _aside(lambda: list(self._store.all())):
                        await self._looked_after(stored)
            except RequestError:
                _log.exception("the jobs' folder cannot be reached")
            await self._sleep(BEAT_S)

    async def _looked_after(self, stored: Stored) -> Stored:
        """The job, or what it has come to where the process that had it is gone."""
        waits = stored.job.webhook is not None and stored.job.webhook.state == "waiting"
        if not (stored.job.status in OPEN or waits):
            return stored
        if stored.gateway == self._gateway or await _aside(self._store.alive, stored.gateway, 6 * BEAT_S):
            return stored
        if stored.job.status in OPEN:
            stored = self._interrupted(stored)
        stored = stored.model_copy(update={"gateway": self._gateway})
        await _aside(self._store.write, stored)
        self._tell(stored)
        return stored

    def _interrupted(self, stored: Stored) -> Stored:
        error = RequestError("The process that drew this ended; ask for the job again.", status=503, code="interrupted")
        return _failed(stored, error).changed(ended=int(self._clock()))


def _failed(stored: Stored, error: RequestError) -> Stored:
    again = error.status >= 500 or error.status == 429
    return stored.changed(status="failed", error=error.body().error, error_status=error.status, retryable=again)


async def _aside(work: Callable[..., Any], *args: Any) -> Any:
    """Off the loop; raises RequestError where the folder cannot be reached."""
    try:
        return await asyncio.to_thread(work, *args)
    except OSError as error:
        raise RequestError(
            "The jobs' folder cannot be reached now.", status=503, code="storage_unavailable", retry_after_s=30.0
        ) from error
