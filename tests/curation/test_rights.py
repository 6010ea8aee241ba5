"""Rights: lists, and what several observations add up to."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation.errors import UserError
from curation.manifest import Verdict
from curation.rights import embedded
from curation.rights.lists import OptOutList, OptOuts
from curation.rights.verdict import Observation, combine, verdict

verdicts = st.lists(st.sampled_from(list(Verdict)))


@given(verdicts)
def test_a_denial_always_denies(found: list[Verdict]) -> None:
    assert combine([*found, Verdict.DENY]) == Verdict.DENY


@given(verdicts)
def test_a_failed_check_is_never_a_permission(found: list[Verdict]) -> None:
    assert combine([*found, Verdict.ERROR]) in (Verdict.DENY, Verdict.ERROR)


@given(verdicts, st.randoms())
def test_order_does_not_matter(found: list[Verdict], chance: object) -> None:
    shuffled = list(found)
    chance.shuffle(shuffled)  # type: ignore[attr-defined]
    assert combine(found) == combine(shuffled)


def test_nothing_seen_is_unknown() -> None:
    assert combine([]) == Verdict.UNKNOWN


SIGNALS = ("robots", "aipref", "tdmrep", "plus_data_mining", "c2pa", "licence", "optout_list", "takedown")
observed = st.builds(Observation, st.sampled_from(SIGNALS), st.none(), st.just("x"), st.sampled_from(list(Verdict)))


@given(st.lists(observed), observed)
def test_no_observation_makes_a_refusal_or_a_failure_a_permission(found: list[Observation], one: Observation) -> None:
    before, after = verdict(found), verdict([*found, one])
    if one.verdict in (Verdict.DENY, Verdict.ERROR):
        assert after != Verdict.ALLOW
    if before == Verdict.DENY:
        assert after == Verdict.DENY
    if before == Verdict.ERROR:
        assert after in (Verdict.ERROR, Verdict.DENY)


@given(st.lists(observed))
def test_who_may_be_fetched_from_is_not_thereby_trained_on(found: list[Observation]) -> None:
    permitted = any(o.verdict == Verdict.ALLOW and o.signal != "robots" for o in found)
    assert (verdict(found) == Verdict.ALLOW) <= permitted


ROW = {"uri": "a/b.png", "id": "ab" * 32, "creator": "Jane Doe", "host": None}


def write(path: Path, text: str) -> OptOutList:
    path.write_text(text)
    return OptOutList(path=str(path))


@pytest.mark.parametrize(
    ("table", "row", "denied"),
    [
        ("uri\na/b.png\n", ROW, True),
        ("uri\na/B.png\n", ROW, False),
        ("creator\n jane doe \n", ROW, True),
        ("sha256\n" + "AB" * 32 + "\n", ROW, True),
        ("uri,creator\nx.png,\n,Jane Doe\n", ROW, True),
        ("domain\nexample.com\n", ROW | {"host": "img.example.com"}, True),
        ("domain\nexample.com\n", ROW | {"host": "notexample.com"}, False),
        ("domain\nimg.example.com\n", ROW | {"host": "example.com"}, False),
        ("creator\n\n", ROW | {"creator": None}, False),
        ("uri, Creator \nx.png,jane doe\n", ROW, True),
        ("creator\nNA\n", ROW | {"creator": "NA"}, True),
        ("domain\nhttps://example.com/gallery\n", ROW | {"host": "example.com"}, True),
        ("domain\n*.example.com\n", ROW | {"host": "img.example.com"}, True),
        ("domain\nexample.com\n", ROW | {"final_uri": "https://cdn.example.com/b.png"}, True),
    ],
)
def test_lists_deny_what_they_select(tmp_path: Path, table: str, row: dict[str, str], denied: bool) -> None:
    found = OptOuts.read([write(tmp_path / "list.csv", table)]).observe(row)
    assert bool(found) == denied
    assert all(o.verdict == Verdict.DENY and o.where == "list.csv" for o in found)


def test_a_list_that_cannot_be_read_stops_the_job(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"optout\[1\]\.path"):
        OptOuts.read([write(tmp_path / "a.csv", "uri\nx\n"), OptOutList(path=str(tmp_path / "absent.csv"))])
    with pytest.raises(UserError, match="none of the columns"):
        OptOuts.read([write(tmp_path / "b.csv", "url\nx\n")])
    with pytest.raises(UserError, match="match nothing"):
        OptOuts.read([write(tmp_path / "c.csv", "domain\nall of flickr\n")])
    with pytest.raises(UserError, match="match nothing"):
        OptOuts.read([write(tmp_path / "d.csv", "sha256\nabc\n")])


def test_what_was_read_is_on_record(tmp_path: Path) -> None:
    (source,) = OptOuts.read([write(tmp_path / "a.csv", "uri,creator\nx,\ny,Z\n")]).sources
    assert source.entries == 3
    assert len(source.sha256) == 64


@pytest.mark.parametrize("form", ["{}", "http://ns.useplus.org/ldf/vocab/{}", "https://ns.useplus.org/LDF/vocab/{}/ "])
@pytest.mark.parametrize(
    ("value", "verdict"),
    [
        ("DMI-ALLOWED", Verdict.ALLOW),
        ("DMI-UNSPECIFIED", Verdict.UNKNOWN),
        ("DMI-PROHIBITED", Verdict.DENY),
        ("dmi-prohibited", Verdict.DENY),
        ("DMI-PROHIBITED-AIMLTRAINING", Verdict.DENY),
        ("DMI-PROHIBITED-GENAIMLTRAINING", Verdict.DENY),
        ("DMI-PROHIBITED-EXCEPTSEARCHENGINEINDEXING", Verdict.DENY),
        ("DMI-PROHIBITED-SEECONSTRAINT", Verdict.DENY),
        ("DMI-PROHIBITED-SOMETHING-NEW", Verdict.DENY),
        ("DMI-ALLOWEDX", Verdict.ERROR),
        ("yes", Verdict.ERROR),
    ],
)
def test_data_mining_inside_the_file(form: str, value: str, verdict: Verdict) -> None:
    (observed,) = embedded.observe({"data_mining": form.format(value)})
    assert (observed.signal, observed.verdict) == ("plus_data_mining", verdict)
    assert observed.observed_at is None


def test_the_strongest_of_several_statements_inside_the_file_wins() -> None:
    observed = embedded.observe({"data_mining": "DMI-ALLOWED\nDMI-PROHIBITED", "title": "x"})
    assert combine(o.verdict for o in observed) == Verdict.DENY


@pytest.mark.parametrize("damaged", ["xmp", "exif,xmp", "container"])
def test_metadata_that_could_not_be_read_is_an_error(damaged: str) -> None:
    for found in ({"damaged": damaged}, {"damaged": damaged, "data_mining": "DMI-ALLOWED"}):
        assert combine(o.verdict for o in embedded.observe(found)) == Verdict.ERROR


def test_what_says_nothing_about_use_is_no_verdict() -> None:
    assert embedded.observe({"title": "x", "damaged": "exif", "data_mining": ""}) == []
    (observed,) = embedded.observe({"licence": "https://creativecommons.org/licenses/by/4.0/"})
    assert observed.verdict == Verdict.UNKNOWN
