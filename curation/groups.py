"""Zero-shot groups: which of a set's groups a picture belongs to, by the words for them.

A set (say, `setting`) has groups (`indoors`, `outdoors`), each described by prompts; CLIP's own softmax over the groups
of a set says how a picture divides among them. They are for reports on what filters remove, not for deciding about
single pictures: zero-shot labels are often wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator

from curation.clip import Clip

UNSURE = "unsure"
_TEMPLATES = ("a picture of {}", "{}")


class GroupsConfig(BaseModel):
    """Sets of groups, each group with its prompts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sets: dict[str, dict[str, tuple[str, ...]]] = Field(
        description="set: {group: [prompts]}, or set: [groups], which are their own prompts"
    )
    margin: float = Field(
        0.1, ge=0, lt=1, description=f"by how much the first group's share must exceed the second's; else {UNSURE}"
    )

    @field_validator("sets", mode="before")
    @classmethod
    def _names_alone(cls, sets: object) -> object:
        if not isinstance(sets, Mapping):
            return sets
        return {
            name: {group: prompts(group) if isinstance(group, str) else () for group in groups}
            if isinstance(groups, list | tuple)
            else groups
            for name, groups in sets.items()
        }

    @field_validator("sets")
    @classmethod
    def _something_to_choose(cls, sets: dict[str, dict[str, tuple[str, ...]]]) -> dict[str, dict[str, tuple[str, ...]]]:
        for name, groups in sets.items():
            if len(groups) < 2:
                raise ValueError(f"{name} needs two groups or more to choose from")
            for group, texts in groups.items():
                if not group.strip() or group == UNSURE:
                    raise ValueError(f"{group!r} in {name} cannot be the name of a group")
                if not texts or not all(text.strip() for text in texts):
                    raise ValueError(f"{group} in {name} needs prompts")
        return sets

    def build(self, clip: Clip) -> Groups:
        """Embeds the prompts with the model that embedded the pictures."""
        return Groups(self, clip)


class Assigned(NamedTuple):
    """A picture's group in a set, or `unsure`, and the share of the likeliest group."""

    group: str
    score: float


class Groups:
    """Assigns embeddings to groups."""

    def __init__(self, config: GroupsConfig, clip: Clip) -> None:
        self._margin = config.margin
        self._scale = clip.logit_scale
        self._sets = {
            name: (sorted(groups), np.array([mean_embedding(clip, groups[g]) for g in sorted(groups)], np.float32))
            for name, groups in sorted(config.sets.items())
        }

    def shares(self, embedding: np.ndarray) -> dict[str, dict[str, float]]:
        """How a picture, a unit vector (dim,), divides among the groups of each set: softmax over scaled cosines."""
        found = {}
        for name, (groups, vectors) in self._sets.items():
            logits = (vectors @ embedding.astype(np.float32)).astype(np.float64) * self._scale
            weights = np.exp(logits - logits.max())
            found[name] = dict(zip(groups, (weights / weights.sum()).tolist(), strict=True))
        return found

    def assign(self, embeddings: np.ndarray) -> list[dict[str, Assigned]]:
        """The groups, by set, of each of N unit vectors (N, dim). Each row alone: its neighbours change no bit."""
        return [{name: self._choose(shares) for name, shares in self.shares(row).items()} for row in embeddings]

    def _choose(self, shares: Mapping[str, float]) -> Assigned:
        (group, first), (_, second) = sorted(shares.items(), key=lambda item: -item[1])[:2]
        # Written so that a share that is not a number is unsure.
        return Assigned(group if first - second >= self._margin else UNSURE, first)


def prompts(name: str) -> tuple[str, ...]:
    """What a name alone is described by."""
    return tuple(template.format(name) for template in _TEMPLATES)


def mean_embedding(clip: Clip, texts: tuple[str, ...]) -> np.ndarray:
    """The unit vector (dim,) in the middle of texts'."""
    mean = clip.embed_texts(texts).mean(axis=0)
    unit: np.ndarray = (mean / np.linalg.norm(mean)).astype(np.float32)
    return unit
