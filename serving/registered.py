"""The versions of a serve job's model, as `serving.versions` wants them: found in the registry, loaded and tested."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

from curation.errors import UserError
from serving import backends, selftest, takedowns
from serving.generator import load
from serving.job import ServeJob
from serving.ledgers import Ledgers
from serving.service import Service
from serving.standing import TakedownStanding
from serving.takedowns import RefusedVersion
from serving.versions import CHALLENGER, CHAMPION, Opened, Versions
from training.bundle import local_bundle
from training.tracking import ModelVersion, find, is_registered, resolve, tag_version, versions

SERVED = "served."
"""Of a version's tag, followed by an alias: when it last began to answer for it."""
RETURNED = "canary.returned"
"""A version's tag: why it gets no share of the requests any more. Taking the tag away gives it back."""

_log = logging.getLogger(__name__)


class Registered:
    """The registry as a job sees it. A folder's bundle is the only version of its model, and follows nothing."""

    def __init__(self, job: ServeJob) -> None:
        self._job = job
        self._versions: dict[str, ModelVersion] = {}
        self._ledgers = Ledgers()
        self.aliases: dict[str, str] = {}
        self._name: str | None = None

    def first(self) -> tuple[str, Opened]:
        """The version to begin with: what the alias names, or what answered for it last where that one is no good.

        Raises:
            UserError: none can be loaded, or it answered until takedowns spoke against it.
        """
        job = self._job
        if not is_registered(job.model):
            return "0", self._open(job, "0")
        wanted = find(job.model, tracking_uri=job.tracking_uri)
        self._name, alias = wanted.name, wanted.alias
        if alias is not None:
            self.aliases[CHAMPION] = alias
            if job.rollout.canary is not None:
                self.aliases[CHALLENGER] = job.rollout.canary.alias
        try:
            return wanted.version, self.open(wanted.version)
        except UserError as error:
            if alias is None or (isinstance(error, RefusedVersion) and SERVED + alias in wanted.tags):
                raise
            for version in self._served_before(alias, wanted.version):
                _log.error("version %s does not answer, version %s goes on: %s", wanted.version, version, error)
                try:
                    return version, self.open(version)
                except UserError as another:
                    _log.error("version %s cannot be had either: %s", version, another)
            raise

    def target(self, role: str) -> str | None:
        try:
            found = find(f"models:/{self._name}@{self.aliases[role]}", tracking_uri=self._job.tracking_uri)
        except UserError:
            return None
        return None if role == CHALLENGER and RETURNED in found.tags else found.version

    def open(self, version: str) -> Opened:
        job = self._job.model_copy(update={"model": f"models:/{self._name}/{version}"})
        if self._versions and job.device == "cpu":  # others answer meanwhile
            found = resolve(job.model, tracking_uri=job.tracking_uri, cache=job.cache)
            backends.prepare(job.engine, local_bundle(found.bundle))
        return self._open(job, version)

    def standing(self, version: str, before: TakedownStanding | None) -> TakedownStanding | None:
        known = self._versions[version]
        if self._name is not None:
            tags = find(f"models:/{self._name}/{version}", tracking_uri=self._job.tracking_uri).tags
            known = known.model_copy(update={"tags": tags})
        return takedowns.heed(self._job, known, before, self._ledgers)

    def went_live(self, role: str, version: str) -> None:
        if self._name is not None and role in self.aliases:
            at = datetime.now(UTC).isoformat(timespec="milliseconds")
            tags = {SERVED + self.aliases[role]: at}
            tag_version(self._name, version, tags, tracking_uri=self._job.tracking_uri)

    def _open(self, job: ServeJob, version: str) -> Opened:
        generator = load(job)
        found = self._versions[version] = generator.version
        tested = None
        if job.rollout.self_test != "off":
            compared = selftest.check(found.tags, local_bundle(found.bundle), generator.model, generator.backend)
            if not compared.passed:
                said = f"version {version} fails its self-test: {compared.said}"
                if job.rollout.self_test == "refuse":
                    raise UserError(said, field="model", remedy="promote another one, or set rollout.self_test: warn")
                _log.warning("%s", said)
            tested = compared.said
        return Opened(Service(generator, max_row_steps=job.engine.max_row_steps), tested)

    def _served_before(self, alias: str, wanted: str) -> list[str]:
        """Versions that answered for the alias, the last one first."""
        found = [
            (version.tags[SERVED + alias], version.version)
            for version in versions(tracking_uri=self._job.tracking_uri)
            if version.name == self._name and SERVED + alias in version.tags and version.version != wanted
        ]
        return [version for _, version in sorted(found, reverse=True)]


def opened(job: ServeJob) -> Versions:
    """The versions of a job, with the one that answers from the start. Raises UserError as `Registered.first`."""
    registry = Registered(job)
    version, first = registry.first()
    return Versions(job.rollout, registry, version, first)
