"""Clients that ask for pictures without a pause, each on a connection of its own, and write down what they get."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx


@dataclass(frozen=True)
class Answer:
    """What became of a request: `tries` is 1 where the first answer counted; `pictures` are sha256 of pixels."""

    body: int
    begun: float
    ended: float
    status: int
    tries: int
    version: str = ""
    pictures: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        return self.ended - self.begun


class Callers:
    """Entered, they ask; left, they end with the request that they have.

    Args:
        url: what `/v1/…` is appended to.
        bodies: the requests, in turn.
        retries: after a request that failed.
    """

    def __init__(self, url: str, bodies: Sequence[dict[str, Any]], *, count: int = 4, retries: int = 0) -> None:
        self._url = url
        self._bodies = bodies
        self._retries = retries
        self._ending = threading.Event()
        self._came = threading.Condition()
        self._threads = [threading.Thread(target=self._ask, args=(number,), daemon=True) for number in range(count)]
        self.answers: list[Answer] = []

    def __enter__(self) -> Callers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join()

    def wait(self, more: int, limit_s: float = 120) -> list[Answer]:
        """The answers that came until there were so many more."""
        with self._came:
            had = len(self.answers)
            if not self._came.wait_for(lambda: len(self.answers) >= had + more, limit_s):
                raise TimeoutError(f"{len(self.answers) - had} of {more} answers came within {limit_s:g} s")
            return self.answers[had:]

    def _ask(self, number: int) -> None:
        with httpx.Client(base_url=self._url, timeout=120, trust_env=False) as client:
            while not self._ending.is_set():
                answer = self._answer(client, number % len(self._bodies))
                number += len(self._threads)
                with self._came:
                    self.answers.append(answer)
                    self._came.notify_all()

    def _answer(self, client: httpx.Client, body: int) -> Answer:
        begun = time.monotonic()
        for tries in range(1, self._retries + 2):
            try:
                answer = client.post("/v1/images/generations", json=self._bodies[body])
            except httpx.TransportError:
                status = 599
            else:
                status = answer.status_code
                if status == 200:
                    told = answer.json()
                    pictures = tuple(datum["pixels_sha256"] for datum in told["data"])
                    return Answer(body, begun, time.monotonic(), status, tries, told["model_version"], pictures)
            if status < 500 and status != 429:
                break
            if tries <= self._retries:
                time.sleep(0.25)
        return Answer(body, begun, time.monotonic(), status, tries)
