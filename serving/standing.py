"""How what is served stands: the bodies of `/v1/models` and `/v1/health`, and what replicas tell for them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from serving.api import SamplerName
from serving.nearness import NearCopyPolicy


class TakedownStanding(BaseModel):
    """How a served version stands to the takedowns in force (`serving.takedowns`); ids are the ledger's, shortened."""

    model_config = ConfigDict(frozen=True)
    affected: tuple[str, ...] = ()
    """Entries whose pictures it was trained on, or may have been."""
    unexamined: tuple[str, ...] = ()
    """Entries that came after its training and that it was not examined for."""
    problem: str | None = None
    """Why the ledger says nothing."""
    through: tuple[str, ...] = ()
    """Models that it was made from and that some of these entries are about, by their names."""
    stated: tuple[str, ...] = ()
    """Models that it was made from and of which somebody's statement, not a proof, says that no entry is about them."""

    @property
    def clear(self) -> bool:
        """Whether nothing speaks against serving it."""
        return not (self.affected or self.unexamined or self.problem)


class VersionState(BaseModel):
    """A version of the model in the process that was asked (`serving.slots`)."""

    model_config = ConfigDict(frozen=True)
    version: str
    state: Literal["loading", "live", "warm", "failed", "refused"]
    """`warm`: loaded and answering nobody new; `failed`: the others go on, and it is tried again."""
    aliases: tuple[str, ...] = ()
    """For which it answers."""
    self_test: str | None = None
    """What its self-test was compared with, and how that ended (`serving.selftest`)."""
    problem: str | None = None


class RolloutStanding(BaseModel):
    """How a process that answers stands to the registry; those of other processes may be a moment ahead or behind."""

    model_config = ConfigDict(frozen=True)
    versions: tuple[VersionState, ...] = ()
    problem: str | None = None
    """Why what answers is not what the alias names, or why that is not known."""


class ModelEntry(BaseModel):
    """A served model, in the shape of OpenAI's model list, with where it comes from."""

    model_config = ConfigDict(frozen=True)
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "cleanplate"
    version: str
    alias: str | None
    manifest_id: str
    size: str
    sizes: tuple[str, ...]
    """All that can be asked for, `size` among them."""
    steps: int
    guidance_scale: float
    sampler: SamplerName
    """What a request that does not say gets."""
    takedowns: TakedownStanding | None = None
    """As of the last look; null where the operator's policy is not to look."""
    rollout: RolloutStanding | None = None
    attribution: bool = False
    """Whether training pictures are named where a request asks for it."""
    near_copies: NearCopyPolicy = "off"
    """What becomes of near copies of training pictures."""


class Vocabulary(BaseModel):
    """What a model was told in training: the words that it can be expected to know."""

    model_config = ConfigDict(frozen=True)
    captions: tuple[str, ...] = ()
    """Some of its captions, or all."""
    words: tuple[str, ...] | None = None
    """All words of all captions, in lower case; null where they are not known, or too many to be told."""


class Guide(BaseModel):
    """The body of `GET /v1/guide`: what may be asked for here, and what the model can be expected to know."""

    model_config = ConfigDict(frozen=True)
    model: ModelEntry
    samplers: tuple[SamplerName, ...]
    frames: int | None
    max_steps: int
    max_images: int
    max_guidance_scale: float
    max_prompt_chars: int
    records: bool
    """Whether `/v1/images/{id}` and its reproduction know the pictures that are drawn."""
    attribution: bool
    """Whether the training pictures nearest to a picture can be named."""
    vocabulary: Vocabulary


class ModelList(BaseModel):
    """The body of `GET /v1/models`."""

    model_config = ConfigDict(frozen=True)
    object: Literal["list"] = "list"
    data: list[ModelEntry]


class Health(BaseModel):
    """The body of the two health endpoints when all is well."""

    model_config = ConfigDict(frozen=True)
    status: Literal["live", "ready"]
    model: str | None = None
    version: str | None = None
    backend: str | None = None
    exact: bool | None = None
    rollout: RolloutStanding | None = None
