"""The page: from what was counted and chosen to one HTML file that needs nothing else.

The page names no other resource, runs no script and says so to the browser (Content-Security-Policy). Whatever comes
from rows was written by strangers: it is escaped, stripped of control characters and cut short; only http(s) links are
links.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import unicodedata
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import jinja2

from curation.manifest import Decision, Manifest, ManifestInfo
from curation.report import charts, funnel, representation, words
from curation.report.facts import Counting, Facts, gather
from curation.report.pictures import Album, Cluster, Clusters, Key, Sample, Tile, clusters, rows_at
from curation.report.representation import GroupSet
from curation.report.scores import safety_limits, thresholds

HERE = Path(__file__).parent
GALLERIES, LARGEST, SAMPLED, MEMBERS, TOP, WORDS, REMOVALS = 12, 6, 6, 6, 12, 40, 400
_SHOWN = (
    *("id", "uri", "final_uri", "title", "creator", "licence", "licence_url", "caption", "caption_source"),
    *("decision", "reason", "rule", "score", "threshold", "detail", "duplicate_kind", "similarity", "width", "height"),
)
_DECISIONS = tuple(decision.value for decision in Decision)


class Page(NamedTuple):
    """The page, and what on it nobody should miss."""

    html: str
    warnings: list[str]
    counts: dict[str, int]


def render(manifest: Manifest, *, show_unsafe: bool = False, revoked: Collection[str] = frozenset()) -> Page:
    """The report page of a manifest; the same manifest gives the same page, as long as the same pictures are there.

    Args:
        manifest: what the page is about.
        show_unsafe: whether pictures that reach a safety threshold are shown too.
        revoked: ids of rows that the takedown ledger reaches by now: their pictures are not shown.
    """
    there = set(manifest.schema.names)
    sample, copies = Sample(), Clusters()
    both: tuple[Counting, ...] = (sample, copies)
    more = [tally for tally in both if set(getattr(tally, "needed", tally.columns)) <= there]
    facts = gather(manifest, *more)
    concepts = {name: at for name, (at, _) in safety_limits(manifest.info, facts.scores.applied).items()}
    shown = _choose(sample, copies, Album(manifest, concepts, show_unsafe, revoked))
    sets = representation.group_sets(facts.groups.counts)
    warnings = _warnings(manifest.info, facts, sets)
    if revoked:
        warnings.append(f"Kept rows that the takedown ledger reaches by now: {len(revoked):,}. Recheck the manifest.")
    decisions = facts.outcomes.decisions()
    counts = {decision: decisions.get(decision, 0) for decision in _DECISIONS}
    context: dict[str, Any] = {
        "info": manifest.info,
        "facts": facts,
        "counts": counts,
        "warnings": warnings,
        "bars": funnel.bars(facts.outcomes.counts),
        "reasons": _reasons(facts, sample, shown.rows),
        "no_tile": Tile(None, "not in this manifest"),
        "sample": sample,
        **shown._asdict(),
        "all_clusters": len(copies.sizes),
        "all_copies": sum(copies.sizes.values()),
        "scores": _scores(manifest.info, facts),
        "sets": sets,
        "comparisons": sum(1 for s in sets for r in s.removals if r.ratio is not None),
        "signals": _signals(facts),
        "verdicts": sorted({verdict for verdict, _ in facts.rights.verdicts}),
        "job": json.dumps(redacted(manifest.info.job), indent=2, sort_keys=True, ensure_ascii=False),
        "decisions": _DECISIONS,
        "limits": {"top": TOP, "words": WORDS, "removals": REMOVALS},
        "rule": {"ratio": representation.RATIO, "few": representation.FEW},
    }
    css = (HERE / "page.css").read_text()
    context["css"] = css
    context["css_hash"] = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    html = _environment().get_template("page.html.j2").render(context)
    return Page(html, warnings, counts)


class _Shown(NamedTuple):
    """What is shown one by one: the rows, by number, and the galleries and clusters they stand in."""

    kept_keys: list[Key]
    galleries: list[Key]
    more_galleries: int
    clusters: list[Cluster]
    rows: dict[int, dict[str, Any]]
    tiles: dict[int, Tile]


def _choose(sample: Sample, copies: Clusters, album: Album) -> _Shown:
    keys = sorted(sample.chosen, key=lambda key: (_DECISIONS.index(key.decision), -sample.totals[key], key.filter))
    kept = [key for key in keys if key.decision == Decision.KEPT]
    others = [key for key in keys if key.decision in (Decision.DROPPED, Decision.HELD)]
    found = clusters(album.manifest, copies, largest=LARGEST, sampled=SAMPLED, members=MEMBERS)
    pictured = {row for key in (*kept, *others[:GALLERIES]) for row in sample.rows(key)}
    pictured |= {row for cluster in found for row in (cluster.representative, *cluster.members) if row is not None}
    named = pictured | {row for key in keys for row in sample.rows(key)}
    rows = {number: _named(row) for number, row in rows_at(album.manifest, named, _SHOWN).items()}
    return _Shown(kept, others[:GALLERIES], len(others[GALLERIES:]), found, rows, album.tiles(pictured))


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "clean": clean,
        "count": lambda n: f"{n:,}",
        "share": words.share,
        "number": charts.number,
        "link": link,
        "reason": words.reason,
        "unuser": without_user,
    }
    environment.globals |= {"charts": charts, "words": words, "measured": measured, "ANY": representation.ANY}
    return environment


def clean(value: object, limit: int = 160) -> str:
    """Text of a stranger's as it may be shown: `visible`, without passwords, and not without end."""
    text = "" if value is None else without_user(str(value))
    return visible(text if len(text) <= limit else text[: limit - 1] + "…")


_INVISIBLE = {"Cc", "Cf", "Cs", "Co", "Cn"}


def visible(text: str) -> str:
    """The text with a sign in place of control characters, and of those that turn or hide what stands beside them."""
    return "".join("�" if unicodedata.category(c) in _INVISIBLE else c for c in text)


_USER = re.compile(r"(?<=://)[^/?#\s]*@")


def without_user(text: str) -> str:
    """The text without the `user:password@` of URLs in it."""
    return _USER.sub("", text)


def redacted(value: Any) -> Any:
    """A JSON value whose strings are shown as they may be: without passwords, and `visible`."""
    if isinstance(value, dict):
        return {visible(without_user(str(key))): redacted(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(entry) for entry in value]
    return visible(without_user(value)) if isinstance(value, str) else value


def link(uri: object) -> str | None:
    """The URI as what a link may point to: only http and https, without user and password; else None."""
    if not isinstance(uri, str):
        return None
    try:
        parts = urlsplit(uri)
    except ValueError:
        return None
    return without_user(uri) if parts.scheme in ("http", "https") and parts.hostname else None


def measured(row: Mapping[str, Any]) -> str:
    """What a row's decision was measured on, as `0.31 ≥ 0.25`; empty where nothing was."""
    score, limit = row.get("score"), row.get("threshold")
    if score is None:
        return ""
    if limit is None:
        return f"similarity {charts.number(score)}" if row.get("duplicate_kind") else charts.number(score)
    sign = "<" if score < limit else ">" if str(row.get("rule")).endswith(".max") else "≥"
    return f"{charts.number(score)} {sign} {charts.number(limit)}"


def _named(row: dict[str, Any]) -> dict[str, Any]:
    """A row with the words it is shown under and the address it is linked to."""
    name = str(row.get("uri") or "").rstrip("/").rsplit("/", 1)[-1] or "unnamed"
    label = row.get("caption") or row.get("title") or name
    return {
        **dict.fromkeys(_SHOWN),
        **row,
        "label": label,
        "name": name,
        "href": link(row.get("uri")) or link(row.get("final_uri")),
    }


def _reasons(facts: Facts, sample: Sample, rows: Mapping[int, dict[str, Any]]) -> list[dict[str, Any]]:
    """Every reason with its count and a row or two it was given for."""
    totals: dict[tuple[Key, str], int] = {}
    for outcome, n in facts.outcomes.counts.items():
        key = (Key(outcome.decision, outcome.filter), outcome.stage)
        totals[key] = totals.get(key, 0) + n
    order = sorted(totals, key=lambda k: (_DECISIONS.index(k[0].decision), -totals[k], k))
    return [
        {
            "decision": key.decision,
            "stage": stage,
            "filter": key.filter,
            "n": totals[key, stage],
            "examples": [rows[number] for number in sample.rows(key)[:2]],
        }
        for key, stage in order
    ]


def _scores(info: ManifestInfo, facts: Facts) -> list[dict[str, Any]]:
    lines = thresholds(info, facts.scores.applied)
    found = []
    for score in sorted(facts.scores.series, key=lambda s: (words.SCORE_KINDS.index(s.kind), s.name)):
        series = facts.scores.series[score]
        if series.n:
            title = words.score(score.kind, score.name)
            label = (
                f"{clean(title)}: {series.n:,} rows from {charts.number(series.low)} to {charts.number(series.high)}"
            )
            drawn = lines.get(score, [])
            label += "".join(f"; {clean(t.action, 20)} {words.SIDES[t.side]} {charts.number(t.value)}" for t in drawn)
            found.append(
                {"title": title, "series": series, "chart": charts.histogram(series, drawn, label), "lines": drawn}
            )
        elif series.not_finite:
            found.append({"title": words.score(score.kind, score.name), "series": series, "chart": "", "lines": []})
    return found


def _signals(facts: Facts) -> list[dict[str, Any]]:
    """Observations by signal and verdict, with how many of them lie on rows that were kept."""
    found: dict[tuple[str, str], list[int]] = {}
    for (signal, verdict, kept), n in facts.rights.signals.items():
        counts = found.setdefault((signal, verdict), [0, 0])
        counts[0] += n
        counts[1] += n if kept else 0
    return [
        {"signal": signal, "verdict": verdict, "n": n, "kept": kept}
        for (signal, verdict), (n, kept) in sorted(found.items())
    ]


def _warnings(info: ManifestInfo, facts: Facts, sets: list[GroupSet]) -> list[str]:
    found = []
    decisions = facts.outcomes.decisions()
    stated = {decision: n for decision, n in info.counts.items() if n}
    if facts.rows != info.inputs.rows or decisions != stated:
        found.append(
            f"The rows do not reconcile: {facts.rows:,} rows ({decisions}) against {info.inputs.rows:,} inputs "
            f"({stated}) in manifest.json. Do not train on it; curate again or restore the folder."
        )
    denied = facts.rights.verdicts.get(("deny", Decision.KEPT.value), 0)
    if denied:
        found.append(f"Kept rows that carry a denial of rights: {denied:,}.")
    for found_set in sets:
        found += [words.warning(found_set.name, removal) for removal in found_set.warnings]
    return found
