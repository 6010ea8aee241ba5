"""Takedowns: who asked that which pictures be no longer used, and which rows of a manifest those are.

`ledger` keeps the requests (`events`) in a folder, append-only; `revocation` says which rows they reach; `pictures`
makes selectors of a file or a manifest's row. Curation drops what is revoked, training filters it, attribution stops
showing it: all of them read the ledger when they start, so an entry takes effect without a shard being rewritten.

It may import the leaves of curation, `selectors`, `images` and `duplicates`. A new kind of selector is a kind in
`curation.selectors` and in `events.Kind`; a new kind of event a class in `events`, whose columns are added to `SCHEMA`.
"""

from curation.takedowns.events import Action, Entry, Selector, Withdrawal
from curation.takedowns.ledger import Ledger, location, of_place, refuse_vanished
from curation.takedowns.state import LedgerState

__all__ = [
    "Action",
    "Entry",
    "Ledger",
    "LedgerState",
    "Selector",
    "Withdrawal",
    "location",
    "of_place",
    "refuse_vanished",
]
