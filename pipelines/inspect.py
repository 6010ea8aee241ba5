"""`cleanplate inspect`: what stands in a manifest, counted from its Parquet and reconciled with `manifest.json`."""

from __future__ import annotations

from collections import Counter
from typing import Any

from pydantic import BaseModel

from curation import events
from curation.errors import UserError
from curation.events import Published
from curation.manifest import InputsInfo, Manifest, Reason
from pipelines.happenings import explained


class Inspection(BaseModel):
    """Counts read from the rows."""

    manifest: str
    id: str
    name: str
    rows: int
    counts: dict[str, int]
    reasons: dict[str, dict[str, int]]  # by decision, then by reason
    licences: dict[str, int]  # of kept rows
    refused_licences: dict[str, int] = {}  # of rows that were dropped for theirs
    captions: dict[str, int]  # of kept rows, by captioner
    clip: str | None
    reconciled: bool
    happened: list[str] = []  # while it was made: retries, losses, rows that the next run asks again


def run(path: str) -> Inspection:
    """Reads every row of a manifest, checks every file's hash and counts.

    Raises:
        UserError: when there is no whole manifest, or its rows are not what `manifest.json` promises.
    """
    manifest = Manifest.open(path)
    manifest.verify()
    info = manifest.info
    uris = (uri for batch in manifest.batches(["uri"]) for uri in batch["uri"].to_pylist())
    listed = InputsInfo.of(uris)
    counts: Counter[str] = Counter()
    reasons: dict[str, Counter[str]] = {}
    licences: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    captions: Counter[str] = Counter()
    for batch in manifest.batches(["decision", "reason", "licence", "licence_url", "caption_source"]):
        for row in batch.to_pylist():
            counts[row["decision"]] += 1
            reasons.setdefault(row["decision"], Counter())[row["reason"]] += 1
            if row["decision"] == "kept":
                licences[row["licence"] or "unstated"] += 1
                captions[row["caption_source"] or "none"] += 1
            elif row["reason"] == Reason.LICENCE_NOT_ALLOWED:
                refused[row["licence"] or row["licence_url"] or "unstated"] += 1
    stated = {decision: n for decision, n in info.counts.items() if n}
    by_reason = dict(sum(reasons.values(), Counter()))
    if dict(counts) != stated or by_reason != info.reasons or listed != info.inputs:
        raise UserError(
            f"the rows are {listed.rows} ({dict(counts)}), manifest.json says {info.inputs.rows} inputs ({stated})",
            field="manifest",
            remedy="do not train on it: restore the folder or curate again",
        )
    return Inspection(
        manifest=manifest.uri,
        id=manifest.id,
        name=info.name,
        rows=info.rows,
        counts=info.counts,
        reasons={decision: dict(found.most_common()) for decision, found in sorted(reasons.items())},
        licences=dict(licences.most_common(10)),
        refused_licences=dict(refused.most_common(10)),
        captions=dict(captions.most_common()),
        clip=info.clip.name if info.clip else None,
        reconciled=True,
        happened=_happened(manifest),
    )


def _happened(manifest: Manifest) -> list[str]:
    """What the log of the attempt that published a manifest explains, where it is still there."""
    work = manifest.work
    if work is None:
        return []
    entries = events.read(work.folder.rpartition("/")[0])
    published = [e.attempt for e in entries if isinstance(e.event, Published) and e.event.id == manifest.id]
    return explained(entry for entry in entries if published and entry.attempt == published[-1])


def show(found: Inspection) -> None:
    """Prints an inspection as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{found.name}  {found.id[:16]}", title_justify="left")
    table.add_column("decision")
    table.add_column("reason")
    table.add_column("rows", justify="right")
    table.add_column("share", justify="right")
    for decision in ("kept", "dropped", "held", "failed"):
        for reason, n in found.reasons.get(decision, {}).items():
            table.add_row(decision, reason, f"{n:,}", f"{n / found.rows:.1%}")
        table.add_section()
    console = Console()
    console.print(table)
    sums = " + ".join(f"{found.counts.get(d, 0):,} {d}" for d in ("kept", "dropped", "held", "failed"))
    console.print(f"{found.rows:,} inputs = {sums}: reconciled, every file's hash agrees", highlight=False)
    for line in found.happened:
        console.print(line, highlight=False, markup=False)
    for title, counted in (("licences", found.licences), ("captions", found.captions)):
        parts: dict[str, Any] = counted
        text = ", ".join(f"{name} {n:,}" for name, n in parts.items()) or "none"
        console.print(f"{title} of kept rows: {text}", highlight=False, markup=False)
    if found.refused_licences:
        text = ", ".join(f"{name} {n:,}" for name, n in found.refused_licences.items())
        console.print(f"licences that were not allowed: {text}", highlight=False, markup=False)
    console.print(
        f"embeddings by {found.clip}" if found.clip else "no embeddings: curated without CLIP", highlight=False
    )
