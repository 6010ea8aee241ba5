"""The chain: captioners in order of preference, and what is measured of every caption they write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from curation.captions import language
from curation.captions.captioner import Captioner, CaptionInput, Failed, one_line
from curation.captions.choice import Caption, CaptionPolicy
from curation.captions.coca import CocaCaptions
from curation.captions.endpoint import EndpointCaptions
from curation.captions.stated import MetadataCaptions, TemplateCaptions
from curation.captions.tags import TagCaptions
from curation.clip import Clip, ClipConfig
from curation.errors import UserError

CaptionerConfig = Annotated[
    MetadataCaptions | TemplateCaptions | TagCaptions | CocaCaptions | EndpointCaptions, Field(discriminator="kind")
]
_VERSION = 1  # to be raised when the same configuration comes to write or measure something else
_LONGEST = 4000  # letters of a caption; what is longer is a page, not a caption


class CaptionsConfig(BaseModel):
    """Which captioners run, in order of preference, and when one of them has said enough."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    captioners: tuple[CaptionerConfig, ...] = ()
    policy: CaptionPolicy = CaptionPolicy()

    def check(self, clip: ClipConfig | None, *, pictures: bool = True) -> None:
        """Finds a user's mistake before anything starts. Loads no weights and does not reach for the network.

        Args:
            clip: the job's CLIP.
            pictures: whether rows have pictures to show to a model.

        Raises:
            UserError: naming the field and the remedy.
        """
        self.policy.check(scored=clip is not None)
        for number, captioner in enumerate(self.captioners):
            if isinstance(captioner, CocaCaptions | EndpointCaptions) and not pictures:
                raise UserError(
                    f"{captioner.kind} describes pictures, and the job keeps none",
                    field=f"captions.{number}",
                    remedy="set pictures: true, or leave the captioner out",
                )
            try:
                captioner.check(clip)
            except UserError as error:
                told = error.field.rsplit(".", 1)[-1] if error.field else captioner.kind
                raise UserError(error.message, field=f"captions.{number}.{told}", remedy=error.remedy) from None

    def identity(self) -> dict[str, Any]:
        """What decides about the stage's results beside embeddings and pictures: its fingerprint, JSON-able.

        Of the policy only what decides which captioners are asked, and that only where one is asked conditionally.
        """
        asked = {"keep", "min_score", "min_words", "max_words", "languages"}
        conditional = any(not _always(captioner) for captioner in self.captioners)
        return {
            "version": _VERSION,
            "captioners": [captioner.identity() for captioner in self.captioners],
            "language": language.identity(),
            "policy": self.policy.model_dump(mode="json", include=asked) if conditional else None,
        }

    def build(self, clip: Clip | None) -> CaptionStage:
        """Loads the captioners' models.

        Raises:
            UserError: weights or a key are not there.
        """
        return CaptionStage(self, clip)


@dataclass(frozen=True)
class Told:
    """What the captioners said of a row: its captions in order of preference, and who failed and why."""

    captions: list[Caption] = field(default_factory=list)
    failed: dict[str, Failed] = field(default_factory=dict)


class CaptionStage:
    """The loaded chain. A row's captions depend on that row alone, to the bit, where its captioners' do."""

    def __init__(self, config: CaptionsConfig, clip: Clip | None) -> None:
        self._config = config
        self._clip = clip
        self._captioners: list[Captioner] = [captioner.build(clip) for captioner in config.captioners]

    def __call__(self, rows: Sequence[CaptionInput]) -> list[list[Caption]]:
        """The captions of each row, in order of preference; empty where nobody had one."""
        return [told.captions for told in self.tell(rows)]

    def tell(self, rows: Sequence[CaptionInput]) -> list[Told]:
        """The captions of each row, and the captioners that failed at it.

        Raises:
            UserError: a captioner can say nothing about any row, as an endpoint that refuses the key.
        """
        told = [Told() for _ in rows]
        policy = self._config.policy
        for config, captioner in zip(self._config.captioners, self._captioners, strict=True):
            asked = [
                row
                for row in range(len(rows))
                if _always(config) or sum(map(policy.accepts, told[row].captions)) < policy.keep
            ]
            said = captioner([rows[row] for row in asked]) if asked else []
            source, texts = config.name or config.kind, {}
            for row, text in zip(asked, said, strict=True):
                if isinstance(text, Failed):
                    told[row].failed[source] = text
                elif text and (line := _shortened(one_line(text))):
                    texts[row] = line
            texts = {row: text for row, text in texts.items() if all(text != c.text for c in told[row].captions)}
            scores = self._scores({row: (text, rows[row].embedding) for row, text in texts.items()})
            for row, text in texts.items():
                found = Caption(text, source, language.language(text), language.words(text), scores.get(row))
                told[row].captions.append(found)
        return told

    def _scores(self, pairs: dict[int, tuple[str, np.ndarray | None]]) -> dict[int, float]:
        """Cosines of texts and embeddings, of the rows that have an embedding."""
        if self._clip is None:
            return {}
        of = {row: embedding for row, (_, embedding) in pairs.items() if embedding is not None}
        distinct = sorted({pairs[row][0] for row in of})
        vectors = dict(zip(distinct, embed_texts(self._clip, distinct), strict=True))
        return {row: _cosine(vectors[pairs[row][0]], embedding) for row, embedding in of.items()}


def embed_texts(clip: Clip, texts: Sequence[str]) -> np.ndarray:
    """As `Clip.embed_texts`, in full batches only: a text's bits do not depend on how many others there are."""
    size = clip._config.batch_size
    return clip.embed_texts([*texts, *[""] * (-len(texts) % size)])[: len(texts)]


def _cosine(text: np.ndarray, picture: np.ndarray) -> float:
    """As float32, which is what is stored: deciding at once and deciding later see the same number."""
    a, b = text.astype(np.float64), picture.astype(np.float64)
    length = float(np.linalg.norm(b))
    return float(np.float32(a @ b / length)) if length > 0 else 0.0


def _always(captioner: CaptionerConfig) -> bool:
    return isinstance(captioner, MetadataCaptions | TemplateCaptions) or captioner.always


def _shortened(text: str) -> str:
    """At most `_LONGEST` letters, cut between words."""
    return text if len(text) <= _LONGEST else text[:_LONGEST].rsplit(" ", 1)[0]
