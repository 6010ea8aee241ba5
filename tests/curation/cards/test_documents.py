"""The documents: every section of their templates is there, figures reconcile, and what is not known is called so."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from curation.cards import ab2013, datasheet, eu, model_card
from curation.cards.difference import compare
from curation.cards.disclosed import UNCLASSED, Disclosed
from curation.cards.document import Answer, Document, cell, size
from curation.manifest import Manifest
from curation.report import words
from tests.curation.cards.samples import answer, column, disclosed, file, heap, manifest, model, tables, web
from tests.curation.test_report import AT, row

PROVIDER: dict[str, Any] = {
    "provider": {"name": "Klar GmbH", "contact": "rights@klar.example", "representative": "Ann",
                 "code_of_practice": True},
    "model": {"names": ["klar-1.0"], "placed_on_market": "2026-03-01", "dependencies": "None.", "continuous": False,
              "purpose": "To draw stamps.", "out_of_scope": "Portraits."},
    "summary": {"version": "2", "date": "2026-03-02", "previous": "https://klar.example/1"},
    "content": {"types": "Stamps.", "other": "Mostly Europe."},
    "sources": {
        "stamps": {"kind": "licensed", "agreement": "Of 2025.", "purchased": True, "owner": "The Society"},
        "museums": {"kind": "public-dataset", "name": "Museums", "url": "https://museums.example", "owner": "Museums"},
        "open-web": {"kind": "crawl", "owner": "Many"}, "unnamed": {"kind": "crawl", "owner": "Many"},
    },
    "statements": {
        "rights": "A mailbox.", "illegal_content": "Hash lists.", "user_interactions": False, "other_services": False,
        "copyright": "Yes.", "personal_information": "Yes.", "consumer_information": "No.", "first_used": "2026-01-02",
        "synthetic_data": "No.", "biases": "Unknown.", "maintenance": "By mail.", "ethics": "None.",
    },
    "dataset": {"url": "https://klar.example/data", "licence": "CC0-1.0"},
}  # fmt: skip
NUMBERS = ["", "1", "1.1", "1.2", "1.3", "2", "2.1", "2.2", "2.2.1", "2.2.2", "2.3", "2.4", "2.5", "2.6", "3", "3.1",
           "3.2", "3.3", ""]  # fmt: skip


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return manifest(tmp_path_factory.mktemp("documents"))


@pytest.fixture(scope="module")
def bare(found: Manifest) -> Disclosed:
    return disclosed(found)


@pytest.fixture(scope="module")
def full(found: Manifest) -> Disclosed:
    return disclosed(found, PROVIDER, model=model(found))


def every(of: Disclosed) -> list[Document]:
    return [eu.summary(of), ab2013.statement(of), datasheet.sheet(of), model_card.card(of, model(of.manifest))]


def test_the_summary_has_the_sections_of_the_template(bare: Disclosed) -> None:
    assert [section.number for section in eu.summary(bare).sections] == NUMBERS


def test_the_statement_has_its_twelve_items(bare: Disclosed) -> None:
    sections = ab2013.statement(bare).sections
    assert [section.number for section in sections] == [f"({i})" for i in range(1, 13)]
    assert all(section.items for section in sections)


def test_the_summary_of_everything_stated_lacks_nothing(full: Disclosed) -> None:
    assert eu.summary(full).absent() == []
    assert ab2013.statement(full).absent() == ["(6) “museums”", "(6) “open-web”", "(6) “unnamed”"]


def test_what_nobody_said_is_called_absent_with_the_field_to_give_it_in(bare: Disclosed) -> None:
    document = eu.summary(bare)
    name = answer(document, "Provider name and contact details")
    assert name.origin == "absent"
    assert name.text == ("not in the data: the provider's name and contact; give it in --provider (provider.name)",)
    for item in (i for d in every(bare) for s in d.sections for i in s.items):
        if isinstance(item, Answer):
            assert item.text, item
            assert all(item.text), item
            assert item.text[0].startswith("not in the data: ") == (item.origin == "absent"), item


def test_totals_are_the_sums_of_what_stands_above_them(full: Disclosed) -> None:
    checked = 0
    for table in (table for document in every(full) for table in tables(document)):
        if table.total is None or table.columns[0] == "step":  # of the funnel, below
            continue
        for i, value in enumerate(table.total):
            if isinstance(value, int):
                assert value == sum(int(str(int(line[i] or 0))) for line in table.rows), (table.title, i)
                checked += 1
    assert checked > 30


def test_totals_of_kept_pictures_are_the_kept_rows(full: Disclosed) -> None:
    whole = {"File formats", "Kept pictures by section", "Licences as stated", "Creators as stated", "Datasets",
             "Verdicts of kept pictures", "Captions by who wrote them", "Languages of captions"}  # fmt: skip
    seen = set()
    for table in (table for document in every(full) for table in tables(document)):
        if table.title in whole and table.total is not None:
            assert table.total[table.columns.index("kept pictures")] == full.facts.kept.rows == 65, table.title
            seen.add(table.title)
    assert seen == whole


def test_the_funnel_leads_from_the_inputs_to_what_is_kept(bare: Disclosed) -> None:
    [funnel] = tables(datasheet.sheet(bare), "From inputs to training content")
    assert funnel.total == ("total", 73, 4, 2, 2, 65)
    assert column(funnel, "reached it")[0] == 73
    assert column(funnel, "passed")[-1] == 65
    assert column(funnel, "reached it")[1:] == column(funnel, "passed")[:-1]


def test_domains_are_those_of_a_group_by(found: Manifest, bare: Disclosed) -> None:
    kept = found.table(["decision", "domain", "bytes"]).to_pandas()
    kept = kept[(kept.decision == "kept") & kept.domain.notna()]
    sizes = kept.groupby("domain").bytes.agg(["size", "sum"]).sort_values("sum", ascending=False)
    facts = eu.summary(bare).facts["domains"]
    assert facts["all"] == len(sizes) == 12
    largest = sizes[sizes["sum"] >= sizes["sum"].iloc[1]]  # 10 % of 12, rounded up, are two
    assert {d["domain"]: (d["rows"], d["bytes"]) for d in facts["named"]} == {
        name: (line["size"], line["sum"]) for name, line in largest.iterrows()
    }
    [table] = tables(eu.summary(bare), "Most relevant domain names")
    assert table.total == ("total", len(kept), kept.bytes.sum())


def test_a_small_enterprise_names_fewer(found: Manifest, bare: Disclosed) -> None:
    small = Disclosed(found, bare.facts, bare.provider, sme=True)
    facts = eu.summary(small).facts
    assert facts["sme"]
    assert len(facts["domains"]["named"]) == 1
    assert "SME" in str(tables(eu.summary(small), "Most relevant domain names")[0].note)


def test_without_a_provider_files_are_not_classified_and_pages_are_crawled(bare: Disclosed) -> None:
    document = eu.summary(bare)
    [table] = tables(document, "Kept pictures by section")
    sections = dict(zip(column(table, "section"), column(table, "kept pictures"), strict=True))
    assert sections == {"2.1": 0, "2.2.1": 0, "2.2.2": 0, "2.3": 60, "2.4": 0, "2.5": 0, "2.6": 0, "not classified": 5}
    asked = answer(document, "Were publicly available datasets used to train the model?")
    assert asked.text == (
        "not in the data: not all datasets are classified; give it in --provider (sources.NAME.kind: public-dataset)",
    )


def test_datasets_stand_in_the_section_the_provider_names(full: Disclosed) -> None:
    document = eu.summary(full)
    [table] = tables(document, "Kept pictures by section")
    assert column(table, "kept pictures") == [20, 5, 0, 40, 0, 0, 0]
    assert answer(document, "Were publicly available datasets used to train the model?").text == ("Yes.",)
    assert answer(document, "About stamps").text == ("Owner or publisher: The Society", "Agreement: Of 2025.")
    # what others delivered from their own servers is not scraped
    delivered = disclosed(full.manifest, {"sources": {"museums": {"kind": "licensed"}}})
    assert sum(a.rows for a in delivered.domains().values()) == 40
    assert sum(a.rows for a in full.domains().values()) == 60


def test_the_crawler_and_its_period(bare: Disclosed) -> None:
    document = eu.summary(bare)
    assert answer(document, "Crawler name(s)").text == ("klarbot/1 (+https://klar.example/bot)",)
    assert answer(document, "Period of data collection").text == ("01/2026 to 01/2026 (2026-01-01 to 2026-01-03).",)
    assert answer(document, "Latest date of data acquisition").text == ("01/2026, of what was fetched from the web.",)
    assert "robots.txt is asked before anything else" in " ".join(answer(document, "Behaviour of the crawler(s)").text)


def test_the_period_is_that_of_pages_and_not_of_files(tmp_path: Path) -> None:
    rows = [web(0), web(1), file(0, fetched_at=AT - timedelta(days=4000))]
    assert disclosed(manifest(tmp_path, rows)).collected().span == "2026-01-01 to 2026-01-01"


def test_only_files_and_no_crawler(tmp_path: Path) -> None:
    document = eu.summary(disclosed(manifest(tmp_path, [file(0), file(1)])))
    asked = answer(document, "Were crawlers used by the provider or on their behalf?")
    assert asked.text == ("No kept picture was fetched from the web.",)
    assert not tables(document, "Most relevant domain names")


def test_pages_without_a_time_do_not_become_no_pages(tmp_path: Path) -> None:
    of = disclosed(manifest(tmp_path, [web(0, fetched_at=None)]))
    assert answer(eu.summary(of), "Period of data collection").origin == "absent"
    assert answer(ab2013.statement(of), "Fetched from the web").origin == "absent"


def test_opt_outs_are_counted_by_what_decided(bare: Disclosed) -> None:
    [table] = tables(eu.summary(bare), "Inputs removed for their rights")
    assert {line[0]: line[1:] for line in table.rows} == {
        f"{words.reason('opted_out')} (rights.tdmrep)": (2, 0, 0, 2),
        f"{words.reason('opted_out')} (rights.robots)": (1, 0, 0, 1),
        f"{words.reason('rights_error')} (rights.tdmrep)": (0, 1, 0, 1),
        words.reason("not_asked"): (0, 0, 1, 1),
    }
    [seen] = tables(eu.summary(bare), "Signals seen")
    assert ("tdmrep", "deny", 2, 0) in seen.rows
    [verdicts] = tables(eu.summary(bare), "Verdicts of kept pictures")
    assert ("unknown", 12, "18.5%") in verdicts.rows


def test_the_job_is_put_in_words_and_its_secrets_are_not(bare: Disclosed) -> None:
    document = eu.summary(bare)
    said = " ".join(answer(document, "Measures before and during data collection").text)
    assert "held back for a person to decide" in said
    assert "Takedown ledger heeded: version 17-ab, 4 entries in force." in said
    assert "list of the kind optout, 12 entries, read on 2026-01-01" in said
    asked = answer(document, "Opt-out protocols honoured").text
    assert len(asked) == 3
    assert asked[1].startswith("the TDM Reservation Protocol")
    assert "for 5 kept pictures from files nothing but what stands inside" in asked[2]
    for found in every(bare):
        text = json.dumps(found.as_json())
        assert not any(secret in text for secret in ("secret", "/home/ann", "list.csv", "s3://house"))


def test_a_job_that_says_nothing_is_not_given_todays_defaults(tmp_path: Path) -> None:
    document = eu.summary(disclosed(manifest(tmp_path, heap(), job={}, ledger=None, rights=[], evidence_from=None)))
    for question in ("Crawler name(s)", "Behaviour of the crawler(s)", "Opt-out protocols honoured"):
        assert answer(document, question).origin == "absent"
    said = " ".join(answer(document, "Measures before and during data collection").text)
    assert "No takedown ledger is named" in said
    assert "not in the data" in said
    assert "is kept" not in said


def test_the_model_card_tells_the_training_set_from_the_kept_rows(full: Disclosed) -> None:
    fewer = model(full.manifest, training_rows=60, licences={"CC0-1.0": 60})
    card = model_card.card(Disclosed(full.manifest, full.facts, full.provider, fewer), fewer)
    limits = " ".join(answer(card, "Known limits").text)
    assert "trained on 60 of the 65 kept pictures" in limits
    assert "by heart" in limits
    [licences] = tables(card, "Licences of what was trained on")
    assert licences.total == ("total", 60)
    assert answer(card, "Training set").text == ("60 pictures, each seen 108.3 times on average (6,500 in all).",)
    large = model(full.manifest, training_rows=50_000)
    assert "by heart" not in " ".join(answer(model_card.card(full, large), "Known limits").text)


def test_the_difference_names_what_moved_and_why(tmp_path: Path) -> None:
    older = manifest(tmp_path / "old", [*map(web, range(30)), row("https://left.example/a", domain="left.example")])
    withdrawn = web(3) | {"decision": "dropped", "stage": "rights", "reason": "opted_out", "image": None}
    newer = manifest(tmp_path / "new", [*map(web, range(3)), withdrawn, *map(web, range(4, 40)), file(0)])
    document = eu.summary(disclosed(newer, difference=compare(newer, older)))
    assert document.sections[-1].title == "Annex: changes since the previous summary"
    assert answer(document, "Previous version").text == (f"The manifest {older.id}; see the annex.",)
    [pictures] = tables(document, "Pictures, by their bytes")
    assert column(pictures, "pictures") == [29, 11, 2]
    [why] = tables(document, "Why pictures are gone")
    assert set(why.rows) == {(f"dropped: {words.reason('opted_out')}", 1), ("no longer among the inputs", 1)}
    [domains] = tables(document, "Domains")
    assert ("left.example", 1, 0, "-1") in domains.rows
    assert ("no domain (files)", 0, 1, "+1") in domains.rows
    assert domains.total == ("total", 31, 40, "+9")
    before = pd.Series([web(i)["domain"] for i in range(30)]).value_counts()
    assert {line[0]: line[1] for line in domains.rows if line[0] in before.index}.items() <= dict(before).items()


def test_limits_name_what_is_not_in_the_figures(tmp_path: Path) -> None:
    rows = [file(0, source_url="https://a.example/"), file(1), web(0, bytes=None), web(1)]
    said = " ".join(answer(datasheet.sheet(disclosed(manifest(tmp_path, rows))), _LIMITS).text)
    assert "1 kept picture came in containers" in said
    assert "The size of 1 kept picture is not stated" in said
    assert "2 kept pictures came from files" in said
    assert "On the rights of 1 kept picture (25.0%) no signal speaks" in said


def test_what_came_in_a_container_was_not_crawled_from_where_it_says_it_is_from(tmp_path: Path) -> None:
    # as curation writes such a row: its domain is that of the address, for opt-outs to find
    rows = [file(i, source_url="https://a.example/", domain="a.example", host="a.example") for i in range(3)]
    of = disclosed(manifest(tmp_path, rows))
    assert of.collected().amount.rows == 0
    assert of.domains() == {}
    assert set(of.by_section()) == {UNCLASSED}
    assert "3 kept pictures came from files" in " ".join(answer(datasheet.sheet(of), _LIMITS).text)


_LIMITS = "Is anything missing, are there errors or noise?"


def test_a_derived_manifest_names_its_base(tmp_path: Path) -> None:
    of = disclosed(manifest(tmp_path, base_id="b" * 64, changes={"opted_out": 2, "opted_out_near_copy": 1}))
    said = answer(datasheet.sheet(of), "Is it updated?").text[0]
    assert f"derived from the manifest {'b' * 64} without 3 pictures" in said


def test_a_long_tail_is_summed(tmp_path: Path) -> None:
    rows = [web(i, creator=f"artist {i:02}", bytes=1000 - i) for i in range(40)]
    [table] = tables(eu.summary(disclosed(manifest(tmp_path, rows))), "Creators as stated")
    assert len(table.rows) == 26
    assert table.rows[-1] == ("all others", 15, sum(1000 - i for i in range(25, 40)))
    assert table.total == ("total", 40, sum(1000 - i for i in range(40)))


def test_a_manifest_without_a_kept_row(tmp_path: Path) -> None:
    of = disclosed(manifest(tmp_path, [row("https://no.example/", "dropped", "rights", "opted_out")]))
    assert eu.summary(of).facts["kept"] == {"rows": 0, "bytes": 0}
    assert [t.total for t in tables(eu.summary(of), "File formats")] == [("total", 0, 0)]
    assert len(every(of)) == 4


def test_sizes_and_cells_for_a_person() -> None:
    assert [size(n) for n in (0, 999, 1000, 123_456, 999_900, 2_500_000_000)] == [
        "0 bytes", "999 bytes", "1 kB", "123 kB", "1,000 kB", "2.5 GB",
    ]  # fmt: skip
    assert [cell(v) for v in (None, 1234, "x")] == ["–", "1,234", "x"]
