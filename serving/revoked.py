"""What of an index may no longer be named: the takedown ledgers are asked again at intervals, while it is served."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from curation.errors import UserError
from curation.manifest import Manifest
from curation.takedowns import Ledger, LedgerState, of_place, refuse_vanished
from curation.takedowns.revocation import Revocations
from training.neighbours.index import TAKEDOWNS, Index

_log = logging.getLogger(__name__)


class Revoked:
    """The revoked pictures of an index. A takedown reaches here what it reaches in the index's manifests.

    Args:
        folder: the index's.
        ledgers: to be asked.
        every_s: how long an answer is good for.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        index: Index,
        folder: Path,
        ledgers: Sequence[str],
        *,
        every_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._index = index
        folders = [folder / TAKEDOWNS / str(number) for number in range(len(index.info.manifests))]
        self._manifests = [Manifest.open(str(slim)) for slim in folders]
        self._places = list(ledgers)
        self._ledgers: dict[str, Ledger] = {}
        self._every_s = every_s
        self._clock = clock
        self._asked: float | None = None
        self._states: list[LedgerState] = []
        self.mask = np.zeros(len(index), bool)
        """bool (P,), as of the last answer."""
        self.known = True
        """Whether the ledgers could be asked the last time; where not, `mask` is what was known before."""

    def look(self) -> None:
        """Asks the ledgers, unless the last answer is still good."""
        now = self._clock()
        if self._asked is not None and now < self._asked + self._every_s:
            return
        self._asked = now
        try:
            states = [self._read(place) for place in self._places]
            self._refuse_lost(states)
        except UserError as error:
            _log.warning("what was taken down is not known, and no training picture is named: %s", error)
            self.known = False
            return
        if [state.version for state in states] != [state.version for state in self._states]:
            reached = (Revocations(state.in_force).of_manifest(m) for state in states for m in self._manifests)
            self.mask = self._index.mask({id_ for found in reached for id_ in found})
        self._states = states
        self.known = True

    def _read(self, place: str) -> LedgerState:
        if place not in self._ledgers:
            self._ledgers[place] = Ledger.open(of_place(place))  # which keeps what it has read
        ledger = self._ledgers[place]
        state = ledger.read()
        refuse_vanished(
            ledger.uri, state, [m for m in self._manifests if m.info.ledger and m.info.ledger.uri == ledger.uri]
        )
        return state

    def _refuse_lost(self, states: Sequence[LedgerState]) -> None:
        """Requests are taken back by an event; those that are simply gone were lost."""
        for before, now in zip(self._states, states, strict=False):
            lost = {entry.id for entry in before.entries} - {entry.id for entry in now.entries}
            if lost:
                raise UserError(
                    f"{len(lost)} requests, such as {min(lost)[:12]}, are no longer in the takedown ledger",
                    field="ledger",
                    remedy="restore it",
                )
