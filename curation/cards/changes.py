"""The annex on what changed since an older manifest."""

from __future__ import annotations

from curation.cards.difference import Difference
from curation.cards.disclosed import SHOWN, Disclosed, clean, counts
from curation.cards.document import Section, Size, Table, says
from curation.cards.domains import Amount
from curation.cards.facts import Facts
from curation.report import words


def changes(of: Disclosed) -> tuple[Section, ...]:
    """One section, or none where no older manifest is given."""
    found = of.difference
    if found is None:
        return ()
    older, newer = found.facts.kept, of.facts.kept
    figures = (
        ("the older manifest", older.rows, Size(older.bytes)),
        ("this manifest", newer.rows, Size(newer.bytes)),
    )
    rows = (
        ("pictures in both", found.stay),
        ("pictures that are new", found.come),
        ("pictures that are gone", found.go),
    )
    items = (
        says("Compared with", f"manifest {found.older.id}, made {found.older.info.created_at.date().isoformat()}"),
        Table("Training content", ("manifest", "kept pictures", "size as received"), figures),
        Table("Pictures, by their bytes", ("what became of them", "pictures"), rows),
        counts("Why pictures are gone", "what this manifest says of them", _why(found), of="pictures"),
        _moved("Domains", _domains(found.facts), _domains(of.facts)),
        _moved("Licences as stated", found.facts.licences, of.facts.licences),
    )
    return (Section("", "Annex: changes since the previous summary", items),)


def _why(found: Difference) -> dict[str, int]:
    spoken: dict[str, int] = {}
    for key, n in found.why.items():
        decision, _, reason = key.partition(": ")
        name = f"{decision}: {words.reason(reason)}" if reason else key
        spoken[name] = spoken.get(name, 0) + n
    return spoken


def _domains(facts: Facts) -> dict[str, Amount]:
    found: dict[str, Amount] = {}
    for (_, domain), place in facts.places.items():
        found.setdefault(domain or "no domain (files)", Amount()).add(place.amount)
    return found


def _moved(title: str, before: dict[str, Amount], after: dict[str, Amount]) -> Table:
    """Names whose rows changed, the largest change first, the tail summed; totals are of all names."""
    none = Amount()
    moved = [
        (name, before.get(name, none).rows, after.get(name, none).rows) for name in sorted(before.keys() | after.keys())
    ]
    ranked = sorted((m for m in moved if m[1] != m[2]), key=lambda m: (-abs(m[2] - m[1]), m[0]))
    rows: list[tuple[str, int, int, str]] = [(clean(n), a, b, f"{b - a:+,}") for n, a, b in ranked[:SHOWN]]
    shown = {name for name, _, _ in ranked[:SHOWN]}
    rest = [m for m in moved if m[0] not in shown]
    if rest:
        a, b = sum(m[1] for m in rest), sum(m[2] for m in rest)
        rows.append((f"{len(rest):,} others", a, b, f"{b - a:+,}"))
    a, b = sum(m[1] for m in moved), sum(m[2] for m in moved)
    new, lost = sorted(after.keys() - before.keys()), sorted(before.keys() - after.keys())
    note = f"{len(new):,} new, {len(lost):,} gone"
    return Table(title, ("name", "before", "now", "change"), tuple(rows), ("total", a, b, f"{b - a:+,}"), note)
