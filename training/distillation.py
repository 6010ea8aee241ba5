"""What a distill job comes to before anything runs, and the driver's side of its run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from curation import storage
from curation.errors import UserError
from curation.manifest import Manifest
from training import dependencies, pairs
from training.bundle import INFO_FILE
from training.distill_job import DistillJob, ProgressiveConfig
from training.folders import upload
from training.follow import Follower, Mailbox, OnProgress, start_run
from training.notice import Notice, on_sigterm
from training.progress import Leg, Report
from training.roster import FILE as ROSTER_FILE
from training.roster import Roster
from training.run_record import RESULT_FILE, stored_result

if TYPE_CHECKING:
    from training.bundle import BundleInfo
    from training.consent import Consent
    from training.learner import Place
    from training.sampling import SamplingParams
    from training.shard_job import OnStage
    from training.tracking import ModelVersion, Run


class DistillResult(BaseModel):
    """What a finished distillation came to.

    Attributes:
        teacher: its version as `NAME/3`, or its bundle's folder.
        teacher_evaluations, evaluations: of the network for one picture, by each one's own way to be drawn with.
        other_set: whether the teacher was trained on other pictures than the student was: what was taken down since
            is in its weights still.
        excluded: rows that were left out, by the takedown entry that revokes them.
        legs: the topologies that it was distilled at.
    """

    model_config = ConfigDict(frozen=True)
    run_id: str
    bundle: str
    images_seen: int
    state_sha256: str
    metrics: dict[str, float]
    resumed_from: int
    teacher: str
    teacher_evaluations: int
    evaluations: int
    training_set_digest: str
    other_set: bool
    excluded: dict[str, int] = {}
    legs: tuple[Leg, ...] = ()


@dataclass(frozen=True)
class Prepared:
    """What a job comes to: the teacher, the exact set, and the run's folder, which is named after both."""

    version: ModelVersion
    teacher: BundleInfo
    guidance_scale: float
    manifest: Manifest
    consent: Consent
    roster: Roster
    folder: str

    @property
    def teacher_sha256(self) -> str:
        return self.version.tags["bundle_sha256"]

    @property
    def teacher_name(self) -> str:
        return self.version.bundle if self.version.name == "local" else f"{self.version.name}/{self.version.version}"

    @property
    def other_set(self) -> bool:
        return self.teacher.training_set_digest != self.roster.info.digest


def prepare(job: DistillJob) -> Prepared:
    """Finds the teacher, opens the manifest and asks the takedown ledger which of its rows may be used now.

    Raises:
        UserError: no such teacher or manifest, one that does not fit the job, a ledger that cannot be read, nothing
            left to distil on, or evidence older than the job takes it (unless the run is finished).
    """
    from training import consent
    from training.bundle import read_info
    from training.tracking import resolve

    version = resolve(job.teacher, tracking_uri=job.tracking.uri)
    teacher = read_info(version.bundle)
    _check_teacher(job, teacher, version.bundle)
    where = job.manifest or teacher.manifest_uri
    if where is None:
        raise UserError(
            "the teacher does not say where its manifest lies", field="manifest", remedy="name the manifest"
        )
    manifest = Manifest.open(where)
    asked = consent.ask(manifest, job.ledger)
    roster = asked.roster(manifest)
    guidance = teacher.sampling.guidance_scale if job.guidance_scale is None else job.guidance_scale
    config = job.config_sha256(version.tags["bundle_sha256"], manifest.id)
    told = json.dumps([config, guidance, roster.info.digest])
    folder = storage.join(job.output, f"{job.name}-{hashlib.sha256(told.encode()).hexdigest()[:8]}")
    if finished(storage.absolute(folder)) is None:
        consent.check_age(manifest, job.consent_max_age_days)
    return Prepared(version, teacher, guidance, manifest, asked, roster, folder)


def _check_teacher(job: DistillJob, teacher: BundleInfo, bundle: str) -> None:
    if teacher.prediction == "epsilon":
        scheduler = json.loads((Path(bundle) / "scheduler" / "scheduler_config.json").read_text())
        pairs.refuse_teacher(teacher.prediction, np.asarray(scheduler["trained_betas"], dtype=np.float64))
    if teacher.frames is not None:
        raise UserError("a model of films cannot be distilled", field="teacher", remedy="name a model of pictures")
    own = teacher.sampling.steps
    asked = job.method.teacher_steps if isinstance(job.method, ProgressiveConfig) else job.method.solver_steps
    if teacher.distilled_from is not None and asked != own:
        raise UserError(
            f"the teacher is a student itself, and knows the noise levels of its own {own} steps only, not of {asked}",
            field=f"method.{'teacher_steps' if isinstance(job.method, ProgressiveConfig) else 'solver_steps'}",
            remedy=f"set it to {own}",
        )


def finished(folder: str) -> DistillResult | None:
    """The result of a run that came to its end in a folder; None where none did."""
    return stored_result(folder, DistillResult)


def plan(job: DistillJob, prepared: Prepared | None = None) -> dict[str, Any]:
    """What the job will ask for and do; finds the teacher, opens the manifest and reads the takedown ledger.

    Raises:
        UserError: what `prepare` refuses, or pictures of another size than the teacher's.
    """
    from training.data import check_mix, picture_size

    prepared = prepared or prepare(job)
    teacher, manifest, roster = prepared.teacher, prepared.manifest, prepared.roster
    size = picture_size(manifest)
    if size != teacher.image_size:
        raise UserError(
            f"the manifest's pictures are {size} x {size} pixels, the teacher's {teacher.image_size}",
            field="manifest",
            remedy="use the manifest that the teacher was trained on, or one of that size",
        )
    check_mix(manifest, teacher.job.get("caption_mix"))
    return {
        "workers": job.workers,
        "cpus": max(job.workers, 1),
        "gpus": job.workers * job.gpus_per_worker,
        "teacher": prepared.teacher_name,
        "teacher_evaluations": _evaluations(teacher.sampling),
        "evaluations": job.steps,
        "guidance_scale": prepared.guidance_scale,
        "student_steps": [job.student_steps(stage) for stage in range(job.stages)],
        "parameters": teacher.parameters,
        "image_size": size,
        "training_rows": len(roster),
        "images": job.budget,
        "micro_batch": job.batch_size // (max(job.workers, 1) * job.accumulation),
        "manifest": manifest.id,
        "training_set_digest": roster.info.digest,
        "other_set": prepared.other_set,
        "ledger": prepared.consent.ledger_uri,
        "ledger_version": prepared.consent.ledger_version,
        "left_out": roster.info.excluded_rows,
        "left_out_by": prepared.consent.by_entry,
        "run_folder": prepared.folder,
    }


def _evaluations(sampling: SamplingParams) -> int:
    asked = 2 * sampling.steps - 1 if sampling.sampler == "heun" else sampling.steps
    return asked * (2 if sampling.guidance_scale > 1 else 1)


def launch(
    job: DistillJob,
    *,
    on_progress: OnProgress | None = None,
    on_stage: OnStage | None = None,
    prepared: Prepared | None = None,
) -> DistillResult:
    """Distils to the job's end, from where an earlier attempt was interrupted; a finished run is not repeated.

    Args:
        on_progress: called in a thread of this process, about once a second while there is news.
        on_stage: called while text states are made, which comes before distilling.
        prepared: what `prepare` found for the job.

    Ray must be connected already, unless `workers` is 0: then the loop runs in this process, without Ray.

    Raises:
        UserError: the teacher, the manifest, the ledger or an older checkpoint do not fit the job.
        Terminated: after SIGTERM, when `workers` is 0 and the state is saved.
    """
    from training import distill_texts, tracking

    prepared = prepared or prepare(job)
    folder = storage.absolute(prepared.folder)
    done = finished(folder)
    if done is not None:
        return done
    plan(job, prepared)
    storage.write_bytes(storage.join(folder, ROSTER_FILE), prepared.roster.to_parquet())
    rosters = tracking.rosters_of(prepared.version, tracking_uri=job.tracking.uri)
    dependencies.keep(folder, rosters)
    # the teacher may lie in this machine's cache, and a worker may be elsewhere
    upload(Path(prepared.version.bundle), storage.join(folder, "teacher"), last=INFO_FILE)
    run = _start_run(job, prepared, folder)
    run.dependencies(rosters)
    follower = Follower(run, job.budget, on_progress)
    manifest, bundle = prepared.manifest, Path(prepared.version.bundle)
    try:
        states = distill_texts.make(
            job, prepared.teacher, manifest, prepared.roster, folder=folder, bundle=bundle, on_stage=on_stage
        )
        where = storage.absolute(manifest.uri)
        task = Task(job, folder, where, prepared.teacher_sha256, prepared.guidance_scale, states)
        if job.workers == 0:
            outcome = _distill_here(task, follower)
        else:
            from training.distill_workers import distill_on_ray

            outcome = distill_on_ray(task, follower)
    except BaseException:
        run.finish("FAILED")
        raise
    run.finish("FINISHED", {key: str(outcome[key]) for key in ("state_sha256", "bundle", "images_seen")})
    teacher = prepared.teacher
    result = DistillResult(
        run_id=run.run_id,
        teacher=prepared.teacher_name,
        teacher_evaluations=_evaluations(teacher.sampling),
        evaluations=job.steps,
        training_set_digest=prepared.roster.info.digest,
        other_set=prepared.other_set,
        excluded=prepared.consent.by_entry,
        **outcome,
    )
    storage.write_bytes(storage.join(folder, RESULT_FILE), result.model_dump_json(indent=1).encode())
    return result


def _start_run(job: DistillJob, prepared: Prepared, folder: str) -> Run:
    """The MLflow run of this folder."""
    made_from = dependencies.made_from("teacher", prepared.teacher_sha256, prepared.teacher)
    tags = {"distilled_from": prepared.teacher_sha256, dependencies.TAG: dependencies.to_tag(made_from)}
    if prepared.version.name != "local":
        tags["parent_version"] = prepared.teacher_name
    return start_run(
        job,
        folder,
        prepared.manifest,
        prepared.roster,
        config_sha256=job.config_sha256(prepared.teacher_sha256, prepared.manifest.id),
        images=job.budget,
        tags=tags,
    )


@dataclass(frozen=True)
class Task:
    """What a worker is told of a distillation; its places are absolute, as a worker's directory is not the driver's.

    Attributes:
        states: where the captions' lie that do not fit into memory.
    """

    job: DistillJob
    folder: str
    manifest: str
    teacher_sha256: str
    guidance_scale: float
    states: str | None = None


def _distill_here(task: Task, follower: Follower) -> dict[str, Any]:
    import torch

    from training.learner import Place

    mailbox = Mailbox()
    place = Place(device=torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    with follower.following(mailbox.drain), on_sigterm() as notice:
        return distill_at(task, place, mailbox.put, notice)


def distill_at(task: Task, place: Place, report: Report, notice: Notice) -> dict[str, Any]:
    """Distils as one worker; a `distill_loop.Outcome` as a dict."""
    from training import distill_texts
    from training.bundle import load_bundle
    from training.conditioning import ConditioningConfig
    from training.data import load
    from training.distill_loop import Teacher, distill

    model = load_bundle(storage.join(task.folder, "teacher"), str(place.device))
    where = storage.join(task.folder, ROSTER_FILE)
    roster = Roster.from_parquet(storage.read_bytes(where), where)
    with distill_texts.opened(task.states, task.job, model.info, task.manifest, roster) as states:
        outcome = distill(
            task.job,
            folder=task.folder,
            teacher=Teacher(model, task.teacher_sha256, task.guidance_scale),
            data=load(
                Manifest.open(task.manifest),
                model.image_size,
                model.info.job.get("caption_mix"),
                roster,
                ConditioningConfig.model_validate(model.info.job.get("conditioning", {})),
                states=states,
            ),
            place=place,
            report=report,
            notice=notice,
        )
    return dataclasses.asdict(outcome)
