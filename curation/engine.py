"""Running a curate job on Ray Data: measure the units that are missing, decide everything, publish.

The input list is cut into units whose names are hashes of their inputs and of what measures them. A measured unit is
one file below `<output>/.work`, written whole or not at all, so rerunning a killed job measures only what is missing,
and a changed policy measures nothing. Ray must be running; `pipelines.cluster` sees to that.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from typing import Any

import pyarrow as pa
from pydantic import BaseModel

from curation import storage
from curation.decide import COLUMNS, Policy, Ruling, manifest_rows, settle
from curation.errors import UserError
from curation.fetch import PASSING, host_and_domain
from curation.job import CurateJob
from curation.manifest import (
    ClipInfo,
    Decision,
    InputsInfo,
    Manifest,
    ManifestInfo,
    PartFile,
    Reason,
    manifest_id,
    now,
    publish,
    write_part,
)
from curation.measure import Measure, MeasureConfig, forget, read_unit, unit_key, write_unit
from curation.rights.lists import OptOuts

# Raise it when a measuring stage comes to give other results: every stored unit is then measured anew.
MEASURE_VERSION = 1
_CHECK_ACCESS = "check the path, who may use it, and the AWS_* variables for s3://"

OnProgress = Callable[[str, int, int], None]  # stage, done, total


class CurateResult(BaseModel):
    """What a curate job came to."""

    manifest: str
    id: str
    rows: int
    counts: dict[str, int]
    reasons: dict[str, int]
    units: int
    units_measured: int  # the others were there from an earlier run
    seconds: dict[str, float]


@dataclass(frozen=True)
class _Unit:
    key: str
    inputs: pa.Table
    unwanted: list[int]


@dataclass(frozen=True)
class Listing:
    """A job made concrete: its inputs cut into units, its lists read, its thresholds resolved."""

    policy: Policy
    units: list[_Unit]
    work: str

    @property
    def rows(self) -> int:
        return sum(unit.inputs.num_rows for unit in self.units)

    def inputs(self) -> InputsInfo:
        """What the manifest's rows are to be reconciled with."""
        return InputsInfo.of(uri for unit in self.units for uri in unit.inputs["uri"].to_pylist())

    def file(self, key: str) -> str:
        return storage.join(self.work, f"unit-{key}.parquet")

    def missing(self) -> list[_Unit]:
        """The units that are not measured, and those with a row that may fare better now than it did then."""
        present = {info.base_name for info in storage.list_files(self.work)}
        return [u for u in self.units if f"unit-{u.key}.parquet" not in present or self._outdated(u)]

    def _outdated(self, unit: _Unit) -> bool:
        reasons = read_unit(self.file(unit.key), ["failed_reason"])["failed_reason"].to_pylist()
        again, unwanted = PASSING | {Reason.NOT_ASKED}, set(unit.unwanted)
        return any(reason in again for i, reason in enumerate(reasons) if i not in unwanted)


def listing(job: CurateJob) -> Listing:
    """Reads everything that a user can have got wrong, before a cluster starts.

    Raises:
        UserError: naming the field and the remedy.
    """
    job.clip.check()
    thresholds = job.safety.resolve(job.clip)
    optouts = OptOuts.read(job.optout)
    storage.filesystem(job.output)
    try:
        inputs = job.source.inputs()
    except OSError as error:
        raise UserError(f"the inputs cannot be listed: {error}", field="source", remedy=_CHECK_ACCESS) from None
    measurement = json.dumps([MEASURE_VERSION, job.measurement()], sort_keys=True)
    fingerprint = hashlib.sha256(measurement.encode()).hexdigest()
    units = []
    for start in range(0, inputs.num_rows, job.unit_size):
        rows = inputs.slice(start, job.unit_size)
        unwanted = [
            i
            for i, uri in enumerate(rows["uri"].to_pylist())
            if (host := host_and_domain(uri)[0]) is not None and optouts.denies_location(uri, host)
        ]
        units.append(_Unit(unit_key(rows, fingerprint), rows, unwanted))
    work = storage.join(job.output, ".work", fingerprint[:16])
    return Listing(Policy(job, optouts, thresholds), units, work)


def plan(job: CurateJob) -> dict[str, Any]:
    """What running the job would take: for `--dry-run`."""
    found = listing(job)
    return {
        "inputs": found.rows,
        "units": len(found.units),
        "units_to_measure": len(found.missing()),
        "workers": job.workers,
        "cpus": job.workers * job.cpus_per_worker,
        "gpus": job.workers * job.gpus_per_worker,
        "clip": job.clip.name(),
    }


def check_output(job: CurateJob) -> None:
    """Writes an empty file below the output, so that a place that cannot be written is found before any work is done.

    Raises:
        UserError: when it cannot.
    """
    try:
        storage.write_bytes(storage.join(job.output, ".work", "writable"), b"")
    except OSError as error:
        raise UserError(f"cannot write to {job.output}: {error}", field="output", remedy=_CHECK_ACCESS) from None


def curate(job: CurateJob, found: Listing, on_progress: OnProgress = lambda stage, done, total: None) -> CurateResult:
    """Runs a listed job to a published manifest, on the Ray cluster that this process is connected to."""
    missing = found.missing()
    clock = {"measure": time.monotonic()}
    measured_rows = found.rows - sum(unit.inputs.num_rows for unit in missing)
    on_progress("measure", measured_rows, found.rows)
    for rows in _measure(job, found, missing):
        measured_rows += rows
        on_progress("measure", measured_rows, found.rows)

    clock["decide"] = time.monotonic()
    on_progress("decide", 0, found.rows)
    compact = pa.concat_tables(forget(read_unit(found.file(u.key), COLUMNS), u.unwanted) for u in found.units)
    rulings = settle(found.policy, compact)
    on_progress("decide", found.rows, found.rows)

    clock["publish"] = time.monotonic()
    manifest = _publish(job, found, rulings, on_progress)
    clock["end"] = time.monotonic()
    names = list(clock)
    return CurateResult(
        manifest=manifest.uri,
        id=manifest.id,
        rows=manifest.info.rows,
        counts=manifest.info.counts,
        reasons=manifest.info.reasons,
        units=len(found.units),
        units_measured=len(missing),
        seconds={a: round(clock[b] - clock[a], 2) for a, b in pairwise(names)},
    )


def measure_config(job: CurateJob, thresholds: dict[str, float]) -> MeasureConfig:
    """The part of a job that a measuring worker needs."""
    return MeasureConfig(
        fetch=job.fetch,
        images=job.images,
        image_size=job.image_size,
        clip=job.clip,
        concepts=thresholds,
        threads=job.threads,
    )


class _MeasureWorker:
    """A Ray actor that measures one unit at a time and stores it."""

    def __init__(self, config: MeasureConfig, work: str) -> None:
        self._measure: Measure = config.build()
        self._work = work

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[int]]:
        rows = []
        for key, payload, unwanted in zip(batch["key"], batch["inputs"], batch["unwanted"], strict=True):
            inputs = pa.ipc.open_stream(payload).read_all()
            write_unit(storage.join(self._work, f"unit-{key}.parquet"), self._measure(inputs, json.loads(unwanted)))
            rows.append(inputs.num_rows)
        return {"rows": rows}


def _measure(job: CurateJob, found: Listing, missing: Sequence[_Unit]) -> Iterator[int]:
    """Measures the missing units; yields the number of rows of each as it is stored."""
    if not missing:
        return
    items = [
        {"key": unit.key, "inputs": _to_bytes(unit.inputs), "unwanted": json.dumps(unit.unwanted)} for unit in missing
    ]
    data = _ray_data()
    dataset = data.from_items(items, override_num_blocks=len(items)).map_batches(
        _MeasureWorker,
        batch_size=1,
        compute=data.ActorPoolStrategy(size=min(job.workers, len(items))),
        fn_constructor_args=[measure_config(job, dict(found.policy.thresholds)), found.work],
        num_cpus=job.cpus_per_worker,
        num_gpus=job.gpus_per_worker,
    )
    for row in dataset.iter_rows():
        yield int(row["rows"])


def _write_parts(batch: dict[str, Any], job: CurateJob, staging: str, dim: int) -> dict[str, list[Any]]:
    written = []
    columns = (batch[name] for name in ("source", "unwanted", "name", "rulings"))
    for source, unwanted, name, rulings in zip(*columns, strict=True):
        measured = forget(read_unit(str(source)), json.loads(unwanted))
        ruled = pa.ipc.open_stream(rulings).read_all().to_pylist()
        written.append(write_part(storage.join(staging, str(name)), manifest_rows(job, measured, ruled, dim)))
    return {
        "name": [part.name for part, _ in written],
        "rows": [part.rows for part, _ in written],
        "sha256": [part.sha256 for part, _ in written],
        "digest": [digest for _, digest in written],
    }


def _publish(job: CurateJob, found: Listing, rulings: list[Ruling], on_progress: OnProgress) -> Manifest:
    dim = int(read_unit(found.file(found.units[0].key), ["embedding"]).schema.field("embedding").type.list_size)
    # A name of its own: another run of the same job may be publishing at this very moment.
    staging = storage.join(job.output, ".work", f"staging-{uuid.uuid4().hex[:16]}")
    items, start = [], 0
    for index, unit in enumerate(found.units):
        end = start + unit.inputs.num_rows
        ruled = pa.Table.from_pylist([r.row() for r in rulings[start:end]], schema=_ruling_schema(dim))
        name = f"part-{index:05d}.parquet"
        source, unwanted = found.file(unit.key), json.dumps(unit.unwanted)
        items.append({"source": source, "unwanted": unwanted, "name": name, "rulings": _to_bytes(ruled)})
        start = end
    data = _ray_data()
    dataset = data.from_items(items, override_num_blocks=len(items)).map_batches(
        _write_parts, batch_size=1, fn_kwargs={"job": job, "staging": staging, "dim": dim}
    )
    written: dict[str, dict[str, Any]] = {}
    on_progress("publish", 0, found.rows)
    for row in dataset.iter_rows():
        written[row["name"]] = row
        on_progress("publish", sum(part["rows"] for part in written.values()), found.rows)
    parts = [written[str(item["name"])] for item in items]
    # The lists' contents count, also where they match nothing: that they were asked is part of what a manifest says.
    identity = {**job.identity(), "rights": [source.sha256 for source in found.policy.optouts.sources]}
    info = ManifestInfo(
        id=manifest_id(identity, [part["digest"] for part in parts]),
        name=job.name,
        created_at=now(),
        code_version=code_version(),
        job=job.model_dump(mode="json"),
        clip=ClipInfo(name=job.clip.name(), dim=dim),
        inputs=found.inputs(),
        rows=len(rulings),
        counts={d.value: sum(r.decision == d for r in rulings) for d in Decision},
        reasons=dict(sorted(Counter(str(r.reason) for r in rulings).items())),
        rights=found.policy.optouts.sources,
        files=[PartFile(name=p["name"], rows=p["rows"], sha256=p["sha256"]) for p in parts],
    )
    if sum(part.rows for part in info.files) != info.inputs.rows:
        raise AssertionError("the manifest's rows are not the inputs: this is a defect of cleanplate")
    return publish(staging, job.output, info)


def code_version() -> str:
    """cleanplate's version, for the manifest's record."""
    try:
        return version("cleanplate")
    except PackageNotFoundError:
        return "unknown"


def _ruling_schema(dim: int) -> pa.Schema:
    from curation.manifest import schema

    row = Ruling(Decision.KEPT, "", "").row()
    return pa.schema([field for field in schema(dim) if field.name in row])


def _to_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def _ray_data() -> Any:
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    return ray.data
