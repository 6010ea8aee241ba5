"""Ruling on a job's units: what is stored of them, what the policy says of each row, and the facts that settling needs.

A small job is ruled on by the driver. Of a large one the same is done by its workers, since a row takes some 60 µs of
Python and a unit a round trip to the store: what comes back to the driver are some 200 bytes of each row.
"""

from __future__ import annotations

import json
import pickle
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from curation import workers
from curation.decide import Facts, embeddings_of, rule_all
from curation.errors import UserError
from curation.listing import Listing
from curation.manifest import Decision
from curation.measure import forget
from curation.policy import Policy
from curation.units import Stage, Unit

APART_FROM = 100_000  # rows from which on workers rule: fewer are done before an actor has started
_AT_ONCE = 8_192  # rows at least that an actor is given at a time


@dataclass(frozen=True)
class Ruled:
    """Some consecutive rows of a job, ruled on."""

    start: int  # the first one's place
    facts: Facts
    removed: dict[str, int]  # by reason


def rule(found: Listing) -> Iterator[Ruled]:
    """Rules on every row by itself. What comes first need not be what stands first.

    Raises:
        UserError: as of `stored_unit`.
    """
    runs = _runs(found.units)
    if found.rows < APART_FROM or found.job.workers == 1:
        ruler = _Ruler(found.policy, found.stages)
        for start, units in runs:
            yield ruler.rule(start, units)
        return
    data = workers.ray_data()
    items = [{"start": start, "units": json.dumps([_told(unit) for unit in units])} for start, units in runs]
    dataset = data.from_items(items, override_num_blocks=len(items)).map_batches(
        _Ruler,
        batch_size=1,
        compute=data.ActorPoolStrategy(size=min(found.job.workers, len(items))),
        fn_constructor_args=[found.policy, found.stages],
        num_cpus=found.job.cpus_per_worker,
    )
    for row in dataset.iter_rows():
        facts = Facts(*pickle.loads(row["facts"]))
        yield Ruled(row["start"], facts, json.loads(row["removed"]))


def _runs(units: Sequence[Unit]) -> list[tuple[int, list[Unit]]]:
    """Consecutive units, some thousand rows of them together, and where the first of those rows stands."""
    found: list[tuple[int, list[Unit]]] = []
    end = 0
    for unit in units:
        if not found or end - found[-1][0] >= _AT_ONCE:
            found.append((end, []))
        found[-1][1].append(unit)
        end += unit.inputs.num_rows
    return found


def _told(unit: Unit) -> tuple[str, list[int]]:
    return unit.key, unit.unwanted


class _Ruler:
    """Rules on units, in the driver or as a Ray actor, which takes the lists of opt-outs once."""

    def __init__(self, policy: Policy, stages: dict[str, Stage]) -> None:
        self._policy, self._stages = policy, stages
        self._columns = [*policy.columns, *(["embedding"] if policy.job.duplicates.semantic else [])]

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """As Ray Data calls it."""
        done = []
        for start, told in zip(batch["start"], batch["units"], strict=True):
            units = [Unit(key, pa.table({}), unwanted) for key, unwanted in json.loads(told)]
            done.append(self.rule(int(start), units))
        return {
            "start": [ruled.start for ruled in done],
            "facts": [pickle.dumps(tuple(ruled.facts), protocol=5) for ruled in done],
            "removed": [json.dumps(ruled.removed) for ruled in done],
        }

    def rule(self, start: int, units: Sequence[Unit]) -> Ruled:
        """Rules on consecutive units."""
        parts, removed = [], Counter[str]()
        for unit in units:
            measured, heads, captions = stored_unit(self._stages, unit, self._columns)
            rulings = [ruling for ruling, _ in rule_all(self._policy, measured, heads, captions)]
            removed.update(str(ruling.reason) for ruling in rulings if ruling.decision != Decision.KEPT)
            parts.append(Facts.of(self._policy, measured, rulings, embeddings_of(self._policy, measured)))
        return Ruled(start, Facts.join(parts), dict(removed))


def stored_unit(
    stages: dict[str, Stage], unit: Unit, columns: Sequence[str] | None = None
) -> tuple[pa.Table, pa.Table | None, pa.Table | None]:
    """What is stored of a unit, as if its unwanted rows had never been asked for: measured, by heads, captions.

    Raises:
        UserError: when what a later stage made is of another measurement, as two runs at a time can leave it.
    """
    measured = stages["measure"].read(unit.key, columns)
    others: list[pa.Table | None] = []
    for name in ("heads", "captions"):
        if name not in stages:
            others.append(None)
            continue
        found = stages[name].read(unit.key)
        if found.schema.metadata.get(workers.OF) != workers.measurement(measured):
            stages[name].remove(unit.key)
            raise UserError(
                f"another run of the job is changing unit {unit.key}",
                field="output",
                remedy="wait until it has ended, and run the same command again",
            )
        others.append(forget(found, unit.unwanted))
    return forget(measured, unit.unwanted), others[0], others[1]
