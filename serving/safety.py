"""What a serve job says about finished pictures: concepts and a classifier, and what is done to a picture with one.

Imports neither torch nor CLIP: reading a job must be cheap. `serving.guard` does what is said here.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from curation.clip import ClipConfig
from curation.nsfw import CONCEPT, NsfwConfig
from curation.safety import SafetyConfig

PictureAction = Literal["block", "blur", "flag"]
_OF_CURATION = {"drop": "block", "hold": "block"}


class NsfwPolicy(BaseModel):
    """A second opinion: open_nsfw, from which score on it counts and what is done then. Needs the extra `safety`.

    It was trained on photographs, and says little of drawings and of pictures much smaller than 224 pixels.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    threshold: float = Field(0.8, gt=0, lt=1, description="probability from which on a picture counts as not safe")
    action: PictureAction = Field("block", description="what is done to a picture that counts")
    provider: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto takes CUDA where onnxruntime has it")
    threads: int = Field(1, ge=1, description="CPU threads of one picture's pass")

    def classifier(self) -> NsfwConfig:
        return NsfwConfig(threshold=self.threshold, provider=self.provider, threads=self.threads)


class OutputSafety(BaseModel):
    """Concepts with their thresholds, and what is done to a finished picture that reaches one.

    A score is the cosine between the picture's and the concept's embedding. Thresholds belong to the CLIP model they
    were calibrated for; null takes the model's own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    concepts: dict[str, float | None] = Field({}, description="concept: threshold in (-1, 1), or null for the model's")
    action: PictureAction = Field(
        "block",
        description="block withholds the picture, blur sends what nobody can recognise, flag sends it with its scores",
    )
    actions: dict[str, PictureAction] = Field({}, description="by concept, instead of `action`")
    nsfw: NsfwPolicy | None = Field(None, description="a second opinion by a classifier of its own; null: none")
    preview_margin: float = Field(
        0.05, ge=0, le=1, description="a preview is withheld this much below the thresholds already: it is not finished"
    )

    @model_validator(mode="before")
    @classmethod
    def _as_curation_says_it(cls, told: Any) -> Any:
        if isinstance(told, dict) and told.get("action") in _OF_CURATION:
            return told | {"action": _OF_CURATION[told["action"]]}
        return told

    @field_validator("concepts")
    @classmethod
    def _as_in_curation(cls, concepts: dict[str, float | None]) -> dict[str, float | None]:
        return SafetyConfig(concepts=concepts).concepts

    @model_validator(mode="after")
    def _actions_have_concepts(self) -> OutputSafety:
        strangers = sorted(set(self.actions) - set(self.concepts))
        if strangers:
            raise ValueError(f"actions.{strangers[0]}: there is no such concept")
        return self

    def thresholds(self, clip: ClipConfig) -> dict[str, float]:
        """Every concept of CLIP's with its threshold.

        Raises:
            UserError: a concept that has none, neither here nor by the model.
        """
        return SafetyConfig(concepts=self.concepts).resolve(clip)

    def action_of(self, concept: str) -> PictureAction:
        """What is done to a picture that reaches a concept."""
        if concept == CONCEPT and self.nsfw is not None:
            return self.nsfw.action
        return self.actions.get(concept, self.action)

    def check(self, clip: ClipConfig) -> None:
        """Finds a user's mistake before anything starts, and loads nothing.

        Raises:
            UserError: a CLIP model or a package that is not there, or a concept without a threshold.
        """
        if self.concepts:
            clip.check()
            self.thresholds(clip)
        if self.nsfw is not None:
            self.nsfw.classifier().check()
