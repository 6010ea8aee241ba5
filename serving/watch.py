"""How a sampler's requests are watched: counted, logged and traced, in one place around each of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from serving import logs, traces
from serving.api import GenerationRequest, RequestError
from serving.context import Origin, hide, track
from serving.generator import Generation
from serving.job import SAMPLER
from serving.metrics import SamplerMetrics
from serving.observability import ObservabilityConfig
from serving.traces import Traces

_log = logging.getLogger(__name__)


class Watch:
    """What a sampler tells of itself.

    Args:
        config: what may be told, and where.
        replica: what this process is called in it.
        spans: of requests; None: as the config says.
    """

    def __init__(self, config: ObservabilityConfig, replica: str = SAMPLER, *, spans: Traces | None = None) -> None:
        self.metrics = SamplerMetrics(replica)
        self._traces = spans or traces.build(config)

    @contextmanager
    def request(self, request: GenerationRequest, origin: Origin) -> Iterator[Callable[[Generation], None]]:
        """A request under way in this process. Gives what is to be called with its generation, if it comes to that.

        Args:
            origin: the gateway's.
        """
        with track(origin), self._traces.drawing(origin) as span:
            hide(request.prompt, request.negative_prompt)

            def drew(generation: Generation) -> None:
                self.metrics.drew(generation)
                self._traces.drew(span, generation)
                _log.info("drew a request's pictures", extra={"facts": logs.facts(generation)})

            try:
                yield drew
            except RequestError as refused:
                if refused.moderation is not None:
                    self.metrics.prompt_blocked(refused.moderation.categories)
                raise
            except Exception:
                self.metrics.broke_off()
                _log.exception("a request failed")
                raise
