"""The step engine on a virtual clock: bytes, turns, leaving, failing, and the end."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.engine import DrainingError, QueueFullError, Status, StepEngine, together
from serving.submission import Event, Finished, Stepped
from serving.trajectory import PictureTrajectory, Told, finish
from tests.serving.virtual import Arithmetic, World
from training.bundle import DiffusionModel
from training.onnx_denoiser import Rows
from training.sampling import SAMPLERS, SamplingParams

Draw = Callable[..., list[PictureTrajectory]]


@pytest.fixture(scope="module")
def draw(model: DiffusionModel) -> Draw:
    """Pictures of a real model, from their seeds, before their first step."""
    told = {scale: Told(model, "a red apple", "", scale) for scale in (1.0, 2.0)}

    def pictures(*seeds: int, steps: int, guidance: float = 2.0, sampler: str = "ddim") -> list[PictureTrajectory]:
        params = SamplingParams.model_validate({"steps": steps, "guidance_scale": guidance, "sampler": sampler})
        return [PictureTrajectory(model, told[guidance], seed, params) for seed in seeds]

    return pictures


class Bench:
    """An engine in a world of its own."""

    def __init__(self, **settings: Any) -> None:
        self.network = Arithmetic()
        self.world = World(self.network)
        self.engine = StepEngine(self.network, clock=self.world.clock, run=self.world.run, **settings)
        self.finished_at: dict[str, float] = {}

    async def ask(
        self, pictures: list[PictureTrajectory], *, name: str = "", at: float = 0.0, **how: Any
    ) -> list[np.ndarray]:
        await self.world.at(at)
        clean: dict[int, np.ndarray] = {}
        async with self.engine.submit(pictures, **how) as events:
            async for event in events:
                if isinstance(event, Finished):
                    clean[event.picture] = event.clean.numpy()
        self.finished_at[name] = self.world.now
        return [clean[k] for k in range(len(pictures))]

    def live(self, *clients: Coroutine[Any, Any, Any]) -> list[Any]:
        async def go() -> list[Any]:
            try:
                return await self.world.live(self.engine, *clients)
            finally:
                await self.engine.close()

        return asyncio.run(go())


def alone(pictures: list[PictureTrajectory]) -> list[np.ndarray]:
    finish(Arithmetic(), pictures, after_pass=lambda: None)
    return [picture.clean.numpy() for picture in pictures]


REQUEST = st.fixed_dictionaries(
    {
        "seeds": st.lists(st.integers(0, 2**53), min_size=1, max_size=3),
        "steps": st.integers(1, 6),
        "guidance": st.sampled_from([1.0, 2.0]),
        "sampler": st.sampled_from(SAMPLERS),
        "at": st.floats(0, 8),
        "flow": st.sampled_from([None, "a", "b"]),
    }
)


@settings(deadline=None, max_examples=40)
@given(requests=st.lists(REQUEST, min_size=1, max_size=6), max_rows=st.integers(1, 9))
def test_any_mix_ends_where_each_request_ends_alone(draw: Draw, requests: list[dict[str, Any]], max_rows: int) -> None:
    bench = Bench(max_rows=max_rows)
    how = [{key: told[key] for key in ("steps", "guidance", "sampler")} for told in requests]
    got = bench.live(
        *(
            bench.ask(draw(*told["seeds"], **kind), at=told["at"], flow=told["flow"])
            for told, kind in zip(requests, how, strict=True)
        )
    )
    for told, kind, pictures in zip(requests, how, got, strict=True):
        for picture, expected in zip(pictures, alone(draw(*told["seeds"], **kind)), strict=True):
            assert np.array_equal(picture, expected)
    assert max(bench.network.passes) <= max(2, max_rows)
    status = bench.engine.status()
    assert (status.pictures, status.row_steps) == (0, 0)
    assert status.rows == sum(bench.network.passes)


def test_a_short_request_does_not_wait_behind_long_ones(draw: Draw) -> None:
    """Eight of 50 steps are under way, four pictures fit a pass, one of 4 steps comes: a ninth of the passes is its."""
    bench = Bench(max_rows=8)
    long = [bench.ask(draw(seed, steps=50), name=f"long {seed}") for seed in range(8)]
    bench.live(*long, bench.ask(draw(9, steps=4), name="short", at=10.0))
    assert bench.finished_at["short"] - 10.0 <= 4 * 9 / 4 + 1
    # and the long ones lose no more than what it took: (8 x 50 + 4) pictures' steps, four a pass
    assert max(bench.finished_at.values()) == pytest.approx((8 * 50 + 4) / 4, abs=1)


def test_a_key_with_many_requests_does_not_slow_down_another(draw: Draw) -> None:
    bench = Bench(max_rows=2)
    many = [bench.ask(draw(seed, steps=20), name=f"{seed}", flow="greedy") for seed in range(10)]
    bench.live(*many, bench.ask(draw(99, steps=10), name="modest", flow="modest", at=5.0))
    assert bench.finished_at["modest"] - 5.0 <= 2 * 10 + 1


@pytest.mark.parametrize("seconds", [3.5, 4.0])
def test_whoever_leaves_is_in_no_pass_after_the_one_under_way(draw: Draw, seconds: float) -> None:
    bench = Bench(max_rows=16)

    async def leave() -> None:
        task = asyncio.create_task(bench.ask(draw(1, 2, steps=50)))
        await bench.world.at(seconds)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    bench.live(leave(), bench.ask(draw(3, steps=8)))
    assert bench.network.passes == [6] * 4 + [2] * 4
    assert bench.engine.status().row_steps == 0


def test_only_the_picture_at_fault_fails(draw: Draw) -> None:
    class Broken(PictureTrajectory):
        def ask(self) -> Rows:
            rows = super().ask()
            return Rows(**{**rows.feed(), "x": np.full_like(rows.x, np.nan)}) if self.done == 2 else rows

    bench = Bench(max_rows=16)
    broken = draw(1, steps=5)
    broken[0].__class__ = Broken
    failed, *sound = bench.live(bench.ask(broken), *(bench.ask(draw(seed, steps=5)) for seed in (2, 3)))
    assert isinstance(failed, ValueError)
    for seed, pictures in zip((2, 3), sound, strict=True):
        assert np.array_equal(pictures[0], alone(draw(seed, steps=5))[0])
    assert bench.engine.status().pictures == 0


def test_previews_come_after_the_steps_that_were_named(draw: Draw) -> None:
    bench = Bench()
    seen: list[Event] = []

    async def watch() -> None:
        async with bench.engine.submit(draw(1, 2, steps=6), previews={2, 4}) as events:
            seen.extend([event async for event in events])

    bench.live(watch())
    steps = [event for event in seen if isinstance(event, Stepped)]
    assert [(event.done, event.picture) for event in steps] == list(itertools.product(range(1, 7), [0, 1]))
    assert {event.done for event in steps if event.clean is not None} == {2, 4}
    assert all(event.steps == 6 for event in steps)
    assert sum(isinstance(event, Finished) for event in seen) == 2


def test_the_queue_is_bounded_by_what_it_costs(draw: Draw) -> None:
    bench = Bench(max_rows=2, max_row_steps=100)
    first, fits, too_much, later = bench.live(
        bench.ask(draw(1, steps=40)),  # 80 row-steps, two rows a second
        bench.ask(draw(2, steps=10), at=2.5),
        bench.ask(draw(3, steps=10), at=3.5),
        bench.ask(draw(4, steps=45), at=60.0),
    )
    assert len(first) == len(fits) == len(later) == 1
    assert isinstance(too_much, QueueFullError)
    outstanding = 80 + 20 - 2 * 3
    assert str(outstanding) in str(too_much)
    assert too_much.retry_after_s == pytest.approx(outstanding / 2)


def test_a_request_over_the_bound_is_taken_when_nothing_else_is_there(draw: Draw) -> None:
    bench = Bench(max_row_steps=10)
    (pictures,) = bench.live(bench.ask(draw(1, steps=30)))
    assert len(pictures) == 1


def test_draining_finishes_what_is_there_and_takes_nothing_new(draw: Draw) -> None:
    bench = Bench(max_rows=2)

    async def drain() -> float:
        await bench.world.at(3.0)
        await bench.engine.drain()
        return bench.world.now

    there, drained, refused = bench.live(bench.ask(draw(1, steps=9)), drain(), bench.ask(draw(2, steps=1), at=4.0))
    assert len(there) == 1
    assert drained == 9.0
    assert isinstance(refused, DrainingError)
    assert bench.engine.status().draining


def test_closing_fails_what_is_there(draw: Draw) -> None:
    bench = Bench()

    async def close() -> None:
        await bench.world.at(2.0)
        await bench.engine.close()

    cut_off, _ = bench.live(bench.ask(draw(1, steps=50)), close())
    assert isinstance(cut_off, DrainingError)


@asynccontextmanager
async def entered(engine: StepEngine, pictures: list[PictureTrajectory]) -> AsyncIterator[None]:
    async with engine.submit(pictures):
        yield


def test_silence_counts_only_while_there_is_something_to_do(draw: Draw) -> None:
    async def look() -> None:
        stuck = asyncio.Event()
        now = [0.0]

        async def never(work: Callable[[], Any]) -> Any:
            await stuck.wait()

        engine = StepEngine(Arithmetic(), clock=lambda: now[0], run=never)
        now[0] = 50.0
        assert engine.status().silent_s == 0
        async with entered(engine, draw(1, steps=2)):
            now[0] = 57.0
            assert engine.status().silent_s == 7.0
        assert engine.status().silent_s == 0
        await engine.close()

    asyncio.run(look())


def test_when_a_request_would_be_done_is_known_before_it_comes(draw: Draw) -> None:
    """Passes of two rows take a second each: a short request waits for as much of the long one as it costs itself."""
    bench = Bench(max_rows=2)
    told: dict[str, float] = {"idle": bench.engine.seconds_until(1_000)}

    async def short() -> None:
        await bench.world.at(2.5)
        told["another"] = bench.engine.seconds_until(4)
        told["its own"] = bench.engine.seconds_until(4, "long")
        await bench.ask(draw(2, steps=2), name="short")

    bench.live(bench.ask(draw(1, steps=10), name="long", flow="long"), short())
    assert told == {"idle": 0.0, "another": 4.0, "its own": 10.0}
    assert bench.finished_at["short"] <= 2.5 + 4.0 + 2.0  # the pass under way, and the turn that goes on
    assert bench.finished_at["long"] == 12.0


def test_engines_side_by_side_are_told_as_one() -> None:
    one = Status(1, 40, 10, 30, 5.0, 0.5, draining=True, busy_s=2.0, max_rows=8, fill=(1, *[0] * 8, 9))
    two = Status(2, 10, 1, 4, 1.0, 1.5, draining=False, busy_s=0.5, max_rows=4, fill=(0, *[0] * 8, 1))
    both = Status(3, 50, 11, 34, 6.0, 1.5, draining=False, busy_s=2.5, max_rows=8, fill=(1, *[0] * 8, 10))
    assert together([one, two]) == both
    assert together([]) == Status(0, 0, 0, 0, 0.0, 0.0, draining=True)
