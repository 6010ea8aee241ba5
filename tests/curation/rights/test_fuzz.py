"""A few hundred inputs of the fuzzer for every parser, and the fuzzer itself."""

from __future__ import annotations

import itertools
import re

import pytest

from curation.manifest import Verdict
from curation.rights.verdict import Observation
from tests.curation.rights.fuzz import CORPUS, PARSERS, PERMISSIONS, fuzz, mutated


@pytest.mark.parametrize("name", PARSERS)
def test_parsers_hold(name: str) -> None:
    found = fuzz(PARSERS[name], PERMISSIONS[name], CORPUS[name], 500, seed=1)
    assert found.crashes == []
    assert found.garbage == []
    assert found.slowest < 1
    assert found.allows, "the corpus must reach permissions, or nothing is shown about them"


def test_inputs_are_the_same_for_a_seed_and_differ() -> None:
    corpus = CORPUS["robots"]
    assert list(mutated(corpus, 50, 3)) == list(mutated(corpus, 50, 3))
    assert len(set(mutated(corpus, 300, 3))) > 250
    assert 4000 < max(map(len, mutated(corpus, 500, 3))) < 70_000


def test_the_fuzzer_finds_what_it_is_for() -> None:
    count = itertools.count()

    def broken(data: bytes) -> list[Observation]:
        if next(count) % 2:
            raise ValueError(data)
        return [Observation("broken", None, "", Verdict.ALLOW)]

    found = fuzz(broken, re.compile(rb"please"), [b"no"], 20)
    assert len(found.crashes) == 10
    assert len(found.garbage) == found.allows == 10
