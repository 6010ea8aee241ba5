"""Takedown ledgers that a process asks again and again: what it has read of them it reads no more."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from curation.errors import UserError
from curation.takedowns import Ledger, LedgerState, of_place


class Ledgers:
    """The ledgers of a process, each open once. May be used from several threads."""

    def __init__(self) -> None:
        self._open: dict[str, Ledger] = {}
        self._turn = threading.Lock()

    def read(self, uris: Sequence[str]) -> tuple[dict[str, LedgerState], list[str]]:
        """What each holds now, by where it lies, and why others could not be read.

        Where nothing came since the last time, no file is read: `Ledger` keeps what it has read.
        """
        states: dict[str, LedgerState] = {}
        problems = []
        with self._turn:
            for uri in uris:
                try:
                    place = of_place(uri)  # anew: a manifest that stands for its ledger may name another one by now
                    states[uri] = self._open.setdefault(place, Ledger.open(place)).read()
                except UserError as error:
                    problems.append(error.message)
        return states, problems
