"""Captions of tags: the words of a vocabulary that CLIP finds in a picture, by its embedding alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator

from curation.captions.captioner import CaptionInput, Named, Said
from curation.clip import Clip, ClipConfig
from curation.errors import UserError

_PROMPTS = ("a picture of {}", "{}")
_IMAGENET = "imagenet"


class TagCaptions(Named):
    """Zero-shot tags: the softmax of CLIP's scaled cosines over a vocabulary says how sure it is of each word.

    That is CLIP's confidence that a picture shows this word rather than the others: a picture that shows two of them
    divides it between them, and one that shows none of them gets the nearest, sometimes confidently.

    The shipped CLIP needs no temperature: on drawings it was not trained on (1,026 Tux Paint stamps, 498 of OpenMoji;
    `python -m tests.bench.tags`) the likelihood is best at temperatures from 0.9 to 1.2 for vocabularies of 10 to 804
    words, and with 500 words or more the expected calibration error is 0.03 to 0.06. From a confidence of 0.5 on it is
    right about 67 to 86 % of what it names, which is 33 to 41 % of the pictures with 50 words and 2 to 6 % with 500 or
    more. Of pictures that show none of the words it names 4 to 8 % with 200 words, 14 to 19 % with 50 and nearly half
    with 10: a vocabulary should have a word for whatever may come.
    """

    kind: Literal["tags"] = "tags"
    vocabulary: tuple[str, ...] | str = Field(
        _IMAGENET, description='words; a file of one a line; or "imagenet", the 1,000 class names that open_clip has'
    )
    text: str = Field("a picture of {tags}", description="the sentence; {tags} stands for the words")
    most: int = Field(1, ge=1, le=20, description="words of a caption at most")
    min_confidence: float = Field(0.5, gt=0, le=1, description="confidence from which on a word is said")
    temperature: float = Field(
        1, gt=0, le=100, description="what the model's own logits are divided by; above 1 makes it less sure"
    )
    always: bool = Field(False, description="asked also where there are enough good captions")

    @field_validator("text")
    @classmethod
    def _has_place_for_tags(cls, text: str) -> str:
        if text.count("{tags}") != 1 or {"{", "}"} & set(text.replace("{tags}", "")):
            raise ValueError("exactly one {tags} must stand in it, and no other braces")
        return text

    def words(self) -> tuple[str, ...]:
        """The vocabulary, in its order and without what stands in it twice.

        Raises:
            UserError: the file cannot be read, or there are not two words.
        """
        words: Sequence[str]
        if not isinstance(self.vocabulary, str):
            words = self.vocabulary
        elif self.vocabulary == _IMAGENET:
            from curation.clip import _open_clip

            words = _open_clip().IMAGENET_CLASSNAMES
        else:
            try:
                words = Path(self.vocabulary).expanduser().read_text("utf-8").splitlines()
            except (OSError, ValueError) as error:
                raise UserError(
                    f"the vocabulary {self.vocabulary} cannot be read: {error}",
                    field="vocabulary",
                    remedy=f'name a text file of one word a line, give a list of words, or "{_IMAGENET}"',
                ) from None
        distinct = tuple(dict.fromkeys(word.strip() for word in words if word.strip()))
        if len(distinct) < 2:
            raise UserError(
                f"the vocabulary has {len(distinct)} words, and a choice needs two",
                field="vocabulary",
                remedy="give more words",
            )
        return distinct

    def check(self, clip: ClipConfig | None) -> None:
        """Raises UserError: see `words`; also where there is no CLIP."""
        if clip is None:
            raise UserError(
                "tags are found by CLIP, and the job has none", field="kind", remedy="set clip, or leave tags out"
            )
        self.words()

    def identity(self) -> dict[str, Any]:
        said = json.dumps(self.words(), ensure_ascii=False).encode()
        vocabulary = hashlib.sha256(said).hexdigest()[:16]
        return {**self.model_dump(mode="json", exclude={"vocabulary"}), "vocabulary": vocabulary}

    def build(self, clip: Clip | None) -> Tags:
        """Embeds the vocabulary.

        Raises:
            UserError: as `check`.
        """
        self.check(None if clip is None else clip._config)
        assert clip is not None, "checked"
        return Tags(self, clip)


class Tags:
    """A vocabulary's vectors."""

    def __init__(self, config: TagCaptions, clip: Clip) -> None:
        self._config = config
        self._words = config.words()
        told = clip.embed_texts([prompt.format(word) for word in self._words for prompt in _PROMPTS])
        means = told.reshape(len(self._words), len(_PROMPTS), -1).mean(axis=1)
        self._vectors = (means / np.linalg.norm(means, axis=1, keepdims=True)).astype(np.float32)
        self._scale = float(clip._model.logit_scale.detach().exp()) / config.temperature

    def __call__(self, rows: Sequence[CaptionInput]) -> list[Said]:
        return [None if row.embedding is None else self._say(row.embedding) for row in rows]

    def confidences(self, embedding: np.ndarray) -> np.ndarray:
        """float64 (V,), summing to one: how the picture of an embedding (dim,) divides among the words."""
        unit = (embedding / max(float(np.linalg.norm(embedding)), 1e-12)).astype(np.float32)
        logits = (self._vectors @ unit).astype(np.float64) * self._scale
        weights = np.exp(logits - logits.max())
        shares: np.ndarray = weights / weights.sum()
        return shares

    def _say(self, embedding: np.ndarray) -> str | None:
        shares = self.confidences(embedding)
        surest = np.argsort(-shares, kind="stable")[: self._config.most]
        found = [self._words[i] for i in surest if shares[i] >= self._config.min_confidence]
        return self._config.text.replace("{tags}", ", ".join(found)) if found else None
