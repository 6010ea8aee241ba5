"""What becomes of a prompt: rules say, and CLIP where the operator wants its opinion."""

from __future__ import annotations

import logging
import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from curation.errors import UserError
from serving.api import Moderation, ModerationDetails, RequestError
from serving.prompts.rules import DEFAULT, PromptAction, Rules, read_list

if TYPE_CHECKING:
    from curation.clip import Clip, ClipConfig
    from curation.safety import SafetyScorer

_WINDOW = 16  # words of a prompt that CLIP is shown at a time; half of them again in the next window
_log = logging.getLogger(__name__)


class PromptsConfig(BaseModel):
    """How prompts are judged. The rules cost nothing and are on; CLIP's opinion is off unless concepts are named."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    lists: tuple[str, ...] = Field(
        (DEFAULT,),
        description='files of rules (serving/prompts/default.yaml shows the format), or "default" for that one',
    )
    actions: dict[str, Literal["block", "flag", "ignore"]] = Field(
        {}, description="by category, instead of what the lists say"
    )
    concepts: dict[str, float] = Field(
        {},
        description="concept: the cosine of the prompt's CLIP embedding with it from which on it counts. "
        "`python -m tests.bench.prompts` measures them; with the embedded CLIP only `weapon` is worth it, from 0.46 on",
    )
    concepts_action: PromptAction = Field("flag", description="what a concept that counts does to the prompt")

    @field_validator("concepts")
    @classmethod
    def _cosines(cls, concepts: dict[str, float]) -> dict[str, float]:
        for name, threshold in concepts.items():
            if not name.strip():
                raise ValueError("a concept needs a name")
            if not -1 < threshold < 1:
                raise ValueError(f"the threshold of {name} is {threshold}; a cosine lies between -1 and 1")
        return concepts

    def check(self, clip: ClipConfig) -> None:
        """Finds a user's mistake before anything starts. Raises UserError: as `rules`, or a CLIP that is not there."""
        self.rules()
        if self.concepts:
            clip.check()

    def rooted(self) -> PromptsConfig:
        """The same, with absolute paths."""
        lists = tuple(entry if entry == DEFAULT else os.path.abspath(os.path.expanduser(entry)) for entry in self.lists)
        return self.model_copy(update={"lists": lists})

    def rules(self) -> Rules:
        """The lists, read.

        Raises:
            UserError: a file that is not there or is no list, two lists of one name, or an action for no category.
        """
        lists = [read_list(entry) for entry in self.lists]
        names = [name for name, _ in lists]
        if len(set(names)) < len(names):
            raise UserError(
                "two lists of prompt rules have the same name", field="prompts.lists", remedy="rename one of the files"
            )
        return Rules(dict(lists), self.actions)


@dataclass(frozen=True)
class Opinion:
    """How close a prompt comes to concepts, by CLIP's text tower."""

    clip: Clip
    scorer: SafetyScorer
    action: PromptAction

    def of(self, prompt: str) -> list[Moderation]:
        """The concepts that it reaches. A score that is not a number counts as one that reaches its threshold."""
        # A text tower reads its first words only: what comes after them is shown to it in windows.
        words = prompt.split()
        windows = [
            " ".join(words[at : at + _WINDOW]) for at in range(0, max(1, len(words) - _WINDOW // 2), _WINDOW // 2)
        ]
        scores = self.scorer.scores(self.clip.embed_texts(windows)).max(axis=0)  # nan where one is
        return [
            Moderation(
                stage="prompt", category=name, rule=f"clip:{name}", action=self.action,
                score=None if math.isnan(score) else round(float(score), 4),
            )
            for score, (name, threshold) in zip(scores, self.scorer.thresholds.items(), strict=True)
            if not score < threshold
        ]  # fmt: skip


@dataclass(frozen=True)
class PromptGuard:
    """The rules and, where there are concepts, CLIP's opinion."""

    rules: Rules
    opinion: Opinion | None = None

    def check(self, prompt: str) -> tuple[Moderation, ...]:
        """What is to be said of a prompt that may be drawn, nothing in most cases.

        Raises:
            RequestError: 400 for a prompt that is blocked, with the categories and neither the words nor the rules; 503
                where it could not be judged, since a prompt that nobody judged is not drawn.
        """
        try:
            found = self._by_rules(prompt) + (self.opinion.of(prompt) if self.opinion else [])
        except Exception as error:
            _log.error("a prompt could not be judged: %s", type(error).__name__)  # its text may hold the prompt
            raise RequestError(
                "The prompt could not be checked, so nothing was drawn.",
                status=503,
                param="prompt",
                code="moderation_unavailable",
                retry_after_s=5.0,
            ) from None
        blocking = [entry for entry in found if entry.action == "block"]
        if blocking:
            raise blocked(blocking)
        return tuple(found)

    def _by_rules(self, prompt: str) -> list[Moderation]:
        return [
            Moderation(stage="prompt", category=match.category, rule=match.rule, action=match.action, score=None)
            for match in self.rules.matches(prompt)
        ]


def blocked(entries: list[Moderation]) -> RequestError:
    """The refusal of a prompt, as OpenAI's Images API words it."""
    categories = sorted({entry.category for entry in entries})
    _log.warning("prompt blocked: %s", ", ".join(sorted({entry.rule for entry in entries})))
    return RequestError(
        "Your request was rejected by this server's safety rules: change the prompt. "
        f"safety_violations=[{', '.join(categories)}].",
        param="prompt",
        code="moderation_blocked",
        moderation=ModerationDetails(moderation_stage="input", categories=categories),
    )


def build(prompts: PromptsConfig, clip: ClipConfig) -> PromptGuard:
    """The guard of a job; loads a CLIP model only where the job names concepts.

    Raises:
        UserError: as `PromptsConfig.rules`, or a CLIP model that cannot be loaded.
    """
    if not prompts.concepts:
        return PromptGuard(prompts.rules())
    from curation.safety import SafetyScorer

    loaded = clip.model_copy(update={"batch_size": 1}).build()
    return PromptGuard(
        prompts.rules(), Opinion(loaded, SafetyScorer(prompts.concepts, loaded), prompts.concepts_action)
    )
