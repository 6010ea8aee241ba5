"""Observations about rights, and what several of them add up to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from curation.manifest import Verdict

IN_FILE = "file"
"""`where` of what stands in the picture's own file."""


class Observation(NamedTuple):
    """One thing that was seen: `signal` said `value` at `where`."""

    signal: str
    value: str | None
    where: str
    verdict: Verdict
    observed_at: datetime | None = None  # None when it stands in a local file: the file's own time is what counts

    def row(self) -> dict[str, object]:
        """As an element of the manifest's `rights` list."""
        return {
            "signal": self.signal,
            "value": self.value,
            "where": self.where,
            "observed_at": self.observed_at,
            "verdict": self.verdict.value,
        }


def of_row(row: Mapping[str, Any]) -> Observation:
    """The inverse of `Observation.row`."""
    return Observation(row["signal"], row["value"], row["where"], Verdict(row["verdict"]), row["observed_at"])


# They say who may fetch; a permission to fetch is none to train.
_OF_FETCHING = frozenset({"robots"})


def verdict(observations: Iterable[Observation]) -> Verdict:
    """What several observations add up to."""
    return combine(
        Verdict.UNKNOWN if o.signal in _OF_FETCHING and o.verdict == Verdict.ALLOW else o.verdict for o in observations
    )


_STRENGTH = (Verdict.DENY, Verdict.ERROR, Verdict.ALLOW, Verdict.UNKNOWN)


def combine(verdicts: Iterable[Verdict]) -> Verdict:
    """Any denial denies; else a check that failed is an error; else any permission allows; else it is unknown.

    So adding a denial never yields `allow`, and a failed check is never taken for a permission.
    """
    found = set(verdicts)
    return next((v for v in _STRENGTH if v in found), Verdict.UNKNOWN)
