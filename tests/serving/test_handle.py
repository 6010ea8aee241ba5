"""A request whose replica goes away is asked of another one, as the same request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, RayTaskError
from ray.serve.exceptions import BackPressureError

from serving.api import GenerationRequest, RequestError
from serving.call import Call
from serving.handle import ATTEMPTS, SamplerHandle, with_seed
from serving.service import Preview

REQUEST = GenerationRequest(prompt="a red apple")
LAST: Any = "the generation"


class Replicas:
    """Where a Serve handle leads: each call is answered by the next of some scripts, an exception or events."""

    def __init__(self, *scripts: Any) -> None:
        self._scripts = list(scripts)
        self.asked: list[GenerationRequest] = []
        self.calls: list[Call] = []
        self.cancelled = 0
        self.describe = self.generate = self
        self.stream: Any = _Streams(self)

    def options(self, **_: Any) -> Replicas:
        return self

    async def remote(self, request: GenerationRequest | None = None, call: Call | None = None) -> Any:
        if request is not None:
            self.asked.append(request)
        script = self._scripts.pop(0)
        if isinstance(script, Exception):
            raise script
        return script

    def events(self, request: GenerationRequest) -> AsyncIterator[Any]:
        async def play(script: list[Any]) -> AsyncIterator[Any]:
            for event in script:
                if isinstance(event, Exception):
                    raise event
                yield event

        self.asked.append(request)
        return play(self._scripts.pop(0))


class _Streams:
    def __init__(self, replicas: Replicas) -> None:
        self._replicas = replicas

    def remote(self, request: GenerationRequest, call: Call) -> _Stream:
        self._replicas.calls.append(call)
        return _Stream(self._replicas, self._replicas.events(request))


class _Stream:
    def __init__(self, replicas: Replicas, events: AsyncIterator[Any]) -> None:
        self._replicas = replicas
        self._events = events

    def __aiter__(self) -> AsyncIterator[Any]:
        return self._events

    def cancel(self) -> None:
        self._replicas.cancelled += 1


def preview(done: int) -> Preview:
    return Preview(0, done, 4, b"", "7")


def generated(replicas: Replicas) -> Any:
    return asyncio.run(SamplerHandle(replicas).generate(REQUEST, Call()))  # type: ignore[arg-type]


def streamed(replicas: Replicas) -> list[Any]:
    async def go() -> list[Any]:
        return [event async for event in SamplerHandle(replicas).stream(REQUEST, Call())]  # type: ignore[arg-type]

    return asyncio.run(go())


def raised(error: Exception) -> RayTaskError:
    """As Serve hands over what a replica raised."""
    return RayTaskError("generate", "traceback", error)


def test_a_request_is_asked_of_another_replica_with_the_same_seed() -> None:
    replicas = Replicas(ActorDiedError(), ActorDiedError(), LAST)
    assert generated(replicas) == LAST
    assert len({request.seed for request in replicas.asked}) == 1
    assert replicas.asked[0].seed is not None


def test_a_replica_that_is_being_ended_is_not_the_last_word() -> None:
    draining = RequestError("going", status=503, code="draining", retry_after_s=1.0)
    assert generated(Replicas(raised(draining), LAST)) == LAST


@pytest.mark.parametrize(
    ("error", "status"),
    [(raised(RequestError("no", status=400)), 400), (BackPressureError(1, 1), 429), (raised(ValueError("?")), None)],
)
def test_what_is_the_requests_own_is_not_asked_again(error: Exception, status: int | None) -> None:
    replicas = Replicas(error, LAST)
    with pytest.raises((RequestError, ValueError)) as caught:
        generated(replicas)
    assert getattr(caught.value, "status", None) == status
    assert len(replicas.asked) == 1


def test_it_ends_when_everybody_goes_away() -> None:
    replicas = Replicas(*[ActorDiedError() for _ in range(ATTEMPTS)], LAST)
    with pytest.raises(RequestError, match="went away") as caught:
        generated(replicas)
    assert (caught.value.code, len(replicas.asked)) == ("sampler_unavailable", ATTEMPTS)


def test_a_stream_goes_on_where_it_was() -> None:
    replicas = Replicas([preview(1), preview(2), ActorDiedError()], [preview(1), preview(2), preview(3), LAST])
    assert streamed(replicas) == [preview(1), preview(2), preview(3), LAST]
    assert len({request.seed for request in replicas.asked}) == 1
    assert replicas.cancelled == 2
    assert [call.version for call in replicas.calls] == [None, "7"]


def test_a_stream_that_is_left_is_cancelled() -> None:
    replicas = Replicas([preview(1), preview(2), LAST])

    async def go() -> None:
        stream = SamplerHandle(replicas).stream(REQUEST, Call())  # type: ignore[arg-type]
        assert await anext(stream) == preview(1)
        await stream.aclose()

    asyncio.run(go())
    assert replicas.cancelled == 1


def test_the_users_seed_stays() -> None:
    assert with_seed(REQUEST.model_copy(update={"seed": 7})).seed == 7


def test_while_nothing_is_loaded_the_last_card_is_shown() -> None:
    asleep = False
    replicas = Replicas("first", "second", "third")
    handle = SamplerHandle(replicas, lambda: asleep, fresh_s=0)  # type: ignore[arg-type]

    async def go() -> None:
        nonlocal asleep
        assert await handle.describe() == "first"
        assert await handle.describe() == "second"
        asleep = True
        assert await handle.describe() == "second"
        asleep = False
        assert await handle.describe() == "third"

    asyncio.run(go())


def test_probes_do_not_ask_replicas_that_may_fall_asleep() -> None:
    handle = SamplerHandle(Replicas("first", "second"), lambda: False, fresh_s=1e9)  # type: ignore[arg-type]

    async def go() -> None:
        assert [await handle.describe() for _ in range(3)] == ["first"] * 3

    asyncio.run(go())
