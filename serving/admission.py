"""What a request asks for, what it costs, and whether it may: decided before anything is sampled.

`admit` turns the wire's request into a `Plan`, in which nothing is left to a default, or refuses it with the field and
the remedy. The gateway calls it before queueing, the generator before sampling: same function, same answer.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field

from serving.api import (
    GenerationRequest,
    ImageFormat,
    Moderation,
    RequestError,
    SamplerName,
)
from serving.nearness import NearCopyPolicy
from serving.standing import ModelEntry, RolloutStanding, TakedownStanding

T = TypeVar("T")


class Limits(BaseModel):
    """What one request may ask for at most; beyond it the answer is a 400 that names the field and the limit."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    max_images: int = Field(10, ge=1, le=10, description="images of a request")
    max_steps: int = Field(100, ge=1, le=1_000, description="denoising steps")
    max_guidance_scale: float = Field(30.0, gt=0, le=50, description="classifier-free guidance")
    max_prompt_chars: int = Field(
        2_000, ge=1, le=32_000, description="characters of the prompt, and of the negative one"
    )
    max_pixel_steps: int = Field(
        100_000_000, ge=1, description="pixels of an image x images x steps: what a request costs, however it is mixed"
    )
    max_body_bytes: int = Field(262_144, ge=1_024, description="bytes of the request's body")
    max_json_depth: int = Field(16, ge=2, le=256, description="levels of lists and objects in the request's body")
    max_upload_bytes: int = Field(16_777_216, ge=1_024, description="bytes of a file that is to be verified")


class SamplingDefaults(BaseModel):
    """How a picture is drawn when the request does not say. Becomes `training.sampling.SamplingParams` in the replica;
    stated here too because reading a job file must not import torch."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    steps: int = Field(20, ge=1, le=1_000, description="denoising steps")
    guidance_scale: float = Field(2.5, ge=0, le=50, description="classifier-free guidance; at 1 and below it is off")
    sampler: SamplerName = Field(
        "ddim", description="ddim, pndm and dpmsolver++ are deterministic, ddpm adds noise; euler and heun draw flows"
    )


class ModelCard(BaseModel):
    """Which model answers: what requests are checked against and answers are signed with."""

    model_config = ConfigDict(frozen=True)
    name: str
    version: str
    alias: str | None
    manifest_id: str
    image_size: int
    """Height and width in pixels."""
    sizes: tuple[str, ...] = ()
    """More that can be asked for: the shapes that it was trained in, where they were several."""
    frames: int | None = None
    """Of its films; None where it draws pictures."""
    noise_levels: int
    """How many steps any of the samplers can take at most."""
    samplers: tuple[SamplerName, ...]
    """Those that can draw with this model."""
    defaults: SamplingDefaults
    loaded_at: int
    """Unix time, seconds."""
    takedowns: TakedownStanding | None = None
    backend: str = "torch-fp32"
    """What runs the network."""
    exact: bool = True
    """Whether a request's bytes depend on nothing but the request (`serving.backends`)."""
    attribution: bool = False
    """Whether it has an index of its training pictures."""
    near_copies: NearCopyPolicy = "off"
    beside: tuple[ModelCard, ...] = ()
    """Of versions that answer those who name them, and some others (`serving.canary`)."""
    rollout: RolloutStanding | None = None
    """The versions in the process that was asked."""

    @property
    def size(self) -> str:
        return f"{self.image_size}x{self.image_size}"

    def names(self) -> set[str]:
        """What a request's `model` may be: the name, alone or with the alias or the version it stands for."""
        names = {self.name, f"{self.name}/{self.version}"}
        if self.alias is not None:
            names.add(f"{self.name}@{self.alias}")
        names |= {f"models:/{name}" for name in names}
        return names.union(*(card.names() for card in self.beside))

    def named(self, model: str) -> ModelCard | None:
        """The card that a name is of: this one, or one beside it."""
        if model in self.model_copy(update={"beside": ()}).names():
            return self
        return next((card for card in self.beside if model in card.names()), None)

    def entries(self) -> list[ModelEntry]:
        """The rows of `GET /v1/models`; ids are unique, so that those beside this one have their alias in it."""
        others = (card.entry().model_copy(update={"id": f"{card.name}@{card.alias}"}) for card in self.beside)
        return [self.entry(), *others]

    def entry(self) -> ModelEntry:
        """The card as a row of `GET /v1/models`."""
        return ModelEntry(
            id=self.name,
            created=self.loaded_at,
            version=self.version,
            alias=self.alias,
            manifest_id=self.manifest_id,
            size=self.size,
            sizes=(self.size, *(size for size in self.sizes if size != self.size)),
            steps=self.defaults.steps,
            guidance_scale=self.defaults.guidance_scale,
            sampler=self.defaults.sampler,
            takedowns=self.takedowns,
            rollout=self.rollout,
            attribution=self.attribution,
            near_copies=self.near_copies,
        )


@dataclass(frozen=True)
class Plan:
    """A request with every choice made; `seeds` has one entry for each image."""

    prompt: str
    negative_prompt: str | None
    seeds: tuple[int, ...]
    steps: int
    guidance_scale: float
    sampler: SamplerName
    output_format: ImageFormat
    compression: int
    size: str
    """`WIDTHxHEIGHT` in pixels."""
    ids: tuple[str, ...] = ()
    """The images' ids, one for each."""
    attribution: bool = False
    moderation: tuple[Moderation, ...] = ()
    """What is to be said of its prompt (`serving.prompts`)."""

    @property
    def pixels(self) -> tuple[int, int]:
        """Width and height."""
        width, _, height = self.size.partition("x")
        return int(width), int(height)

    @property
    def row_steps(self) -> int:
        """What it costs: rows of forward passes, as keys are charged for them (`serving.quotas`)."""
        return row_steps(len(self.seeds), self.steps, self.guidance_scale, self.sampler)


def row_steps(images: int, steps: int, guidance_scale: float, sampler: SamplerName) -> int:
    """Rows of forward passes of so many images: two a step with guidance, and Heun's method asks twice."""
    return images * steps * (2 if guidance_scale > 1 else 1) * (2 if sampler == "heun" else 1)


def admit(request: GenerationRequest, card: ModelCard, limits: Limits, ids: tuple[str, ...] | None = None) -> Plan:
    """Resolves a request against the model and the operator's limits.

    Args:
        ids: the images', where they are drawn again; None: new ones.

    Raises:
        RequestError: 400 for what this server or this model cannot do, 404 for another model's name.
    """
    if request.model is not None and request.model not in card.names():
        raise RequestError(
            f"The model {request.model!r} is not served here; this server has {card.name!r}.",
            status=404,
            param="model",
            code="model_not_found",
        )
    _refuse_unsupported(request, card)
    if not request.prompt.strip():
        raise RequestError("prompt is blank.", param="prompt", code="invalid_value")
    for field in ("prompt", "negative_prompt"):
        if len(getattr(request, field) or "") > limits.max_prompt_chars:
            raise _over(field, f"at most {limits.max_prompt_chars} characters")
    images = request.n or 1
    if images > limits.max_images:
        raise _over("n", f"at most {limits.max_images}")
    steps = _given(request.num_inference_steps, card.defaults.steps)
    if steps > min(limits.max_steps, card.noise_levels):
        raise _over("num_inference_steps", f"at most {min(limits.max_steps, card.noise_levels)}")
    if request.sampler is not None and request.sampler not in card.samplers:
        raise unsupported("sampler", f"this model is drawn with {', '.join(card.samplers)}")
    guidance = _given(request.guidance_scale, card.defaults.guidance_scale)
    if guidance > limits.max_guidance_scale:
        raise _over("guidance_scale", f"at most {limits.max_guidance_scale:g}")
    if request.negative_prompt and guidance <= 1:
        raise unsupported("negative_prompt", "it works through guidance: set guidance_scale above 1")
    size = card.size if request.size in (None, "auto") else str(request.size)
    width, _, height = size.partition("x")
    pixels = int(width) * int(height) * (card.frames or 1)
    if pixels * images * steps > limits.max_pixel_steps:
        most = limits.max_pixel_steps // pixels
        raise _over("num_inference_steps", f"n x num_inference_steps at most {most} at {size}")
    first = secrets.randbelow(2**31) if request.seed is None else request.seed
    return Plan(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt or None,
        seeds=tuple(first + k for k in range(images)),
        steps=steps,
        guidance_scale=guidance,
        sampler=_given(request.sampler, card.defaults.sampler),
        output_format=request.output_format or "png",
        compression=_given(request.output_compression, 100),
        size=size,
        attribution=bool(request.attribution),
        ids=ids or tuple(f"img_{secrets.token_hex(16)}" for _ in range(images)),
    )


def _refuse_unsupported(request: GenerationRequest, card: ModelCard) -> None:
    if request.size not in (None, "auto", card.size, *card.sizes):
        made = ", ".join(card.entry().sizes)
        raise unsupported("size", f"this model makes {made}: ask for that or for 'auto'")
    if request.quality not in (None, "auto", "standard"):
        raise unsupported("quality", "use num_inference_steps")
    if request.style is not None:
        raise unsupported("style", "say it in the prompt")
    if request.background == "transparent":
        raise unsupported("background", "pictures are opaque: use 'opaque' or 'auto'")
    if card.frames is not None and request.output_format == "jpeg":
        raise unsupported("output_format", "this model makes films: use 'png' or 'webp', which move")
    if request.attribution and not card.attribution:
        raise unsupported("attribution", "the model that is served has no index of its training pictures")
    if request.partial_images and not request.stream:
        raise unsupported("partial_images", "previews come with 'stream': true")
    if request.output_compression not in (None, 100) and request.output_format not in ("jpeg", "webp"):
        raise unsupported("output_compression", "PNG is lossless: set output_format to 'jpeg' or 'webp'")


def unsupported(field: str, remedy: str) -> RequestError:
    """The refusal of a field that asks for what is not to be had here."""
    return RequestError(f"This {field} is not supported: {remedy}.", param=field, code="unsupported_value")


def _over(field: str, limit: str) -> RequestError:
    return RequestError(f"{field} is over this server's limit: {limit}.", param=field, code="over_limit")


def _given(value: T | None, default: T) -> T:
    return default if value is None else value
