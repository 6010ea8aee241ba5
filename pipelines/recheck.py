"""`cleanplate recheck`: what is said today about the pictures of a manifest, and the manifest that is left of it."""

from __future__ import annotations

import getpass
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipelines.progress import progress

if TYPE_CHECKING:
    from curation.recheck import Rechecked, Sources
    from curation.rights.verdict import Observation

_SHOWN = 10


def run(
    manifest: str,
    *,
    optout: Sequence[str] = (),
    ledger: str | None = None,
    out: str | None = None,
    offline: bool = False,
    workers: int | None = None,
) -> Rechecked:
    """Asks the web, the lists and the ledger again, and publishes a child manifest.

    Args:
        manifest: its folder, or a folder of manifests (its newest).
        optout: opt-out lists; empty: those that the manifest was decided by.
        ledger: takedown ledger, or a manifest that names one; None: $CLEANPLATE_LEDGER's, else its own.
        out: folder to publish in; None: beside the manifest.
        offline: ask lists and ledger only; what was seen on the web stays as it was, and as old.
        workers: that ask at a time; None: as many as curated it.
    """
    from curation import recheck
    from curation.manifest import Manifest

    opened = Manifest.open(manifest)
    found = recheck.sources(opened, optout=list(optout) or None, ledger=ledger)
    seen = None if offline else _ask(found, workers)
    result = recheck.derive(found, seen, out)
    recheck.record(found, result, getpass.getuser())
    return result


def _ask(found: Sources, workers: int | None) -> dict[str, list[Observation]]:
    from curation import reask
    from curation.rights.registry import Registry
    from pipelines.cluster import connect

    total = sum(len(rows) for rows in reask.web_rows(found.base))
    if total == 0:
        return {}
    job = found.policy.job
    job.fetch.check(True, workers or job.workers)
    if job.rights.registry is not None:
        Registry(job.rights.registry)  # says what is missing
    done = 0
    with connect(cpus=workers or job.workers), progress("pictures") as report:

        def on_asked(n: int) -> None:
            nonlocal done
            done += n
            report("recheck", done, total)

        on_asked(0)
        return reask.ask_again(found.base, job.fetch, job.rights, workers or job.workers, on_asked)


def summary(result: Rechecked) -> list[str]:
    """The result for a person: what left, and where things are."""
    lines = [f"{row['decision']:<8} {row['reason']:<20} {row['uri']}  ({row['rule']})" for row in result.changed]
    more = sum(result.changes.values()) - _SHOWN
    left = ", ".join(f"{reason} {n:,}" for reason, n in result.changes.items()) or "nothing"
    return [
        *lines[:_SHOWN],
        *([f"… and {more:,} more"] if more > 0 else []),
        f"{result.asked:,} places asked on the web; left out of what {result.base_id[:16]} kept: {left}",
        f"{result.kept:,} kept ({result.kept_before:,} before)",
        f"manifest {result.manifest}",
        f"train on it with: cleanplate train JOB.yaml --set manifest={result.manifest}",
    ]
