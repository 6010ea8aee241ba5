"""How often a training showed which pictures, and when: functions of its seed, its length and its training set."""

from __future__ import annotations

from collections.abc import Collection

from pydantic import BaseModel, ConfigDict

from training.roster import Roster


class Exposure(BaseModel):
    """One input as a training saw it."""

    model_config = ConfigDict(frozen=True)
    id: str
    times: int  # samples that showed it
    first: int | None  # the sample that showed it first, counted from 0; None where the training ended before


def exposures(roster: Roster, seed: int, images: int, ids: Collection[str]) -> list[Exposure]:
    """Those of some ids that are in a training set, the first seen first.

    Nothing was recorded while training: which sample shows which input follows from the seed (`training.order`). A
    retraining that started from a checkpoint has the same counts as one from scratch, for the samples before the
    checkpoint are the same ones.

    Args:
        images: samples of the whole training.
    """
    from training.order import Order

    wanted = set(ids)
    there = [(id_, int(slot)) for id_, slot in zip(roster.ids, roster.slots, strict=True) if id_ in wanted]
    if not there:
        return []
    order = Order.of(roster, seed)
    times, first = order.times_seen(images), order.first_seen(images)
    found = [
        Exposure(id=id_, times=int(times[slot]), first=int(first[slot]) if first[slot] < images else None)
        for id_, slot in there
    ]
    return sorted(found, key=lambda e: (images if e.first is None else e.first, e.id))
