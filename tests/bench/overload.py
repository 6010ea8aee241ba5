"""Three times as many requests as can be drawn, for a minute: `python -m tests.bench.overload`.

    goodput_over_capacity       pictures a second under overload, over what as many clients get as keep the server busy;
                                these are measured before and after
    refusals_with_retry_after   of the refusals, those that are 429 or 503 and say when to come again
    refusal_p50_ms              median time until a refusal
    memory_growth               of gateway, sampler and proxy together, from the first quarter of the minute to the last
    extra_steps_after_disconnect  forward passes after a client left in the middle of one, beside that one: the most of
                                some tries

Requests come at random times (Poisson, seeded), whatever became of those before. The sampler has a CPU for itself.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import select
import socket
import statistics
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np

from pipelines.cluster import connect
from serving.job import ServeJob
from tests.bench.callers import Callers
from tests.bench.endpoint import _descendants, _name, pinned
from tests.ports import free_port
from tests.serving import tiny

BODY = {"prompt": "a red apple", "num_inference_steps": 10, "guidance_scale": 2.0}
FACTOR = 3.0
CLIENTS = 8


@dataclass(frozen=True)
class Seen:
    """A request under overload: when it came, how long it took, how it was answered."""

    at: float
    seconds: float
    status: int
    retry_after: str | None


def capacity(url: str, pictures: int) -> float:
    """Pictures a second for clients who are more than a pass holds and fewer than the queue does."""
    with Callers(url, [BODY | {"seed": k} for k in range(7)], count=CLIENTS) as callers:
        callers.wait(2 * CLIENTS)
        begun = callers.answers[-1].ended
        answers = callers.wait(pictures)
        ended = max(answer.ended for answer in answers)
    assert all(answer.status == 200 for answer in answers)
    return len(answers) / (ended - begun)


async def overload(url: str, rate: float, seconds: float, memory: list[tuple[float, int]]) -> list[Seen]:
    """Asks `rate` times a second; notes the server's memory meanwhile."""
    random = np.random.default_rng(0)
    arrivals = np.cumsum(random.exponential(1 / rate, int(rate * seconds)))
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
    async with httpx.AsyncClient(base_url=url, timeout=120, trust_env=False, limits=limits) as client:
        begun = time.monotonic()

        async def ask(number: int, at: float) -> Seen:
            await asyncio.sleep(max(0.0, begun + at - time.monotonic()))
            came = time.monotonic()
            answer = await client.post("/v1/images/generations", json=BODY | {"seed": number})
            seconds = time.monotonic() - came
            return Seen(came - begun, seconds, answer.status_code, answer.headers.get("retry-after"))

        async def watch() -> None:
            while True:
                memory.append((time.monotonic() - begun, resident()))
                await asyncio.sleep(1)

        watching = asyncio.create_task(watch())
        answers = await asyncio.gather(*(ask(number, float(at)) for number, at in enumerate(arrivals)))
        watching.cancel()
    return answers


def servers(what: str) -> list[int]:
    """Processes of this bench's cluster by their titles."""
    return [pid for pid in _descendants(os.getpid()) if re.search(what.encode(), _title(pid))]


def _title(pid: int) -> bytes:
    try:
        return _name(pid)
    except OSError:  # it has ended
        return b""


def resident() -> int:
    """Bytes that the server's processes hold."""
    total = 0
    for pid in servers(r"ServeReplica:|ProxyActor"):
        status = Path(f"/proc/{pid}/status").read_text()
        found = re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)
        total += int(found[1]) * 1024 if found else 0
    return total


def growth(memory: list[tuple[float, int]]) -> float:
    """Of the median in the last quarter over that in the second one: by then every path was taken once."""
    end = memory[-1][0]
    quarters = [[held for at, held in memory if k * end / 4 <= at <= (k + 1) * end / 4] for k in range(4)]
    return statistics.median(quarters[3]) / statistics.median(quarters[1]) - 1


def extra_steps(url: str, tries: int) -> int:
    """Leaves in the middle of a large request, and counts the passes that come after the one under way."""
    from ray import serve

    sampler: Any = serve.get_deployment_handle("sampler", app_name="cleanplate")

    def status() -> Any:
        return sampler.status.remote().result()

    most = 0
    for number in range(tries):
        body = json.dumps(BODY | {"n": 8, "num_inference_steps": 50, "seed": number}).encode()
        before = status().passes
        host, port = urlsplit(url).hostname, urlsplit(url).port
        connection = socket.create_connection((host, port))
        head = f"POST /v1/images/generations HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
        connection.sendall(head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
        while status().passes < before + 2:
            refused, _, _ = select.select([connection], [], [], 0.005)
            assert not refused, connection.recv(4096)
        left_at = status().passes
        connection.close()
        while (now := status()).pictures:
            time.sleep(0.005)
        most = max(most, now.passes - left_at - 1)
    return most


def measure(bundle: Path, seconds: float, pictures: int, tries: int) -> dict[str, float]:
    job = ServeJob(model=str(bundle), port=free_port(), threads=1, max_queued_requests=16)
    with connect(cpus=2):
        from serving import app

        url = app.run(job)
        with ExitStack() as pins:
            for pid in servers("ServeReplica:.*sampler"):
                pins.enter_context(pinned(pid))
            before = capacity(url, pictures)
            memory: list[tuple[float, int]] = []
            answers = asyncio.run(overload(url, FACTOR * before, seconds, memory))
            after = capacity(url, pictures)
            extra = extra_steps(url, tries)
        app.stop(job)
    return report(before, after, answers, memory) | {"extra_steps_after_disconnect": extra}


def report(before: float, after: float, answers: list[Seen], memory: list[tuple[float, int]]) -> dict[str, float]:
    refused = [answer for answer in answers if answer.status != 200]
    taken = [answer.seconds for answer in answers if answer.status == 200]
    polite = sum(answer.status in (429, 503) and bool(answer.retry_after) for answer in refused)
    over = max(answer.at + answer.seconds for answer in answers)
    print(f"capacity {before:.2f} pictures/s before and {after:.2f} after")
    print(
        f"{len(answers)} requests in {over:.0f} s: {len(taken)} drawn ({len(taken) / over:.2f}/s), p50 "
        f"{statistics.median(taken):.2f} s, p99 {np.quantile(taken, 0.99):.2f} s; {len(refused)} refused"
    )
    print(f"memory {memory[0][1] / 2**20:.0f} MiB at first, {memory[-1][1] / 2**20:.0f} MiB at last")
    return {
        "goodput_over_capacity": len(taken) / over / statistics.mean((before, after)),
        "refusals_with_retry_after": polite / len(refused),
        "refusal_p50_ms": 1e3 * statistics.median(answer.seconds for answer in refused),
        "memory_growth": growth(memory),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=60, help="of overload")
    parser.add_argument("--pictures", type=int, default=96, help="that each measurement of the capacity waits for")
    parser.add_argument("--tries", type=int, default=5, help="clients that leave")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        bundle = tiny.write_bundle(folder, tiny.write_clip(folder), image_size=32, channels=(32, 64))
        ratios = measure(bundle, options.seconds, options.pictures, options.tries)
    print(json.dumps({"ratios": {name: round(ratio, 3) for name, ratio in ratios.items()}}))


if __name__ == "__main__":
    main()
