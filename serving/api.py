"""What goes over the wire: OpenAI's Images API, its error shape, and the fields this server adds.

The added request fields are named as vLLM-Omni and SGLang name theirs (`negative_prompt`, `num_inference_steps`,
`guidance_scale`, `seed`), plus `sampler`; users of the OpenAI client send them with `extra_body`. An unknown field is
refused. A field of OpenAI's that this server cannot honour is refused too (`serving.admission`), never ignored: the
exceptions are `user` and `safety_identifier`, which ask for nothing, and `moderation`, which cannot loosen the
operator's policy.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from curation.errors import UserError

MAX_SEED = 2**53 - 10
"""The largest seed of a request: image k of at most ten has seed + k, and JSON's numbers are exact up to 2^53."""

SamplerName = Literal["ddim", "pndm", "dpmsolver++", "ddpm", "euler", "heun"]
ImageFormat = Literal["png", "jpeg", "webp"]
FinishReason = Literal["stop", "content_filtered", "near_copy"]


class Webhook(BaseModel):
    """Who is told that a job has ended."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    url: str = Field(min_length=1, max_length=2_048)


class GenerationRequest(BaseModel):
    """The body of `POST /v1/images/generations`. Absent and null both mean: the server's default."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    prompt: str = Field(min_length=1, max_length=32_000)
    model: str | None = Field(None, max_length=256)
    n: int | None = Field(None, ge=1, le=10)
    size: str | None = Field(None, max_length=32)
    """`auto`, or `WIDTHxHEIGHT` in pixels: a size that the model was trained at (`sizes` in `/v1/models`)."""
    quality: Literal["auto", "standard", "hd", "low", "medium", "high", "xhigh", "max"] | None = None
    style: Literal["vivid", "natural"] | None = None
    background: Literal["auto", "opaque", "transparent"] | None = None
    output_format: ImageFormat | None = None
    output_compression: int | None = Field(None, ge=0, le=100)
    """JPEG's or WebP's quality, 0 to 100."""
    response_format: Literal["b64_json", "url"] | None = None
    moderation: Literal["auto", "low"] | None = None
    stream: bool | None = None
    partial_images: int | None = Field(None, ge=0, le=3)
    user: str | None = Field(None, max_length=512)
    safety_identifier: str | None = Field(None, max_length=512)

    negative_prompt: str | None = Field(None, max_length=32_000)
    num_inference_steps: int | None = Field(None, ge=1)
    guidance_scale: float | None = Field(None, ge=0)
    """Classifier-free guidance: 1 follows the caption as trained, more follows it harder."""
    seed: int | None = Field(None, ge=0, le=MAX_SEED)
    """The first image's seed; image k has seed + k. Drawn and returned when absent."""
    sampler: SamplerName | None = None
    attribution: bool | None = None
    """Whether the training pictures nearest to each image are named."""
    webhook: Webhook | None = None
    """Of jobs alone: who is told when the pictures can be fetched."""


class ConceptScore(BaseModel):
    """How near a picture is to a safety concept; at or above `threshold` the operator's policy acts."""

    model_config = ConfigDict(frozen=True)
    concept: str
    score: float
    threshold: float


class Moderation(BaseModel):
    """Something that was found in a prompt or a picture, and what was done about it."""

    model_config = ConfigDict(frozen=True)
    stage: Literal["prompt", "picture"]
    category: str
    rule: str
    """Which rule says so: `LIST:CATEGORY:NUMBER`, `clip:CONCEPT`, `opennsfw`, or `failed` where nobody could judge."""
    action: Literal["block", "blur", "flag"]
    score: float | None = None
    """Null where there is none: a rule is broken or is not."""


class Attributed(BaseModel):
    """A training picture near to an image. That it is like it does not say that it caused it."""

    model_config = ConfigDict(frozen=True)
    sha256: str
    """Of its file."""
    similarity: float
    """1 is the picture itself, 1/2 what is as near to it as its own nearest others are, 1/4 what is twice as far."""
    creator: str | None
    licence: str | None
    uri: str | None
    thumbnail: str | None = None
    """A `data:` URL, where its licence permits to show it."""


class NearCopy(BaseModel):
    """The training picture that an image is a near copy of, or was before it was drawn again."""

    model_config = ConfigDict(frozen=True)
    sha256: str | None
    """Null where it was taken down since: then it is not named."""
    similarity: float
    action: Literal["flag", "block", "reseed"]
    """What was done: nothing, or it was withheld, or drawn again until it was none."""
    revoked: bool = False
    redrawn: int = 0
    """How many times it was drawn again."""


class ImageDatum(BaseModel):
    """One picture of the answer. A withheld one has no `b64_json`; a blurred one has, and `finish_reason` says so too.
    `moderation` says why, `safety` has all scores."""

    model_config = ConfigDict(frozen=True)
    id: str = ""
    """`img_` and 32 hex digits: what `/v1/images/{id}` knows it by, where records are kept."""
    b64_json: str | None
    url: str | None = None
    """Where the picture lies for a while, with `response_format: url`."""
    revised_prompt: str | None = None
    seed: int
    finish_reason: FinishReason
    pixels_sha256: str | None = None
    """SHA-256 of the pixels, uint8 (H, W, 3), of a film (F, H, W, 3), row by row, as they were before encoding: equal
    where the picture is. Null where it was withheld."""
    safety: list[ConceptScore] = []
    credentials: bool = False
    """Whether the file is signed (C2PA). The signature differs from time to time, also for the same picture:
    `pixels_sha256` is what does not."""
    watermark: bool = False
    """Whether the pixels carry this server's mark."""
    watermark_payload: str | None = None
    """What the mark says, hexadecimal: the same for the same request to the same version. Null where it says nothing
    but that it is there."""
    moderation: list[Moderation] = []
    near_copy: NearCopy | None = None
    attribution: list[Attributed] | None = None
    """The nearest first; null where it was not asked for, or it is not known what may be named."""

    def picture(self) -> bytes | None:
        """The encoded picture, None when it was withheld."""
        return None if self.b64_json is None else base64.b64decode(self.b64_json)


class Timings(BaseModel):
    """Where a request's time went, in milliseconds, for all its images together. While a request is sampled it shares
    the replica with others, so `sample_ms` is what it took, not what it would take alone."""

    model_config = ConfigDict(frozen=True)
    queue_ms: float = 0.0
    sample_ms: float
    guard_ms: float
    encode_ms: float
    first_step_ms: float | None = None
    """From arrival at a replica to the first denoising step of any image; part of the above, as the next."""
    first_preview_ms: float | None = None


class Drawn(BaseModel):
    """What is said of a request's pictures together: OpenAI's fields, and what it takes to make them again."""

    model_config = ConfigDict(frozen=True)
    background: Literal["opaque"] = "opaque"
    output_format: ImageFormat
    size: str
    model: str
    model_version: str
    manifest_id: str
    steps: int
    sampler: SamplerName
    guidance_scale: float
    timings: Timings
    backend: str
    """What ran the network: `onnx-fp32`, `torch-fp32`, `openvino-bf16`, …"""
    exact: bool
    """Whether the same request gives the same pixels (`pixels_sha256`) whatever else this server draws, and where
    files are not signed, the same bytes."""


class GenerationResponse(Drawn):
    """The answer."""

    created: int
    data: list[ImageDatum]


class ReproductionRequest(BaseModel):
    """The body of `POST /v1/images/{id}/reproduce`: what the record does not keep."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    prompt: str | None = Field(None, min_length=1, max_length=32_000)
    negative_prompt: str | None = Field(None, max_length=32_000)


class Reproduction(BaseModel):
    """Whether a picture that was drawn again is the one that was recorded."""

    model_config = ConfigDict(frozen=True)
    of: str
    pixels_equal: bool | None
    """Null where one of them was withheld: there is nothing to compare."""
    recorded_sha256: str | None
    same_backend: bool
    """Whether the same library computed both; the last bits may differ otherwise."""


class ReproductionResponse(GenerationResponse):
    """The picture drawn again."""

    reproduction: Reproduction


class ModerationDetails(BaseModel):
    """OpenAI's details of a `moderation_blocked` error."""

    model_config = ConfigDict(frozen=True)
    moderation_stage: Literal["input", "output"]
    categories: list[str]


class ErrorDetail(BaseModel):
    """OpenAI's error object: `param` names the request's field, clients branch on `code`."""

    model_config = ConfigDict(frozen=True)
    message: str
    type: str
    param: str | None = None
    code: str | None = None
    moderation_details: ModerationDetails | None = None

    @model_serializer(mode="wrap")
    def _without_what_is_not_there(self, written: SerializerFunctionWrapHandler) -> dict[str, Any]:
        found: dict[str, Any] = written(self)
        if self.moderation_details is None:
            del found["moderation_details"]
        return found


class ErrorBody(BaseModel):
    """The body of every 4xx and 5xx."""

    model_config = ConfigDict(frozen=True)
    error: ErrorDetail


class RequestError(UserError):
    """A request that gets no pictures, with the HTTP status and the body that say why.

    A `UserError`, so that a command that generates without a server answers it as it does any other mistake.

    Args:
        message: what is wrong and what would be right, in one or two sentences.
        status: HTTP status, 400 to 599.
        param: the request's field.
        code: a stable word for programs.
        retry_after_s: when trying again makes sense, in seconds.
        moderation: what was found, of a prompt that is blocked.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
        moderation: ModerationDetails | None = None,
    ) -> None:
        super().__init__(message, field=param)
        self.status = status
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s
        self.moderation = moderation

    def body(self) -> ErrorBody:
        blocked = self.moderation is not None
        return ErrorBody(
            error=ErrorDetail(
                message=self.message,
                type="image_generation_user_error" if blocked else error_type(self.status),
                param=self.param,
                code=self.code,
                moderation_details=self.moderation,
            )
        )

    def __reduce__(self) -> tuple[Callable[..., RequestError], tuple[Any, ...]]:
        # Exceptions with keyword-only arguments do not survive pickling by default; these cross Ray.
        return (_rebuild, (self.message, self.status, self.param, self.code, self.retry_after_s, self.moderation))


def _rebuild(
    message: str,
    status: int,
    param: str | None,
    code: str | None,
    retry_after_s: float | None,
    moderation: ModerationDetails | None,
) -> RequestError:
    return RequestError(
        message, status=status, param=param, code=code, retry_after_s=retry_after_s, moderation=moderation
    )


def error_type(status: int) -> str:
    """OpenAI's `type` for an HTTP status."""
    if status == 429:
        return "rate_limit_error"
    return "invalid_request_error" if status < 500 else "server_error"
