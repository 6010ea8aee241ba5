"""Running a curate job: do what is missing of its units, decide everything, publish.

A stage's result for a unit is one file below `<output>/.work`, written whole or not at all, so rerunning a killed job
does only what is missing, and a changed policy measures nothing. Ray must be running; `pipelines.cluster` sees to that.
"""

from __future__ import annotations

import json
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from typing import Any, Protocol

import pyarrow as pa
from pydantic import BaseModel

from curation import storage, workers
from curation.decide import Facts, Settled, manifest_rows, parent_facts, settle
from curation.errors import UserError, cause_of
from curation.listing import Listing, Todo, forget_downstream
from curation.manifest import (
    ClipInfo,
    Decision,
    Manifest,
    ManifestInfo,
    PartFile,
    WorkInfo,
    evidence_from,
    manifest_id,
    now,
    publish,
    write_part,
)
from curation.policy import Policy
from curation.record import Record, recording
from curation.ruling import rule, stored_unit
from curation.site_desk import desks
from curation.standing import Spent
from curation.units import Stage, Unit

_DESKS = 4  # that ask sites at a time, at most
_WRITTEN_HERE = 4_096  # rows up to which the driver writes the manifest: actors start for longer than that takes


class OnProgress(Protocol):
    """What a run reports to."""

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None: ...


class FunnelStep(BaseModel):
    """What became of the rows that reached a stage."""

    stage: str
    reached: int
    removed: int
    reasons: dict[str, int]


class CurateResult(BaseModel):
    """What a curate job came to."""

    manifest: str
    id: str
    rows: int
    counts: dict[str, int]
    reasons: dict[str, int]
    funnel: list[FunnelStep]
    units: int
    units_measured: int  # the others were there from an earlier run
    units_run: dict[str, int]  # by stage
    seconds: dict[str, float]
    spent: Spent | None = None


def curate(found: Listing, on_progress: OnProgress = lambda stage, done, total, note="": None) -> CurateResult:
    """Runs a listed job to a published manifest, on the Ray cluster that this process is connected to.

    Raises:
        UserError: when the output cannot be written to any more, such as on a full disk; what was stored stays, and the
            same command goes on from there.
    """
    with _storage_errors():
        todo = found.todo()
    with recording(found, todo) as record, _storage_errors():
        result = _curate(found, todo, record, on_progress)
    return result.model_copy(update={"spent": record.recorder.spent()})


def _curate(found: Listing, todo: Sequence[Todo], record: Record, on_progress: OnProgress) -> CurateResult:
    def told(stage: str, done: int, total: int, note: str = "") -> None:
        on_progress(stage, done, total, note)
        record.recorder.progress(stage, done, total, note)

    clock = {"measure": time.monotonic()}
    units_run = _measure(found, todo, record, told)
    clock["decide"] = time.monotonic()
    told("decide", 0, found.rows)
    settled = _decide(found, told)
    clock["publish"] = time.monotonic()
    manifest, removed = _publish(found, settled, record, told)
    clock["end"] = time.monotonic()
    return CurateResult(
        manifest=manifest.uri,
        id=manifest.id,
        rows=manifest.info.rows,
        counts=manifest.info.counts,
        reasons=manifest.info.reasons,
        funnel=_funnel(manifest.info.rows, removed),
        units=len(found.units),
        units_measured=units_run["measure"],
        units_run=dict(units_run),
        seconds={a: round(clock[b] - clock[a], 2) for a, b in pairwise(clock)},
    )


@contextmanager
def _storage_errors() -> Iterator[None]:
    """A full disk or a bucket that is gone, also on a worker, told as what it is."""
    from ray.exceptions import RayError

    try:
        yield
    except (OSError, RayError) as error:
        cause = cause_of(error, OSError, UserError)
        if isinstance(cause, UserError):
            raise cause from None
        if cause is None:
            raise
        raise UserError(
            f"the output cannot be written or read: {cause}",
            field="output",
            remedy="make room or give access, and run the same command again: finished units are kept",
        ) from error


def _measure(found: Listing, todo: Sequence[Todo], record: Record, on_progress: OnProgress) -> Counter[str]:
    """Does what is missing of the units; returns how many units each stage was run on."""
    record.todo(todo)
    forget_downstream(found.job, todo)
    missing = Counter[str]()
    for t in todo:
        missing.update(dict.fromkeys(t.stages, t.unit.inputs.num_rows))
    done = {name: found.rows - missing[name] for name in found.stages}
    for name in missing:
        on_progress(name, done[name], found.rows)
    run, failed = Counter[str](), Counter[str]()
    with _asking(found, todo) as asking:
        for item in workers.run(asking, todo):
            record.unit(item)
            failed.update(item["failed"])
            for name in item["stages"]:
                run[name] += 1
                done[name] += item["rows"]
                on_progress(name, done[name], found.rows, _note("failed", failed) if name == "measure" else "")
    return run


@contextmanager
def _asking(found: Listing, todo: Sequence[Todo]) -> Iterator[Listing]:
    """The listing with somebody who asks the sites for all of its workers, where there are sites to ask."""
    if not found.has_urls or not any("measure" in t.stages for t in todo):
        yield found
        return
    measure = found.measure
    assert measure.sites is not None, "the listing names it"
    count = min(found.job.workers, _DESKS)
    with desks(count, found.job.fetch, measure.rights, measure.sites) as names:
        yield replace(found, measure=measure.model_copy(update={"desks": names}))


def _note(what: str, removed: Counter[str]) -> str:
    """The most frequent reasons so far, for a progress line."""
    if not removed:
        return ""
    return f"{what} {removed.total():,}: " + ", ".join(f"{reason} {n:,}" for reason, n in removed.most_common(3))


def _decide(found: Listing, on_progress: OnProgress) -> Settled:
    """Rules on every row, and settles what only the whole set can tell."""
    policy = found.policy
    parents = [parent_facts(policy, parent) for parent in found.parents]
    known = Facts.join(parents) if parents else None
    work = storage.join(storage.absolute(policy.job.output), ".work")
    return settle(policy, _facts(found, on_progress), known, work)


def _facts(found: Listing, on_progress: OnProgress) -> Facts:
    """Of all rows, in manifest order."""
    facts, done, removed = None, 0, Counter[str]()
    for ruled in rule(found):
        facts = Facts.zeros(found.rows, ruled.facts) if facts is None else facts
        facts.put(ruled.start, ruled.facts)
        done += len(ruled.facts.ids)
        removed.update(ruled.removed)
        on_progress("decide", done, found.rows, _note("out", removed))
    if facts is None or done != found.rows:
        raise AssertionError(f"{done} of {found.rows} rows were ruled on: this is a defect of cleanplate")
    return facts


def _publish(
    found: Listing, settled: Settled, record: Record, on_progress: OnProgress
) -> tuple[Manifest, Counter[tuple[str, str, str]]]:
    """Writes the parts and publishes them; returns also how many rows each decision, stage and reason has."""
    job = found.job
    # A name of its own: another run of the same job may be publishing at this very moment; absolute for the workers.
    staging = storage.join(storage.absolute(job.output), ".work", f"staging-{uuid.uuid4().hex[:16]}")
    items, start = [], 0
    for index, unit in enumerate(found.units):
        end = start + unit.inputs.num_rows
        rows = workers.to_bytes(settled.rows(start, end))
        told = {"key": unit.key, "unwanted": unit.unwanted, "name": f"part-{index:05d}.parquet"}
        items.append({"index": index, "unit": json.dumps(told), "settled": rows})
        start = end
    written: dict[int, dict[str, Any]] = {}
    removed: Counter[tuple[str, str, str]] = Counter()
    on_progress("publish", 0, found.rows)
    try:
        for row in _written(found, items, staging):
            written[row["index"]] = row
            counts = {(d, s, r): n for d, s, r, n in json.loads(row["counts"])}
            removed.update(counts)
            record.rows(counts)
            on_progress("publish", removed.total(), found.rows)
        info = _info(found, [written[index] for index in range(len(items))], removed)
        if sum(part.rows for part in info.files) != info.inputs.rows:
            raise AssertionError("the manifest's rows are not the inputs: this is a defect of cleanplate")
        manifest = publish(staging, job.output, info)
        record.published(manifest)
        return manifest, removed
    except BaseException:
        with suppress(OSError):
            storage.remove_tree(staging)  # half a manifest on a full disk would keep it full
        raise


def _written(found: Listing, items: Sequence[dict[str, Any]], staging: str) -> Iterator[dict[str, Any]]:
    """Writes the parts of a manifest and tells of each, in any order: here where they are few, else on the cluster."""
    if found.rows <= _WRITTEN_HERE:
        writer = _PartWriter(found.policy, found.stages, staging)
        for item in items:
            yield writer.write(**item)
        return
    data = workers.ray_data()
    dataset = data.from_items(list(items), override_num_blocks=len(items)).map_batches(
        _PartWriter,
        batch_size=1,
        compute=data.ActorPoolStrategy(size=min(found.job.workers, len(items))),
        fn_constructor_args=[found.policy, found.stages, staging],
        num_cpus=found.job.cpus_per_worker,
    )
    yield from dataset.iter_rows()


class _PartWriter:
    """Writes the parts of a manifest, in the driver or as a Ray actor, which takes the lists of opt-outs once."""

    def __init__(self, policy: Policy, stages: dict[str, Stage], staging: str) -> None:
        self._policy, self._stages, self._staging = policy, stages, staging

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        columns = (batch[name] for name in ("index", "unit", "settled"))
        written = [self.write(*row) for row in zip(*columns, strict=True)]
        return {name: [part[name] for part in written] for name in written[0]}

    def write(self, index: int, unit: str, settled: bytes) -> dict[str, Any]:
        """Writes one part, and tells of it."""
        told = json.loads(unit)
        stored = stored_unit(self._stages, Unit(told["key"], pa.table({}), told["unwanted"]))
        rows = manifest_rows(self._policy, *stored, pa.ipc.open_stream(settled).read_all())
        part, digest = write_part(storage.join(self._staging, told["name"]), rows)
        counted = Counter(zip(*(rows[name].to_pylist() for name in ("decision", "stage", "reason")), strict=True))
        counts = json.dumps([[*key, n] for key, n in sorted(counted.items())])
        dim = rows.schema.field("embedding").type.list_size if "embedding" in rows.column_names else 0
        seen = evidence_from(rows)
        return {
            "index": int(index),
            **part.model_dump(),
            "digest": digest,
            "counts": counts,
            "dim": dim,
            "seen": None if seen is None else seen.isoformat(),
        }


def _info(found: Listing, parts: Sequence[dict[str, Any]], removed: Counter[tuple[str, str, str]]) -> ManifestInfo:
    job = found.job
    counts, reasons = Counter[str](), Counter[str]()
    for (decision, _, reason), n in removed.items():
        counts[decision] += n
        reasons[reason] += n
    return ManifestInfo(
        id=manifest_id(found.identity(), [part["digest"] for part in parts]),
        parent_id=found.parents[0].id if found.parents else None,
        parent_uri=storage.absolute(found.parents[0].uri) if found.parents else None,
        name=job.name,
        created_at=now(),
        code_version=code_version(),
        job=job.public(),
        clip=None if job.clip is None else ClipInfo(name=job.clip.name(), dim=parts[0]["dim"]),
        inputs=found.inputs(),
        rows=sum(part["rows"] for part in parts),
        counts={decision.value: counts[decision.value] for decision in Decision},
        reasons=dict(sorted(reasons.items())),
        rights=found.policy.optouts.sources,
        ledger=found.ledger,
        evidence_from=min((datetime.fromisoformat(p["seen"]) for p in parts if p["seen"]), default=None),
        files=[PartFile(name=p["name"], rows=p["rows"], sha256=p["sha256"]) for p in parts],
        work=WorkInfo(folder=found.stages["measure"].folder, units=[unit.key for unit in found.units]),
    )


_FUNNEL = ("fetch", "decode", "rights", "licence", "size", "filters", "safety", "captions", "duplicates")


def _funnel(rows: int, removed: Counter[tuple[str, str, str]]) -> list[FunnelStep]:
    """Step by step what is left, in the order in which the policy decides."""
    steps, reached = [], rows
    for stage in _FUNNEL:
        reasons = Counter[str]()
        for (decision, at, reason), n in removed.items():
            if at == stage and decision != Decision.KEPT:
                reasons[reason] += n
        steps.append(
            FunnelStep(stage=stage, reached=reached, removed=reasons.total(), reasons=dict(reasons.most_common()))
        )
        reached -= reasons.total()
    return steps


def code_version() -> str:
    """cleanplate's version, for the manifest's record."""
    try:
        return version("cleanplate")
    except PackageNotFoundError:
        return "unknown"
