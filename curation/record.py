"""The record of a curation: what its driver hears of units, told to its event log, its standing and its metrics."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from curation import events, nodes, running, storage
from curation.events import Published, UnitHeld, UnitRetried
from curation.listing import Listing, Todo, may_pass
from curation.manifest import Manifest
from curation.running import Recorder
from curation.units import fingerprint

if TYPE_CHECKING:
    from curation.metrics import CurationMetrics


def folder_of(output: str) -> str:
    """Where the event log of a job lies, by its output."""
    return storage.join(output, ".work")


class Record:
    """What the engine tells."""

    def __init__(self, recorder: Recorder, retried: Counter[str], metrics: CurationMetrics | None) -> None:
        self.recorder = recorder
        self._retried = retried
        self._metrics = metrics

    def todo(self, todo: Sequence[Todo]) -> None:
        """Says which units are measured again in part, and why."""
        for each in todo:
            if each.again is not None:
                self._retry(each.unit.key, _listed(each.why), len(each.again))

    def unit(self, item: Mapping[str, Any]) -> None:
        """A unit is stored, as `workers.run` tells of it."""
        key = str(item["key"])
        if item["attempt"]:
            self.recorder.look()
            lost = self.recorder.lost
            why = f"node {lost[-1][:12]} was lost" if lost else "the process that had it ended, or its result was lost"
            self._retry(key, why, None)
        held = {reason: rows for reason, rows in item["failed"].items() if may_pass(reason)}
        if held:
            self.recorder.tell(UnitHeld(key, held))
        self.recorder.worked(item["node"], item["seconds"], item["cpu_seconds"])
        if self._metrics is not None:
            self._metrics.unit(item["stages"], item["seconds"], item["bytes"], item["failed"])

    def rows(self, counts: Mapping[tuple[str, str, str], int]) -> None:
        """Rows were written to the manifest, by decision, stage and reason."""
        if self._metrics is not None:
            found = Counter[tuple[str, str]]()
            for (decision, _, reason), rows in counts.items():
                found[decision, reason] += rows
            self._metrics.rows(found)

    def published(self, manifest: Manifest) -> None:
        """The manifest is there."""
        self.recorder.tell(Published(manifest.uri, manifest.id, manifest.info.counts))

    def _retry(self, key: str, why: str, rows: int | None) -> None:
        self._retried[key] += 1
        self.recorder.tell(UnitRetried(key, why, self._retried[key] + 1, rows))


@contextlib.contextmanager
def recording(found: Listing, todo: Sequence[Todo]) -> Iterator[Record]:
    """Records a listed job for the duration of a `with` block, on the cluster that this process is connected to.

    Raises:
        UserError: metrics cannot be offered where the job wants them.
    """
    job, folder = found.job, folder_of(found.job.output)
    missing = Counter(name for each in todo for name in each.stages)

    def metrics() -> CurationMetrics:
        from curation.metrics import CurationMetrics

        return CurationMetrics()

    before = events.read(folder)
    begun = running.begun(
        before,
        "curate",
        job.name,
        of="inputs",
        total=found.rows,
        done=found.rows - sum(each.unit.inputs.num_rows for each in todo if "measure" in each.stages),
        todo=dict(missing),
        workers=job.workers + job.scorers,
        like=like(found),
    )
    kind = nodes.kind_of(job.gpus_per_worker)
    with running.recorded(folder, job.observability, metrics, begun, workers_kind=kind) as (recorder, observer):
        recorder.look()
        yield Record(recorder, events.attempts_of(before), observer)


def like(found: Listing) -> str:
    """Tells jobs whose workers do the same work for a picture: whose pace may be compared."""
    folders = [stage.folder.rsplit("/", 1)[-1] for stage in found.stages.values()]
    return fingerprint(folders, found.job.threads, bool(found.job.scorers), bool(found.job.gpus_per_worker))


def _listed(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {rows}" for reason, rows in sorted(reasons.items()))
