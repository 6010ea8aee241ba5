"""What is to be done about a takedown entry, as a survey of it shows: the plan, and the jobs that it names."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import BaseModel, ValidationError

from curation import storage
from curation.errors import UserError
from pipelines.takedown_survey import SHORT, Family, Survey
from pipelines.trainings import Training, Version

if TYPE_CHECKING:
    from pipelines.register import RegisterJob
    from training.job import TrainJob
    from training.retraining import RetrainingPoint
    from training.tracking import ModelVersion


class ToDerive(BaseModel):
    """A manifest that keeps pictures of the entry."""

    manifest: str
    id: str
    base_id: str
    rows: int  # that it keeps and the entry reaches
    derived: str | None  # a derived manifest without them, where there is one
    into: str  # where the derived one is, or is going to be: a folder of manifests
    command: str | None


class Affected(BaseModel):
    """A version that was trained on pictures of the entry, or may have been."""

    model: str  # models:/NAME/VERSION
    aliases: tuple[str, ...]
    run_id: str | None
    certain: bool
    why: str | None  # what is not known
    pictures: int
    times: int  # samples that showed any of them
    first: int | None  # the first such sample, counted from 0


class Retraining(BaseModel):
    """A version that is to be trained anew, in its own way, on the derived manifest."""

    instead_of: str  # models:/NAME/VERSION
    manifest: str
    train_job: str
    register_job: str
    checkpoint: str | None
    images_saved: int
    images: int
    share_saved: float
    claim: str | None  # of the retrained model, as `training.retraining` words it
    from_scratch: str | None  # why no checkpoint serves


class Move(BaseModel):
    """An alias that points at an affected version."""

    alias: str  # models:/NAME@alias
    version: str
    job: str | None  # the register job whose version it is to point at


class Plan(BaseModel):
    """What is to be done about an entry."""

    entry: str
    requester: str
    ground: str
    ledger: str
    ledger_version: str
    tracking_uri: str
    folder: str
    manifests: list[ToDerive]
    versions: list[Affected]
    unaffected: list[str]  # versions that were examined and have none of the pictures
    runs: list[str]  # affected runs that no version was registered of
    retrainings: list[Retraining]
    not_retrained: dict[str, str]  # affected versions without a job, and why
    aliases: list[Move]
    commands: list[str]  # in order
    notes: list[str]


_BUNDLE = (
    'bundle_of() { python3 -c "import json, sys; '
    'print(json.loads(open(sys.argv[1]).read().splitlines()[-1])[\'bundle\'])" "$1"; }'
)


class Planner:
    """Makes a plan of a survey.

    Args:
        folder: where the plan and its jobs are going to be.
        tracking_uri: as it was given, for the jobs; None leaves it to whoever submits them.
    """

    def __init__(self, found: Survey, folder: str, tracking_uri: str | None) -> None:
        self._found = found
        self._folder = folder
        # where it holds a password it is not written down: whoever runs the commands has $MLFLOW_TRACKING_URI
        self._tracking_uri = tracking_uri if tracking_uri and tracking_uri == found.known.shown else None
        self._versions = {f"models:/{v.name}/{v.version}": v for v in found.known.versions}
        self._jobs: dict[str, TrainJob | RegisterJob] = {}

    def plan(self) -> tuple[Plan, dict[str, TrainJob | RegisterJob]]:
        found = self._found
        touched = [t for t in found.trainings if t.verdict != "not_trained_on"]
        derive = [self._derive(family) for family in found.families]
        retrainings, not_retrained = self._retrainings(touched)
        by_version = {r.instead_of: r.register_job for r in retrainings}
        moves = [
            Move(alias=f"models:/{v.name}@{alias}", version=v.version, job=by_version.get(v.model))
            for t in touched
            for v in t.versions
            for alias in v.aliases
        ]
        notes = [f"not read: {place}: {why}" for place, why in sorted(found.unreadable.items())]
        plan = Plan(
            entry=found.entry.id,
            requester=found.entry.requester,
            ground=found.entry.ground,
            ledger=found.ledger.uri,
            ledger_version=found.state.version,
            tracking_uri=found.known.shown,
            folder=self._folder,
            manifests=derive,
            versions=[_affected(t, v) for t in touched for v in t.versions],
            unaffected=[v.model for t in found.trainings if t.verdict == "not_trained_on" for v in t.versions],
            runs=[t.run_id for t in touched if not t.versions and t.run_id],
            retrainings=retrainings,
            not_retrained=not_retrained,
            aliases=moves,
            commands=self._commands(derive, retrainings, moves),
            notes=[*([found.known.note] if found.known.note else []), *notes],
        )
        return plan, self._jobs

    def _derive(self, family: Family) -> ToDerive:
        keeps, derived = family.newest_with, family.derived_without
        assert keeps is not None
        into = family.folder_for(self._found.entry.id)
        words = ["cleanplate", "recheck", keeps.uri, "--ledger", self._found.ledger.uri, "--out", into]
        return ToDerive(
            manifest=keeps.uri,
            id=keeps.id,
            base_id=family.base_id,
            rows=next(len(rows) for manifest, rows in family.members if manifest.id == keeps.id),
            derived=derived.uri if derived else None,
            into=derived.uri if derived else into,
            command=None if derived else shlex.join(words),
        )

    def _retrainings(self, touched: Sequence[Training]) -> tuple[list[Retraining], dict[str, str]]:
        """Jobs for the versions that an alias points at; where a model has nothing else, for its newest."""
        chosen = [(t, v) for t in touched for v in t.versions if v.aliases]
        sound = {v.name for t in self._found.trainings if t.verdict == "not_trained_on" for v in t.versions}
        for name in sorted({v.name for t in touched for v in t.versions} - {v.name for _, v in chosen} - sound):
            versions = [(t, v) for t in touched for v in t.versions if v.name == name]
            chosen.append(max(versions, key=lambda tv: int(tv[1].version)))
        made: list[Retraining] = []
        left = {v.model: "no alias points at it" for t in touched for v in t.versions}
        for training, version in chosen:
            alone = [v.name for _, v in chosen].count(version.name) == 1
            suffix = version.name if alone else f"{version.name}-{version.version}"
            try:
                made.append(self._retraining(training, version, suffix))
                del left[version.model]
            except UserError as error:
                left[version.model] = error.message
        return made, left

    def _retraining(self, training: Training, version: Version, suffix: str) -> Retraining:
        from pipelines.register import RegisterJob

        family = next((f for f in self._found.families for m, _ in f.members if m.id == training.manifest_id), None)
        if family is None:
            raise UserError("its manifest is not there, or keeps none of the pictures")
        job = self._train_job(self._versions[version.model], training, family)
        point, why = self._point(training, job)
        if point is not None:
            job = job.model_copy(update={"resume_from": point.checkpoint})
        train_job, register_job = f"retrain-{suffix}.yaml", f"register-{suffix}.yaml"
        self._jobs[train_job] = job
        self._jobs[register_job] = RegisterJob(
            name=version.name, bundle="what the retraining prints", alias=None, tracking_uri=self._tracking_uri
        )
        return Retraining(
            instead_of=version.model,
            manifest=job.manifest,
            train_job=train_job,
            register_job=register_job,
            checkpoint=point.checkpoint if point else None,
            images_saved=point.images_seen if point else 0,
            images=job.steps * job.batch_size,
            share_saved=point.images_seen / point.images if point else 0.0,
            claim=point.claim if point else None,
            from_scratch=why,
        )

    def _train_job(self, version: ModelVersion, training: Training, family: Family) -> TrainJob:
        """The version's own job, on the derived manifest to be."""
        from training import tracking
        from training.job import TrainJob

        info = tracking.info_of(version, tracking_uri=self._found.known.uri)
        folder = self._run_folder(training)
        derived = family.derived_without
        places = {
            "manifest": derived.uri if derived else family.folder_for(self._found.entry.id),
            "output": folder.rpartition("/")[0] if folder else storage.join("runs", version.name, "training"),
            "ledger": self._found.ledger.uri,
        }
        raw = {**info.job, **places}
        experiment = {}
        if training.run_id is not None and training.status != "UNKNOWN":
            experiment["experiment"] = tracking.experiment_of(training.run_id, tracking_uri=self._found.known.uri)
        raw["tracking"] = {"uri": self._tracking_uri, **experiment}
        try:
            return TrainJob.model_validate(raw)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise UserError(f"its job is not one of this version of cleanplate: {where}: {first['msg']}") from None

    def _run_folder(self, training: Training) -> str | None:
        runs = {run.run_id: run for run in self._found.known.runs}
        run = runs.get(str(training.run_id))
        return run.tags.get("run_folder") if run else None

    def _point(self, training: Training, job: TrainJob) -> tuple[RetrainingPoint | None, str | None]:
        """Where the retraining may start, or why it starts from scratch."""
        from curation.takedowns.revocation import Revocations
        from training import retraining, tracking
        from training.exposure import exposures

        folder = self._run_folder(training)
        if folder is None:
            return None, "where its run kept its checkpoints is not on record"
        version = self._versions[training.versions[0].model]
        try:
            roster = tracking.training_set(version, tracking_uri=self._found.known.uri)
            manifest, rows = self._found.sightings.of(roster.info.manifest_uri)
        except UserError as error:
            return None, f"which of its pictures are affected is not known: {error.message}"
        # whatever else was revoked since leaves with them
        revoked = {row.id for row in rows} | set(Revocations(self._found.state.in_force).of_manifest(manifest))
        budget = job.steps * job.batch_size
        firsts = [e.first for e in exposures(roster, job.seed, budget, revoked) if e.first is not None]
        point = retraining.earliest(folder, roster, revoked, job)
        if point is not None:
            return point, None
        first = min(firsts, default=budget)
        if first < job.conditioning_window:
            return None, (
                f"image {first + 1:,} shows a picture that is revoked, and the captions of the first "
                f"{job.conditioning_window:,} are what the conditioning is standardised over"
            )
        return None, (
            f"no whole checkpoint is left in {folder} from before image {first + 1:,}, which shows the first picture "
            f"that is revoked; `milestones` in a train job keeps such"
        )

    def _commands(self, derive: Sequence[ToDerive], made: Sequence[Retraining], moves: Sequence[Move]) -> list[str]:
        commands = [d.command for d in derive if d.command is not None]
        if made:
            commands.append(_BUNDLE)
        for r in made:
            job, result = (shlex.quote(storage.join(self._folder, n)) for n in (r.train_job, f"{r.train_job}.json"))
            register = shlex.quote(storage.join(self._folder, r.register_job))
            commands.append(f"cleanplate train {job} --json > {result}")
            commands.append(f'cleanplate register {register} --set "bundle=$(bundle_of {result})"')
        for move in moves:
            for r in made:
                if r.register_job == move.job:
                    register = shlex.quote(storage.join(self._folder, r.register_job))
                    result = shlex.quote(storage.join(self._folder, f"{r.train_job}.json"))
                    alias = move.alias.rpartition("@")[2]
                    commands.append(
                        f'cleanplate register {register} --set "bundle=$(bundle_of {result})" --set alias={alias}'
                    )
        status = ["cleanplate", "takedown", "status", self._found.entry.id[:SHORT], "--ledger", self._found.ledger.uri]
        status += ["--tracking-uri", self._tracking_uri] if self._tracking_uri else []
        return [*commands, shlex.join(status)]


def _affected(training: Training, version: Version) -> Affected:
    return Affected(
        model=version.model,
        aliases=version.aliases,
        run_id=training.run_id,
        certain=training.verdict == "trained_on",
        why=training.why,
        pictures=len(training.pictures),
        times=training.times,
        first=training.first,
    )
