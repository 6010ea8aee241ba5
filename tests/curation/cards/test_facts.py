"""What is counted in a manifest, against pandas, and that it reconciles or is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from curation.cards.difference import compare, kept_ids
from curation.cards.facts import COLUMNS, gather
from curation.errors import UserError
from curation.manifest import Manifest
from tests.curation.cards.samples import file, heap, manifest, web
from tests.curation.test_report import row


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return manifest(tmp_path_factory.mktemp("facts"))


@pytest.fixture(scope="module")
def frame(found: Manifest) -> pd.DataFrame:
    return found.table(list(COLUMNS)).to_pandas()


def test_amounts_are_those_of_a_group_by(found: Manifest, frame: pd.DataFrame) -> None:
    facts, kept = gather(found), frame[frame.decision == "kept"]
    places = kept.assign(dataset=kept.dataset.fillna("unnamed")).groupby(["dataset", "domain"], dropna=False)
    expected = {
        (dataset, None if pd.isna(domain) else domain): (len(rows), rows.bytes.sum(), rows.fetched_at.min())
        for (dataset, domain), rows in places
    }
    counted = {key: (p.amount.rows, p.amount.bytes, p.first or pd.NaT) for key, p in facts.places.items()}
    assert {key: v[:2] for key, v in counted.items()} == {key: v[:2] for key, v in expected.items()}
    assert all(pd.isna(expected[key][2]) or v[2] == expected[key][2] for key, v in counted.items())
    assert (facts.kept.rows, facts.kept.bytes) == (len(kept), kept.bytes.sum()) == (65, kept.bytes.sum())
    licences = kept.licence.fillna("unstated").value_counts().to_dict()
    assert {name: amount.rows for name, amount in facts.licences.items()} == licences
    assert facts.formats["png"].bytes == kept[kept.format == "png"].bytes.sum()
    assert dict(facts.verdicts) == kept.rights_verdict.value_counts().to_dict()
    assert facts.decisions == frame.decision.value_counts().to_dict()


def test_every_tally_sums_to_the_kept_rows(found: Manifest) -> None:
    facts = gather(found)
    for tally in (facts.licences, facts.formats):
        assert sum(amount.rows for amount in tally.values()) == facts.kept.rows
        assert sum(amount.bytes for amount in tally.values()) == facts.kept.bytes
    for counter in (facts.verdicts, facts.captioners, facts.languages):
        assert sum(counter.values()) == facts.kept.rows
    assert sum(n for _, (n, _) in facts.creators.top(100)) == facts.kept.rows


def test_a_row_counts_once_for_a_signal_however_often_it_was_seen(found: Manifest) -> None:
    facts = gather(found)
    assert facts.signals["tdmrep", "allow", "kept"] == 48  # each of them was seen twice
    assert facts.signals["tdmrep", "deny", "dropped"] == 2
    assert facts.signals["robots", "deny", "dropped"] == 1
    assert ("robots", "deny", "kept") not in facts.signals


def test_languages_are_those_of_the_caption_that_is_trained_on(tmp_path: Path) -> None:
    entries = [
        {"text": "ein Hund", "source": "b", "language": "de", "words": 2},
        {"text": "a dog", "source": "a", "language": "en", "words": 2},
        {"text": "a dog", "source": "c", "language": "fr", "words": 2},
    ]
    rows = [row("a", caption="a dog", captions=entries), row("b", caption=None, captions=entries), row("c")]
    facts = gather(manifest(tmp_path, rows))
    assert {name: n for name, n in facts.languages.items() if n} == {"en": 1, "unknown": 1}
    assert facts.captioners["no caption"] == 1
    assert facts.characters == len("a dog") + len("a red c")


def test_an_older_manifest_is_counted_without_the_columns_it_has_not(tmp_path: Path) -> None:
    facts = gather(manifest(tmp_path, heap(), without=("captions", "source_url", "dataset")))
    assert facts.missing == ["dataset", "source_url", "captions"]
    assert list(facts.datasets()) == ["unnamed"]
    assert facts.kept.rows == 65


def test_rows_that_do_not_reconcile_are_refused(tmp_path: Path) -> None:
    broken = manifest(tmp_path)
    info = json.loads(Path(broken.uri, "manifest.json").read_text())
    info["counts"]["kept"] += 1
    Path(broken.uri, "manifest.json").write_text(json.dumps(info))
    with pytest.raises(UserError, match="do not reconcile"):
        gather(Manifest.open(broken.uri))


def test_what_stays_comes_and_goes(tmp_path: Path) -> None:
    older = manifest(tmp_path / "old", [*map(web, range(10)), file(0)])
    withdrawn = web(3) | {"decision": "dropped", "stage": "rights", "reason": "opted_out", "image": None}
    newer = manifest(
        tmp_path / "new", [*map(web, range(3)), withdrawn, *map(web, range(4, 8)), *map(web, range(20, 26))]
    )
    found = compare(newer, older)
    assert (found.stay, found.come, found.go) == (7, 6, 4)
    assert found.why == {"dropped: opted_out": 1, "no longer among the inputs": 3}
    assert len(kept_ids(older)) == found.stay + found.go
    assert found.facts.kept.rows == 11
