"""The sampler's Ray Serve deployment (`serving.handle` is how the gateway speaks to it).

A replica's requests share its forward passes (`serving.engine`), which run in a thread of their own, so that its event
loop always answers health checks and `describe`. Requests that wait are counted here and not in Serve's queue: the
replica knows how long its passes take, and so can say when to come again.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager

from serving import logs, registered
from serving.admission import ModelCard
from serving.api import GenerationRequest, RequestError
from serving.autoscaling import STAT
from serving.call import Call
from serving.canary import Outcome, place
from serving.canary_desk import Reporter
from serving.context import Origin
from serving.engine import Status, together
from serving.generator import Generation
from serving.ingress import name_of_this
from serving.job import ServeJob
from serving.metrics import Held, Snapshot
from serving.service import Preview, Service, last, overloaded
from serving.standing import Vocabulary
from serving.watch import Watch


class Sampler:
    """Holds the versions of a model (`serving.versions`) and makes pictures with them.

    Raises:
        UserError: from the constructor, when the model or the guard cannot be loaded; Serve reports it as the reason
            why the application did not start.
    """

    def __init__(self, job: ServeJob) -> None:
        import torch

        torch.set_num_threads(job.cpu_threads)
        self._versions = registered.opened(job)
        self._reporter = Reporter()
        self._queue_limit = job.max_queued_requests
        self._patience_s = job.request_timeout_s
        self._admitted = 0
        replica = name_of_this()
        logs.configure(job.observability, replica)
        self._watch = Watch(job.observability, replica)

    async def describe(self) -> ModelCard:
        """The model that answers; also the gateway's proof that this replica lives."""
        self._versions.watch()
        return self._versions.describe()

    async def vocabulary(self) -> Vocabulary:
        """What the model that answers was told in training."""
        live = self._versions.describe().version
        found = (service.generator for service in self._versions.services())
        return next(generator.vocabulary() for generator in found if generator.card.version == live)

    async def status(self) -> Status:
        """How its engines stand, together."""
        return together([service.engine.status() for service in self._versions.services()])

    async def generate(self, request: GenerationRequest, call: Call) -> Generation:
        """A request's pictures, as `stream` without its previews."""
        return await last(self.stream(request, call))

    async def stream(self, request: GenerationRequest, call: Call) -> AsyncGenerator[Preview | Generation, None]:
        """Makes a request's pictures, all by the version that answers when it comes.

        When the client has gone, its rows are in no pass after the one under way.

        Raises:
            RequestError: 409 when the version that was asked for is not here, 429 when too many wait already, 503 when
                no version may answer, else as `Generator.generate`.
        """
        caller = place(call.flow or request.user or call.request_id)
        with self._versions.serving(request, caller, version=call.version) as service:
            if self._admitted > self._queue_limit:
                raise overloaded(service.engine.seconds_left())
            self._admitted += 1
            try:
                origin = Origin(call.request_id, call.trace)
                with self._watched(service) as finished, self._watch.request(request, origin) as drew:
                    drawn = service.stream(
                        request, flow=call.flow, previews=call.previews, ids=call.ids, seconds=call.seconds
                    )
                    async with aclosing(drawn) as events:
                        async for event in events:
                            if isinstance(event, Generation):
                                drew(event)
                                finished(event)
                            yield event
            finally:
                self._admitted -= 1

    @contextmanager
    def _watched(self, service: Service) -> Iterator[Callable[[Generation], None]]:
        """Tells of what becomes of a request, where versions are compared (`serving.canary`)."""
        card, begun = service.generator.card, time.monotonic()

        def tell(outcome: Outcome) -> None:
            challenger = self._versions.compared(card.version)
            if challenger is not None:
                self._reporter.add(card.name, card.version, challenger, outcome)

        try:
            yield lambda generation: tell(outcome_of(generation, time.monotonic() - begun))
        except RequestError:
            raise  # a refusal: it says nothing of the version
        except Exception:
            tell(Outcome(failed=True))
            raise

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What `serving.autoscaling` goes by."""
        return {STAT: float((await self.status()).row_steps)}

    async def snapshot(self) -> Snapshot:
        """What it has counted, and how its versions and their engines stand."""
        engines = {service.generator.card.version: service.engine.status() for service in self._versions.services()}
        held = [Held(each, engines.get(each.version)) for each in self._versions.standing().versions]
        return self._watch.metrics.snapshot(held)

    async def check_health(self) -> None:
        """Raises when pictures are under way and no pass has ended for as long as a whole request may take."""
        self._versions.watch()
        silent_s = (await self.status()).silent_s
        if silent_s > self._patience_s:
            raise RuntimeError(f"no denoising step has ended for {silent_s:.0f} s")


def outcome_of(generation: Generation, seconds: float) -> Outcome:
    """Of a request that was answered after so many seconds."""
    pictures = generation.pictures
    withheld = sum(picture.data is None for picture in pictures)
    return Outcome(pictures=len(pictures), withheld=withheld, seconds=seconds / generation.plan.row_steps)
