"""Whether a model version may still be served: what the takedown ledger and the version's own tags say about it.

`cleanplate takedown plan` looks at every registered version and leaves a tag `takedown.<entry>` with its answer. A
version that was trained on what an entry is about stays affected for ever; the way out is another version. What is not
known counts as affected: an entry that came after the training and that nobody has examined this version for, and a
ledger that cannot be read. What is true of a model that a version was made from, a student's teacher at any depth, is
true of the version (`training.dependencies`).
"""

from __future__ import annotations

import bisect
import hashlib
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, NamedTuple

from curation.errors import UserError
from curation.takedowns import Ledger, LedgerState, of_place
from curation.takedowns.ledger import VARIABLE
from serving.job import ServeJob
from serving.ledgers import Ledgers
from serving.standing import TakedownStanding
from training import dependencies
from training.bundle import read_info
from training.tracking import ModelVersion, resolve, versions_of_bundle, walk

TAG = "takedown."
"""Of a version's tag, followed by the first `DIGITS` of an entry's id; its value is an `Examined`."""
DIGITS = 12
Examined = Literal["affected", "unaffected", "unknown"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Behind:
    """What is on record of a model that a version was made from.

    Attributes:
        name: for a person.
        tags: of all versions that it is registered as.
        ledgers, trained_under: that its training asked, and what they held.
        stated: the statement that it was not trained on what takedowns reach, where that is all there is.
    """

    name: str
    tags: tuple[Mapping[str, str], ...]
    ledgers: tuple[str, ...]
    trained_under: tuple[str, ...]
    stated: str | None = None


def check(job: ServeJob) -> None:
    """Looks whether the job's model may be served, before anything starts.

    Raises:
        UserError: as `heed`, or no such model.
    """
    if job.takedowns != "ignore":
        heed(job, resolve(job.model, tracking_uri=job.tracking_uri, cache=job.cache))


class RefusedVersion(UserError):  # noqa: N818 - what became of the version, not of a program
    """The job's policy is not to serve a version that takedowns speak against."""


def heed(
    job: ServeJob, version: ModelVersion, before: TakedownStanding | None = None, opened: Ledgers | None = None
) -> TakedownStanding | None:
    """Acts by the job's policy on how a version stands; None where the policy is not to look.

    Args:
        before: how it stood when it was looked at last; what was said then is not said again.
        opened: keeps the ledgers for who looks more than once.

    Raises:
        RefusedVersion: the policy is to refuse, and the version is affected, or it is not known that it is not.
    """
    if job.takedowns == "ignore":
        return None
    info = read_info(version.bundle)
    # Requests that came since may lie where the environment says by now.
    now = [os.environ[VARIABLE]] if os.environ.get(VARIABLE) else []
    behind, problem = models_behind(version, dependencies.of_info(info), tracking_uri=job.tracking_uri)
    asked = [*_listed(info.ledger_uri), *(uri for model in behind for uri in model.ledgers), *now]
    ledgers = [job.ledger] if job.ledger else list(dict.fromkeys(asked))
    found = standing(version.tags, ledgers, _listed(info.takedown_ledger_version), behind, problem, opened)
    if found.clear:
        return found
    name = f"{version.name} version {version.version}"
    if job.takedowns == "warn":
        if found != before:
            _log.warning("%s is served although %s", name, _told(found))
        return found
    for uri in ledgers:
        _record(uri, version, found)
    raise RefusedVersion(f"{name} is not served: {_told(found)}", field="model", remedy=_remedy(version, found))


def models_behind(
    version: ModelVersion, named: Iterable[dependencies.Dependency], *, tracking_uri: str | None
) -> tuple[list[Behind], str | None]:
    """The models that a version was made from, at any depth, and why these may not be all."""
    try:
        found = walk(list(named), own=version.tags.get("bundle_sha256"), tracking_uri=tracking_uri)
    except UserError as error:
        return [], error.message
    behind = []
    for dependency in found:
        registered = versions_of_bundle(dependency.sha256, tracking_uri=tracking_uri)
        name = f"models:/{registered[0].name}/{registered[0].version}" if registered else dependency.name
        heeded = [_listed(dependency.ledger_uri), _listed(dependency.ledger_version)]
        if dependency.ledger_uri is None and registered:  # an older student names its teacher's sha256 alone
            tags = registered[0].tags
            heeded = [_listed(tags.get("ledger_uri")), _listed(tags.get("takedown_ledger_version"))]
        tagged = tuple(found.tags for found in registered)
        stated = None if dependency.vouched is None else dependency.vouched.told
        behind.append(Behind(f"its {dependency.kind} {name}", tagged, tuple(heeded[0]), tuple(heeded[1]), stated))
    return behind, None


def standing(
    tags: Mapping[str, str],
    ledgers: Sequence[str],
    trained_under: Sequence[str],
    behind: Sequence[Behind] = (),
    problem: str | None = None,
    opened: Ledgers | None = None,
) -> TakedownStanding:
    """How a version stands to the takedowns in force.

    Args:
        tags: the version's, by their names without prefix.
        ledgers: where the ledgers lie; none where the version names none, so that its tags are all there is.
        trained_under: the ledgers' versions that its training heeded.
        behind: the models that it was made from.
        problem: why these may not be all.
        opened: as of `heed`.
    """
    states, problems = (opened or Ledgers()).read(ledgers)
    problems += [] if problem is None else [problem]
    examined = _examined(tags)
    own = _entries(states, examined, examined, trained_under, ledgers)
    affected, unexamined = set(own.affected), set(own.unexamined)
    through, stated = [], []
    problems += own.problems
    for model in behind:
        found = _all_examined(model)
        named = [uri for uri in model.ledgers if uri in ledgers] or ledgers
        # whoever examined the version examined what it was made from, too
        theirs = _entries(states, found, {**examined, **found}, model.trained_under, named)
        if model.stated is not None:  # nobody could examine it; the statement stands in
            stated.append(f"{model.name}: {model.stated}")
            theirs = theirs._replace(unexamined=set())
        affected |= theirs.affected
        unexamined |= theirs.unexamined
        problems += [f"{model.name}: {problem}" for problem in theirs.problems]
        through += [model.name] if theirs.affected or theirs.unexamined else []
    return TakedownStanding(
        affected=tuple(sorted(affected)),
        unexamined=tuple(sorted(unexamined)),
        problem="; ".join(problems) or None,
        through=tuple(through),
        stated=tuple(stated),
    )


class _Entries(NamedTuple):
    affected: set[str]
    unexamined: set[str]
    problems: list[str]


def _entries(
    states: Mapping[str, LedgerState],
    tagged: Mapping[str, str],
    examined: Mapping[str, str],
    trained_under: Sequence[str],
    named: Sequence[str],
) -> _Entries:
    """The entries that speak against one model.

    Args:
        tagged: its own tags, by entry.
        examined: those and what counts as such.
        named: the ledgers that are expected to hold what its training heeded.
    """
    marked = {entry for entry, value in tagged.items() if value != "unaffected"}
    newer: set[str] = set()
    problems = []
    for uri, state in states.items():
        heeded = _heeded(state, trained_under)
        if heeded is None and not state.entries and uri in named:
            problems.append(f"the takedown ledger at {uri} holds nothing of what it held when the version was trained")
        newer |= {entry.id[:DIGITS] for entry in state.in_force if entry.id not in (heeded or ())}
        # an entry that was taken back is about nothing any more; one that the ledger lost still is
        marked -= {entry.id[:DIGITS] for entry in state.entries if entry.withdrawn is not None}
    return _Entries(marked, newer - set(examined), problems)


def _examined(tags: Mapping[str, str]) -> dict[str, str]:
    return {name.removeprefix(TAG): value for name, value in tags.items() if name.startswith(TAG)}


def _all_examined(model: Behind) -> dict[str, str]:
    """Of all versions that a model is registered as; the worst answer counts."""
    found: dict[str, str] = {}
    for tags in model.tags:
        found |= {entry: value for entry, value in _examined(tags).items() if found.get(entry) in (None, "unaffected")}
    return found


def _listed(joined: str | None) -> list[str]:
    """What a bundle names of the ledgers that its training asked, with commas between them; "none" for none."""
    return [] if joined in (None, "none", "unknown") else str(joined).split(", ")


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
        what = f"it or what it was made from ({', '.join(found.through)})" if found.through else "it"
        parts.append(f"{what} was trained on pictures that were taken down since (entries {', '.join(found.affected)})")
    if found.unexamined:
        of = f", or that of what it was made from ({', '.join(found.through)})" if found.through else ""
        parts.append(f"nobody has examined it for {_some(found.unexamined)}, which came after its training{of}")
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
