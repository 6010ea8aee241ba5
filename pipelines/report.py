"""`cleanplate report`: one self-contained HTML page about a manifest."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import BaseModel

from curation import storage
from curation.errors import UserError
from curation.manifest import Manifest


class ReportResult(BaseModel):
    """Where the page is, and what on it nobody should miss."""

    report: str
    bytes: int
    manifest: str
    manifest_id: str
    rows: int
    counts: dict[str, int]
    warnings: list[str]


def run(manifest: str, out: str, *, show_unsafe: bool = False) -> ReportResult:
    """Reads a manifest's rows and writes the page.

    Args:
        manifest: a manifest's folder, or a folder of manifests.
        out: the file to write, local or s3://.
        show_unsafe: whether to show pictures that reach a safety threshold.

    Raises:
        UserError: when there is no whole manifest, its takedown ledger cannot be read or is gone, or the page cannot be
            written.
    """
    from curation.report.page import render
    from curation.takedowns import Ledger, of_place, refuse_vanished
    from curation.takedowns.ledger import VARIABLE
    from curation.takedowns.revocation import Revocations

    if not storage.is_remote(out) and Path(out).is_dir():
        raise UserError(f"{out} is a folder", field="--out", remedy="name a file, such as report.html")
    found = Manifest.open(manifest)
    ledger = Ledger.open(of_place(os.environ.get(VARIABLE) or found.uri))
    requests = ledger.read()
    refuse_vanished(ledger.uri, requests, (found,))
    revoked = Revocations(requests.in_force).of_manifest(found)
    try:
        page = render(found, show_unsafe=show_unsafe, revoked=revoked)
    except FileNotFoundError as error:
        raise UserError(
            f"a file of the manifest is missing: {error}", field="manifest", remedy="restore it or curate again"
        ) from None
    data = page.html.encode("utf-8", "replace")
    try:
        storage.write_bytes(out, data)
    except OSError as error:
        raise UserError(
            f"cannot write {out}: {error}", field="--out", remedy="name a file that can be written"
        ) from None
    return ReportResult(
        report=out,
        bytes=len(data),
        manifest=found.uri,
        manifest_id=found.id,
        rows=found.info.rows,
        counts=page.counts,
        warnings=page.warnings,
    )


def summary(result: ReportResult) -> list[str]:
    """The result for a person."""
    counts = ", ".join(f"{n:,} {decision}" for decision, n in result.counts.items())
    return [
        f"{result.rows:,} inputs = {counts}",
        *(f"warning  {warning}" for warning in result.warnings),
        f"report   {result.report}  ({result.bytes / 1e6:.1f} MB)",
    ]
