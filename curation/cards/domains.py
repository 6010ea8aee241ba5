"""Which domains a public summary of training content has to name.

Section 2.3 of the Commission's template wants the largest 10 % of all domain names by the size of the content taken
from them; of small and medium-sized enterprises, the largest 5 % or 1,000 names, whichever is lower.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

SME_MOST = 1000


@dataclass
class Amount:
    """How much: rows, their bytes as received, and how many of the rows state no size."""

    rows: int = 0
    bytes: int = 0
    unsized: int = 0

    def add(self, other: Amount) -> None:
        self.rows += other.rows
        self.bytes += other.bytes
        self.unsized += other.unsized


def total(amounts: Mapping[str, Amount]) -> Amount:
    found = Amount()
    for amount in amounts.values():
        found.add(amount)
    return found


@dataclass(frozen=True)
class Listed:
    """The domains to be named, largest first, and what all the others come to."""

    rows: tuple[tuple[str, Amount], ...]
    rest: Amount
    others: int  # how many domains `rest` is of
    quota: int  # how many the rule wants; as large ones as the last of these are named as well
    rule: str


def largest(domains: Mapping[str, Amount], *, sme: bool = False) -> Listed:
    """The share of `domains` that the rule wants, rounded up; equals of the smallest one named are all named."""
    ranked = sorted(domains.items(), key=lambda item: (-item[1].bytes, -item[1].rows, item[0]))
    if sme:
        quota = min(-(-len(ranked) // 20), SME_MOST)
        rule = "the largest 5 % of all domain names by size of content, or 1,000 of them, whichever is lower (SME)"
    else:
        quota = -(-len(ranked) // 10)
        rule = "the largest 10 % of all domain names by size of content"
    if not quota:
        return Listed((), Amount(), 0, 0, rule)
    least = ranked[quota - 1][1].bytes
    named = [item for item in ranked if item[1].bytes >= least]
    rest = dict(ranked[len(named) :])
    return Listed(tuple(named), total(rest), len(rest), quota, rule)
