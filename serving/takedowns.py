"""Whether a model version may still be served: what the takedown ledger and the version's own tags say about it.

`cleanplate takedown plan` looks at every registered version and leaves a tag `takedown.<entry>` with its answer. A
version that was trained on what an entry is about stays affected for ever; the way out is another version. What is not
known counts as affected: an entry that came after the training and that nobody has examined this version for, and a
ledger that cannot be read.
"""

from __future__ import annotations

import bisect
import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Literal

from curation.errors import UserError
from curation.takedowns import Ledger, LedgerState, of_place
from curation.takedowns.ledger import VARIABLE
from serving.api import TakedownStanding
from serving.job import ServeJob
from training.bundle import read_info
from training.tracking import ModelVersion, resolve

TAG = "takedown."
"""Of a version's tag, followed by the first `DIGITS` of an entry's id; its value is an `Examined`."""
DIGITS = 12
Examined = Literal["affected", "unaffected", "unknown"]

_log = logging.getLogger(__name__)


def check(job: ServeJob) -> None:
    """Looks whether the job's model may be served, before anything starts.

    Raises:
        UserError: as `heed`, or no such model.
    """
    if job.takedowns != "ignore":
        heed(job, resolve(job.model, tracking_uri=job.tracking_uri, cache=job.cache))


def heed(job: ServeJob, version: ModelVersion) -> TakedownStanding | None:
    """Acts by the job's policy on how a version stands; None where the policy is not to look.

    Raises:
        UserError: the policy is to refuse, and the version is affected, or it is not known that it is not.
    """
    if job.takedowns == "ignore":
        return None
    info = read_info(version.bundle)
    # Requests that came since may lie where the environment says by now.
    now = [os.environ[VARIABLE]] if os.environ.get(VARIABLE) else []
    ledgers = [job.ledger] if job.ledger else list(dict.fromkeys([*_listed(info.ledger_uri), *now]))
    found = standing(version.tags, ledgers, _listed(info.takedown_ledger_version))
    if found.clear:
        return found
    name = f"{version.name} version {version.version}"
    if job.takedowns == "warn":
        _log.warning("%s is served although %s", name, _told(found))
        return found
    for uri in ledgers:
        _record(uri, version, found)
    raise UserError(f"{name} is not served: {_told(found)}", field="model", remedy=_remedy(version, found))


def standing(tags: Mapping[str, str], ledgers: Sequence[str], trained_under: Sequence[str]) -> TakedownStanding:
    """How a version stands to the takedowns in force.

    Args:
        tags: the version's, by their names without prefix.
        ledgers: where the ledgers lie; none where the version names none, so that its tags are all there is.
        trained_under: the ledgers' versions that its training heeded.
    """
    examined = {name.removeprefix(TAG): value for name, value in tags.items() if name.startswith(TAG)}
    marked = {entry for entry, value in examined.items() if value != "unaffected"}
    newer: set[str] = set()
    problems = []
    for uri in ledgers:
        try:
            state = Ledger.open(of_place(uri)).read()
        except UserError as error:
            problems.append(error.message)
            continue
        heeded = _heeded(state, trained_under)
        if heeded is None and not state.entries:
            problems.append(f"the takedown ledger at {uri} holds nothing of what it held when the version was trained")
        newer |= {entry.id[:DIGITS] for entry in state.in_force if entry.id not in (heeded or ())}
        # an entry that was taken back is about nothing any more; one that the ledger lost still is
        marked -= {entry.id[:DIGITS] for entry in state.entries if entry.withdrawn is not None}
    return TakedownStanding(
        affected=tuple(sorted(marked)),
        unexamined=tuple(sorted(newer - set(examined))),
        problem="; ".join(problems) or None,
    )


def _listed(joined: str | None) -> list[str]:
    """What a bundle names of the ledgers that its training asked, with commas between them; "none" for none."""
    return [] if joined is None or joined == "none" else joined.split(", ")


def _heeded(state: LedgerState, versions: Sequence[str]) -> frozenset[str] | None:
    """The ids of the events that a ledger held when it was of one of these versions; None where it never was.

    The version is a hash of the ids of entries and withdrawals, and these come in the order in which they were
    recorded. Writers whose clocks disagree may have come in another one; then nothing is taken for heeded.
    """
    if not versions:
        return frozenset()
    entries, withdrawals = state.entries, state.withdrawals
    order = [(e.recorded_at, e.id) for e in entries] + [(w.recorded_at, w.id) for w in withdrawals]
    held = sorted(id_ for _, id_ in order)
    for _, newest in sorted(order, reverse=True):
        if _version(held) in versions:
            return frozenset(held)
        del held[bisect.bisect_left(held, newest)]
    return frozenset() if _version([]) in versions else None


def _version(ids: Sequence[str]) -> str:
    """As `LedgerState.version`, of sorted ids."""
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()


def _told(found: TakedownStanding) -> str:
    parts = []
    if found.affected:
        parts.append(f"it was trained on pictures that were taken down since (entries {', '.join(found.affected)})")
    if found.unexamined:
        parts.append(f"nobody has examined it for {_some(found.unexamined)}, which came after its training")
    if found.problem is not None:
        parts.append(f"what was taken down is not known: {found.problem}")
    return "; ".join(parts)


def _some(entries: Sequence[str]) -> str:
    shown = ", ".join(entries[:3])
    more = f" and {len(entries) - 3:,} more" if len(entries) > 3 else ""
    return f"{'entry' if len(entries) == 1 else 'entries'} {shown}{more}"


def _remedy(version: ModelVersion, found: TakedownStanding) -> str:
    if found.affected:
        return "promote a version without them; `cleanplate takedown status` says which entries are resolved"
    if found.unexamined and version.name == "local":
        return "serve a registered version: those are examined by `cleanplate takedown plan`"
    if found.unexamined:
        return f"run `cleanplate takedown plan {found.unexamined[0]}`, which examines every version"
    return "make the ledger readable, or say where it lies now (`ledger`)"


def _record(ledger: str, version: ModelVersion, found: TakedownStanding) -> None:
    """Adds the refusal to a ledger's audit record, where it can be written to."""
    subject = f"models:/{version.name}/{version.version}"
    with suppress(UserError):
        opened = Ledger.open(of_place(ledger))
        known = {entry.id[:DIGITS]: entry.id for entry in opened.read().entries}
        for short in (*found.affected, *found.unexamined):
            if short in known:
                opened.record_action(
                    what="version_refused",
                    subject=subject,
                    by="cleanplate serve",
                    entry=known[short],
                    detail={"why": "affected" if short in found.affected else "unexamined"},
                    once=True,
                )
