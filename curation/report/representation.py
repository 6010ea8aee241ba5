"""The representation report: on which groups of pictures a filter falls harder than on the rest.

Groups are a model's guesses (CLIP zero-shot, from the job file). For every set of groups: each group's share before and
after curation, and for every filter its removal rate in a group against the rate in all the other groups together.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

Z95 = 1.959963984540054  # of the standard normal, two-sided 95 %
RATIO = 2.0  # a filter that falls on a group more than this many times as hard as on the rest is worth a warning
FEW = 3  # ... unless it took fewer rows than this from it


class Interval(NamedTuple):
    """A 95 % confidence interval."""

    low: float
    high: float


class RiskRatio(NamedTuple):
    """How many times as often something happens in one group as in another, with its 95 % interval."""

    ratio: float
    low: float
    high: float


def wilson(hits: int, n: int) -> Interval:
    """Wilson's score interval of a share (Wilson 1927, J. Am. Stat. Assoc. 22, 209-212); (0, 1) where n is 0."""
    if n == 0:
        return Interval(0.0, 1.0)
    share, spread = hits / n, Z95**2 / n
    middle = (share + spread / 2) / (1 + spread)
    half = Z95 / (1 + spread) * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    # The bounds at 0 and n hits are 0 and 1 exactly; floating point would leave a crumb.
    return Interval(0.0 if hits == 0 else middle - half, 1.0 if hits == n else middle + half)


def risk_ratio(a: int, n: int, b: int, m: int) -> RiskRatio | None:
    """(a / n) / (b / m) with the log interval of Katz et al. (1978, Biometrics 34, 469-474).

    Where a cell of the 2 x 2 table is empty the interval is taken with one half added to every cell (Haldane,
    Anscombe), and the bound that cannot be known is 0 or infinite. None where there is nothing to compare: a group is
    empty, or neither lost a row.
    """
    if n == 0 or m == 0 or a == b == 0:
        return None
    half = 0.5 if 0 in (a, n - a, b, m - b) else 0.0
    x, y, n_x, n_y = a + half, b + half, n + 2 * half, m + 2 * half
    centre = math.log(x / n_x) - math.log(y / n_y)
    spread = Z95 * math.sqrt(1 / x - 1 / n_x + 1 / y - 1 / n_y)
    ratio = (a / n) / (b / m) if b else math.inf
    low = 0.0 if a == 0 else min(ratio, math.exp(centre - spread))
    high = math.inf if b == 0 else max(ratio, math.exp(centre + spread))
    return RiskRatio(ratio, low, high)


class Fate(NamedTuple):
    """What became of a row: the funnel step it left at (the last one, when kept), and why."""

    step: int
    kept: bool
    filter: str  # the reason, with the rule where the reason alone does not say which filter it was


Counts = Counter[tuple[str, str, Fate]]
"""Rows by set, group and fate."""


@dataclass(frozen=True)
class Share:
    """One group before and after."""

    group: str
    before: int
    after: int
    share_before: float
    share_after: float
    interval_before: Interval
    interval_after: Interval


@dataclass(frozen=True)
class Removal:
    """One filter and one group: `removed` of the `reached` rows of the group, against all the other groups."""

    filter: str
    group: str
    removed: int
    reached: int
    rest_removed: int
    rest_reached: int
    ratio: RiskRatio | None

    @property
    def flag(self) -> str:
        """`warning`, `possible` (the rows are too few to tell) or nothing."""
        if self.ratio is None or self.ratio.ratio <= RATIO:
            return ""
        return "warning" if self.ratio.low > 1 and self.removed >= FEW else "possible"


@dataclass(frozen=True)
class GroupSet:
    """A set of groups of the job file, and what curation did to each."""

    name: str
    before: int
    after: int
    shares: tuple[Share, ...]
    removals: tuple[Removal, ...]  # the hardest first

    @property
    def warnings(self) -> tuple[Removal, ...]:
        return tuple(r for r in self.removals if r.flag == "warning")


ANY = "all of them together"


def group_sets(counts: Counts) -> list[GroupSet]:
    """The report's figures, from rows counted by set, group and fate."""
    return [_group_set(name, counts) for name in sorted({name for name, _, _ in counts})]


def _group_set(name: str, counts: Counts) -> GroupSet:
    own = {(group, fate): n for (of, group, fate), n in counts.items() if of == name}
    groups = sorted({group for group, _ in own})
    before = {g: sum(n for (of, _), n in own.items() if of == g) for g in groups}
    after = {g: sum(n for (of, fate), n in own.items() if of == g and fate.kept) for g in groups}
    all_before, all_after = sum(before.values()), sum(after.values())
    shares = [
        Share(
            g,
            before[g],
            after[g],
            before[g] / all_before,
            after[g] / all_after if all_after else 0.0,
            wilson(before[g], all_before),
            wilson(after[g], all_after),
        )
        for g in groups
    ]
    removals = []
    if len(groups) > 1:
        filters = sorted({(fate.step, fate.filter) for _, fate in own if not fate.kept})
        for step, label in filters:
            reached = {g: sum(n for (of, f), n in own.items() if of == g and f.step >= step) for g in groups}
            removed = {
                g: sum(n for (of, f), n in own.items() if of == g and (f.step, f.filter) == (step, label))
                for g in groups
            }
            removals += _against_rest(label, removed, reached)
        if len(filters) > 1:
            removals += _against_rest(ANY, {g: before[g] - after[g] for g in groups}, before)
    return GroupSet(
        name,
        all_before,
        all_after,
        tuple(sorted(shares, key=lambda s: (-s.before, s.group))),
        tuple(sorted(removals, key=_hardest_first)),
    )


def _against_rest(label: str, removed: dict[str, int], reached: dict[str, int]) -> list[Removal]:
    all_removed, all_reached = sum(removed.values()), sum(reached.values())
    found = []
    for group in removed:
        a, n = removed[group], reached[group]
        b, m = all_removed - a, all_reached - n
        found.append(Removal(label, group, a, n, b, m, risk_ratio(a, n, b, m)))
    return found


def _hardest_first(removal: Removal) -> tuple[int, float, str, str]:
    rank = {"warning": 0, "possible": 1, "": 2}[removal.flag]
    return rank, -removal.ratio.ratio if removal.ratio else 1.0, removal.filter, removal.group
