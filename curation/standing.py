"""How a run stands, in one small file beside its event log, and what it took."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from curation import events, storage

FILE = "standing.json"


@dataclass(frozen=True)
class Stage:
    """How far a stage is; `per_second` over the last minute, None while that is not known."""

    done: int
    total: int
    per_second: float | None = None

    @property
    def eta_seconds(self) -> float | None:
        """Until it is done, at the present pace."""
        if self.done >= self.total:
            return 0.0
        return (self.total - self.done) / self.per_second if self.per_second else None


@dataclass(frozen=True)
class Standing:
    """How a run stands.

    Attributes:
        values: what else there is to tell: loss, images_per_second.
        nodes: that are there, by kind.
    """

    at: float
    attempt: str
    stages: dict[str, Stage]
    workers: int
    nodes: dict[str, int]
    values: dict[str, float]
    note: str = ""


@dataclass(frozen=True)
class Spent:
    """What an attempt took.

    Attributes:
        node_s: seconds that nodes were there for, by their kind: of the whole cluster, whoever else used it.
        worker_s: seconds that workers were at work, by the kind of their node.
        cpu_s: of this process and its workers.
        price: of the nodes by kind, for kinds whose price is given.
    """

    wall_s: float
    node_s: dict[str, float]
    worker_s: dict[str, float]
    cpu_s: float
    price: dict[str, float] = field(default_factory=dict)


def write(folder: str, standing: Standing) -> None:
    """Writes how a run stands into the folder of its log. Raises OSError."""
    storage.write_bytes(storage.join(folder, FILE), json.dumps(dataclasses.asdict(standing)).encode())


def read(folder: str) -> Standing | None:
    """How a run stood when it last said so; None where it never did."""
    try:
        told = json.loads(storage.read_bytes(storage.join(folder, events.FOLDER, FILE)))
        stages = {name: Stage(**stage) for name, stage in told.pop("stages").items()}
        return Standing(stages=stages, **told)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def priced(node_s: Mapping[str, float], prices: Mapping[str, float]) -> dict[str, float]:
    """What nodes cost by kind, of kinds whose price for an hour is given."""
    return {kind: round(seconds / 3600 * prices[kind], 4) for kind, seconds in node_s.items() if kind in prices}
