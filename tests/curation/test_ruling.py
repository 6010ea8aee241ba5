"""Ruling on stored units: here and by actors it is the same, and no row is left out."""

from __future__ import annotations

import numpy as np
import pytest

from curation import ruling
from curation.decide import Facts
from curation.listing import Listing, listing
from curation.ruling import Ruled, rule
from tests.bench.driver import job, prepare

ROWS = 3_000


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Listing:
    """A job with two workers, all of whose units are measured."""
    folder = tmp_path_factory.mktemp("stored")
    prepare(folder, ROWS)
    return listing(job(folder).model_copy(update={"workers": 2}))


def whole(found: list[Ruled]) -> Facts:
    facts = Facts.zeros(ROWS, found[0].facts)
    for part in found:
        facts.put(part.start, part.facts)
    return facts


def test_every_row_is_ruled_on_in_its_place(stored: Listing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ruling, "_AT_ONCE", 1_200)
    found = list(rule(stored))
    assert len(found) > 1
    facts = whole(found)
    ids = [i for unit in stored.units for i in stored.stages["measure"].read(unit.key, ["id"])["id"].to_pylist()]
    assert [i.decode() for i in facts.ids] == ids
    assert sum(part.removed["licence_not_allowed"] for part in found) == ROWS // 3
    assert facts.kept.sum() == ROWS - ROWS // 3


@pytest.mark.ray
@pytest.mark.slow
def test_actors_rule_as_the_driver_does(stored: Listing, ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    here = whole(list(rule(stored)))
    monkeypatch.setattr(ruling, "APART_FROM", 0)
    monkeypatch.setattr(ruling, "_AT_ONCE", 1_200)
    apart = list(rule(stored))
    assert len(apart) > 1
    for one, other in zip(here, whole(apart), strict=True):
        np.testing.assert_array_equal(one, other)
