"""The jobs of a takedown's plan: each affected version is made anew in its own way, a teacher before its students."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import BaseModel, ValidationError

from curation import storage
from curation.errors import UserError
from pipelines.takedown_survey import Survey
from pipelines.trainings import Training, Version

if TYPE_CHECKING:
    from pipelines.register import RegisterJob
    from training.autoencoder_job import AutoencoderJob
    from training.bundle import BundleInfo
    from training.distill_job import DistillJob
    from training.job import TrainJob
    from training.retraining import RetrainingPoint

    AnyJob = TrainJob | DistillJob | AutoencoderJob | RegisterJob

_Job = TypeVar("_Job", bound=BaseModel)
_PRINTED = "what the retraining prints"  # a bundle that is not there yet; the plan's commands set it


class Retraining(BaseModel):
    """A version that is to be made anew, in its own way, on the derived manifest."""

    instead_of: str  # models:/NAME/VERSION
    verb: Literal["train", "distill", "autoencoder"] = "train"
    teacher: str | None = None  # of a distillation: models:/NAME/VERSION, where the plan does not make it
    takes: dict[str, str] = {}  # fields of the job, and the jobs of the plan whose bundles they name
    manifest: str
    train_job: str
    register_job: str | None  # none of an autoencoder, which is part of the models that draw with it
    checkpoint: str | None
    images_saved: int
    images: int
    share_saved: float
    claim: str | None  # of the retrained model, as `training.retraining` words it
    from_scratch: str | None  # why no checkpoint serves


class Jobs:
    """Makes the jobs.

    Args:
        tracking_uri: for the jobs; None leaves it to whoever submits them.

    Attributes:
        files: the jobs, by the names of their files.
    """

    def __init__(self, found: Survey, tracking_uri: str | None) -> None:
        self._found = found
        self._tracking_uri = tracking_uri
        self._versions = {f"models:/{v.name}/{v.version}": v for v in found.known.versions}
        self._made: dict[str, Retraining] = {}
        self._touched: dict[str, tuple[Training, Version]] = {}
        self.files: dict[str, AnyJob] = {}

    def make(self, touched: Sequence[Training]) -> tuple[list[Retraining], dict[str, str]]:
        """Jobs for the versions that an alias points at, and for those that such a one is made from; where a model has
        nothing else, for its newest.

        Returns:
            The retrainings in the order in which they can be run, and the affected versions without one, with why.
        """
        self._touched = {v.model: (t, v) for t in touched for v in t.versions}
        chosen = self._chosen()
        left = dict.fromkeys(self._touched, "no alias points at it")
        for version in chosen:
            alone = [v.name for v in chosen].count(version.name) == 1
            suffix = version.name if alone else f"{version.name}-{version.version}"
            try:
                self._made[version.model] = self._retraining(self._touched[version.model][0], version, suffix, left)
                del left[version.model]
            except UserError as error:
                left[version.model] = error.message
        return list(self._made.values()), left

    def _chosen(self) -> list[Version]:
        """Teachers before their students."""
        wanted = [version for _, version in self._touched.values() if version.aliases]
        names = {version.name for _, version in self._touched.values()} - {version.name for version in wanted}
        for name in sorted(name for name in names if self._sound(name) is None):
            wanted.append(max((v for _, v in self._touched.values() if v.name == name), key=lambda v: int(v.version)))
        aliased = {version.model for version in wanted}
        ordered: dict[str, Version] = {}

        def add(version: Version, above: frozenset[str]) -> None:
            for teacher in self._teachers(version):
                if teacher.model not in above and (teacher.model in aliased or self._sound(teacher.name) is None):
                    add(teacher, above | {version.model})
            ordered.setdefault(version.model, version)

        for version in wanted:
            add(version, frozenset())
        return list(ordered.values())

    def _teachers(self, version: Version) -> Iterator[Version]:
        """The affected version that a student was distilled from, if it is one and that is registered."""
        teacher = self._found.known.by_bundle.get(self._versions[version.model].tags.get("distilled_from", ""))
        if teacher is not None and (model := f"models:/{teacher.name}/{teacher.version}") in self._touched:
            yield self._touched[model][1]

    def _sound(self, name: str) -> Version | None:
        """The newest version of a model that has nothing of the pictures."""
        sound = [t for t in self._found.trainings if t.verdict == "not_trained_on"]
        return max((v for t in sound for v in t.versions if v.name == name), key=lambda v: int(v.version), default=None)

    def _retraining(self, training: Training, version: Version, suffix: str, left: dict[str, str]) -> Retraining:
        from pipelines.register import RegisterJob
        from training import tracking

        info = tracking.info_of(self._versions[version.model], tracking_uri=self._found.known.uri)
        register_job = f"register-{suffix}.yaml"
        if info.job.get("kind") == "distill":
            made = self._distillation(training, version, info, f"distill-{suffix}.yaml", left)
        else:
            made = self._training(training, version, info, f"retrain-{suffix}.yaml")
        self.files[register_job] = RegisterJob(
            name=version.name, bundle=_PRINTED, alias=None, tracking_uri=self._tracking_uri
        )
        return made.model_copy(update={"register_job": register_job})

    def _training(self, training: Training, version: Version, info: BundleInfo, file: str) -> Retraining:
        from training import latents
        from training.job import TrainJob

        folder = self._run_folder(training)
        places: dict[str, Any] = {}
        takes: dict[str, str] = {}
        if info.job.get("autoencoder") is not None:
            if folder is None:
                raise UserError("where its run kept its autoencoder is not on record")
            kept = storage.join(folder, latents.FOLDER)
            places["autoencoder"] = {**info.job["autoencoder"], "path": kept}
            if training.through:
                takes["autoencoder.path"] = self._autoencoder(training, kept)
                places["autoencoder"] = {"path": _PRINTED}
        elif training.through:
            raise UserError(
                f"{training.through[0].title} has to be made anew before it, and its job does not name that"
            )
        job = self._job(TrainJob, info.job, training, folder, version.name, **places)
        point, why = (None, "its autoencoder is made anew") if takes else self._point(training, job)
        if point is not None:
            job = job.model_copy(update={"resume_from": point.checkpoint})
        self.files[file] = job
        return Retraining(
            instead_of=version.model,
            manifest=job.manifest,
            train_job=file,
            register_job=None,
            takes=takes,
            checkpoint=point.checkpoint if point else None,
            images_saved=point.images_seen if point else 0,
            images=job.steps * job.batch_size,
            share_saved=point.images_seen / point.images if point else 0.0,
            claim=point.claim if point else None,
            from_scratch=why,
        )

    def _autoencoder(self, training: Training, folder: str) -> str:
        """The job that makes the autoencoder anew that a run kept a copy of in a folder, once for all that draw with
        it."""
        from training import latents
        from training.autoencoder_job import AutoencoderJob

        made_from = training.through[0]
        known = f"autoencoder {made_from.sha256}"
        if known not in self._made:
            where = storage.join(folder, latents.INFO_FILE)
            try:
                info = latents.AutoencoderInfo.model_validate_json(storage.read_bytes(where))
            except (OSError, ValidationError):
                raise UserError(f"{made_from.title} was not trained here: name another one in its job") from None
            run = next((t for t in self._found.trainings if t.run_id == info.run_id and not t.versions), None)
            if run is None:
                raise UserError(f"the run that made {made_from.title} is not on record here")
            file = f"autoencoder-{made_from.sha256[:8]}.yaml"
            job = self._job(AutoencoderJob, info.job, run, self._run_folder(run), info.name)
            self.files[file] = job
            self._made[known] = Retraining(
                instead_of=f"autoencoder {info.name}",
                verb="autoencoder",
                manifest=job.manifest,
                train_job=file,
                register_job=None,
                checkpoint=None,
                images_saved=0,
                images=job.steps * job.batch_size,
                share_saved=0.0,
                claim=None,
                from_scratch="an autoencoder is trained from scratch",
            )
        return self._made[known].train_job

    def _distillation(
        self, training: Training, version: Version, info: BundleInfo, file: str, left: dict[str, str]
    ) -> Retraining:
        from training.distill_job import DistillJob

        teacher, teacher_job = self._teacher(version, left)
        folder = self._run_folder(training)
        job = self._job(DistillJob, info.job, training, folder, version.name, teacher=teacher or _PRINTED)
        self.files[file] = job
        return Retraining(
            instead_of=version.model,
            verb="distill",
            teacher=teacher,
            takes={} if teacher_job is None else {"teacher": teacher_job},
            manifest=str(job.manifest),
            train_job=file,
            register_job=None,
            checkpoint=None,
            images_saved=0,
            images=job.budget,
            share_saved=0.0,
            claim=None,
            from_scratch="a student begins with its teacher's weights",
        )

    def _teacher(self, version: Version, left: dict[str, str]) -> tuple[str | None, str | None]:
        """What a student is to be distilled from: a version, or what a job of the plan makes."""
        known = self._found.known.by_bundle.get(self._versions[version.model].tags.get("distilled_from", ""))
        if known is None:
            raise UserError("its teacher is not registered here: register it, and plan again")
        model = f"models:/{known.name}/{known.version}"
        if model in self._made:
            return None, self._made[model].train_job
        if model not in self._touched:
            return model, None
        sound = self._sound(known.name)
        if sound is None:
            raise UserError(f"its teacher {model} has no job: {left.get(model, 'it is in the making itself')}")
        return sound.model, None

    def _job(
        self,
        kind: type[_Job],
        told: Mapping[str, Any],
        training: Training,
        folder: str | None,
        name: str,
        **places: Any,
    ) -> _Job:
        """A training's own job, on the derived manifest to be.

        Args:
            told: the job as it is on record, without places.
            folder: of its run.
        """
        from training import tracking

        raw: dict[str, Any] = {
            **told,
            "manifest": self._manifest(training),
            "output": folder.rpartition("/")[0] if folder else storage.join("runs", name, "training"),
            "ledger": self._found.ledger.uri,
            **places,
        }
        experiment = {}
        if training.run_id is not None and training.status != "UNKNOWN":
            experiment["experiment"] = tracking.experiment_of(training.run_id, tracking_uri=self._found.known.uri)
        raw["tracking"] = {"uri": self._tracking_uri, **experiment}
        try:
            return kind.model_validate(raw)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise UserError(f"its job is not one of this version of cleanplate: {where}: {first['msg']}") from None

    def _manifest(self, training: Training) -> str:
        """The derived manifest to be; its own where only what it was made from is affected."""
        family = next((f for f in self._found.families for m, _ in f.members if m.id == training.manifest_id), None)
        if family is not None:
            derived = family.derived_without
            return derived.uri if derived else family.folder_for(self._found.entry.id)
        if training.own_verdict == "not_trained_on" and training.manifest_uri is not None:
            return training.manifest_uri
        raise UserError("its manifest is not there, or keeps none of the pictures")

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
