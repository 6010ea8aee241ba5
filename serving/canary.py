"""A canary: which callers a challenger answers, and when it has shown that it should answer none.

Both are pure. A caller's place in [0, 1) is a hash of who asks, so that everybody stays with the version that answered
first, on every replica, and a larger share keeps those that a smaller one had. What the two versions did is counted
over all replicas (`serving.canary_desk`), and the challenger returns when it does clearly worse than the champion did
over the same time: then the registry's tag says why, and a person decides what comes next.
"""

from __future__ import annotations

import hashlib
import statistics
from collections import deque
from dataclasses import dataclass

from serving.rollout import CanaryConfig

_DIGITS = 13  # of a hash in hexadecimal: 52 bits, as many as a float holds


@dataclass(frozen=True)
class Outcome:
    """What became of one request.

    Attributes:
        failed: by a fault of the server.
        pictures, withheld: that it drew, and those of them that the guard kept.
        seconds: per row-step; None of one that failed.
    """

    failed: bool = False
    pictures: int = 0
    withheld: int = 0
    seconds: float | None = None


def place(caller: str) -> float:
    """A caller's place in [0, 1), the same everywhere and for ever."""
    return int(hashlib.sha256(caller.encode(errors="surrogatepass")).hexdigest()[:_DIGITS], 16) / float(16**_DIGITS)


class Tally:
    """The newest outcomes of two versions. Another version begins anew."""

    def __init__(self, config: CanaryConfig) -> None:
        self._config = config
        self._champion = _Record("", config.window)
        self._challenger = _Record("", config.window)

    def add(self, version: str, challenger: bool, outcome: Outcome) -> None:
        record = self._challenger if challenger else self._champion
        if record.version != version:
            record = _Record(version, self._config.window)
            if challenger:
                self._challenger = record
            else:
                self._champion = record
        record.outcomes.append(outcome)

    def forget(self) -> None:
        """The challenger begins anew."""
        self._challenger = _Record("", self._config.window)

    def returned(self) -> tuple[str, str] | None:
        """The challenger's version and why it is to answer nobody any more; None while nothing speaks against it."""
        old, new, config = self._champion, self._challenger, self._config
        if min(len(old.outcomes), len(new.outcomes)) < config.min_requests:
            return None
        shares = (
            ("requests failed", new.failed(), old.failed(), config.max_more_errors),
            ("pictures were withheld", new.withheld(), old.withheld(), config.max_more_blocks),
        )
        for what, theirs, ours, most in shares:
            if theirs > ours + most:
                return new.version, f"{theirs:.1%} of its {what}, of version {old.version}'s {ours:.1%}"
        theirs, ours = new.seconds(), old.seconds()
        if theirs > ours * config.max_slowdown > 0:
            ratio = theirs / ours
            return new.version, f"a step took {ratio:.2f} times as long as one of version {old.version}"
        return None


class _Record:
    def __init__(self, version: str, window: int) -> None:
        self.version = version
        self.outcomes: deque[Outcome] = deque(maxlen=window)

    def failed(self) -> float:
        return sum(outcome.failed for outcome in self.outcomes) / len(self.outcomes)

    def withheld(self) -> float:
        pictures = sum(outcome.pictures for outcome in self.outcomes)
        return sum(outcome.withheld for outcome in self.outcomes) / pictures if pictures else 0.0

    def seconds(self) -> float:
        taken = [outcome.seconds for outcome in self.outcomes if outcome.seconds is not None]
        return statistics.median(taken) if taken else 0.0
