"""Manifests that a public document has to be made from, by the project's own writers."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np

from curation.cards.disclosed import Disclosed, Model
from curation.cards.document import Answer, Document, Table
from curation.cards.facts import gather
from curation.cards.provider import Provider
from curation.manifest import LedgerInfo, Manifest, RightsSource
from tests.curation.test_report import AT, published, row

JOB: dict[str, Any] = {
    "kind": "curate",
    "source": {"kind": "http", "path": "https://user:secret@example.org/list.csv"},
    "fetch": {"user_agent": "klarbot/1", "contact": "https://klar.example/bot", "per_host": 4, "delay_s": 1.0},
    "rights": {"signals": ["robots", "tdmrep"], "unknown": "keep", "error": "hold", "advisory": ["robots_ai_agents"]},
    "licences": {"allow": ["CC0-1.0", "CC-BY-4.0"], "unstated": "hold"},
    "images": {"min_side": 64},
    "image_size": 32,
    "safety": {"concepts": {"weapon": 0.3}, "action": "hold", "nsfw": None},
    "duplicates": {},
}
LICENCES = ("CC0-1.0", "https://creativecommons.org/licenses/by/4.0/", None)


def web(i: int, **more: Any) -> dict[str, Any]:
    """A kept row of the web; its domain, size, licence and so on follow from its number."""
    domain = f"site{i * i % 23}.example"
    uri = f"https://{domain}/{i}.jpg"
    found: dict[str, Any] = {
        "domain": domain,
        "host": f"www.{domain}",
        "dataset": ("museums", "open-web", None)[i % 3],
        "bytes": 1000 + i * i,
        "format": ("jpeg", "png")[i % 2],
        "fetched_at": AT + timedelta(hours=i),
        "creator": f"Artist {i % 7}" if i % 4 else " ",
        "licence": LICENCES[i % 3],
        "licence_url": None,
        "rights_verdict": "allow" if i % 5 else "unknown",
        "captions": [{"text": f"a red {uri}", "source": "metadata", "language": ("en", "de")[i % 2], "words": 3}],
        "rights": [_seen("tdmrep", "allow" if i % 5 else "unknown"), _seen("tdmrep", "allow" if i % 5 else "unknown")],
    }
    return row(uri, **(found | more))


def _seen(signal: str, verdict: str) -> dict[str, Any]:
    return {"signal": signal, "value": "0", "where": "w", "observed_at": AT, "verdict": verdict}


def file(i: int, **more: Any) -> dict[str, Any]:
    """A kept row of a local file."""
    return row(f"stamps/{i}.png", **{"domain": None, "host": None, "dataset": "stamps", "bytes": 500, **more})


def others() -> list[dict[str, Any]]:
    """Rows that were not kept."""
    denied = [
        row(f"https://no.example/{i}", "dropped", "rights", "opted_out", rule=f"rights.{s}", rights=[_seen(s, "deny")])
        for i, s in enumerate(("robots", "tdmrep", "tdmrep"))
    ]
    return [
        *denied,
        row("https://no.example/e", "held", "rights", "rights_error", rule="rights.tdmrep"),
        row("https://no.example/r", "failed", "fetch", "not_asked"),
        row("https://gone.example/", "failed", "fetch", "http_404"),
        row("https://odd.example/", "held", "safety", "unsafe", rule="safety.concepts.weapon"),
        row("https://copy.example/", "dropped", "duplicates", "duplicate_pixel"),
    ]


def heap() -> list[dict[str, Any]]:
    return [*map(web, range(60)), *map(file, range(5)), *others()]


def manifest(output: Path, *parts: list[dict[str, Any]], **info: Any) -> Manifest:
    """Published with a job, a ledger and an opt-out list."""
    optouts = RightsSource(kind="optout", path="/home/ann/list.csv", sha256="0" * 64, entries=12, read_at=AT)
    ledger = LedgerInfo(uri="s3://house/takedowns", version="17-ab", entries=4)
    fields = {"job": JOB, "name": "klar", "rights": [optouts], "ledger": ledger, "evidence_from": AT}
    return published(output, *(parts or (heap()[:40], heap()[40:])), **(fields | info))


def disclosed(found: Manifest, provider: dict[str, Any] | None = None, **more: Any) -> Disclosed:
    return Disclosed(found, gather(found), Provider.model_validate(provider or {}), **more)


def model(found: Manifest, **more: Any) -> Model:
    fields: dict[str, Any] = {
        "name": "klar version 3", "manifest_id": found.id, "training_rows": 65, "training_set_digest": "d" * 64,
        "licences": {"CC0-1.0": 40, "unstated": 25}, "ledger": "17-ab", "images_seen": 6500, "parameters": 1234567,
        "image_size": 32, "prediction": "v_prediction", "text_encoder": "embedded", "config_sha256": "c" * 64,
        "metrics": {"loss": 0.25},
    }  # fmt: skip
    return Model(**(fields | more))


def answer(document: Document, question: str) -> Answer:
    """The one answer to a question."""
    [found] = [
        item for s in document.sections for item in s.items if isinstance(item, Answer) and item.question == question
    ]
    return found


def tables(document: Document, title: str | None = None) -> list[Table]:
    every = [item for section in document.sections for item in section.items if isinstance(item, Table)]
    return [table for table in every if title is None or table.title == title]


def column(table: Table, name: str) -> list[Any]:
    at = table.columns.index(name)
    return [line[at] for line in table.rows]


def shuffled(rows: list[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    return [rows[i] for i in np.random.default_rng(seed).permutation(len(rows))]
