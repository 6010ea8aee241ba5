"""The funnel: which step of the way every input got to, and why it went no further."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from curation.manifest import Decision, Reason


class Step(NamedTuple):
    """A step of the way: what those that pass it are called, and which stages of the manifest decide it."""

    name: str
    about: str
    stages: tuple[str, ...]


STEPS = (
    Step("asked for", "not opted out by where they lie", ()),
    Step("fetched", "their bytes came", ("fetch",)),
    Step("decoded", "their bytes are a picture", ("decode",)),
    Step("rights", "no opt-out, no reservation, a licence that may be used", ("rights", "licence")),
    Step("filters", "size, proportions and quality", ("size", "filters", "filter", "quality", "aesthetic")),
    Step("safety", "below every threshold of the safety concepts", ("safety",)),
    Step("captions", "with a caption that may be trained on", ("caption", "captions")),
    Step("duplicates", "not a copy of a picture that stays", ("duplicates", "duplicate")),
)
OTHER = Step("other checks", "stages this report has no name for", ())
KEPT = len(STEPS) + 1  # the step number of a row that passed them all; OTHER is the one before
_OF_STAGE = {stage: number for number, step in enumerate(STEPS) for stage in step.stages}

# Reasons that say what kind of rule decided, not which: the rule is part of the filter's name.
_BY_RULE = {Reason.FILTERED, Reason.UNSAFE, Reason.NOT_MEASURED}


class Outcome(NamedTuple):
    """What a row says about what became of it; `fetched` is whether its bytes came."""

    decision: str
    stage: str
    reason: str
    rule: str | None
    fetched: bool

    @property
    def step(self) -> int:
        """The step it left at: a row that was opted out by its place, and so not asked for, left at the first."""
        if self.decision == Decision.KEPT:
            return KEPT
        if self.reason == Reason.NOT_ASKED or (self.stage == "rights" and not self.fetched):
            return 0
        return _OF_STAGE.get(self.stage, len(STEPS))

    @property
    def filter(self) -> str:
        """The reason, and the rule where only it tells which filter that was."""
        return f"{self.reason}: {self.rule}" if self.reason in _BY_RULE and self.rule else self.reason


@dataclass(frozen=True)
class Bar:
    """One step of the funnel: what reached it, what left at it by decision, what passed it."""

    step: Step
    reached: int
    left: Mapping[str, int]

    @property
    def passed(self) -> int:
        return self.reached - sum(self.left.values())


def bars(outcomes: Mapping[Outcome, int]) -> list[Bar]:
    """The funnel from the rows by outcome: every step that is always there, others where rows left at them."""
    left: dict[int, Counter[str]] = {}
    for outcome, n in outcomes.items():
        left.setdefault(outcome.step, Counter())[outcome.decision] += n
    reached, found = sum(outcomes.values()), []
    for number, step in enumerate((*STEPS, OTHER)):
        here = left.get(number, Counter())
        if here or step.stages:
            found.append(Bar(step, reached, dict(sorted(here.items()))))
        reached -= sum(here.values())
    return found
