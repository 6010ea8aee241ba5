"""Jobs: requests whose pictures are fetched later. Each is a file, so that nothing is lost with the process that draws.

A job belongs to the key that asked for it, and its id is its owner's to choose: asking again is the same job. The
prompt is in no file: what draws the pictures holds it, and when that process goes, the job has failed and may be asked
for again.
"""

from __future__ import annotations

import hashlib
import logging
import re
import time
from collections.abc import Callable, Iterator
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from curation import storage
from serving.api import ErrorDetail, GenerationRequest, GenerationResponse

ID = r"[A-Za-z0-9_-]{1,64}"
"""What a job's id may look like."""

State = Literal["queued", "running", "succeeded", "failed", "cancelled"]
OPEN: tuple[State, ...] = ("queued", "running")
_log = logging.getLogger(__name__)


class WebhooksConfig(BaseModel):
    """Whom jobs may tell that they are done. They are signed with a secret from $CLEANPLATE_WEBHOOK_SECRET; without
    one there are none."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    allow_http: bool = Field(False, description="admit http:// as well")
    allow_private: bool = Field(False, description="admit private, loopback and link-local addresses")
    attempts: int = Field(6, ge=1, le=20, description="until one is given up; the waits double from a second on")
    timeout_s: float = Field(10.0, gt=0, description="seconds that a receiver may take to answer")


class JobsConfig(BaseModel):
    """`jobs` of a serve job: pictures that are fetched later."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    folder: str = Field(description="where jobs and their results lie, a path or s3://…; all gateways share it")
    hours: float = Field(24.0, gt=0, description="hours after which a job that has ended is forgotten")
    concurrent: int = Field(4, ge=1, description="jobs that a gateway has drawn at a time; the others wait")
    max_waiting: int = Field(256, ge=1, description="jobs of a gateway that have not ended; one more is answered 429")
    timeout_s: float = Field(3_600.0, gt=0, description="seconds until a job is given up")
    webhooks: WebhooksConfig = Field(WebhooksConfig(), description="whom jobs may tell that they are done")


class WebhookStanding(BaseModel):
    """What became of a job's webhook."""

    model_config = ConfigDict(frozen=True)
    url: str
    state: Literal["waiting", "delivered", "failed"] = "waiting"
    attempts: int = 0
    problem: str | None = None


class Job(BaseModel):
    """The body of `GET /v1/images/jobs/{id}`."""

    model_config = ConfigDict(frozen=True)
    id: str
    object: Literal["image_generation.job"] = "image_generation.job"
    status: State
    created: int
    """Unix time, seconds; so are the next two."""
    started: int | None = None
    ended: int | None = None
    error: ErrorDetail | None = None
    error_status: int | None = None
    """The HTTP status that the request would have had."""
    retryable: bool = False
    """Whether asking for the same job again begins it anew."""
    webhook: WebhookStanding | None = None


class Stored(BaseModel):
    """A job with what is nobody's business: whose it is, what exactly was asked, and which process has it."""

    model_config = ConfigDict(frozen=True)
    job: Job
    owner: str | None
    body_sha256: str
    gateway: str

    def changed(self, **fields: object) -> Stored:
        """With other fields of its job."""
        return self.model_copy(update={"job": self.job.model_copy(update=fields)})


def body_sha256(request: GenerationRequest) -> str:
    """Of what is asked: equal where two bodies ask for the same."""
    return hashlib.sha256(request.model_dump_json(exclude_none=True).encode()).hexdigest()


class JobStore:
    """The jobs of a folder. May be used from several threads and processes; every method may raise OSError.

    Args:
        clock: Unix time, seconds.
    """

    def __init__(self, config: JobsConfig, clock: Callable[[], float] = time.time) -> None:
        self._config = config
        self._clock = clock
        self._jobs = storage.join(config.folder, "jobs")
        self._results = storage.join(config.folder, "results")
        self._gateways = storage.join(config.folder, "gateways")

    def write(self, stored: Stored) -> None:
        storage.write_bytes(self._place(self._jobs, stored.owner, stored.job.id), stored.model_dump_json().encode())

    def read(self, owner: str | None, name: str) -> Stored | None:
        """A job of an owner; None where there is none, or none any more."""
        stored = self._read(self._place(self._jobs, owner, name))
        return None if stored is None or self._forgotten(stored) else stored

    def write_result(self, stored: Stored, response: GenerationResponse) -> None:
        place = self._place(self._results, stored.owner, stored.job.id)
        storage.write_bytes(place, response.model_dump_json().encode())

    def read_result(self, stored: Stored) -> bytes:
        """What `write_result` wrote, as JSON."""
        return storage.read_bytes(self._place(self._results, stored.owner, stored.job.id))

    def remove(self, stored: Stored) -> None:
        """Forgets a job and its result."""
        for folder in (self._results, self._jobs):
            storage.remove_file(self._place(folder, stored.owner, stored.job.id))

    def beat(self, gateway: str) -> None:
        """A sign of life of a process that has jobs."""
        storage.write_bytes(storage.join(self._gateways, gateway), str(self._clock()).encode())

    def alive(self, gateway: str, silence_s: float) -> bool:
        """Whether a process gave a sign of life within so many seconds."""
        try:
            return float(storage.read_bytes(storage.join(self._gateways, gateway))) > self._clock() - silence_s
        except (FileNotFoundError, ValueError):
            return False

    def all(self) -> Iterator[Stored]:
        """Every job that can be read; what is to be forgotten is removed on the way."""
        for file in storage.list_files(self._jobs, recursive=True):
            if not file.base_name.endswith(".json"):
                continue
            owner = file.path.rpartition("/")[0].rpartition("/")[2]
            stored = self._read(storage.join(self._jobs, owner, file.base_name))
            if stored is not None and self._forgotten(stored):
                self.remove(stored)
            elif stored is not None:
                yield stored
        for file in storage.list_files(self._gateways):
            # Not those that are just being written.
            if not file.base_name.startswith(".") and not self.alive(file.base_name, 86_400):
                storage.remove_file(storage.join(self._gateways, file.base_name))

    def _read(self, place: str) -> Stored | None:
        try:
            return Stored.model_validate_json(storage.read_bytes(place))
        except FileNotFoundError:
            return None
        except ValueError:
            _log.error("%s is no job", place)
            return None

    def _forgotten(self, stored: Stored) -> bool:
        ended = stored.job.ended
        return ended is not None and ended + self._config.hours * 3_600 <= self._clock()

    def _place(self, folder: str, owner: str | None, name: str) -> str:
        assert re.fullmatch(ID, name), name
        return storage.join(folder, f"key-{owner}" if owner is not None else "open", f"{name}.json")
