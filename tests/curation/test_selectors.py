"""Selectors: normal forms, what could select nothing, and which rows are selected, one by one and by the table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from curation.manifest import TEXTS, named
from curation.rights.lists import OptOuts
from curation.selectors import KINDS, Match, Selectors, candidates, near, normal, well_formed
from tests.curation.test_rights import write

SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("id", "uri", "final_uri", "source_url", "host", "creator")),
        ("redirects", pa.list_(pa.string())),
        ("embedded", TEXTS),
        ("phash", pa.uint64()),
    ]
)
words = st.sampled_from(
    ["a", "b.org", "http://b.org/a", "HTTP://B.org:80/a#x", "Jane", "jane ", "Doe, Jane", "c.b.org"]
)
rows_of = st.fixed_dictionaries(
    {
        "id": st.none() | st.sampled_from(["ab" * 32, "cd" * 32]),
        "uri": st.none() | words,
        "final_uri": st.none() | words,
        "source_url": st.none() | words,
        "host": st.none() | st.sampled_from(["b.org", "c.b.org", "xb.org"]),
        "creator": st.none() | words,
        "redirects": st.none() | st.lists(words, max_size=2),
        "embedded": st.none() | words.map(lambda name: named({"creator": name})),
        "phash": st.none() | st.sampled_from([0, 7, 15, 2**64 - 1]),
    }
)
selectors = st.lists(
    st.tuples(st.sampled_from(["uri", "domain", "creator"]), words)
    | st.tuples(st.just("sha256"), st.sampled_from(["ab" * 32, "EF" * 32]))
    | st.tuples(st.just("phash"), st.sampled_from([f"{n:016x}" for n in (0, 1, 2**63)])),
    max_size=6,
).map(lambda given: [(kind, normal(kind, value)) for kind, value in given])


@settings(deadline=None)
@given(st.sampled_from(KINDS), st.text() | words | st.text(alphabet="éİſﬀß́Ⅷｊ̈ aA.:/@", max_size=12))
def test_a_normal_form_is_its_own(kind: str, value: str) -> None:
    once = normal(kind, value)
    assume(well_formed(kind, once))
    assert normal(kind, once) == once


@pytest.mark.parametrize(
    ("kind", "one", "other"),
    [
        ("creator", " Jane DOE\t", "jane doe"),
        ("creator", "Ｊａｎｅ", "jane"),
        ("creator", "Straße", "STRASSE"),
        ("creator", "Ame\u0301lie", "AMÉLIE"),
        ("domain", "https://Example.com:8080/gallery", "example.com"),
        ("domain", "*.example.com", "example.com"),
        ("domain", "bücher.example", "xn--bcher-kva.example"),
        ("uri", "HTTPS://Example.com:443/a#top", "https://example.com/a"),
        ("sha256", "AB" * 32, "ab" * 32),
        ("phash", "00FF00FF00FF00FF", "00ff00ff00ff00ff"),
    ],
)
def test_what_means_the_same_is_the_same(kind: str, one: str, other: str) -> None:
    assert normal(kind, one) == normal(kind, other)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("sha256", "abc"),
        ("sha256", "g" * 64),
        ("phash", "ff"),
        ("phash", "0x00ff00ff00ff00"),
        ("domain", "all of flickr"),
        ("domain", ""),
        ("creator", "   "),
        ("uri", ""),
    ],
)
def test_what_could_select_nothing_is_not_well_formed(kind: str, value: str) -> None:
    assert not well_formed(kind, normal(kind, value))


@settings(deadline=None)
@given(selectors, st.lists(rows_of, max_size=4))
def test_a_table_is_matched_as_its_rows_are(given_: list[tuple[str, str]], rows: list[dict[str, Any]]) -> None:
    ready = Selectors(given_)
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    expected = [min((found.number for found in ready.matches(row)), default=-1) for row in rows]
    assert ready.first(table).tolist() == expected


@pytest.mark.parametrize(
    ("selector", "row"),
    [
        (("domain", "b.org"), {"redirects": ["https://x.b.org/1", "https://c.com/2"]}),
        (("uri", "https://b.org/1"), {"redirects": ["https://B.org/1"]}),
        (("domain", "b.org"), {"source_url": "http://b.org/page"}),
        (("creator", "doe, jane"), {"embedded": named({"creator": "Doe, Jane"})}),
        (("creator", "jane"), {"embedded": named({"creator": "John; JANE, Ann"})}),
        (("creator", "jane"), {"embedded": named({"creator": "John\nJane"})}),
    ],
)
def test_a_row_is_known_by_all_its_names(selector: tuple[str, str], row: dict[str, Any]) -> None:
    (found,) = Selectors([("uri", "elsewhere"), selector]).matches(row)
    assert (found.kind, found.number) == (selector[0], 1)
    assert Selectors([selector]).first(pa.Table.from_pylist([row])).tolist() == [0]


@pytest.mark.parametrize(("bits", "met"), [(0, True), (3, True), (4, False), (64, False)])
def test_a_perceptual_hash_is_met_within_its_radius(bits: int, met: bool) -> None:
    value = 0x0F0F0F0F0F0F0F0F
    ready = Selectors([("phash", f"{value:016x}")])
    row = {"phash": value ^ (2**bits - 1)}
    assert ready.matches(row) == ([Match("phash", f"{row['phash']:016x}", 0)] if met else [])
    table = pa.table({"phash": pa.array([None, row["phash"]], pa.uint64())})
    assert ready.first(table).tolist() == [-1, 0 if met else -1]


def test_no_selectors_select_nothing() -> None:
    assert not Selectors([])
    assert Selectors([]).first(pa.table({"id": ["ab" * 32]})).tolist() == [-1]
    assert candidates({}) == []


def test_near_is_what_comparing_each_with_each_finds() -> None:
    chance = np.random.default_rng(0)
    left, right = (chance.integers(0, 2**10, n).astype(np.uint64) for n in (70, 50))
    i, j = near(left, right, 2)
    expected = [(a, b) for a in range(70) for b in range(50) if int(left[a] ^ right[b]).bit_count() <= 2]
    assert list(zip(i.tolist(), j.tolist(), strict=True)) == expected


def test_house_lists_take_perceptual_hashes(tmp_path: Path) -> None:
    found = OptOuts.read([write(tmp_path / "list.csv", "phash\n00FF00FF00FF00FF\n")])
    assert [o.value for o in found.observe({"phash": 0x00FF00FF00FF00FE})] == ["phash=00ff00ff00ff00fe"]
    assert found.observe({"phash": 0}) == found.observe({"phash": None}) == []
