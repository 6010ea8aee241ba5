"""The report: figures that reconcile with the rows, whatever the manifest holds or lacks."""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curation.manifest import (
    ClipInfo,
    InputsInfo,
    Manifest,
    ManifestInfo,
    WorkInfo,
    manifest_id,
    publish,
    schema,
    write_part,
)
from curation.report import charts, funnel, pictures, words
from curation.report.facts import Captions, Outcomes, gather
from curation.report.page import render
from curation.report.scores import Score, Series, Threshold, thresholds
from tests.curation.pictures import encoded, noise

AT = datetime(2026, 1, 1, tzinfo=UTC)
DIM = 4
JOB: dict[str, Any] = {
    "kind": "curate",
    "source": {"kind": "urls", "path": "https://user:secret@example.org/list.csv"},
    "images": {"min_side": 64},
    "filters": {"blur": {"min": 2.0}, "bytes": {"max": 5e6, "action": "hold"}},
    "safety": {"concepts": {"weapon": 0.3}, "action": "hold", "nsfw": {"threshold": 0.8, "action": "drop"}},
    "duplicates": {"perceptual": {"radius": 3}},
}


def row(
    name: str, decision: str = "kept", stage: str = "decide", reason: str = "passed", **more: Any
) -> dict[str, Any]:
    """A row of a manifest; kept ones have a picture and a caption."""
    found: dict[str, Any] = {
        "id": hashlib.sha256(name.encode()).hexdigest(),
        "uri": name,
        "domain": "example.org",
        "creator": "Ann",
        "licence": "CC0-1.0",
        "bytes": 1000,
        "width": 200,
        "height": 100,
        "embedding": [0.0] * DIM,
        "rights": [
            {"signal": "licence", "value": "CC0-1.0", "where": "metadata", "observed_at": AT, "verdict": "allow"}
        ],
        "rights_verdict": "allow",
        "decision": decision,
        "stage": stage,
        "reason": reason,
        "caption": f"a red {name}" if decision == "kept" else None,
        "caption_source": "metadata" if decision == "kept" else None,
        "safety": [{"concept": "weapon", "score": 0.1}, {"concept": "opennsfw", "score": 0.01}],
        "scores": [{"name": "blur", "score": 5.0}],
        "groups": [{"set": "place", "group": "indoors" if len(name) % 2 else "outdoors", "score": 0.5}],
        "image": {"bytes": picture(name), "path": name} if decision == "kept" else None,
    }
    if decision == "failed":
        found |= {"bytes": None, "width": None, "height": None, "safety": None, "scores": None, "groups": None}
    return found | more


def picture(name: str) -> bytes:
    return encoded(noise(len(name), (48, 32)))


def published(
    output: Path, *parts: list[dict[str, Any]], job: Any = JOB, without: tuple[str, ...] = (), **info: Any
) -> Manifest:
    """A manifest of these rows, a part for each list; `without` leaves columns out, as older versions did."""
    staging = output / ".work" / "staging"
    columns = pa.schema([field for field in schema(DIM) if field.name not in without])
    written = [
        write_part(f"{staging}/part-{i:05d}.parquet", pa.Table.from_pylist(part, schema=columns))
        for i, part in enumerate(parts)
    ]
    rows = [row for part in parts for row in part]
    fields: dict[str, Any] = {
        "id": manifest_id(job, [digest for _, digest in written]),
        "name": "test",
        "created_at": AT,
        "code_version": "0",
        "job": job,
        "clip": ClipInfo(name="none", dim=DIM),
        "inputs": InputsInfo.of(row["uri"] for row in rows),
        "rows": len(rows),
        "counts": Counter(row["decision"] for row in rows),
        "reasons": Counter(row["reason"] for row in rows),
        "rights": [],
        "files": [part for part, _ in written],
    }
    return publish(str(staging), str(output), ManifestInfo(**(fields | info)))


def with_work(output: Path, *parts: list[dict[str, Any]], **info: Any) -> Manifest:
    """The same, with the pictures of all rows in the work folder."""
    work = output / "units"
    work.mkdir(parents=True)
    for i, part in enumerate(parts):
        images = [{"bytes": picture(r["uri"]), "path": r["uri"]} for r in part]
        pq.write_table(pa.table({"id": [r["id"] for r in part], "image": images}), work / f"unit-u{i}.parquet")
    units = [f"u{i}" for i in range(len(parts))]
    return published(output, *parts, work=WorkInfo(folder=str(work), units=units), **info)


def heap() -> list[dict[str, Any]]:
    """Rows that leave at every step."""
    first = row("apple")
    copy = {"duplicate_of": first["id"], "duplicate_cluster": first["id"], "similarity": 0.96}
    return [
        first | {"duplicate_cluster": first["id"]},
        row("pear"),
        row("missing", "failed", "fetch", "http_404"),
        row("broken", "failed", "decode", "corrupt", bytes=10, detail="not a picture"),
        row("unasked", "failed", "fetch", "not_asked"),
        row("unfetched", "dropped", "rights", "opted_out", bytes=None, rule="optout: list.csv", rights_verdict="deny"),
        row("painting", "dropped", "rights", "opted_out", rule="optout: list.csv", rights_verdict="deny"),
        row("near", "dropped", "rights", "opted_out_near_copy", rights_verdict="deny", duplicate_of="x"),
        row("unstated", "held", "licence", "licence_unstated", licence=None),
        row("tiny", "dropped", "size", "too_small", rule="images.min_side", score=10.0, threshold=64.0),
        row("blurred", "dropped", "filters", "filtered", rule="filters.blur.min", score=1.0, threshold=2.0),
        row("knife", "held", "safety", "unsafe", rule="safety.concepts.weapon", score=0.4, threshold=0.3),
        row("silent", "dropped", "captions", "caption_missing"),
        row("apple2", "dropped", "duplicates", "duplicate_perceptual", duplicate_kind="perceptual", **copy),
    ]


class Text(HTMLParser):
    """The page as a browser reads it: its elements with attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_funnel_and_the_reasons_reconcile_with_the_rows(tmp_path: Path) -> None:
    rows = heap()
    manifest = published(tmp_path, rows[:5], rows[5:])
    facts = gather(manifest)
    assert facts.rows == len(rows)
    assert facts.outcomes.decisions() == {"kept": 2, "failed": 3, "dropped": 7, "held": 2}
    bars = funnel.bars(facts.outcomes.counts)
    assert [(bar.step.name, bar.reached, sum(bar.left.values())) for bar in bars] == [
        ("asked for", 14, 2),
        ("fetched", 12, 1),
        ("decoded", 11, 1),
        ("rights", 10, 3),
        ("filters", 7, 2),
        ("safety", 5, 1),
        ("captions", 4, 1),
        ("duplicates", 3, 1),
    ]
    assert bars[-1].passed == 2
    page = render(manifest)
    assert page.warnings == []
    text = " ".join(Text(page.html).text.split())
    assert "2 kept + 7 dropped + 2 held + 3 failed = 14 rows = 14 inputs" in text
    assert "The counts add up to 14." in text
    assert "Reconciled" in text


def test_a_stage_without_a_name_is_a_step_of_its_own(tmp_path: Path) -> None:
    facts = gather(published(tmp_path, [row("a"), row("b", "dropped", "new_stage", "new_reason")]))
    assert [(bar.step, bar.left) for bar in funnel.bars(facts.outcomes.counts)][-1] == (funnel.OTHER, {"dropped": 1})


def test_rows_that_do_not_reconcile_are_said_to_be_so(tmp_path: Path) -> None:
    page = render(published(tmp_path, [row("a")], counts={"kept": 2}))
    assert len(page.warnings) == 1
    assert "do not reconcile" in page.warnings[0]
    assert "do not reconcile" in page.html
    denied = render(published(tmp_path / "b", [row("a", rights_verdict="deny")]))
    assert denied.warnings == ["Kept rows that carry a denial of rights: 1."]
    assert "No kept row carries a denial" not in denied.html


def test_a_sample_is_a_function_of_the_ids(tmp_path: Path) -> None:
    rows = [row(f"p{i}") for i in range(60)]
    forth, back = pictures.Sample(), pictures.Sample()
    gather(published(tmp_path / "a", rows[:7], rows[7:]), forth)
    gather(published(tmp_path / "b", rows[::-1]), back)
    (key,) = forth.chosen
    chosen = [rows[i]["uri"] for i in forth.rows(key)]
    assert len(chosen) == 24
    assert chosen == [rows[::-1][i]["uri"] for i in back.rows(key)]
    assert chosen == [r["uri"] for r in sorted(rows, key=lambda r: pictures.rank(r["id"]))[:24]]
    assert "showing 24 of 60" in render(published(tmp_path / "c", rows)).html


def test_clusters_have_their_representative_first(tmp_path: Path) -> None:
    kept = row("apple")

    def copy(name: str, kind: str, of: str, **more: Any) -> dict[str, Any]:
        return row(name, "dropped", "duplicates", f"duplicate_{kind}", duplicate_of=of, duplicate_kind=kind, **more)

    rows = [
        copy("b", "exact", kept["id"], id=kept["id"]),  # the same bytes have the same id
        *(copy(f"c{i}", "perceptual", kept["id"], similarity=0.97) for i in range(9)),
        kept,
        copy("d", "semantic", "somewhere else"),
        row("e", "dropped", "rights", "opted_out_near_copy", duplicate_of=kept["id"]),
    ]
    manifest = published(tmp_path, rows[:4], rows[4:])
    found = pictures.Clusters()
    gather(manifest, found)
    large, small = pictures.clusters(manifest, found, largest=1, sampled=1, members=6)
    assert (large.of, large.copies, large.representative, large.members) == (kept["id"], 10, 10, (0, 1, 2, 3, 4, 5))
    assert (small.of, small.copies, small.representative, small.members) == ("somewhere else", 1, None, (11,))
    text = " ".join(Text(render(manifest).html).text.split())
    assert "11 copies of 2 pictures." in text
    assert "and 4 more" in text
    assert "not in this manifest" in text


def test_groups_are_the_best_of_each_set_and_a_lopsided_filter_is_warned_of(tmp_path: Path) -> None:
    def of(name: str, group: str, **more: Any) -> dict[str, Any]:
        scores = [
            {"set": "place", "group": "indoors", "score": 0.9 if group == "indoors" else 0.1},
            {"set": "place", "group": "outdoors", "score": 0.5},
            {"set": "time", "group": "day", "score": 0.2},
        ]
        return row(name, groups=scores, **more)

    gone = {"decision": "dropped", "stage": "filters", "reason": "filtered", "rule": "filters.blur.min"}
    rows = [of(f"i{i}", "indoors", **(gone if i < 20 else {})) for i in range(40)]
    rows += [of(f"o{i}", "outdoors", **(gone if i < 4 else {})) for i in range(40)]
    page = render(published(tmp_path, rows, [row("f", "failed", "fetch", "dns")]))
    assert page.warnings == [
        "“blur too low” removes 50.0% of “indoors” (place) and 10.0% of the rest: "
        "5 times as often (95% interval 1.88 to 13.3)."
    ]
    text = " ".join(Text(page.html).text.split())
    assert "before, 80 pictures" in text
    assert "a model's guess from pixels" in text
    assert page.warnings[0] in text


def test_an_older_manifest_has_sections_that_say_what_it_lacks(tmp_path: Path) -> None:
    later = ("final_uri", "redirects", "headers", "phash_turned", "colour_layout", "embedded", "captions", "scores")
    later += ("groups", "duplicate_cluster", "nearest", "nearest_similarity", "detail")
    rows = heap()
    page = render(published(tmp_path, rows, without=later, job={"kind": "curate", "safety": {"concepts": {"x": None}}}))
    text = " ".join(Text(page.html).text.split())
    assert "This manifest has no concept groups" in text
    assert "no column groups" in text
    assert "1 copy of 1 picture." in text
    assert "safety: weapon" in text
    least = ("rights", "rights_verdict", "licence", "creator", "domain", "caption", "caption_source", "safety")
    bare = render(published(tmp_path / "bare", rows, without=(*later, *least, "duplicate_of", "width", "score")))
    for what in ("rights evidence", "record of its sources", "captions"):
        assert f"This manifest has no {what}" in bare.html
    empty = render(published(tmp_path / "empty", []))
    assert "Nothing was kept." in empty.html


def test_thresholds_are_those_of_the_job_and_of_the_rows(tmp_path: Path) -> None:
    info = published(tmp_path, [row("a")]).info
    found = thresholds(info, {("safety.concepts.weapon", 0.25): 3, ("images.min_side", 64.0): 1})
    assert found == {
        Score("safety", "weapon"): [Threshold(0.25, "from", "hold")],  # as rows met it
        Score("safety", "opennsfw"): [Threshold(0.8, "from", "drop")],
        Score("size", "shorter_side"): [Threshold(64.0, "below", "drop")],
        Score("quality", "blur"): [Threshold(2.0, "below", "drop")],
        Score("size", "bytes"): [Threshold(5e6, "over", "hold")],
        Score("duplicates", "perceptual"): [Threshold(1 - 3 / 64, "from", "drop")],
    }
    page = render(Manifest.open(str(tmp_path))).html
    for words_of_a_line in ("&lt; 2: drop", "≥ 0.3: hold", "&gt; 5,000,000: hold", "&lt; 64: drop"):
        assert words_of_a_line in page


def test_thresholds_left_to_the_model_are_the_models(tmp_path: Path) -> None:
    job = {"safety": {"concepts": {"weapon": None}}, "clip": {"model": "embedded"}}
    from curation.clip import ClipConfig

    found = thresholds(published(tmp_path, [row("a")], job=job).info, {})
    assert found == {Score("safety", "weapon"): [Threshold(ClipConfig().calibrated()["weapon"], "from", "drop")]}
    job["clip"] = {"model": "of another time", "unknown": 1}
    assert thresholds(published(tmp_path / "b", [row("a")], job=job).info, {}) == {}


def test_scores_count_every_row_once(tmp_path: Path) -> None:
    rows = [
        row("a", scores=[{"name": "blur", "score": float(2**i)} for i in range(1)], width=100, height=400),
        row("b", "dropped", "filters", "filtered", scores=[{"name": "blur", "score": float("nan")}]),
        row("c", captions=[{"text": "x", "score": 0.9}, {"text": "a red c", "score": 0.3}], nearest_similarity=0.5),
    ]
    facts = gather(published(tmp_path, rows))
    series = facts.scores.series
    assert (series[Score("quality", "blur")].n, series[Score("quality", "blur")].not_finite) == (2, 1)
    assert (series[Score("size", "aspect")].low, series[Score("size", "aspect")].high) == (2.0, 4.0)
    assert series[Score("caption", "image_text")].high == pytest.approx(0.3)  # of the caption that was chosen
    assert series[Score("duplicates", "nearest")].n == 1
    edges, counts = series[Score("size", "shorter_side")].table()
    assert counts.sum(axis=0).tolist() == [2, 1]
    assert edges[0] <= 100 < edges[-1]
    assert (series[Score("size", "bytes")].n) == 3  # because the job filters by it


def test_a_threshold_is_drawn_where_it_lies_or_named_at_the_edge() -> None:
    series = Series(Score("quality", "blur"))
    values = np.linspace(10, 20, 200)
    series.add(values, values > 12)
    chart = charts.histogram(series, [Threshold(12.0, "below", "drop"), Threshold(900.0, "over", "hold")], "blur")
    (line,) = re.findall(r'<line class="threshold" x1="([0-9.]+)"', chart)
    edges, counts = series.table()
    left, right = charts._LEFT, charts._W - charts._RIGHT
    share = (12 - edges[0]) / (edges[-1] - edges[0])
    assert float(line) == pytest.approx(left + share * (right - left), abs=0.06)
    assert "&lt; 12: drop" in chart
    assert "&gt; 900: hold →" in chart
    bars = {kind: len(re.findall(f'<rect class="{kind}"', chart)) for kind in ("kept", "lost", "acted")}
    assert bars == {"kept": (counts[:, 0] > 0).sum(), "lost": (counts[:, 1] > 0).sum(), "acted": 1}
    assert charts.ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert [charts.number(v) for v in (0.25, 1234.0, 0.000123, -2.5, math.inf, 0.1 + 0.2)] == [
        *("0.25", "1,234", "0.000123", "−2.5", "∞", "0.3")
    ]


def test_captions_are_counted_on_kept_rows(tmp_path: Path) -> None:
    rows = [row("cat", caption="A cat and a cat"), row("dog", caption="the dog"), row("x", "dropped", caption="cat")]
    facts = gather(published(tmp_path, rows))
    assert facts.captions.words.top(9) == [("cat", [1]), ("dog", [1])]
    assert facts.captions.lengths.n == 2
    assert dict(facts.captions.chosen) == {"metadata": 2}
    assert facts.sources.tallies["creator"].top(1) == [("Ann", [3, 2])]


def test_words_for_reasons() -> None:
    assert words.reason("filtered: filters.blur.min") == "blur too low"
    assert words.reason("filtered: filters.aspect.max") == "aspect too high"
    assert words.reason("unsafe: safety.concepts.weapon") == "safety: weapon"
    assert words.reason("unsafe: safety.nsfw.threshold") == "safety: NSFW classifier"
    assert words.reason("http_404") == "http 404"
    assert words.share(0, 10) == "0.0%"
    assert words.share(1, 100_000) == "<0.1%"
    assert words.share(99_999, 100_000) == ">99.9%"
    assert words.share(1, 0) == "–"


def test_tallies_name_columns_that_the_schema_has() -> None:
    there = set(schema(DIM).names)
    for tally in (Outcomes, Captions, pictures.Sample, pictures.Clusters):
        assert set(tally.columns) <= there
