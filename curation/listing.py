"""A curate job made concrete: its inputs cut into units, its lists read, and what of it is stored already.

Everything that a user can have got wrong is found here, before a cluster starts. Each stage has a fingerprint of all
that its results depend on (its version, its parameters, its weights' hashes, and the stages before it), which names the
folder they are stored in: another fingerprint is another folder, and what lies there is stale.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation import storage
from curation.aesthetic import NAME as AESTHETIC
from curation.captions import CaptionsConfig
from curation.containers import frames_of
from curation.errors import UserError
from curation.fetch import PASSING
from curation.filters import Filters
from curation.heads import HeadsConfig
from curation.images import decoders
from curation.job import CurateJob
from curation.manifest import LATEST_FILE, InputsInfo, LedgerInfo, Manifest, Reason, Verdict
from curation.measure import MeasureConfig
from curation.places import host_and_domain
from curation.policy import Policy
from curation.quality import MEASURES
from curation.rights.lists import OptOuts
from curation.rights.registry import Registry
from curation.rights.verdict import IN_FILE
from curation.takedowns import Ledger, location, of_place, refuse_vanished
from curation.units import Stage, Unit, cut, fingerprint, texts_of, unit_key

# Raise it when measuring comes to give other results: what is stored is then made anew. Heads and captions have theirs.
MEASURE_VERSION = 4
_MOST_PASSED_ON = 1024
_TALLEST = 65_500
_CHECK_ACCESS = "check the path, who may use it, and the AWS_* variables for s3://"
_AGAIN = PASSING | {Reason.NOT_ASKED, Reason.SITE_UNREACHABLE}


@dataclass(frozen=True)
class Todo:
    """What of a unit is to be done: stages in order, and which rows of a stored unit are measured anew, and why."""

    unit: Unit
    stages: tuple[str, ...]
    again: list[int] | None = None  # None: the unit is measured whole, if it is
    why: Mapping[str, int] = field(default_factory=dict)  # rows by what they failed with


@dataclass(frozen=True)
class Listing:
    """A job ready to run."""

    policy: Policy
    units: list[Unit]
    measure: MeasureConfig
    heads: HeadsConfig | None
    captions: CaptionsConfig | None
    stages: dict[str, Stage]  # in order; those that the job has
    has_urls: bool
    ledger: LedgerInfo
    parents: list[Manifest]  # the job's parent, its parent, and so on

    @property
    def job(self) -> CurateJob:
        return self.policy.job

    @property
    def rows(self) -> int:
        return sum(unit.inputs.num_rows for unit in self.units)

    def inputs(self) -> InputsInfo:
        """What the manifest's rows are to be reconciled with."""
        return InputsInfo.of(uri for unit in self.units for uri in unit.inputs["uri"].to_pylist())

    def identity(self) -> dict[str, Any]:
        """What the manifest's id depends on beside its rows."""
        lists = [source.sha256 for source in self.policy.optouts.sources]
        parent = self.parents[0].id if self.parents else None
        stages = {name: stage.folder.rsplit("/", 1)[-1] for name, stage in self.stages.items()}
        # What lists and ledger hold counts, also where it matches nothing: that they were asked is part of it.
        asked = {"rights": lists, "ledger": self.ledger.version}
        return {**self.job.identity(), "stages": stages, **asked, "parent": parent}

    def todo(self) -> list[Todo]:
        """What is missing, and rows that may fare better now than they did then."""
        done = {name: stage.done() for name, stage in self.stages.items()}
        units = {unit.key: unit for unit in self.units}  # the same inputs twice are the same unit
        stored = [unit for key, unit in units.items() if key in done["measure"]]
        with ThreadPoolExecutor(16) as readers:  # each is a round trip, where the store is far
            passing = dict(zip((unit.key for unit in stored), readers.map(self._passing, stored), strict=True))
        found = []
        for key, unit in units.items():
            if key not in passing:
                found.append(Todo(unit, tuple(self.stages)))
            elif passing[key]:
                found.append(Todo(unit, tuple(self.stages), list(passing[key]), Counter(passing[key].values())))
            elif missing := tuple(n for n in self.stages if key not in done[n] or self._failed(n, unit)):
                found.append(Todo(unit, missing))
        return found

    def _failed(self, stage: str, unit: Unit) -> bool:
        """Whether an endpoint did not get to say anything about a row of a stored unit."""
        if stage != "captions" or not any(captioner.kind == "endpoint" for captioner in self.job.captions):
            return False
        failed = self.stages[stage].read(unit.key, ["failed"])["failed"]
        return bool(failed.null_count < len(failed))

    def _passing(self, unit: Unit) -> dict[int, str]:
        """Rows of a stored unit that may fare better now, and what they failed with."""
        stored = self.stages["measure"].read(unit.key, ["failed_reason", "sightings"])
        again = pc.is_in(stored["failed_reason"], pa.array([str(reason) for reason in _AGAIN]))
        places = np.flatnonzero(again.to_numpy() | _unheard(stored["sightings"]))
        unwanted = set(unit.unwanted)
        rows = ((i, stored["failed_reason"][i].as_py()) for i in places.tolist() if i not in unwanted)
        return {i: reason or "not_heard" for i, reason in rows}


def may_pass(reason: str) -> bool:
    """Whether a rerun asks again for rows that failed with a reason."""
    return reason in _AGAIN and reason != Reason.NOT_ASKED


def _unheard(sightings: pa.ChunkedArray) -> np.ndarray:
    """(N,) bool: of which rows a site, a page or a registry could not be asked, which may go better another time."""
    lists = pa.concat_arrays([*sightings.chunks, pa.array([], sightings.type)])
    seen = lists.flatten()
    failed = pc.equal(pc.struct_field(seen, "verdict"), Verdict.ERROR.value)
    elsewhere = pc.fill_null(pc.not_equal(pc.struct_field(seen, "where"), IN_FILE), fill_value=True)
    found = np.zeros(len(lists), bool)
    found[pc.list_parent_indices(lists).filter(pc.and_(failed, elsewhere)).to_numpy()] = True
    return found


def listing(job: CurateJob) -> Listing:
    """Reads everything that a user can have got wrong, before a cluster starts.

    Raises:
        UserError: naming the field and the remedy.
    """
    _check(job)
    ledger = Ledger.open(of_place(location(job.ledger, beside=job.output)))
    requests = ledger.read()
    optouts = OptOuts.read(job.optout, requests.in_force)
    storage.filesystem(job.output)
    parents = _parents(job)
    refuse_vanished(ledger.uri, requests, [*_published(job), *parents])
    try:
        inputs = job.source.inputs()
    except OSError as error:
        raise UserError(f"the inputs cannot be listed: {error}", field="source", remedy=_CHECK_ACCESS) from None
    has_urls = pc.any(pc.match_substring_regex(inputs["location"], "(?i)^https?://")).as_py()
    job.fetch.check(bool(has_urls), job.workers)
    if job.frames is None and any(map(frames_of, texts_of(inputs, "location"))):
        raise UserError(
            "the source lists frame folders, and the job takes stills",
            field="frames",
            remedy="set it to how many frames to sample, or set source.sequences to false",
        )
    units = [Unit(unit_key(rows), rows, _unwanted(optouts, rows)) for rows in cut(inputs, job.unit_size)]
    measure, heads, captions = _configs(job)
    policy = Policy(job, optouts, job.safety.limits(job.clip))
    return Listing(
        policy,
        units,
        measure,
        heads,
        captions,
        _stages(job, heads, captions),
        bool(has_urls),
        requests.info(ledger.uri),
        parents,
    )


def _unwanted(optouts: OptOuts, inputs: pa.Table) -> list[int]:
    """The inputs whose place on the web is opted out."""
    if not optouts:
        return []
    return [
        i
        for i, uri in enumerate(inputs["uri"].to_pylist())
        if (host := host_and_domain(uri)[0]) is not None and optouts.denies_location(uri, host)
    ]


def _check(job: CurateJob) -> None:
    if job.clip is not None:
        job.clip.check()
    elif wanting := [name for name, wanted in _wanting_clip(job).items() if wanted is not None]:
        field = wanting[0]
        raise UserError(
            f"{field} needs a CLIP model, and the job has none", field=field, remedy="set clip, or leave it out"
        )
    unknown = [name for name in job.quality if name not in MEASURES]
    if unknown:
        raise UserError(
            f"there is no measure called {unknown[0]!r}", field="quality", remedy=f"use {', '.join(MEASURES)}"
        )
    if job.safety.nsfw is not None:
        job.safety.nsfw.check()
    if job.rights.registry is not None:
        Registry(job.rights.registry)  # says what is missing
    if job.aesthetic is not None:
        job.aesthetic.check()
    _check_shapes(job)
    if job.scorers and job.unit_size * (job.frames or 1) > _MOST_PASSED_ON:
        several = "" if job.frames is None else f" of {job.frames} frames"
        raise UserError(
            f"a unit of {job.unit_size} pictures{several} is too much to pass from a worker to a scorer at once",
            field="unit_size",
            remedy=f"set it to {_MOST_PASSED_ON // (job.frames or 1)} or less, or scorers to 0",
        )
    if "licence" in job.duplicates.prefer and job.licences.allow is None:
        raise UserError(
            "there is no list of licences to prefer one by",
            field="duplicates.prefer",
            remedy="list them in licences.allow, the most wanted first",
        )
    CaptionsConfig(captioners=job.captions, policy=job.caption_policy).check(job.clip, pictures=job.pictures)
    Filters(job.filters).check({*job.quality, *([AESTHETIC] if job.aesthetic is not None else [])})


def _check_shapes(job: CurateJob) -> None:
    if job.frames is not None and job.buckets is not None:
        raise UserError(
            "moving pictures are sampled to squares",
            field="buckets",
            remedy="leave out buckets, or frames and take stills",
        )
    if job.buckets is not None and job.images.fit == "pad":
        raise UserError(
            "a picture that fills its bucket is not padded",
            field="images.fit",
            remedy="set it to crop, or leave buckets out",
        )
    if job.frames is not None and job.frames * job.image_size > _TALLEST:
        raise UserError(
            f"a strip of {job.frames} frames of {job.image_size} pixels is {job.frames * job.image_size} pixels high",
            field="frames",
            remedy=f"keep it below {_TALLEST}, the most that a JPEG can hold: fewer frames, or a smaller image_size",
        )


def _wanting_clip(job: CurateJob) -> dict[str, Any]:
    """What of a job is read off embeddings, by field."""
    return {"groups": job.groups, "aesthetic": job.aesthetic, "duplicates.semantic": job.duplicates.semantic}


def _configs(job: CurateJob) -> tuple[MeasureConfig, HeadsConfig | None, CaptionsConfig | None]:
    measure = MeasureConfig(
        fetch=job.fetch.share(job.workers),
        rights=job.rights,
        sites=storage.join(_work(job), "sites"),
        images=job.images,
        image_size=job.image_size,
        frames=job.frames,
        buckets=job.buckets,
        columns=job.columns,
        pictures=job.pictures,
        clip=job.clip,
        quality=job.quality,
        nsfw=job.safety.nsfw,
        turned=job.duplicates.turned,
        threads=job.threads,
    )
    heads = HeadsConfig(concepts=tuple(sorted(job.safety.concepts)), groups=job.groups, aesthetic=job.aesthetic)
    captions = CaptionsConfig(captioners=job.captions, policy=job.caption_policy)
    wanted = heads.concepts or heads.groups is not None or heads.aesthetic is not None
    return measure, heads if wanted else None, captions if job.captions else None


# Of the rights' settings, those that measuring does not depend on.
_DECIDED = {"unknown", "error", "cache_hours"}


def _stages(job: CurateJob, heads: HeadsConfig | None, captions: CaptionsConfig | None) -> dict[str, Stage]:
    """The stages that the job has, each in the folder of its fingerprint."""
    clip = None if job.clip is None else [job.clip.name(), job.clip.precision, job.clip.batch_size]
    measured: dict[str, Any] = {
        "fetch": job.identity()["fetch"],
        "rights": job.rights.model_dump(mode="json", exclude=_DECIDED),
        "images": job.images.model_dump(mode="json", exclude={"min_side"}),
        "image_size": [job.image_size, job.pictures],
        "clip": clip,
        "quality": job.quality,
        "nsfw": None if job.safety.nsfw is None else job.safety.nsfw.identity(),
        "turned": job.duplicates.turned,
        "decoders": decoders(),
    }
    if job.frames is not None:
        measured["frames"] = job.frames
    if job.buckets is not None:
        measured["buckets"] = job.buckets.shapes
    if job.clip is not None or job.safety.nsfw is not None:
        # Sums in another order, or on another device, end in other bits.
        measured["threads"] = job.threads
        measured["device"] = "cuda" if job.gpus_per_worker else job.clip.device if job.clip else "cpu"
    identities: list[tuple[str, Any]] = [("measure", measured)]
    if heads is not None:
        assert job.clip is not None, "checked: heads want embeddings"
        identities.append(("heads", [measured, heads.identity(job.clip)]))
    if captions is not None:
        identities.append(("captions", [measured, captions.identity()]))
    return {
        name: Stage(name, storage.join(_work(job), f"{name}-{fingerprint(MEASURE_VERSION, name, identity)}"))
        for name, identity in identities
    }


def _work(job: CurateJob) -> str:
    """Where stages keep what they measured; absolute, because a worker's directory is not the driver's."""
    return storage.join(storage.absolute(job.output), ".work")


def _published(job: CurateJob) -> list[Manifest]:
    """The newest manifest in the job's output, if there is one that can be read."""
    with suppress(UserError):
        return [Manifest.open(job.output)]
    return []


def _parents(job: CurateJob) -> list[Manifest]:
    """The job's parent and all that came before it: what any of them kept stays."""
    found: list[Manifest] = []
    uri, expected = job.parent, None
    if uri is not None and storage.exists(storage.join(uri, LATEST_FILE)):
        raise UserError(
            f"{uri} is a folder of manifests, and which is its latest changes",
            field="parent",
            remedy="name one of them, such as the folder that `cleanplate curate` printed",
        )
    while uri is not None:
        try:
            parent = Manifest.open(uri)
        except UserError as error:
            raise UserError(error.message, field="parent", remedy=error.remedy) from None
        if expected not in (None, parent.id):
            raise UserError(f"{uri} is not the parent that was meant ({expected})", field="parent", remedy="restore it")
        if job.duplicates.semantic is not None:
            name = None if job.clip is None else job.clip.name()
            if parent.info.clip is None or parent.info.clip.name != name:
                raise UserError(
                    f"embeddings of {uri} are by {parent.info.clip and parent.info.clip.name}, this job's by {name}",
                    field="parent",
                    remedy="use the parent's CLIP, or switch duplicates.semantic off",
                )
        found.append(parent)
        uri, expected = parent.info.parent_uri, parent.info.parent_id
    return found


def plan(job: CurateJob, found: Listing | None = None) -> dict[str, Any]:
    """What running the job would take: for `--dry-run`."""
    found = found or listing(job)
    todo = found.todo()
    scorers = job.scorers or job.workers
    return {
        "inputs": found.rows,
        "inputs_to_do": sum(t.unit.inputs.num_rows for t in todo if "measure" in t.stages),
        "units": len(found.units),
        "units_to_do": {name: sum(name in t.stages for t in todo) for name in found.stages},
        "stages": {name: stage.folder for name, stage in found.stages.items()},
        "workers": job.workers,
        "cpus": (job.workers + job.scorers) * job.cpus_per_worker,
        "gpus": scorers * job.gpus_per_worker,
        "clip": None if job.clip is None else job.clip.name(),
        "parents": [parent.id for parent in found.parents],
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


def forget_downstream(job: CurateJob, todo: Sequence[Todo]) -> None:
    """Removes what was made of units that are about to be measured anew in part, under any fingerprint."""
    stale = {f"unit-{t.unit.key}.parquet" for t in todo if t.again is not None}
    if not stale:
        return
    for info in storage.list_files(storage.join(job.output, ".work"), recursive=True):
        folder = info.path.rsplit("/", 2)[-2]
        if info.base_name in stale and not folder.startswith("measure-"):
            storage.filesystem(job.output)[0].delete_file(info.path)
