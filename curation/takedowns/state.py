"""What the events of a ledger add up to."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

from curation.errors import UserError
from curation.manifest import LedgerInfo
from curation.takedowns.events import Action, Entry, Event, Withdrawal


@dataclass(frozen=True)
class LedgerState:
    """All that a ledger held when it was read, each event once, in the order in which they were recorded."""

    entries: tuple[Entry, ...]
    withdrawals: tuple[Withdrawal, ...]
    actions: tuple[Action, ...]

    @cached_property
    def version(self) -> str:
        """A hash of the ids of entries and withdrawals: the audit record does not change it."""
        ids = sorted([*(e.id for e in self.entries), *(w.id for w in self.withdrawals)])
        return hashlib.sha256("\n".join(ids).encode()).hexdigest()

    @cached_property
    def in_force(self) -> tuple[Entry, ...]:
        return tuple(entry for entry in self.entries if entry.withdrawn is None)

    def entry(self, id_or_prefix: str) -> Entry:
        """The entry of an id, or of a prefix of one that only one entry has.

        Raises:
            UserError: when there is none, or more than one.
        """
        wanted = id_or_prefix.strip().lower()
        found = [entry for entry in self.entries if wanted and entry.id.startswith(wanted)]
        if len(found) != 1:
            raise UserError(
                f"{len(found) or 'no'} entries of the ledger have an id that begins with {id_or_prefix!r}",
                field="entry",
                remedy="`cleanplate takedown list --all` shows all of them; give more digits",
            )
        return found[0]

    def actions_of(self, entry: str) -> tuple[Action, ...]:
        return tuple(action for action in self.actions if action.entry == entry)

    def info(self, uri: str) -> LedgerInfo:
        """For a manifest that heeded this state."""
        return LedgerInfo(uri=uri, version=self.version, entries=len(self.in_force))

    @classmethod
    def of(cls, events: Iterable[Event]) -> LedgerState:
        """The state that events add up to, in whatever order and however often they come."""
        ordered = each_once(events)
        withdrawals = tuple(e for e in ordered if isinstance(e, Withdrawal))
        by_entry: dict[str, Withdrawal] = {}
        for withdrawal in withdrawals:
            by_entry.setdefault(withdrawal.entry, withdrawal)
        entries = (e for e in ordered if isinstance(e, Entry))
        return cls(
            tuple(e.model_copy(update={"withdrawn": by_entry.get(e.id)}) for e in entries),
            withdrawals,
            tuple(e for e in ordered if isinstance(e, Action)),
        )


def each_once(events: Iterable[Event]) -> list[Event]:
    """In the order in which they were recorded; of an event that was written twice, what was recorded first."""
    first: dict[str, Event] = {}
    for event in events:
        known = first.get(event.id)
        if known is None or _order(event) < _order(known):
            first[event.id] = event
    return sorted(first.values(), key=lambda e: (e.recorded_at, e.id))


def _order(event: Event) -> tuple[datetime, str]:
    return event.recorded_at, event.model_dump_json()
