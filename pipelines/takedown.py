"""`cleanplate takedown`: requests that pictures be no longer used, kept in the ledger."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from pydantic import BaseModel

from curation.errors import UserError
from curation.takedowns import Action, Entry, Ledger, Selector, location, of_place
from curation.takedowns.events import Kind
from curation.takedowns.ledger import VARIABLE

_MANY_LOOSE = 1000
_REMEDY_REQUESTED = "write a date or a time in ISO 8601, such as 2026-03-01 or 2026-03-01T12:00:00Z"


class Shown(BaseModel):
    """One entry, with what was done about it."""

    ledger: str
    version: str
    entry: Entry
    state: str
    actions: list[Action]
    loose: int  # events that lie in files of their own


class Listed(BaseModel):
    """The entries of a ledger."""

    ledger: str
    version: str
    in_force: int
    entries: list[Entry]  # open ones only, unless all were asked for


class Packed(BaseModel):
    """What packing did."""

    ledger: str
    version: str
    removed: int  # files
    entries: int


def open_ledger(given: str | None) -> Ledger:
    """The ledger that is named: itself, or by a manifest that heeds it, or else by $CLEANPLATE_LEDGER."""
    return Ledger.open(of_place(location(given)))


def selectors(
    given: Mapping[Kind, Sequence[str]], pictures: Sequence[str] = (), rows: Sequence[tuple[str, str]] = ()
) -> list[Selector]:
    """What the command line names, ready for an entry.

    Args:
        given: by kind, values as somebody wrote them.
        pictures: files of pictures.
        rows: (manifest, id or uri of a row).

    Raises:
        UserError: for what would select nothing or cannot be read, and when nothing is named.
    """
    from curation.takedowns.pictures import of_file, of_row

    found = [Selector.of(kind, value) for kind, values in given.items() for value in values]
    found += [of_file(path) for path in pictures]
    for manifest, row in rows:
        found += of_row(manifest, row)
    if not found:
        raise UserError(
            "nothing says which pictures are meant",
            field="--sha256",
            remedy="give at least one of --sha256, --uri, --domain, --creator, --picture, --row",
        )
    return list(dict.fromkeys(found))


def time_of(given: str | None) -> datetime | None:
    """A date or time in ISO 8601, in UTC where it names no zone.

    Raises:
        UserError: for what is none, or lies ahead.
    """
    if given is None:
        return None
    try:
        found = datetime.fromisoformat(given.strip())
    except ValueError:
        raise UserError(f"{given!r} is no time", field="--requested-at", remedy=_REMEDY_REQUESTED) from None
    found = found.replace(tzinfo=UTC) if found.tzinfo is None else found
    if found > datetime.now(UTC):
        raise UserError(f"{given} lies in the future", field="--requested-at", remedy=_REMEDY_REQUESTED)
    return found


def add(
    ledger: str | None,
    *,
    by: str,
    ground: str,
    reference: str | None,
    requested_at: str | None,
    chosen: Sequence[Selector],
) -> Shown:
    """Adds an entry; the same request with the same reference is the same entry.

    Raises:
        UserError: what is missing or cannot be read; a request that was withdrawn, which is not in force again.
    """
    opened = open_ledger(ledger)
    _check_text(("--by", by), ("--ground", ground), ("--reference", reference or ""))
    entry = opened.append_entry(
        requester=by, ground=ground, selectors=chosen, requested_at=time_of(requested_at), reference=reference
    )
    found = _shown(opened, entry.id)
    if found.entry.withdrawn is not None:
        raise UserError(
            f"this very request is entry {entry.id[:12]}, withdrawn on {found.entry.withdrawn.recorded_at:%Y-%m-%d}",
            field="--reference",
            remedy="give another reference: then it is a new request",
        )
    return found


def entries(ledger: str | None, *, all_: bool) -> Listed:
    """The open entries, or all of them."""
    opened = open_ledger(ledger)
    state = opened.read()
    return Listed(
        ledger=opened.uri,
        version=state.version,
        in_force=len(state.in_force),
        entries=list(state.entries if all_ else state.in_force),
    )


def entry(ledger: str | None, id_: str) -> Shown:
    """One entry by its id, or by the beginning of it."""
    return _shown(open_ledger(ledger), id_)


def withdraw(ledger: str | None, id_: str, *, by: str, why: str) -> Shown:
    """Takes an entry back; it stays in the ledger, withdrawn."""
    opened = open_ledger(ledger)
    _check_text(("--by", by), ("--why", why))
    return _shown(opened, opened.withdraw(id_, by=by, why=why).entry)


def pack(ledger: str | None) -> Packed:
    """Folds the ledger's files into one."""
    opened = open_ledger(ledger)
    removed = opened.pack()
    state = opened.read()
    return Packed(ledger=opened.uri, version=state.version, removed=removed, entries=len(state.entries))


def _shown(opened: Ledger, id_: str) -> Shown:
    state = opened.read()
    found = state.entry(id_)
    return Shown(
        ledger=opened.uri,
        version=state.version,
        entry=found,
        state=found.state,
        actions=list(state.actions_of(found.id)),
        loose=opened.loose(),
    )


def _check_text(*fields: tuple[str, str]) -> None:
    for name, text in fields:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise UserError("this is not UTF-8", field=name, remedy="set the terminal's encoding to UTF-8") from None


def summary(result: Shown | Packed) -> list[str]:
    """What a person is told at the end: what there is now, and what to run next."""
    if isinstance(result, Packed):
        held = _many(result.entries, "entry", "entries")
        return [f"{_many(result.removed, 'file', 'files')} packed away; {held} in {result.ledger}"]
    lines = [_sentence(result)]
    if result.state == "open":
        # What is printed is there to be run: it names the ledger unless the environment does.
        named = os.environ.get(VARIABLE)
        known = named is not None and open_ledger(named).uri == result.ledger
        where = "" if known else f" --ledger {shlex.quote(result.ledger)}"
        lines.append(f"next: cleanplate trace {result.entry.id}{where}")
        lines.append(f"      cleanplate takedown plan {result.entry.id}{where}")
    if result.loose > _MANY_LOOSE:
        lines.append(f"{result.loose:,} events lie in files of their own: cleanplate takedown pack makes them one")
    return lines


def _sentence(result: Shown) -> str:
    found = result.entry
    if found.withdrawn is None:
        many = _many(len(found.selectors), "selector", "selectors")
        return f"entry {found.id} is in force in {result.ledger}: {many}"
    since = found.withdrawn.recorded_at.date()
    return f"entry {found.id} was withdrawn on {since} by {found.withdrawn.by}: {found.withdrawn.why}"


def show_list(result: Listed) -> None:
    """Prints the entries as a table, and a line that sums them up."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("entry", "requested", "by", "selects", "ground", "state")
    for found in result.entries:
        cells = (found.id[:12], f"{found.requested_at:%Y-%m-%d}", found.requester, _selected(found), found.ground)
        table.add_row(*map(Text, cells), found.state)  # a request is a stranger's words, never markup
    console = Console()
    if result.entries:
        console.print(table)
    console.print(
        f"{_many(result.in_force, 'entry', 'entries')} in force in {result.ledger}, version {result.version[:16]}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def show_entry(result: Shown) -> None:
    """Prints one entry, and what was done about it."""
    from rich.console import Console

    found = result.entry
    lines = [
        f"entry      {found.id}",
        f"state      {found.state}",
        f"by         {found.requester}",
        f"ground     {found.ground}",
        f"reference  {found.reference or '-'}",
        f"requested  {found.requested_at:%Y-%m-%d %H:%M}Z, recorded {found.recorded_at:%Y-%m-%d %H:%M}Z",
        *(f"selects    {s.kind} {s.value}" for s in found.selectors),
        *(f"done       {a.recorded_at:%Y-%m-%d %H:%M}Z {a.what} {a.subject} by {a.by}" for a in result.actions),
    ]
    console = Console()
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _many(n: int, one: str, more: str) -> str:
    return f"{n:,} {one if n == 1 else more}"


def _selected(found: Entry) -> str:
    shown = [f"{s.kind} {s.value[:12] + '…' if len(s.value) > 60 else s.value}" for s in found.selectors[:3]]
    more = len(found.selectors) - len(shown)
    return "\n".join([*shown, *([f"and {more} more"] if more > 0 else [])])
