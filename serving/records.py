"""What is remembered of the pictures that left: files in a folder, local or in a bucket, that all gateways share.

A record holds what drawing the picture again takes. The prompt is not kept, only its SHA-256, unless the operator says
so: whoever wants the picture again has the prompt. Records and pictures are forgotten in time; a picture's URL says by
its name until when it lies there, and cannot be guessed.
"""

from __future__ import annotations

import hashlib
import logging
import re
import secrets
import threading
import time
from collections.abc import Callable, Sequence

from pydantic import BaseModel, ConfigDict, Field

from curation import storage
from serving.admission import Plan
from serving.api import FinishReason, GenerationResponse, ImageDatum, ImageFormat, SamplerName

_SWEEP_S = 3_600.0
_RECORD = re.compile(r"img_([0-9a-f]{32})\.json")
_PICTURE = re.compile(r"([0-9a-f]{8,12})-[0-9a-f]{64}\.(png|jpeg|webp)")
_PAYLOAD = re.compile(r"[0-9a-f]{2,8}")
_log = logging.getLogger(__name__)


class RecordsConfig(BaseModel):
    """`records` of a serve job: what is remembered, and for how long."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    folder: str = Field(description="where they lie, a path or s3://…; all gateways share it")
    days: float = Field(30.0, gt=0, description="days after which a picture's record is forgotten")
    prompts: bool = Field(False, description="whether records hold prompts in clear; else their SHA-256 alone")
    pictures_s: float = Field(
        3_600.0, gt=0, description="seconds that a picture lies at its URL, for `response_format: url`"
    )
    public_url: str | None = Field(
        None,
        pattern=r"^https?://[^\s/?#]+[^\s?#]*$",
        description="what pictures' URLs begin with; null: the address that the client asked",
    )


class Record(BaseModel):
    """The body of `GET /v1/images/{id}`: a picture's origin, and what drawing it again takes."""

    model_config = ConfigDict(frozen=True)
    id: str
    created: int
    """Unix time, seconds."""
    model: str
    model_version: str
    manifest_id: str
    backend: str
    exact: bool
    prompt: str | None
    """Null where the operator keeps none: then `prompt_sha256` says whether a prompt is the one."""
    prompt_sha256: str
    negative_prompt: str | None
    negative_prompt_sha256: str | None
    seed: int
    steps: int
    guidance_scale: float
    sampler: SamplerName
    size: str
    output_format: ImageFormat
    output_compression: int
    finish_reason: FinishReason
    pixels_sha256: str | None
    watermark: str | None = None
    """The payload of the mark in its pixels; null where there is none."""
    request_id: str
    key: str | None
    """Whose it is: the id of the key that asked."""


class Archive:
    """The records and the pictures of a folder. May be used from several threads and processes.

    Args:
        clock: Unix time, seconds.
    """

    def __init__(self, config: RecordsConfig, clock: Callable[[], float] = time.time) -> None:
        self.config = config
        self._clock = clock
        self._records = storage.join(config.folder, "records")
        self._pictures = storage.join(config.folder, "pictures")
        self._marks = storage.join(config.folder, "marks")
        self._sweeping = threading.Lock()
        self._swept = clock()

    def keep(self, records: Sequence[Record]) -> None:
        """Writes records, each whole or not at all. Raises OSError."""
        for record in records:
            storage.write_bytes(self._where(record.id), record.model_dump_json().encode())
            if record.watermark:
                storage.write_bytes(storage.join(self._marks, record.watermark, f"{record.id}.json"), b"{}")

    def record(self, name: str) -> Record | None:
        """The record of a picture; None where there is none, or none any more. Raises OSError."""
        try:
            record = Record.model_validate_json(storage.read_bytes(self._where(name)))
        except FileNotFoundError:
            return None
        return record if record.created + self.config.days * 86_400 > self._clock() else None

    def marked(self, payload: str) -> list[str]:
        """Ids of pictures whose watermark has that payload: of the same request drawn again, and by chance of others.

        Raises OSError.
        """
        if _PAYLOAD.fullmatch(payload) is None:
            return []
        found = (_RECORD.fullmatch(file.base_name) for file in storage.list_files(storage.join(self._marks, payload)))
        return [f"img_{match[1]}" for match in found if match is not None]

    def put(self, data: bytes, output_format: ImageFormat) -> str:
        """Keeps a picture for a while; returns its name, which is the right to see it. Raises OSError."""
        until = int(self._clock() + self.config.pictures_s)
        name = f"{until:08x}-{secrets.token_hex(32)}.{output_format}"
        storage.write_bytes(storage.join(self._pictures, name), data)
        return name

    def picture(self, name: str) -> bytes | None:
        """A picture by its name; None where there is none of that name. Raises OSError."""
        if _PICTURE.fullmatch(name) is None or self.expired(name):
            return None
        try:
            return storage.read_bytes(storage.join(self._pictures, name))
        except FileNotFoundError:
            return None

    def expired(self, name: str) -> bool:
        """Whether the time that a picture's name states has come."""
        found = _PICTURE.fullmatch(name)
        return found is not None and int(found[1], 16) <= self._clock()

    def sweep(self, *, now: bool = False) -> None:
        """Removes what is to be forgotten, at most once an hour unless `now`. Never raises: it is tried again."""
        if not now and self._clock() < self._swept + _SWEEP_S:
            return
        if not self._sweeping.acquire(blocking=False):
            return
        try:
            self._swept = self._clock()
            for file in storage.list_files(self._pictures):
                if self.expired(file.base_name):
                    storage.remove_file(storage.join(self._pictures, file.base_name))
            for file in storage.list_files(self._records, recursive=True):
                # By when it was written: reading a million of them would take the hour.
                found = _RECORD.fullmatch(file.base_name)
                if found is not None and file.mtime.timestamp() + self.config.days * 86_400 < self._clock():
                    storage.remove_file(self._where(f"img_{found[1]}"))
            for file in storage.list_files(self._marks, recursive=True):
                if file.mtime.timestamp() + self.config.days * 86_400 < self._clock():
                    payload = file.path.rsplit("/", 2)[-2]
                    storage.remove_file(storage.join(self._marks, payload, file.base_name))
        except (OSError, ValueError):
            _log.exception("what is to be forgotten could not be removed from %s", self.config.folder)
        finally:
            self._sweeping.release()

    def _where(self, name: str) -> str:
        # Spread over folders: one with a million files is slow to list.
        return storage.join(self._records, name[4:6], f"{name}.json")


def records_of(
    response: GenerationResponse, plan: Plan, *, request_id: str, key: str | None, prompts: bool
) -> list[Record]:
    """The records of an answer's pictures.

    Args:
        plan: what was asked for, with every choice made.
        request_id, key: of who asked.
        prompts: whether prompts are kept in clear.
    """
    return [_record(response, datum, plan, request_id, key, prompts) for datum in response.data]


def _record(
    response: GenerationResponse, datum: ImageDatum, plan: Plan, request_id: str, key: str | None, prompts: bool
) -> Record:
    return Record(
        id=datum.id,
        created=response.created,
        model=response.model,
        model_version=response.model_version,
        manifest_id=response.manifest_id,
        backend=response.backend,
        exact=response.exact,
        prompt=plan.prompt if prompts else None,
        prompt_sha256=sha256(plan.prompt),
        negative_prompt=plan.negative_prompt if prompts else None,
        negative_prompt_sha256=None if plan.negative_prompt is None else sha256(plan.negative_prompt),
        seed=datum.seed,
        steps=response.steps,
        guidance_scale=response.guidance_scale,
        sampler=response.sampler,
        size=response.size,
        output_format=response.output_format,
        output_compression=plan.compression,
        finish_reason=datum.finish_reason,
        pixels_sha256=datum.pixels_sha256,
        watermark=datum.watermark_payload,
        request_id=request_id,
        key=key,
    )


def sha256(text: str) -> str:
    """Of its UTF-8, as hex."""
    return hashlib.sha256(text.encode()).hexdigest()
