"""Deciding: the policy's order, rule by rule, and what only the whole set can tell."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from curation.decide import Facts, embeddings_of, manifest_rows, parent_facts, rule_all, settle
from curation.fetch import row_id
from curation.job import CurateJob
from curation.manifest import CAPTIONS, Decision, Manifest, Reason, Verdict
from curation.measure import forget, schema
from curation.policy import MEASURED, Policy
from curation.rights.lists import OptOuts
from curation.rights.verdict import Observation

DIM = 4


def row(uri: str = "a.png", **changes: Any) -> dict[str, Any]:
    """A measured row that the policy of `policy()` keeps, unlike any other uri's."""
    number = sum(map(ord, uri)) * 0x9E3779B97F4A7C15 % 2**64
    return {
        "uri": uri,
        "id": f"{number:064x}",
        "creator": "Jane",
        "licence": "CC0-1.0",
        "title": "cat",
        "width": 64,
        "height": 64,
        "pixel_hash": f"p{number}",
        "phash": number,
        "colour_layout": bytes(48),
        "embedding": [0.5] * DIM,
        "safety": [{"concept": "weapon", "score": 0.1}],
        "image": {"bytes": b"png", "path": uri},
    } | changes


def failed(uri: str, reason: Reason = Reason.TRUNCATED, **changes: Any) -> dict[str, Any]:
    missing = dict.fromkeys(("width", "height", "pixel_hash", "phash", "colour_layout", "image"))
    return row(uri, **missing, safety=None, failed_stage="decode", failed_reason=reason.value) | changes


def weapon(score: float) -> list[dict[str, Any]]:
    return [{"concept": "weapon", "score": score}]


def policy(tmp_path: Path, optout: str = "uri\n", **fields: Any) -> Policy:
    (tmp_path / "optout.csv").write_text(optout)
    job = CurateJob.model_validate(
        {
            "source": {"kind": "folder", "path": "x"},
            "output": "y",
            "licences": {"allow": ["CC0-1.0"]},
            "optout": [{"path": str(tmp_path / "optout.csv")}],
            "safety": {"concepts": {"weapon": 0.5}},
            "captions": [{"kind": "template", "text": "a {title}"}],
        }
        | fields
    )
    return Policy(job, OptOuts.read(job.optout), job.safety.limits(job.clip))


def decided(chosen: Policy, *rows: dict[str, Any], parent: Manifest | None = None) -> list[dict[str, Any]]:
    """The rows as a manifest has them, captions as a template would write them."""
    measured = pa.Table.from_pylist(list(rows), schema=schema(DIM))
    told = [
        [{"text": f"a {r['title']}", "source": "template", "language": "en", "words": 2, "score": 0.3}] for r in rows
    ]
    nobody = pa.nulls(len(rows), pa.string())
    captions = pa.table({"captions": pa.array(told, CAPTIONS), "failed": nobody, "refused": nobody})
    rulings = [ruling for ruling, _ in rule_all(chosen, measured, None, captions)]
    facts = Facts.of(chosen, measured, rulings, embeddings_of(chosen, measured))
    known = None if parent is None else parent_facts(chosen, parent)
    settled = settle(chosen, facts, known).rows(0, len(rows))
    found: list[dict[str, Any]] = manifest_rows(chosen, measured, None, captions, settled).to_pylist()
    return found


@pytest.mark.parametrize(
    ("changes", "decision", "reason", "where"),
    [
        ({}, Decision.KEPT, Reason.PASSED, None),
        ({"licence": "CC-BY-NC-4.0"}, Decision.DROPPED, Reason.LICENCE_NOT_ALLOWED, "licences.allow"),
        ({"licence": None}, Decision.HELD, Reason.LICENCE_UNSTATED, "licences.unstated"),
        ({"width": 7}, Decision.DROPPED, Reason.TOO_SMALL, "images.min_side"),
        ({"safety": [{"concept": "weapon", "score": 0.5}]}, Decision.DROPPED, Reason.UNSAFE, "safety.concepts.weapon"),
        (
            {"safety": [{"concept": "weapon", "score": math.nan}]},
            Decision.DROPPED,
            Reason.NOT_MEASURED,
            "safety.concepts.weapon",
        ),
        ({"creator": "Mallory"}, Decision.DROPPED, Reason.OPTED_OUT, "optout: optout.csv"),
        ({"creator": "Mallory", "licence": None}, Decision.DROPPED, Reason.OPTED_OUT, "optout: optout.csv"),
        ({"licence": None, "width": 7}, Decision.HELD, Reason.LICENCE_UNSTATED, "licences.unstated"),
    ],
)
def test_one_row(tmp_path: Path, changes: Any, decision: Decision, reason: Reason, where: str | None) -> None:
    (found,) = decided(policy(tmp_path, "creator\nmallory\n", images={"min_side": 8}), row(**changes))
    assert (found["decision"], found["reason"], found["rule"]) == (decision, reason, where)


def test_a_failed_row_keeps_its_reason_unless_it_is_opted_out(tmp_path: Path) -> None:
    found = decided(policy(tmp_path, "creator\nmallory\n"), failed("a"), failed("b", creator="Mallory"))
    assert [(r["decision"], r["reason"]) for r in found] == [
        (Decision.FAILED, Reason.TRUNCATED),
        (Decision.DROPPED, Reason.OPTED_OUT),
    ]


@pytest.mark.parametrize(
    ("unstated", "decision"), [("keep", Decision.KEPT), ("hold", Decision.HELD), ("drop", Decision.DROPPED)]
)
def test_unstated_licences_follow_the_job(tmp_path: Path, unstated: str, decision: Decision) -> None:
    chosen = policy(tmp_path, licences={"allow": ["CC0-1.0"], "unstated": unstated})
    assert decided(chosen, row(licence=None))[0]["decision"] == decision


@pytest.mark.parametrize(
    ("action", "decision"), [("drop", Decision.DROPPED), ("hold", Decision.HELD), ("flag", Decision.KEPT)]
)
def test_unsafe_pictures_follow_the_job(tmp_path: Path, action: str, decision: Decision) -> None:
    chosen = policy(tmp_path, safety={"concepts": {"weapon": 0.5}, "action": action})
    assert decided(chosen, row(safety=weapon(0.9)))[0]["decision"] == decision


def test_the_larger_of_two_copies_stays_and_the_first_of_equals(tmp_path: Path) -> None:
    same = {"phash": 5, "colour_layout": bytes(48)}
    found = decided(policy(tmp_path), row("a", **same), row("b", width=128, **same), row("c", width=128, **same))
    assert [r["decision"] for r in found] == [Decision.DROPPED, Decision.KEPT, Decision.DROPPED]
    assert {r["duplicate_of"] for r in found if r["duplicate_of"]} == {row("b")["id"]}
    assert found[0]["reason"] == Reason.DUPLICATE_PERCEPTUAL


def test_a_copy_that_may_not_be_used_does_not_displace_one_that_may(tmp_path: Path) -> None:
    larger = row("a", width=999, height=999, phash=5, licence="CC-BY-NC-4.0")
    found = decided(policy(tmp_path), larger, row("b", phash=5))
    assert [r["decision"] for r in found] == [Decision.DROPPED, Decision.KEPT]


def test_an_optout_takes_its_near_copies_with_it(tmp_path: Path) -> None:
    rows = row("a", phash=5), row("b", phash=4), row("c"), failed("d")
    found = decided(policy(tmp_path, "uri\na\n"), *rows)
    off = {"exact": False, "pixel": False, "perceptual": None}
    assert found == decided(policy(tmp_path, "uri\na\n", duplicates=off), *rows), "whatever the job drops as duplicates"
    assert [r["reason"] for r in found] == [
        *(Reason.OPTED_OUT, Reason.OPTED_OUT_NEAR_COPY),
        *(Reason.PASSED, Reason.TRUNCATED),
    ]
    assert found[1]["duplicate_of"] == rows[0]["id"]
    assert [r["rights_verdict"] for r in found[:3]] == [Verdict.DENY, Verdict.DENY, Verdict.ALLOW]


def test_what_was_learned_before_an_optout_is_forgotten(tmp_path: Path) -> None:
    known = pa.Table.from_pylist([row("http://a.example/x", phash=5), row("b", phash=5)], schema=schema(DIM))
    never = pa.Table.from_pylist(
        [
            {"uri": "http://a.example/x", "id": row_id("http://a.example/x", None), "embedding": [0.0] * DIM}
            | {"creator": "Jane", "licence": "CC0-1.0", "title": "cat"}
            | {"failed_stage": "fetch", "failed_reason": "not_asked"},
            row("b", phash=5),
        ],
        schema=schema(DIM),
    )
    assert forget(known, [0]).equals(never)
    assert forget(known.select(MEASURED), [0]).equals(never.select(MEASURED))


def test_every_row_has_its_evidence_and_only_kept_rows_their_picture(tmp_path: Path) -> None:
    chosen = policy(tmp_path, "uri\nb\n")
    kept, dropped = decided(chosen, row("a"), row("b"))
    assert (kept["caption"], kept["caption_source"]) == ("a cat", "template")
    assert kept["image"]["bytes"] == b"png"
    assert dropped["image"] is None
    assert [o["signal"] for o in kept["rights"]] == ["licence"]
    assert [o["signal"] for o in dropped["rights"]] == ["optout_list", "licence"]
    assert all(o["observed_at"] is None for o in dropped["rights"])


def test_a_cluster_has_one_name_and_those_alone_have_none(tmp_path: Path) -> None:
    found = decided(policy(tmp_path), row("a", phash=5), row("b", phash=5, width=128), row("c"))
    assert [r["duplicate_cluster"] for r in found] == [found[1]["id"], found[1]["id"], None]


def test_close_embeddings_are_duplicates_from_the_jobs_threshold_on(tmp_path: Path) -> None:
    """The neighbour and its cosine stand in every row, so that a threshold can be chosen by looking."""
    vectors = {"a": [1.0, 0.0, 0.0, 0.0], "b": [0.96, 0.28, 0.0, 0.0], "c": [0.0, 1.0, 0.0, 0.0]}
    rows = [row(name, embedding=vector) for name, vector in vectors.items()]
    for threshold, reason in ((0.95, Reason.DUPLICATE_SEMANTIC), (0.97, Reason.PASSED), (None, Reason.PASSED)):
        chosen = policy(tmp_path, duplicates={"semantic": {"threshold": threshold, "floor": 0.9}})
        first, second, third = decided(chosen, *rows)
        assert (second["reason"], third["reason"]) == (reason, Reason.PASSED)
        assert (second["nearest"], first["nearest"], third["nearest"]) == (first["id"], second["id"], None)
        assert second["nearest_similarity"] == pytest.approx(0.96, abs=1e-3)


def test_an_optout_does_not_reach_what_is_alike_in_meaning_alone(tmp_path: Path) -> None:
    rows = row("a", embedding=[1.0, 0, 0, 0]), row("b", embedding=[1.0, 0, 0, 0])
    found = decided(policy(tmp_path, "uri\na\n", duplicates={"semantic": {"threshold": 0.95}}), *rows)
    assert [r["reason"] for r in found] == [Reason.OPTED_OUT, Reason.PASSED]


def test_turned_copies_count_where_the_job_says_so(tmp_path: Path) -> None:
    turned = [7 << (8 * i) for i in range(7)]
    rows = row("a", width=128, phash=7 << 60, phash_turned=turned), row("b", phash=turned[3] ^ 1)
    for on in (True, False):
        found = decided(policy(tmp_path, duplicates={"perceptual": {"turned": on}}), *rows)
        assert found[1]["reason"] == (Reason.DUPLICATE_PERCEPTUAL if on else Reason.PASSED)


def test_licences_come_first_where_they_are_preferred(tmp_path: Path) -> None:
    fields = {"licences": {"allow": ["CC0-1.0", "CC-BY-4.0"]}}
    rows = row("a", phash=5, width=999, licence="CC-BY-4.0"), row("b", phash=5)
    by_size = decided(policy(tmp_path, **fields), *rows)
    by_licence = decided(policy(tmp_path, **fields, duplicates={"prefer": ["licence", "resolution"]}), *rows)
    assert [r["decision"] for r in by_size] == [Decision.KEPT, Decision.DROPPED]
    assert [r["decision"] for r in by_licence] == [Decision.DROPPED, Decision.KEPT]


def test_what_was_found_about_copies_serves_other_thresholds(tmp_path: Path) -> None:
    measured = pa.Table.from_pylist([row("a", phash=0), row("b", phash=3), row("c", phash=7)], schema=schema(DIM))
    work = str(tmp_path / "work")
    before: dict[Path, int] = {}
    for radius, bound in ((3, [1, 2]), (1, [2]), (2, [1])):
        chosen = policy(tmp_path, duplicates={"perceptual": {"radius": radius}})
        rulings = [ruling for ruling, _ in rule_all(chosen, measured, None, None)]
        facts = Facts.of(chosen, measured, rulings, embeddings_of(chosen, measured))
        settled = settle(chosen, facts, work=work)
        assert np.flatnonzero(settled.duplicates.of >= 0).tolist() == bound
        stored = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.parquet")}
        assert stored == (before or stored), "a narrower search finds nothing anew"
        before = stored


def test_what_a_file_says_about_mining_is_heard(tmp_path: Path) -> None:
    def says(**fields: str) -> dict[str, Any]:
        return {"embedded": [{"name": name, "value": value} for name, value in fields.items()]}

    prohibited = "http://ns.useplus.org/ldf/vocab/DMI-PROHIBITED-AIMLTRAINING"
    rows = row("a", **says(data_mining=prohibited)), row("b", **says(damaged="xmp")), row("c", **says(title="a cat"))
    found = decided(policy(tmp_path), *rows)
    assert [(r["decision"], r["reason"]) for r in found] == [
        (Decision.DROPPED, Reason.OPTED_OUT),
        (Decision.HELD, Reason.RIGHTS_ERROR),
        (Decision.KEPT, Reason.PASSED),
    ]


def test_filters_and_captions_hold_and_drop(tmp_path: Path) -> None:
    chosen = policy(
        tmp_path,
        quality=["blur"],
        filters={"blur": {"min": 0.1}, "aspect": {"max": 2, "action": "hold"}},
        caption_policy={"min_score": 0.2, "low": "hold"},
    )
    sharp = {"scores": [{"name": "blur", "score": 0.5}]}
    rows = [
        row("a", **sharp),
        row("b", scores=[{"name": "blur", "score": 0.01}]),
        row("c", width=500, **sharp),
        row("d"),
    ]
    found = decided(chosen, *rows)
    assert [(r["decision"], r["reason"], r["rule"]) for r in found] == [
        (Decision.KEPT, Reason.PASSED, None),
        (Decision.DROPPED, Reason.FILTERED, "filters.blur.min"),
        (Decision.HELD, Reason.FILTERED, "filters.aspect.max"),
        (Decision.HELD, Reason.NOT_MEASURED, "filters.blur"),
    ]
    poor = policy(tmp_path, caption_policy={"min_score": 0.4, "low": "drop"})
    assert decided(poor, row("a"))[0]["reason"] == Reason.CAPTION_POOR


def test_a_picture_from_a_container_is_opted_out_by_where_it_came_from(tmp_path: Path) -> None:
    url = "http://a.example/x.jpg"
    for optout in (f"uri\n{url}\n", "domain\na.example\n"):
        (found,) = decided(policy(tmp_path, optout), row("shard.tar#0001.jpg", source_url=url, host="a.example"))
        assert found["reason"] == Reason.OPTED_OUT


@pytest.mark.parametrize(
    ("optout", "changes"),
    [
        ("domain\na.example\n", {"redirects": ["http://a.example/x", "http://cdn.example/x"]}),
        ("uri\nhttps://a.example/x.jpg\n", {"final_uri": "HTTPS://A.example:443/x.jpg#top"}),
        ("creator\nmallory\n", {"creator": None, "embedded": [{"name": "creator", "value": "Jane; Mallory"}]}),
    ],
)
def test_opt_outs_match_all_that_is_known_of_a_row(tmp_path: Path, optout: str, changes: dict[str, Any]) -> None:
    (found,) = decided(policy(tmp_path, optout), row("http://short.example/1", **changes))
    assert found["reason"] == Reason.OPTED_OUT


@pytest.mark.parametrize("perceptual", [None, {"radius": 0}, {"radius": 3, "colour": 0}, {"radius": 8}])
def test_no_setting_for_duplicates_narrows_what_an_optout_reaches(tmp_path: Path, perceptual: Any) -> None:
    chosen = policy(tmp_path, "uri\na\n", duplicates={"perceptual": perceptual})
    found = decided(chosen, row("a", phash=5), row("b", phash=4, colour_layout=bytes([9] * 48)))
    assert found[1]["reason"] == Reason.OPTED_OUT_NEAR_COPY


def test_a_file_that_states_another_licence_than_its_source_is_not_allowed(tmp_path: Path) -> None:
    told = [{"name": "licence", "value": "https://creativecommons.org/licenses/by-nc-nd/4.0/"}]
    (found,) = decided(policy(tmp_path), row("a", embedded=told))
    assert found["reason"] == Reason.LICENCE_NOT_ALLOWED


def test_an_older_manifest_refuses_and_keeps_the_same_bytes_under_other_names(tmp_path: Path) -> None:
    """Ids are of bytes: what was refused of one name is refused of another, and what was kept stays for its copies."""
    chosen = policy(tmp_path, "creator\nmallory\n")
    measured = pa.Table.from_pylist([row("x", creator="Mallory"), row("kept", phash=5)], schema=schema(DIM))
    rulings = [ruling for ruling, _ in rule_all(chosen, measured, None, None)]
    older = Facts.of(chosen, measured, rulings, embeddings_of(chosen, measured))
    again = [row("y", id=row("x")["id"], pixel_hash=row("x")["pixel_hash"], phash=row("x")["phash"])]
    again.append(row("elsewhere", id=row("kept")["id"], pixel_hash="p5", phash=5, licence="CC-BY-NC-4.0"))
    again.append(row("copy", phash=4, width=999))
    now = pa.Table.from_pylist(again, schema=schema(DIM))
    rulings = [ruling for ruling, _ in rule_all(chosen, now, None, None)]
    settled = settle(chosen, Facts.of(chosen, now, rulings, embeddings_of(chosen, now)), older)
    found = manifest_rows(chosen, now, None, None, settled.rows(0, 3)).to_pylist()
    assert [r["reason"] for r in found] == [
        Reason.OPTED_OUT_NEAR_COPY,
        Reason.LICENCE_NOT_ALLOWED,
        Reason.DUPLICATE_PERCEPTUAL,
    ]
    assert found[2]["duplicate_of"] == row("kept")["id"]


def test_a_host_that_is_gone_has_opted_out_of_nothing(tmp_path: Path) -> None:
    """Its robots.txt cannot be had, which denies; but nobody refused, and the row says what happened."""
    url = "http://a.example/x.jpg"
    unreachable = Observation("robots", "unreachable: dns", "http://a.example/robots.txt", Verdict.DENY).row()
    refused = Observation("x_robots_tag", "noai", url, Verdict.DENY).row()
    for reason, seen, optout, outcome in (
        (Reason.DNS, [unreachable], "uri\n", (Decision.FAILED, "fetch", "dns")),
        (Reason.REFUSED_ADDRESS, [unreachable], "uri\n", (Decision.FAILED, "fetch", "refused_address")),
        (Reason.SITE_UNREACHABLE, [unreachable], "uri\n", (Decision.FAILED, "rights", "site_unreachable")),
        (Reason.SITE_REFUSES, [unreachable], "uri\n", (Decision.DROPPED, "rights", "opted_out")),
        (Reason.DNS, [unreachable, refused], "uri\n", (Decision.DROPPED, "rights", "opted_out")),
        (Reason.DNS, [unreachable], f"uri\n{url}\n", (Decision.DROPPED, "rights", "opted_out")),
    ):
        (found,) = decided(policy(tmp_path, optout), failed(url, reason, failed_stage="fetch", sightings=seen))
        assert (found["decision"], found["stage"], found["reason"]) == outcome
